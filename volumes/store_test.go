package volumes

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestMount(t *testing.T) {
	root, host := t.TempDir(), t.TempDir()
	store := OpenStore(root)
	data := filepath.Join(root, "volumes", "cache", "_data")
	tests := []struct {
		volume Volume
		want   specs.Mount
	}{
		{Volume{Source: host, Target: "/a"}, specs.Mount{Type: "bind", Source: host, Destination: "/a", Options: []string{"rbind", "rprivate"}}},
		{Volume{Source: host, Target: "/a", Options: []string{"ro", "rslave"}, NonRecursive: true}, specs.Mount{Type: "bind", Source: host, Destination: "/a", Options: []string{"bind", "ro", "rslave"}}},
		{Volume{Kind: Named, Source: "cache", Target: "/b"}, specs.Mount{Type: "bind", Source: data, Destination: "/b", Options: []string{"rbind", "rprivate"}}},
		{Volume{Kind: Tmpfs, Target: "/c", Options: []string{"size=1m"}}, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/c", Options: []string{"nosuid", "nodev", "size=1m"}}},
	}
	for _, test := range tests {
		got, err := store.Mount(test.volume)
		if err != nil {
			t.Errorf("%+v: %v", test.volume, err)
		} else if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%+v: %+v, want %+v", test.volume, got, test.want)
		}
	}

	if err := os.WriteFile(filepath.Join(data, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Mount(Volume{Kind: Named, Source: "cache", Target: "/b"}); err != nil {
		t.Errorf("using a volume again: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, "kept")); err != nil {
		t.Error(err)
	}

	one, err := store.Mount(Volume{Kind: Named, Target: "/b"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := store.Mount(Volume{Kind: Named, Target: "/b"})
	if err != nil || one.Source == two.Source {
		t.Errorf("anonymous volumes: %v, %s and %s", err, one.Source, two.Source)
	}

	_, err = store.Mount(Volume{Source: filepath.Join(host, "absent"), Target: "/a"})
	if err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("absent source: %v", err)
	}
}

func TestCheckTargets(t *testing.T) {
	if err := CheckTargets([]Volume{{Target: "/a"}, {Target: "/a/b"}}); err != nil {
		t.Error(err)
	}
	if err := CheckTargets([]Volume{{Target: "/a"}, {Target: "/b"}, {Target: "/a"}}); err == nil {
		t.Error("two volumes at /a were accepted")
	}
}
