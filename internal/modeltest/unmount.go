package modeltest

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Unmount unmounts what somebody may be looking at for a moment, as programs do that walk through all mounts.
func Unmount(t testing.TB, path string) {
	t.Helper()
	err := unix.Unmount(path, 0)
	for deadline := time.Now().Add(time.Minute); err == unix.EBUSY && time.Now().Before(deadline); err = unix.Unmount(path, 0) {
		time.Sleep(10 * time.Millisecond)
	}
	if err != nil {
		t.Errorf("unmounting %s: %v", path, err)
		_ = unix.Unmount(path, unix.MNT_DETACH)
	}
}
