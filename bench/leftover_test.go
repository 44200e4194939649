package bench

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestDiscard removes a directory in which a process still makes files, and something is mounted twice over itself.
func TestDiscard(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tool")
	storage := filepath.Join(dir, "root", "overlay")
	if err := os.MkdirAll(storage, 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() == 0 {
		for range 2 {
			if err := unix.Mount(storage, storage, "", unix.MS_BIND, ""); err != nil {
				t.Fatal(err)
			}
		}
	}
	// true, since a shell ends where : can't be redirected: the directory may have just gone.
	late := exec.Command("sh", "-c", `for i in $(seq 100); do mkdir -p "$0/late"; true >"$0/late/$i"; sleep 0.01; done`, dir)
	if err := late.Start(); err != nil {
		t.Fatal(err)
	}
	defer late.Process.Kill()
	if err := discard(dir); err != nil {
		t.Error(err)
	}
	if err := late.Wait(); err != nil {
		t.Errorf("what a tool was still doing was not let finish: %v", err)
	}
	if err := discard(dir); err != nil { // also where nothing is
		t.Error(err)
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("it is still there")
	}
}
