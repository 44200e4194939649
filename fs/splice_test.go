package fs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/splice"
	"golang.org/x/sys/unix"
)

// TestFitsPipe fills pipes as the library does, and finds in them what fitsPipe says.
func TestFitsPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tar")
	if err := os.WriteFile(path, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	page := os.Getpagesize()
	refused := 0
	for _, size := range []int{spliceMin, 100_000, 122_880, 126_409, 126_976, 128 << 10, 200_000, 253_440, 512 << 10, 520_000, spliceMax} {
		for _, off := range []int64{0, 512, 2048, 4096 - 512} {
			// A pipe that nobody has used for more before.
			var fds [2]int
			if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.FcntlInt(uintptr(fds[0]), splice.F_SETPIPE_SZ, 16+size+page); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(fds[1], make([]byte, 16)); err != nil {
				t.Fatal(err)
			}
			at := off
			n, err := unix.Splice(int(f.Fd()), &at, fds[1], nil, size, 0)
			if err != nil {
				t.Fatal(err)
			}
			if fits := fitsPipe(off, int64(size)); fits != (int(n) == size) {
				t.Errorf("of %d bytes at %d the pipe takes %d, and fitsPipe says %v", size, off, n, fits)
			} else if !fits {
				refused++
			}
			unix.Close(fds[0])
			unix.Close(fds[1])
		}
	}
	if refused == 0 {
		t.Error("everything fitted")
	}
}
