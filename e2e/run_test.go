package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"unionfs/internal/testimage"
)

// TestRunHonoursTheImage runs an image whose configuration says something about everything, and changes each by a flag.
func TestRunHonoursTheImage(t *testing.T) {
	image := testimage.Busybox(t, v1.Config{
		Entrypoint: []string{"sh", "-c"},
		Cmd:        []string{`echo "$GREETING from $(pwd) as $(id -un)"`},
		Env:        []string{"PATH=/bin", "GREETING=hello, world"},
		WorkingDir: "/home/user",
		User:       "root",
		Labels:     map[string]string{"a": "b"},
	})
	registry := testimage.Registry(t)
	ref := registry + "/team/configured:1"
	testimage.Push(t, image, ref)

	eachKind(t, func(t *testing.T, c *caller) {
		c.must(t, "pull", ref)
		c.script(t, `mkdir data; echo 'FILE=from a file' > env; printf '# no\n\nPASSED\n' >> env; echo kept > data/file; chmod 777 data`)
		tests := map[string]struct {
			flags, args []string
			want        string
		}{
			"image":        {nil, nil, "hello, world from /home/user as root"},
			"args":         {nil, []string{"echo -n $0 $1", "-it", "--rm"}, "-it --rm"},
			"env":          {[]string{"-e", "GREETING=a,b", "--env", "X=1"}, nil, "a,b from /home/user as root"},
			"env file":     {[]string{"--env-file", "env"}, []string{"echo $FILE"}, "from a file"},
			"workdir":      {[]string{"-w", "/tmp"}, nil, "hello, world from /tmp as root"},
			"entrypoint":   {[]string{"--entrypoint", "echo"}, []string{"-e", "x"}, "x"},
			"hostname":     {[]string{"--hostname", "box"}, []string{"hostname; cat /etc/hostname"}, "box\nbox"},
			"bind":         {[]string{"-v", "./data:/data"}, []string{"cat /data/file; echo new > /data/new"}, "kept"},
			"bind ro":      {[]string{"-v", "./data:/data:ro"}, []string{"cat /data/new; echo no > /data/new || echo refused"}, "new\nrefused"},
			"mount":        {[]string{"--mount", "type=bind,source=data,target=/data,readonly"}, []string{"ls /data"}, "file\nnew"},
			"volume":       {[]string{"-v", "cache:/cache", "--volume", "./data:/d"}, []string{"echo 1 >> /cache/n; cat /cache/n"}, "1"},
			"volume again": {[]string{"-v", "cache:/cache"}, []string{"echo 1 >> /cache/n; cat /cache/n"}, "1\n1"},
			"tmpfs":        {[]string{"--tmpfs", "/tmp:size=1m"}, []string{"df -k /tmp | tail -1 | awk '{print $2}'"}, "1024"},
			"read only":    {[]string{"--read-only"}, []string{"touch /x || echo refused"}, "refused"},
			"no network":   {nil, []string{"ip -o link | wc -l"}, "1"},
			"upper layer":  {nil, []string{"cat /etc/replaced; ls /opt/lower; ls /etc/removed || true"}, "from the upper layer\nshown"},
		}
		// In order, since some follow on others.
		for _, name := range []string{"image", "args", "env", "env file", "workdir", "entrypoint", "hostname", "bind", "bind ro", "mount",
			"volume", "volume again", "tmpfs", "read only", "no network", "upper layer"} {
			t.Run(name, func(t *testing.T) {
				test := tests[name]
				args := append([]string{"run", "--rm"}, test.flags...)
				r := c.try(t, append(append(args, ref), test.args...)...)
				if got := strings.TrimSpace(r.stdout); r.code != 0 || got != test.want {
					t.Errorf("exit code %d, %q, want %q\n%s", r.code, got, test.want, r.stderr)
				}
			})
		}
		if c.uid == 0 || c.subordinates {
			if got := c.must(t, "run", "--rm", "-u", "user", ref); got != "hello, world from /home/user as user\n" {
				t.Errorf("as user: %q", got)
			}
		}
		if _, err := os.Stat(filepath.Join(c.home, "data", "new")); err != nil {
			t.Errorf("what was written through a volume: %v", err)
		}

		c.must(t, "run", "--name", "kept", "--label", "x=y", ref, "true")
		var row struct{ Names, Image, State string }
		if err := json.Unmarshal([]byte(c.must(t, "ps", "-a", "--format", "json")), &row); err != nil || row.Names != "kept" || row.Image != ref || row.State != "exited" {
			t.Errorf("ps: %+v, %v", row, err)
		}
		if r := c.try(t, "rmi", ref); r.code != 1 || !strings.Contains(r.stderr, "kept") {
			t.Errorf("rmi of an image with a container: %+v", r)
		}
		if got := c.must(t, "rm", "kept"); got != "kept\n" {
			t.Errorf("rm: %q", got)
		}
		c.must(t, "rmi", ref)
	})
}

// TestRunSignals sends the signal to the program that the user sees, and kills that, its supervisor and its init.
func TestRunSignals(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		command := c.command(t, shared.unionfs, "run", "--name", "sleeper", "bb:1", "sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.1; done")
		stdout, err := os.Create(filepath.Join(c.home, "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer stdout.Close()
		command.Stdout = stdout
		start(t, c, command)
		waitFor(t, func() bool {
			content, _ := os.ReadFile(stdout.Name())
			return string(content) == "ready\n"
		})
		if r := c.try(t, "rm", "sleeper"); r.code != 1 || !strings.Contains(r.stderr, "--force") {
			t.Errorf("rm of a running container: %+v", r)
		}
		// unshare and setpriv execute what comes after them: it is one process.
		command.Process.Signal(syscall.SIGTERM)
		command.Wait()
		content, _ := os.ReadFile(stdout.Name())
		if code := command.ProcessState.ExitCode(); code != 5 || string(content) != "ready\ngot it\n" {
			t.Errorf("exit code %d, output %q", code, content)
		}
		c.must(t, "rm", "sleeper")

		// Killed, it takes the container with it.
		command = c.command(t, shared.unionfs, "run", "--rm", "bb:1", "sleep", "1000")
		start(t, c, command)
		command.Process.Kill()
		command.Wait()
		waitFor(t, func() bool { return len(c.processes()) == 0 })
		if out := c.must(t, "ps", "-aq"); out != "" {
			t.Errorf("containers are left: %q", out)
		}

		// A running container is removed only by force.
		command = c.command(t, shared.unionfs, "run", "--name", "victim", "bb:1", "sleep", "1000")
		start(t, c, command)
		c.must(t, "rm", "-f", "victim")
		command.Wait()
		if code := command.ProcessState.ExitCode(); code != 137 {
			t.Errorf("exit code %d, want 137", code)
		}
	})
}

// start starts a "run" and waits until "ps" says that its container runs.
func start(t *testing.T, c *caller, command *exec.Cmd) {
	t.Helper()
	said, err := os.CreateTemp(c.home, "stderr-")
	if err != nil {
		t.Fatal(err)
	}
	defer said.Close()
	command.Stderr = said
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			text, _ := os.ReadFile(said.Name())
			t.Logf("%q said: %s", command.Args, text)
		}
	})
	waitFor(t, func() bool { return strings.Contains(c.must(t, "ps", "--format", "json"), `"State":"running"`) })
}

// waitFor waits until the condition holds, for at most two minutes.
func waitFor(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !condition(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("waited for two minutes")
		}
	}
}

// TestHelp shows that every command, and every command's own commands, say what they do, with an example.
func TestHelp(t *testing.T) {
	c := newCaller(t, "root")
	verbs := 0
	var visit func(above ...string)
	visit = func(above ...string) {
		for line := range strings.Lines(c.must(t, slices.Concat([]string{"__complete"}, above, []string{""})...)) {
			verb, about, found := strings.Cut(strings.TrimSpace(line), "\t")
			if !found || about == "" {
				continue // a file
			}
			verbs++
			words := append(slices.Clone(above), verb)
			out := c.must(t, append(slices.Clone(words), "--help")...)
			name := "unionfs " + strings.Join(words, " ")
			if other, is := strings.CutPrefix(about, "is "); is {
				name = strings.Trim(other, `"`)
			}
			for _, part := range []string{"USAGE:", "DESCRIPTION:", "Example", name} {
				if !strings.Contains(out, part) {
					t.Errorf("%s --help lacks %q:\n%s", words, part, out)
				}
			}
			if strings.Contains(out, "COMMANDS:") {
				visit(words...)
			}
		}
	}
	visit()
	if verbs < 40 {
		t.Errorf("only %d commands were found", verbs)
	}
	if out := c.must(t); !strings.Contains(out, "COMMANDS:") {
		t.Errorf("unionfs alone: %q", out)
	}
}

// TestQuickstart runs what the README tells a newcomer to run, with the packages that it needs already installed.
func TestQuickstart(t *testing.T) {
	command := exec.Command("../scripts/quickstart", shared.unionfs)
	command.Env = append(os.Environ(), "TMPDIR="+shared.dir)
	r := run(t, command)
	lines := strings.Split(strings.TrimSpace(r.stdout), "\n")
	if last := lines[len(lines)-1]; r.code != 0 || !strings.HasPrefix(last, "quickstart: ") || !strings.Contains(r.stdout, "Hello, world!") {
		t.Errorf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	if left, _ := filepath.Glob(filepath.Join(shared.dir, "unionfs-quickstart.*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
