package runner

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestHostileRoots runs images that try to make the runner touch what is outside them. Each must either run or fail with
// one line, and leave every file of the host as it was.
func TestHostileRoots(t *testing.T) {
	replace := func(name, target string) func(t *testing.T, root, host string) {
		return func(t *testing.T, root, host string) {
			must(t, os.RemoveAll(filepath.Join(root, name)))
			must(t, os.Symlink(strings.ReplaceAll(target, "HOST", host), filepath.Join(root, name)))
		}
	}
	for _, c := range []struct {
		name    string
		prepare func(t *testing.T, root, host string)
		script  string
		code    int
		says    string // in the output, or in the error
	}{
		{"dev is a link out", replace("dev", "HOST"), "ls -d /dev/null", 0, "/dev/null"},
		{"dev is a link up", replace("dev", "../../../../../HOST"), "ls -d /dev/null", 0, "/dev/null"},
		{"proc is a link", replace("proc", "HOST"), "true", 125, "/proc in the image is not a plain directory"},
		{"proc is a link inside", replace("proc", "/tmp"), "true", 125, "/proc in the image is not a plain directory"},
		{"sys is a link", replace("sys", "HOST"), "true", 125, "/sys in the image is not a plain directory"},
		{"sys is a file", func(t *testing.T, root, host string) {
			must(t, os.RemoveAll(root+"/sys"))
			must(t, os.WriteFile(root+"/sys", nil, 0o644))
		}, "true", 125, "/sys in the image is not a plain directory"},
		{"etc is a link out", replace("etc", "HOST"), "cat /etc/hostname | wc -l", 0, "1"},
		{"etc is a link to proc", replace("etc", "/proc"), "true", 125, "mounting"},
		{"hosts is a link into proc", replace("etc/hosts", "/proc/uptime"), "true", 125, "a link in the image leads into /proc"},
		{"hosts is a link out", replace("etc/hosts", "HOST/victim"), "grep -c localhost /etc/hosts", 0, "2"},
		{"hosts is a link to nothing", replace("etc/hosts", "../run/none/hosts"), "grep -c localhost /etc/hosts", 0, "2"},
		{"hosts is a loop", replace("etc/hosts", "hosts"), "true", 125, "too many levels of symbolic links"},
		{"passwd is a link out", replace("etc/passwd", "HOST/victim"), "echo $HOME", 0, "/"},
		{"passwd is a pipe", func(t *testing.T, root, host string) {
			must(t, os.Remove(root+"/etc/passwd"))
			must(t, unix.Mkfifo(root+"/etc/passwd", 0o644))
		}, "true", 125, "/etc/passwd in the container is not a regular file"},
		{"passwd is endless", func(t *testing.T, root, host string) {
			must(t, os.Truncate(root+"/etc/passwd", 1<<40))
		}, "true", 125, "/etc/passwd in the container is larger than 8 MiB"},
		{"passwd is a magic link", replace("etc/passwd", "/proc/self/fd/0"), "true", 125, "/etc/passwd"},
		{"null in dev is a link out", func(t *testing.T, root, host string) {
			must(t, os.Symlink(host+"/victim", root+"/dev/null"))
		}, "stat -c %t:%T /dev/null", 0, "1:3"},
		{"the shell is a link out", func(t *testing.T, root, host string) {
			must(t, os.Remove(root+"/bin/sh"))
			must(t, os.Symlink(host+"/victim", root+"/bin/sh"))
		}, "true", 127, "no such command"},
		{"tmp is a link to the root", replace("tmp", "/proc/1/root"), "true", 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			inEveryWorld(t, func(t *testing.T, w *ward) {
				host := filepath.Join(filepath.Dir(w.root), "host")
				must(t, os.Mkdir(host, 0o777))
				must(t, os.Chmod(host, 0o777))
				victim := filepath.Join(host, "victim")
				must(t, os.WriteFile(victim, []byte("precious"), 0o666))
				c.prepare(t, w.root, host)
				res := w.run(w.shell(c.script))
				if res.code != c.code || !strings.Contains(res.stdout+res.stderr, c.says) {
					t.Errorf("code %d, output %q, error %q; want %d and %q", res.code, res.stdout, res.stderr, c.code, c.says)
				}
				if strings.Count(res.stderr, "\n") > 1 {
					t.Errorf("more than one line: %q", res.stderr)
				}
				data, err := os.ReadFile(victim)
				if err != nil || string(data) != "precious" {
					t.Errorf("the victim holds %q, %v", data, err)
				}
				if names, err := os.ReadDir(host); err != nil || len(names) != 1 {
					t.Errorf("the host's directory holds %v, %v", names, err)
				}
				if m := mountsUnder(t, filepath.Dir(w.root)); len(m) != 0 {
					t.Errorf("mounts are left: %q", m)
				}
			})
		})
	}
}
