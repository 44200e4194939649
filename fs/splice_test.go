package fs

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestPipeFits fills pipes as replies do, and finds in them what fits says.
func TestPipeFits(t *testing.T) {
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
	p := pipes{page: page}
	defer p.close()
	refused := 0
	for _, size := range []int{spliceMin, 100_000, 126_409, 128 << 10, 520_000, pipeSize - 3*page, pipeSize - 2*page, pipeSize - page, pipeSize - page + 1, pipeSize} {
		for _, off := range []int64{0, 512, 2048, 4096 - 512} {
			pipe, ok := p.get()
			if !ok {
				t.Fatal("there is no pipe")
			}
			if err := unix.SetNonblock(pipe[1], true); err != nil {
				t.Fatal(err)
			}
			if _, err := unix.Write(pipe[1], make([]byte, outHeaderSize)); err != nil {
				t.Fatal(err)
			}
			at := off
			n, err := unix.Splice(int(f.Fd()), &at, pipe[1], nil, size, 0)
			if err != nil {
				t.Fatal(err)
			}
			if fits := p.fits(off, int64(size)); fits != (int(n) == size) {
				t.Errorf("of %d bytes at %d the pipe takes %d, and fits says %v", size, off, n, fits)
			} else if !fits {
				refused++
			}
			closePipe(pipe)
		}
	}
	if refused == 0 {
		t.Error("everything fitted")
	}
}
