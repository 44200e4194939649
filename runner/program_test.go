package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCompanion: the init's own program is taken only where it belongs to the running one, and nobody else could have put it
// there.
func TestCompanion(t *testing.T) {
	dir := t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	running, file := filepath.Join(dir, "unionfs"), filepath.Join(dir, initProgramName)
	taken := func() bool {
		f := companion(running)
		if f == nil {
			return false
		}
		defer f.Close()
		// The mount is read-only.
		if w, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_WRONLY, 0); !errors.Is(err, unix.EROFS) {
			w.Close()
			t.Errorf("opening it for writing: %v, want %v", err, unix.EROFS)
		}
		return true
	}
	if taken() {
		t.Error("one that isn't there was taken")
	}
	copyProgram(t, selfExe, file)
	if !taken() {
		t.Fatal("one of the same build was not taken")
	}
	must(t, os.Chmod(file, 0o757))
	if taken() {
		t.Error("one that anybody may write to was taken")
	}
	must(t, os.Chmod(file, 0o755))
	must(t, os.Chmod(dir, 0o1777))
	if taken() {
		t.Error("one in a directory where anybody may put it was taken")
	}
	must(t, os.Chmod(dir, 0o755))
	must(t, os.Remove(file))
	copyProgram(t, "/bin/true", file)
	if taken() {
		t.Error("a program of no build was taken")
	}
	must(t, os.Remove(file))
	must(t, os.Mkdir(file, 0o755))
	if taken() {
		t.Error("a directory was taken")
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o755)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, err)
	must(t, out.Close())
}
