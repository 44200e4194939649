package fs_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/fs"
)

// randomBytes is data that compresses to nothing and repeats nowhere; the same for the same seed.
func randomBytes(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	if _, err := r.Read(b); err != nil {
		panic(err)
	}
	return b
}

// TestReadSizes reads a lower file by all the ways that the server has: small (copied), large (spliced), direct, at the end.
func TestReadSizes(t *testing.T) {
	b := newBranches(t)
	want := randomBytes(1, 3<<20+17)
	b.inLower(t, "big", string(want))
	b.mount(t, fs.Options{})
	path := filepath.Join(b.mnt, "big")
	if got := read(t, path); got != string(want) {
		t.Error("buffered read differs")
	}
	for _, flags := range []int{0, unix.O_DIRECT} {
		f := open(t, path, os.O_RDONLY|flags)
		for _, size := range []int{512, 4096, 60 << 10, 64 << 10, 200 << 10, 1 << 20} {
			for _, off := range []int{0, 4096, 1 << 20, 3<<20 - 4096, 3 << 20, 4 << 20} {
				buf := make([]byte, size)
				n, err := f.ReadAt(buf, int64(off))
				if err != nil && !errors.Is(err, io.EOF) {
					t.Fatalf("flags %#x size %d offset %d: %v", flags, size, off, err)
				}
				part := want[min(off, len(want)):min(off+size, len(want))]
				if !bytes.Equal(buf[:n], part) {
					t.Errorf("flags %#x size %d offset %d: %d bytes read, %d wanted, or other ones", flags,
						size, off, n, len(part))
				}
			}
		}
	}
}

// TestUnlinkedButOpen reads and writes files without a name: one of the lower branch, one copied up, and a new one.
func TestUnlinkedButOpen(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "lower", "of the lower branch")
	b.inLower(t, "copied", "of the lower branch")
	b.mount(t, fs.Options{})
	write(t, filepath.Join(b.mnt, "copied"), "copied up")
	write(t, filepath.Join(b.mnt, "new"), "new")
	var files []*os.File
	for _, name := range []string{"lower", "copied", "new"} {
		f := open(t, filepath.Join(b.mnt, name), os.O_RDWR)
		if err := os.Remove(f.Name()); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	if e, err := os.ReadDir(b.mnt); err != nil || len(e) != 0 {
		t.Errorf("after removing all files: %v, %v", e, err)
	}
	for _, f := range files {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil || st.Nlink != 0 {
			t.Errorf("%s: nlink %d, %v", f.Name(), st.Nlink, err)
		}
		if _, err := f.WriteAt([]byte("WRITTEN"), 2); err != nil {
			t.Errorf("writing %s: %v", f.Name(), err)
		}
		if err := f.Sync(); err != nil {
			t.Errorf("syncing %s: %v", f.Name(), err)
		}
		got := make([]byte, 9)
		if _, err := f.ReadAt(got, 0); err != nil || string(got[2:]) != "WRITTEN" {
			t.Errorf("reading %s: %q, %v", f.Name(), got, err)
		}
		if err := f.Truncate(1 << 20); err != nil {
			t.Errorf("truncating %s: %v", f.Name(), err)
		}
		if err := f.Chmod(0o600); err != nil {
			t.Errorf("chmod of %s: %v", f.Name(), err)
		}
	}
	if got := read(t, filepath.Join(b.lower, "lower")); got != "of the lower branch" {
		t.Errorf("the lower branch was changed: %q", got)
	}
}

// TestSharedMapping writes through one mapping and reads through another file of the same inode, over the copy-up. Another
// process has the mappings: a page fault on a mount of one's own stops Go's scheduler.
func TestSharedMapping(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", strings.Repeat("lower...", 2048))
	b.mount(t, fs.Options{})
	if out, err := roleCommand(t, "mapping", filepath.Join(b.mnt, "file")).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if up := read(t, filepath.Join(b.upper, "file")); up[4096:4102] != "mapped" || len(up) != 16384 {
		t.Errorf("the upper file has %d bytes with %q at 4096", len(up), up[4096:4102])
	}
	if low := read(t, filepath.Join(b.lower, "file")); low != strings.Repeat("lower...", 2048) {
		t.Error("the lower file was changed")
	}
}

func useMappings(args []string) error {
	early, err := os.Open(args[0]) // opened and mapped before anything is copied up
	if err != nil {
		return err
	}
	view, err := unix.Mmap(int(early.Fd()), 0, 16384, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	if string(view[:8]) != "lower..." {
		return fmt.Errorf("the mapping shows %q", view[:8])
	}
	f, err := os.OpenFile(args[0], os.O_RDWR, 0)
	if err != nil {
		return err
	}
	m, err := unix.Mmap(int(f.Fd()), 0, 16384, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return err
	}
	copy(m[4096:], "mapped")
	if string(view[4096:4102]) != "mapped" {
		return fmt.Errorf("the mapping from before shows %q", view[4096:4102])
	}
	if err := unix.Msync(m, unix.MS_SYNC); err != nil {
		return err
	}
	got := make([]byte, 6)
	if _, err := early.ReadAt(got, 4096); err != nil || string(got) != "mapped" {
		return fmt.Errorf("the descriptor from before reads %q, %v", got, err)
	}
	return nil
}

func init() {
	roles["mapping"] = useMappings
	roles["append"] = func(args []string) error {
		f, err := os.OpenFile(args[0], os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return err
		}
		for i := range 2000 {
			if _, err := fmt.Fprintf(f, "%s %d\n", args[1], i); err != nil {
				return err
			}
		}
		return f.Close()
	}
	// trylock reports by its exit status whether it got a lock.
	roles["trylock"] = func(args []string) error {
		f, err := os.OpenFile(args[0], os.O_RDWR, 0)
		if err != nil {
			return err
		}
		if args[1] == "flock" {
			return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
		lk := unix.Flock_t{Type: unix.F_WRLCK}
		return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk)
	}
}

// TestAppendByTwo has two processes append to one file: every line arrives once, whole and in its writer's order.
func TestAppendByTwo(t *testing.T) {
	for _, o := range []fs.Options{{}, {NoWriteback: true}} {
		t.Run(fmt.Sprintf("NoWriteback=%v", o.NoWriteback), func(t *testing.T) {
			b := newBranches(t)
			b.inLower(t, "log", "")
			b.mount(t, o)
			path := filepath.Join(b.mnt, "log")
			var cmds []*exec.Cmd
			for _, who := range []string{"A", "B"} {
				c := roleCommand(t, "append", path, who)
				c.Stderr = os.Stderr
				if err := c.Start(); err != nil {
					t.Fatal(err)
				}
				cmds = append(cmds, c)
			}
			for _, c := range cmds {
				if err := c.Wait(); err != nil {
					t.Fatal(err)
				}
			}
			next := map[string]int{}
			for line := range strings.Lines(read(t, path)) {
				who, num, _ := strings.Cut(strings.TrimSpace(line), " ")
				if n, err := strconv.Atoi(num); err != nil || n != next[who] {
					t.Fatalf("line %q where %s %d is due", line, who, next[who])
				}
				next[who]++
			}
			if next["A"] != 2000 || next["B"] != 2000 {
				t.Errorf("lines of each: %v", next)
			}
		})
	}
}

// TestLocks holds that a lock of this process keeps another out. The kernel does it alone.
func TestLocks(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	b.mount(t, fs.Options{})
	path := filepath.Join(b.mnt, "file")
	f := open(t, path, os.O_RDWR)
	other := func(kind string) bool { return roleCommand(t, "trylock", path, kind).Run() == nil }

	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	if other("posix") {
		t.Error("two processes have a POSIX lock on the same file")
	}
	lk.Type = unix.F_UNLCK
	if err := unix.FcntlFlock(f.Fd(), unix.F_SETLK, &lk); err != nil {
		t.Fatal(err)
	}
	if !other("posix") {
		t.Error("the POSIX lock stays after it was given up")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if other("flock") {
		t.Error("two processes have a flock on the same file")
	}
}

// TestRenameOverOpen replaces a file that is open, from the lower and from the upper branch.
func TestRenameOverOpen(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "target", "old content")
	b.mount(t, fs.Options{})
	target := filepath.Join(b.mnt, "target")
	for _, was := range []string{"old content", "new 1"} {
		f := open(t, target, os.O_RDWR)
		next := map[string]string{"old content": "new 1", "new 1": "new 2"}[was]
		write(t, filepath.Join(b.mnt, "tmp"), next)
		if err := os.Rename(filepath.Join(b.mnt, "tmp"), target); err != nil {
			t.Fatal(err)
		}
		if got := read(t, target); got != next {
			t.Errorf("after the rename %q", got)
		}
		got, err := io.ReadAll(f)
		if err != nil || string(got) != was {
			t.Errorf("the open file reads %q, %v; it was %q", got, err, was)
		}
		if _, err := f.WriteAt([]byte("lost"), 0); err != nil {
			t.Errorf("writing to the replaced file: %v", err)
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
		if got := read(t, target); got != next {
			t.Errorf("a write to the replaced file is in its successor: %q", got)
		}
	}
	if got := read(t, filepath.Join(b.lower, "target")); got != "old content" {
		t.Errorf("the lower file was changed: %q", got)
	}
}

func TestRenameFlags(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "a", "a")
	b.inLower(t, "b", "b")
	b.mount(t, fs.Options{})
	a, c := filepath.Join(b.mnt, "a"), filepath.Join(b.mnt, "b")
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, c, unix.RENAME_NOREPLACE); err != unix.EEXIST {
		t.Errorf("NOREPLACE over a file: %v", err)
	}
	if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, c, unix.RENAME_EXCHANGE); err != nil {
		t.Fatalf("EXCHANGE: %v", err)
	}
	if read(t, a) != "b" || read(t, c) != "a" {
		t.Error("EXCHANGE did not exchange")
	}
}

// TestSeekHoleSeesUnwrittenData asks for data that is still in the kernel's memory, as cp(1) does with a file that somebody
// is writing. Without care the branch's file, still empty, would be all hole.
func TestSeekHoleSeesUnwrittenData(t *testing.T) {
	b := newBranches(t)
	b.mount(t, fs.Options{})
	path := filepath.Join(b.mnt, "file")
	w := open(t, path, os.O_RDWR|os.O_CREATE)
	const at = 1 << 20
	if _, err := w.WriteAt(randomBytes(2, 8192), at); err != nil {
		t.Fatal(err)
	}
	r := open(t, path, os.O_RDONLY)
	if off, err := unix.Seek(int(r.Fd()), 0, unix.SEEK_DATA); err != nil || off > at {
		t.Errorf("SEEK_DATA: %d, %v", off, err)
	}
	if off, err := unix.Seek(int(r.Fd()), at, unix.SEEK_HOLE); err != nil || off != at+8192 {
		t.Errorf("SEEK_HOLE: %d, %v", off, err)
	}
	copied := filepath.Join(t.TempDir(), "copy")
	if out, err := exec.Command("cp", path, copied).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	if read(t, copied) != read(t, path) {
		t.Error("cp left data out")
	}
}

// TestHoles punches and allocates.
func TestHoles(t *testing.T) {
	b := newBranches(t)
	content := randomBytes(3, 256<<10)
	b.inLower(t, "file", string(content))
	b.mount(t, fs.Options{})
	f := open(t, filepath.Join(b.mnt, "file"), os.O_RDWR)
	const hole, size = 64 << 10, 128 << 10
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, hole, size); err != nil {
		t.Fatal(err)
	}
	clear(content[hole : hole+size])
	if read(t, f.Name()) != string(content) {
		t.Error("content after punching a hole")
	}
	if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_HOLE); err != nil || off != hole {
		t.Errorf("SEEK_HOLE: %d, %v", off, err)
	}
	if off, err := unix.Seek(int(f.Fd()), hole, unix.SEEK_DATA); err != nil || off != hole+size {
		t.Errorf("SEEK_DATA: %d, %v", off, err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, f.Name()); st.Size != 1<<20 {
		t.Errorf("size after fallocate: %d", st.Size)
	}
	if err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096); err != unix.EOPNOTSUPP {
		t.Errorf("collapsing, which FUSE has not: %v", err)
	}
}

func TestCopyFileRange(t *testing.T) {
	b := newBranches(t)
	content := randomBytes(4, 1<<20)
	b.inLower(t, "from", string(content))
	b.mount(t, fs.Options{})
	from := open(t, filepath.Join(b.mnt, "from"), os.O_RDONLY)
	to := open(t, filepath.Join(b.mnt, "to"), os.O_RDWR|os.O_CREATE)
	src, dst := int64(4096), int64(100)
	want := len(content) - 4096
	for copied := 0; copied < want; {
		n, err := unix.CopyFileRange(int(from.Fd()), &src, int(to.Fd()), &dst, want-copied, 0)
		if err != nil || n == 0 {
			t.Fatalf("%d bytes, %v", n, err)
		}
		copied += n
	}
	got := read(t, to.Name())
	if got[:100] != string(make([]byte, 100)) || got[100:] != string(content[4096:]) {
		t.Error("the copy differs")
	}
}

// TestTruncate is open with O_TRUNC, ftruncate and truncate, which all are a SETATTR here.
func TestTruncate(t *testing.T) {
	b := newBranches(t)
	for _, name := range []string{"a", "b", "c"} {
		b.inLower(t, name, "0123456789")
	}
	b.mount(t, fs.Options{})
	f := open(t, filepath.Join(b.mnt, "a"), os.O_WRONLY|os.O_TRUNC)
	if _, err := f.WriteString("xy"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f.Name()); got != "xy" {
		t.Errorf("after O_TRUNC and a write: %q", got)
	}
	if err := os.Truncate(filepath.Join(b.mnt, "b"), 4); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(b.mnt, "b")); got != "0123" {
		t.Errorf("after truncate to 4: %q", got)
	}
	if err := os.Truncate(filepath.Join(b.mnt, "c"), 12); err != nil {
		t.Fatal(err)
	}
	if got := read(t, filepath.Join(b.mnt, "c")); got != "0123456789\x00\x00" {
		t.Errorf("after truncate to 12: %q", got)
	}
}

// TestTimes holds that nanoseconds and times before 1970 pass.
func TestTimes(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	b.mount(t, fs.Options{})
	path := filepath.Join(b.mnt, "file")
	for _, want := range []unix.Timespec{{Sec: 1234567890, Nsec: 123456789}, {Sec: -5, Nsec: 7}} {
		ts := []unix.Timespec{want, want}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, path, ts, 0); err != nil {
			t.Fatal(err)
		}
		if st := stat(t, path); st.Mtim != want || st.Atim != want {
			t.Errorf("set %v, got mtime %v, atime %v", want, st.Mtim, st.Atim)
		}
	}
	if err := unix.Utimes(path, nil); err != nil {
		t.Fatal(err)
	}
	if st := stat(t, path); st.Mtim.Sec < 1e9 {
		t.Errorf("after setting it to now, mtime is %v", st.Mtim)
	}
}
