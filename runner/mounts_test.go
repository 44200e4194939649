package runner

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestVolumes(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		dir := filepath.Dir(w.root)
		volume, file, outside := filepath.Join(dir, "volume"), filepath.Join(dir, "file"), filepath.Join(dir, "outside")
		for _, d := range []string{volume, outside} {
			must(t, os.Mkdir(d, 0o777))
			must(t, os.Chmod(d, 0o777))
		}
		must(t, os.WriteFile(filepath.Join(volume, "data"), []byte("from the host"), 0o644))
		must(t, os.WriteFile(file, []byte("a file"), 0o644))
		must(t, os.Symlink(volume, filepath.Join(dir, "link")))
		must(t, os.Mkdir(filepath.Join(w.root, "real"), 0o777))
		must(t, os.Chmod(filepath.Join(w.root, "real"), 0o777))
		for name, to := range map[string]string{"inlink": "/real", "outlink": outside, "uplink": "../../../../../../../" + outside} {
			must(t, os.Symlink(to, filepath.Join(w.root, name)))
		}
		if err := unix.Mknod(filepath.Join(volume, "disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name, source, target string
			options              []string
			script, want         string
		}{
			{"read and write", volume, "/vol", nil, "cat /vol/data; echo new >/vol/new; cat /vol/new", "from the hostnew"},
			{"read-only", volume, "/vol", []string{"ro"}, "cat /vol/data; touch /vol/x 2>/dev/null || echo refused", "from the hostrefused"},
			{"read-only on nested mounts", "/", "/vol", []string{"ro"}, "touch /vol/dev/shm/unionfs-x 2>/dev/null || echo refused", "refused"},
			{"no devices", volume, "/vol", nil, "dd if=/vol/disk of=/dev/null count=1 2>/dev/null || echo refused", "refused"},
			{"noexec", "/bin", "/vol", []string{"noexec"}, "/vol/busybox true 2>/dev/null; echo $?", "126"},
			{"a file", file, "/etc/file", nil, "cat /etc/file", "a file"},
			{"a file over a file", file, "/etc/passwd", nil, "cat /etc/passwd", "a file"},
			{"a link on the host", filepath.Join(dir, "link"), "/vol", nil, "cat /vol/data", "from the host"},
			{"a link in the image", volume, "/inlink", nil, "cat /real/data", "from the host"},
			{"below a link in the image", volume, "/inlink/new/sub", nil, "cat /real/new/sub/data", "from the host"},
			{"a link out of the image", volume, "/outlink", nil, "cat /outlink/data", "from the host"},
			{"a link up and out", volume, "/uplink/x", nil, "cat /uplink/x/data", "from the host"},
			{"a target with ..", volume, "/real/../../../vol2", nil, "cat /vol2/data", "from the host"},
			{"below dev", volume, "/dev/vol", nil, "cat /dev/vol/data", "from the host"},
			{"a device", "/dev/zero", "/dev/mine", nil, "head -c 3 /dev/mine | wc -c", "3"},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := w.in(t)
				r := w.shell(c.script)
				r.Spec.Mounts = append(r.Spec.Mounts, bindMount(c.source, c.target, c.options...))
				if got := w.output(r); got != c.want {
					t.Errorf("printed %q, want %q", got, c.want)
				}
			})
		}
		if names, err := os.ReadDir(outside); err != nil || len(names) != 0 {
			t.Errorf("outside the root were made %v, %v", names, err)
		}
		if _, err := os.Stat("/dev/shm/unionfs-x"); err == nil {
			os.Remove("/dev/shm/unionfs-x")
			t.Error("a read-only volume was written to")
		}
		for _, c := range []struct{ name, source, target, says string }{
			{"missing source", filepath.Join(dir, "none"), "/vol", "no such file or directory"},
			{"directory over file", volume, "/etc/passwd", "a directory can be mounted only on a directory"},
			{"file as directory", volume, "/etc/passwd/sub", "not a directory"},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := w.in(t)
				r := w.shell("true")
				r.Spec.Mounts = append(r.Spec.Mounts, bindMount(c.source, c.target))
				res := w.run(r)
				if res.code != 125 || !strings.Contains(res.stderr, c.says) || strings.Count(res.stderr, "\n") != 1 {
					t.Errorf("code %d, error %q, want 125 and %q", res.code, res.stderr, c.says)
				}
			})
		}
	})
}

// TestPlaceholders: mount points that the root lacks are made, and named in the status.
func TestPlaceholders(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, name := range []string{"dev", "proc", "sys", "etc/hosts"} {
			must(t, os.RemoveAll(filepath.Join(w.root, name)))
		}
		r := w.shell("ls /proc/1 >/dev/null && cat /etc/hosts | wc -l")
		r.Spec.Mounts = append(r.Spec.Mounts, bindMount("/etc", "/a/b"))
		if got := w.output(r); got != "3" {
			t.Errorf("printed %q, want 3", got)
		}
		all, err := (&State{root: w.state}).List()
		must(t, err)
		st, err := all[0].Status()
		must(t, err)
		slices.Sort(st.Placeholders)
		if want := []string{"/a", "/a/b", "/dev", "/etc/hosts", "/proc", "/sys"}; !slices.Equal(st.Placeholders, want) {
			t.Errorf("placeholders are %q, want %q", st.Placeholders, want)
		}
	})
}

func TestReadOnlyRoot(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell("touch /x 2>/dev/null || echo refused; touch /tmp/x && echo written")
		r.Spec.Root.Readonly = true
		r.Spec.Mounts = append(r.Spec.Mounts, specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"size=1m"}})
		if got := w.output(r); got != "refused\nwritten" {
			t.Errorf("printed %q", got)
		}
	})
}

func TestWorkingDirectory(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		must(t, os.Symlink("/proc/self/fd/1/../../..", filepath.Join(w.root, "escape")))
		must(t, os.Symlink("/etc", filepath.Join(w.root, "conf")))
		for _, c := range []struct {
			dir, want string
			code      int
		}{
			{"/etc", "/etc", 0},
			{"/made/up", "/made/up", 0},
			{"/conf", "/etc", 0},
			{"/proc/self/fd/7", "", 125},
			{"/etc/passwd", "", 125},
		} {
			t.Run(c.dir, func(t *testing.T) {
				w := w.in(t)
				r := w.command("pwd", "-P")
				r.Spec.Process.Cwd = c.dir
				if res := w.run(r); res.code != c.code || strings.TrimSpace(res.stdout) != c.want {
					t.Errorf("code %d, in %q; want %d, %q; error %q", res.code, res.stdout, c.code, c.want, res.stderr)
				}
			})
		}
	})
}

func TestSysctlsAndLimits(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell("cat /proc/sys/net/ipv4/ip_unprivileged_port_start; ulimit -n; ulimit -Hn")
		r.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "80"}
		r.Spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 1 << 40}}
		lines := strings.Split(w.output(r), "\n")
		if len(lines) != 3 || lines[0] != "80" || lines[1] != "100" {
			t.Errorf("printed %q", lines)
		}
		for _, key := range []string{"kernel.core_pattern", "vm.swappiness", "kernel.hostname", "net", "../kernel.core_pattern", "net.../kernel.core_pattern"} {
			r := w.shell("true")
			r.Spec.Linux.Sysctl = map[string]string{key: "0"}
			if res := w.run(r); res.code != 125 || !strings.Contains(res.stderr, "kernel parameter") {
				t.Errorf("parameter %s: code %d, %q", key, res.code, res.stderr)
			}
		}
	})
}
