package cow

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// largeFile is a union over a lower file that is big enough to be copied up by block, and what the file must hold.
type largeFile struct {
	*tree
	want []byte
	n    *Node
}

func newLargeFile(t *testing.T, rng *rand.Rand) *largeFile {
	w := &tree{t: t, upper: t.TempDir(), work: t.TempDir(), lower: []string{t.TempDir()}, rng: rng}
	want := make([]byte, partialMin+3*partialBlock+1234)
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	must(t, os.MkdirAll(filepath.Join(w.lower[0], "dir"), 0o755))
	must(t, os.WriteFile(filepath.Join(w.lower[0], "dir", "large"), want, 0o644))
	f := &largeFile{tree: w, want: want}
	w.open()
	f.hold()
	return f
}

func (f *largeFile) hold() {
	var err error
	f.n, _, err = f.walk("/dir/large")
	must(f.t, err)
}

func (f *largeFile) write(off int, b []byte) {
	f.t.Helper()
	n, err := f.u.Write(f.n, int64(off), b)
	if err != nil || n != len(b) {
		f.t.Fatalf("writing %d bytes at %d: %d, %v", len(b), off, n, err)
	}
	if grow := off + len(b) - len(f.want); grow > 0 {
		f.want = append(f.want, make([]byte, grow)...)
	}
	copy(f.want[off:], b)
}

func (f *largeFile) check(when string) {
	f.t.Helper()
	got := make([]byte, len(f.want)+10)
	n, err := f.u.Read(f.n, 0, got)
	if err != nil || !bytes.Equal(got[:n], f.want) {
		f.t.Fatalf("%s: %d bytes of %d, %v; the first difference is at %d", when, n, len(f.want), err, firstDifference(got[:n], f.want))
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return min(len(a), len(b))
}

// kill leaves the union as a SIGKILL does: nothing is completed, and what the kernel gives back at a process's end is
// given back.
func (f *largeFile) kill() {
	f.u.stopPartials()
	letGo(f.u)
}

// TestPartialCopyUp writes here and there into a large lower file, while it is copied up in the background, and over kills.
func TestPartialCopyUp(t *testing.T) {
	rng := modeltest.NewRand(t)
	for round := range 8 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			f := newLargeFile(t, rng)
			paused := round%2 == 0
			f.write(rng.IntN(len(f.want)), []byte("x"))
			if f.n.part == nil && !f.u.upper.hasData(mustFD(t, f)) {
				t.Fatal("neither shared nor copied by block")
			}
			if paused {
				f.u.stopPartials()
			}
			for i := range 60 {
				size := len(f.want)
				switch rng.IntN(8) {
				case 0:
					f.check(fmt.Sprint("step ", i))
				case 1:
					to := max(0, size-rng.IntN(3*partialBlock)+rng.IntN(partialBlock))
					var a Attr
					must(t, f.u.Setattr(f.n, &SetAttr{Valid: SetSize, Size: uint64(to)}, &a))
					if to <= size {
						f.want = f.want[:to:to]
					} else {
						f.want = append(f.want, make([]byte, to-size)...)
					}
				case 2:
					off, n := rng.IntN(size), rng.IntN(3*partialBlock)
					must(t, f.u.Fallocate(f.n, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, int64(off), int64(n+1), false))
					clear(f.want[off:min(size, off+n+1)])
				case 3:
					var a Attr
					f.u.Forget(f.n, 1)
					f.hold()
					must(t, f.u.Getattr(f.n, &a))
					if a.Nlink != 1 || a.Size != uint64(size) {
						t.Fatalf("%d links, %d bytes of %d", a.Nlink, a.Size, size)
					}
				default:
					b := make([]byte, 1+rng.IntN(2*partialBlock))
					for i := range b {
						b[i] = byte(rng.Uint32())
					}
					f.write(rng.IntN(size+partialBlock/2), b)
				}
			}
			f.check("before the end")
			if round%4 < 2 {
				f.kill()
				f.open()
				f.hold()
				f.check("after a kill")
			}
			f.u.Forget(f.n, 1)
			f.close()
			if b, err := os.ReadFile(filepath.Join(f.upper, "dir", "large")); err != nil || !bytes.Equal(b, f.want) {
				t.Fatalf("the upper branch's file is not complete: %v, difference at %d", err, firstDifference(b, f.want))
			}
			left, err := os.ReadDir(filepath.Join(f.work, "partial"))
			if err != nil || len(left) > 0 {
				t.Fatalf("left in work/partial: %v, %v", left, err)
			}
		})
	}
}

func mustFD(t *testing.T, f *largeFile) int {
	d, err := f.u.Data(f.n)
	must(t, err)
	d.Release()
	return d.FD
}

// TestPartialCopyUpKeepsTimes: a chmod of a large lower file changes neither its mtime nor its data, also after the copy-up.
func TestPartialCopyUpKeepsTimes(t *testing.T) {
	f := newLargeFile(t, modeltest.NewRand(t))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(f.lower[0], "dir", "large"), []unix.Timespec{{Sec: 1}, {Sec: 2}}, 0))
	var a Attr
	must(t, f.u.Setattr(f.n, &SetAttr{Valid: SetMode, Mode: 0o600}, &a))
	if a.Mtime.Sec != 2 {
		t.Errorf("mtime %v", a.Mtime)
	}
	f.check("after chmod")
	f.u.Forget(f.n, 1)
	f.close()
	fi, err := os.Stat(filepath.Join(f.upper, "dir", "large"))
	must(t, err)
	if !fi.ModTime().Equal(time.Unix(2, 0)) || fi.Mode().Perm() != 0o600 {
		t.Errorf("the upper file has mtime %v, mode %v", fi.ModTime(), fi.Mode())
	}
}

// TestPartialCopyUpOfDeletedFile: nothing of it stays.
func TestPartialCopyUpOfDeletedFile(t *testing.T) {
	f := newLargeFile(t, modeltest.NewRand(t))
	f.write(5, []byte("x"))
	dir, _, err := f.walk("/dir")
	must(t, err)
	must(t, f.u.Unlink(dir, "large"))
	f.check("unlinked but held")
	f.u.Forget(f.n, 1)
	f.u.Forget(dir, 1)
	for _, d := range []string{"partial", "parked"} {
		if left, err := os.ReadDir(filepath.Join(f.work, d)); err != nil || len(left) > 0 {
			t.Errorf("left in work/%s: %v, %v", d, left, err)
		}
	}
	f.close()
}

func FuzzPartialRecord(f *testing.F) {
	f.Add([]byte(partialMagic))
	f.Add(append([]byte(partialMagic), make([]byte, 40)...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var counts int64
		path, low, head, err := parseRecord(raw, &counts)
		if err != nil {
			return
		}
		p := &partial{size: counts, bits: raw[head:]}
		if counts < 0 || uint64(counts) > low.Size || path[0] != '/' {
			t.Fatalf("%q %d %d", path, counts, low.Size)
		}
		if b := p.blocks(); b > 0 {
			p.owns(b - 1) // is within the record
		}
	})
}
