package mountpoint

import (
	"errors"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestIs compares what one system call says with the kernel's list of mounts.
func TestIs(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/", "/proc", "/proc/self", "/etc", dir, filepath.Join(dir, "nothing")} {
		is, err := Is(path)
		m, oerr := On(path)
		if listed := oerr == nil; is != listed || err != nil {
			t.Errorf("%s: %v, %v; in the list: %v, %v", path, is, err, listed, oerr)
		}
		if !is {
			continue
		}
		major, minor, err := DeviceNumberOf(path)
		if err != nil || int(major) != m.Major || int(minor) != m.Minor {
			t.Errorf("%s: device %d:%d, %v; in the list %d:%d", path, major, minor, err, m.Major, m.Minor)
		}
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); errors.Is(err, unix.EPERM) {
		t.Skip("an ordinary user can't mount here; the rest is checked")
	} else if err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	if is, err := Is(dir); !is || err != nil {
		t.Errorf("a directory that is bound to itself: %v, %v", is, err)
	}
}
