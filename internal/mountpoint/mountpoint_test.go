package mountpoint

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// TestOn compares what is said of directories with the kernel's list of mounts.
func TestOn(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	check := func(path string) (there bool) {
		t.Helper()
		listed, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
		if err != nil {
			t.Fatal(err)
		}
		m, err := On(path)
		if len(listed) == 0 {
			if !errors.Is(err, ErrNone) {
				t.Errorf("%s: %v, %v; it isn't in the list", path, m, err)
			}
			return false
		}
		want := listed[len(listed)-1]
		if err != nil || *m != *want {
			t.Errorf("%s: %v, %v; in the list %v", path, m, err, want)
		}
		return true
	}
	for path, mounted := range map[string]bool{"/": true, "/proc": true, "/proc/self": false, dir: false, filepath.Join(dir, "nothing"): false} {
		if check(path) != mounted {
			t.Errorf("%s is mounted or not, against what is expected", path)
		}
	}
	major, minor, err := DeviceNumberOf("/proc")
	if m, merr := On("/proc"); err != nil || merr != nil || int(major) != m.Major || int(minor) != m.Minor {
		t.Errorf("/proc: device %d:%d, %v; in the list %v, %v", major, minor, err, m, merr)
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if !check(dir) {
		t.Error("a directory that is bound to itself is not mounted")
	}
}
