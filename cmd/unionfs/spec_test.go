package main

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/cow"
	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

func TestNewSpecArguments(t *testing.T) {
	text := func(s string) *string { return &s }
	tests := map[string]struct {
		entrypoint, cmd []string // of the image
		flag            *string
		args            []string
		want            []string // nil for an error
	}{
		"image":              {[]string{"e", "1"}, []string{"c"}, nil, nil, []string{"e", "1", "c"}},
		"args":               {[]string{"e"}, []string{"c"}, nil, []string{"a", "b"}, []string{"e", "a", "b"}},
		"no entry point":     {nil, []string{"c"}, nil, nil, []string{"c"}},
		"other entry point":  {[]string{"e"}, []string{"c"}, text("x"), nil, []string{"x"}},
		"both":               {[]string{"e"}, []string{"c"}, text("x"), []string{"a"}, []string{"x", "a"}},
		"empty entry point":  {[]string{"e"}, []string{"c"}, text(""), []string{"a"}, []string{"a"}},
		"nothing":            {nil, nil, nil, nil, nil},
		"entry point is out": {[]string{"e"}, []string{"c"}, text(""), nil, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			config := imagespec.ImageConfig{Entrypoint: test.entrypoint, Cmd: test.cmd}
			spec, err := newSpec(config, processRequest{entrypoint: test.flag, args: test.args, network: networkRequest{mode: "none"}}, volumes.OpenStore(t.TempDir()).Claim())
			if test.want == nil {
				if err == nil || !strings.Contains(err.Error(), "no command") {
					t.Errorf("error %v", err)
				}
				return
			}
			if err != nil || !slices.Equal(spec.Process.Args, test.want) {
				t.Errorf("%v, %v, want %q", spec, err, test.want)
			}
		})
	}
}

func TestNewSpec(t *testing.T) {
	root := t.TempDir()
	spec, err := newSpec(imagespec.ImageConfig{
		Cmd: []string{"true"}, Env: []string{"PATH=/image", "A=image", "B=image"}, WorkingDir: "srv", StopSignal: "SIGQUIT",
		Labels: map[string]string{"x": "image", "y": "image", "io.unionfs.auto-remove": "true", rootfs.AnnotationImageID: "other"},
	}, processRequest{
		env: []string{"B=flag", "C=flag"}, labels: map[string]string{"y": "flag"}, workdir: "", hostname: "box", readOnly: true, terminal: true, network: networkRequest{mode: "host"},
		volumes: []volumes.Volume{{Kind: volumes.Tmpfs, Target: "/dev/shm"}, {Kind: volumes.Tmpfs, Target: "/a/b"}, {Kind: volumes.Tmpfs, Target: "/a"}},
	}, volumes.OpenStore(root).Claim())
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"PATH=/image", "A=image", "B=flag", "TERM=xterm", "C=flag"}; !slices.Equal(spec.Process.Env, want) {
		t.Errorf("environment %q, want %q", spec.Process.Env, want)
	}
	if spec.Process.Cwd != "/srv" || spec.Hostname != "box" || !spec.Root.Readonly || !spec.Process.Terminal {
		t.Errorf("%+v", spec)
	}
	if kept := spec.Annotations[supervisor.AnnotationVolumes]; !strings.Contains(kept, `"target":"/a/b"`) {
		t.Errorf("the volumes are kept as %q", kept)
	}
	delete(spec.Annotations, supervisor.AnnotationVolumes)
	if want := map[string]string{"x": "image", "y": "flag", runner.AnnotationStopSignal: "SIGQUIT"}; !reflect.DeepEqual(spec.Annotations, want) {
		t.Errorf("annotations %v, want %v", spec.Annotations, want)
	}
	if slices.ContainsFunc(spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		t.Error("the host's network was asked for, and there is a network namespace")
	}
	var targets []string
	for _, m := range spec.Mounts {
		targets = append(targets, m.Destination)
	}
	if n := len(targets); !slices.Equal(targets[n-3:], []string{"/a", "/dev/shm", "/a/b"}) || slices.Index(targets, "/dev/shm") != n-2 {
		t.Errorf("mounts at %q", targets)
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("GIVEN", "value")
	os.Unsetenv("ABSENT")
	got, err := resolveEnv([]string{"A=1", "GIVEN", "ABSENT", "B=", "C=x=y,z"})
	if want := []string{"A=1", "GIVEN=value", "B=", "C=x=y,z"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
	if _, err := resolveEnv([]string{"=x"}); err == nil {
		t.Error("a variable without a name was accepted")
	}
	file := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(file, []byte("# comment\n\n  A=1\nB=with # no comment \nGIVEN\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err = readEnvFile(file)
	if want := []string{"A=1", "B=with # no comment ", "GIVEN=value"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%q, %v, want %q", got, err, want)
	}
}

func TestWithoutPlaceholders(t *testing.T) {
	change := func(lines ...string) []cow.Change {
		var all []cow.Change
		for _, line := range lines {
			all = append(all, cow.Change{Kind: cow.ChangeKind(line[0]), Path: line[2:]})
		}
		return all
	}
	tests := map[string]struct{ changes, want []cow.Change }{
		"only placeholders":  {change("C /etc", "A /etc/hosts"), nil},
		"a change beside":    {change("C /etc", "A /etc/hosts", "C /etc/passwd"), change("C /etc", "C /etc/passwd")},
		"a directory of one": {change("A /srv", "A /srv/data", "A /srv/data/own"), change("A /srv", "A /srv/data", "A /srv/data/own")},
		"others stay":        {change("C /usr", "D /usr/share"), change("C /usr", "D /usr/share")},
	}
	for name, test := range tests {
		if got := withoutPlaceholders(test.changes, []string{"/etc/hosts", "/srv", "/srv/data"}); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", name, got, test.want)
		}
	}
}
