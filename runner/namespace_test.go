package runner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"
)

// TestSubordinateFiles: what a container's users wrote belongs to subordinate IDs, and can be read and removed within the
// user namespace only.
func TestSubordinateFiles(t *testing.T) {
	w := newWard(t, worlds()[1])
	w.output(w.shell("mkdir /tmp/d && echo x >/tmp/d/f && chmod 700 /tmp/d && chown -R 1000:1000 /tmp/d"))
	var st unix.Stat_t
	must(t, unix.Stat(filepath.Join(w.root, "tmp/d/f"), &st))
	if st.Uid != 200999 || st.Gid != 200999 { // 1 is the first of the range
		t.Errorf("the file belongs to %d:%d, want 200999:200999", st.Uid, st.Gid)
	}
	file := filepath.Join(w.root, "tmp/d/f")
	if res := finish(t, w.verb("test-exec", "/bin/busybox", "cat", file)); res.code == 0 {
		t.Errorf("the user can read it outside the namespace")
	}
	if res := finish(t, w.verb("test-inside", "/bin/busybox", "stat", "-c", "%u:%g", file)); res.code != 0 || res.stdout != "1000:1000\n" {
		t.Errorf("inside: code %d, %q, %q", res.code, res.stdout, res.stderr)
	}
}

func TestInUserNamespace(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		res := finish(t, w.verb("test-inside", "/bin/busybox", "sh", "-c", "id -u; exit 6"))
		if res.code != 6 || res.stdout != "0\n" {
			t.Errorf("code %d, %q, %q", res.code, res.stdout, res.stderr)
		}
		cmd := w.verb("test-inside", "/bin/busybox", "cat")
		cmd.Stdin = strings.NewReader("input")
		if res := finish(t, cmd); res.stdout != "input" {
			t.Errorf("standard input: %q, %q", res.stdout, res.stderr)
		}
	})
}

// TestNoUserNamespaces: each reason why there can be none is said in one line, with what to do.
func TestNoUserNamespaces(t *testing.T) {
	for _, c := range []struct{ name, world, path, says string }{
		{"switched off", "none", "", "user namespaces are switched off on this host"},
		{"no newuidmap", "ranges", "/nonexistent", "install the package uidmap"},
		{"one kind of range", "uids", "", "only one of /etc/subuid and /etc/subgid"},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWard(t, world{name: c.world, user: true})
			cmd := w.cmd(w.shell("true"))
			if c.path != "" {
				cmd.Env = append(os.Environ(), "PATH="+c.path)
			}
			res := finish(t, cmd)
			if res.code != 125 || !strings.Contains(res.stderr, c.says) || strings.Count(res.stderr, "\n") != 1 {
				t.Errorf("code %d, error %q; want %q", res.code, res.stderr, c.says)
			}
			res = finish(t, w.verb("test-inside", "/bin/true"))
			if c.path == "" && (res.code != 125 || !strings.Contains(res.stderr, c.says)) {
				t.Errorf("InUserNamespace: code %d, error %q; want %q", res.code, res.stderr, c.says)
			}
		})
	}
}

func TestNamespaceMap(t *testing.T) {
	got := mapArguments(namespaceMap(1000, []user.SubID{{SubID: 100000, Count: 65536}, {SubID: 300000, Count: 10}}))
	if want := "0 1000 1 1 100000 65536 65537 300000 10"; strings.Join(got, " ") != want {
		t.Errorf("map is %q, want %s", got, want)
	}
}
