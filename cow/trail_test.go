package cow

import (
	"os"
	"path"
	"testing"

	"golang.org/x/sys/unix"
)

// trailTree is a union that leaves a trail, and can be killed.
type trailTree struct {
	*tree
	mem []byte
}

// bothWays runs a test with directories that are read at once and with ones that are read in the background.
func bothWays(t *testing.T, test func(t *testing.T, w *trailTree)) {
	for name, later := range map[string]bool{"read at once": false, "unread": true} {
		t.Run(name, func(t *testing.T) {
			w := newTrailTree(t, later)
			defer func() { w.close() }()
			test(t, w)
		})
	}
}

func newTrailTree(t *testing.T, later bool) *trailTree { return newTrailTreeIn(t, t.TempDir(), later) }

func newTrailTreeIn(t *testing.T, base string, later bool) *trailTree {
	w := &trailTree{&tree{t: t, lower: []string{base + "/lower"}, upper: base + "/upper", work: base + "/work", later: later}, make([]byte, TrailSize)}
	for _, d := range []string{"/lower/dir/sub/deep", "/upper", "/work"} {
		must(t, os.MkdirAll(base+d, 0o755))
	}
	for _, name := range []string{"/file", "/dir/file", "/dir/sub/deep/file", "/dir/sub/deep/other"} {
		must(t, os.WriteFile(w.lower[0]+name, []byte("lower "+name), 0o644))
	}
	w.tree.open()
	w.u.LeaveTrail(w.mem)
	return w
}

// kill leaves the union as a killed process does, and goes on from it.
func (w *trailTree) kill() {
	w.t.Helper()
	w.u.stopReading()
	must(w.t, w.u.upper.close())
	w.fds.Close()
	w.fds = NewDescriptors(64)
	b, err := OpenDirBranch(w.lower[0], DirOptions{Descriptors: w.fds})
	must(w.t, err)
	o := Options{Lower: []Branch{b}, Upper: w.upper, Work: w.work, Descriptors: w.fds, Resume: true}
	unread(&o, w.later)
	w.u, err = New(o)
	must(w.t, err)
	w.u.LeaveTrail(w.mem)
}

// find looks a path up and returns its number. It goes on holding the file, as the kernel does.
func (w *trailTree) find(name string) uint64 {
	w.t.Helper()
	n, _, err := w.walk(name)
	must(w.t, err)
	return n.id
}

// locate finds a file by its number and returns its content.
func (w *trailTree) locate(id uint64) string {
	w.t.Helper()
	n, err := w.u.Locate(id)
	if err != nil {
		w.t.Errorf("file %#x: %v", id, err)
		return ""
	}
	defer w.u.Forget(n, 1)
	if n.id != id {
		w.t.Errorf("instead of %#x there is %#x", id, n.id)
	}
	buf := make([]byte, 100)
	got, err := w.u.Read(n, 0, buf)
	must(w.t, err)
	return string(buf[:got])
}

// searched reports whether the tree was looked through.
func (w *trailTree) searched() bool { return w.u.former.dirs != nil }

// TestTrail changes files in all ways that there are and finds them by their numbers in a union that goes on from the one which was
// killed, without looking through the tree.
func TestTrail(t *testing.T) { bothWays(t, trailFinds) }

func trailFinds(t *testing.T, w *trailTree) {
	at := &paths{u: w.u}
	want := map[uint64]string{}
	note := func(name, content string) { want[w.find(name)] = content }

	note("/file", "lower /file")
	note("/dir/sub/deep/file", "lower /dir/sub/deep/file")
	at.create("/dir/new")
	at.at("/dir/new", func(n *Node) error { _, err := w.u.Write(n, 0, []byte("new")); return err })
	note("/dir/new", "new")
	at.link("/dir/new", "/linked")
	at.unlink("/dir/new") // /linked is left of it
	note("/dir/file", "lower /dir/file")
	at.rename("/dir/file", "/dir/sub/moved", 0)
	at.rename("/dir/sub", "/elsewhere", 0) // with what is in it
	note("/elsewhere/deep/other", "lower /dir/sub/deep/other")
	at.unlink("/elsewhere/deep/other") // and of which nothing is left but the lower file
	at.create("/parked")
	at.at("/parked", func(n *Node) error { _, err := w.u.Write(n, 0, []byte("parked")); return err })
	note("/parked", "parked")
	at.unlink("/parked")
	must(t, at.err)

	for range 2 { // the one after has the trail of both
		w.kill()
		for id, content := range want {
			if got := w.locate(id); got != content {
				t.Errorf("file %#x has %q, not %q", id, got, content)
			}
		}
		if w.searched() {
			t.Error("the tree was looked through")
		}
	}
	if _, err := w.u.Locate(1<<61 - 1); err != unix.ESTALE {
		t.Errorf("a number that no file has: %v", err)
	}
}

// TestTrailMisleads has entries that lead nowhere, or to another file, and in a circle: the file is found all the same.
func TestTrailMisleads(t *testing.T) { bothWays(t, trailMisleads) }

func trailMisleads(t *testing.T, w *trailTree) {
	dir, sub, deep := w.find("/dir"), w.find("/dir/sub"), w.find("/dir/sub/deep")
	file, other := w.find("/dir/sub/deep/file"), w.find("/dir/sub/deep/other")
	for name, mislead := range map[string]func(tr trail){
		"no entry":           func(tr trail) { tr.entry(file, false)[0] = 0 },
		"another file's":     func(tr trail) { tr.set(file, false, deep, Cookie("other")) },
		"no such directory":  func(tr trail) { tr.set(file, false, 1<<60, Cookie("file")) },
		"a file in the way":  func(tr trail) { tr.set(file, false, other, Cookie("file")) },
		"a circle":           func(tr trail) { tr.set(dir, true, sub, Cookie("dir")) },
		"said to be removed": func(tr trail) { tr.set(file, false, deep, Cookie("file")|trailGone) },
		"all zeros":          func(tr trail) { clear(tr) },
	} {
		w.kill()
		mislead(w.u.trail)
		if got := w.locate(file); got != "lower /dir/sub/deep/file" {
			t.Errorf("%s: found %q", name, got)
		}
		if !w.searched() && name != "said to be removed" {
			t.Errorf("%s: it was found without a search", name)
		}
		for _, name := range []string{"/dir", "/dir/sub", "/dir/sub/deep", "/dir/sub/deep/file", "/dir/sub/deep/other"} {
			w.find(name) // leaves the right trail again
		}
	}
}

// TestSpareNumbers has two files of one number: a file of the upper branch that says to come from a lower file of another stack. The one
// that is looked up second keeps the number that it got then, also when the first is not there any more, renamed, and
// without a name.
func TestSpareNumbers(t *testing.T) { bothWays(t, spareNumbers) }

func spareNumbers(t *testing.T, w *trailTree) {
	first := w.find("/file")
	w.close()
	for _, name := range []string{"second", "third", "fourth"} {
		must(t, os.WriteFile(path.Join(w.upper, name), []byte(name), 0o644))
		fd, err := unix.Open(w.upper, unix.O_PATH|unix.O_CLOEXEC, 0)
		must(t, err)
		_, err = setOrigin(fd, name, first)
		must(t, err)
		must(t, unix.Close(fd))
	}
	w.tree.open()
	w.u.LeaveTrail(w.mem)
	if got := w.find("/file"); got != first {
		t.Fatalf("the first file has the number %#x, not %#x", got, first)
	}
	numbers := map[string]uint64{}
	for _, name := range []string{"second", "third", "fourth"} {
		numbers[name] = w.find("/" + name)
		if numbers[name]&spareBit == 0 {
			t.Fatalf("%s has the number %#x", name, numbers[name])
		}
	}
	at := &paths{u: w.u}
	at.rename("/third", "/dir/moved", 0)
	at.unlink("/fourth")
	must(t, at.err)
	for range 2 {
		w.kill()
		for name, id := range numbers {
			if got := w.locate(id); got != name {
				t.Errorf("%s is found as %q", name, got)
			}
		}
		for name, content := range map[string]string{"/second": "second", "/dir/moved": "third"} {
			if got := w.find(name); got != numbers[content] {
				t.Errorf("%s has the number %#x, not %#x any more", name, got, numbers[content])
			}
		}
		if got := w.find("/file"); got != first {
			t.Errorf("the first file has the number %#x, not %#x any more", got, first)
		}
		if w.searched() {
			t.Error("the tree was looked through")
		}
	}
	for _, id := range numbers {
		w.u.Unpark(id) // the kernel has forgotten them
	}
	if n := w.u.spares.count.Load(); n != 0 {
		t.Errorf("%d entries are left when all is forgotten", n)
	}
}

// TestNumbersOfCopies copies files up to a file system on which nothing can be written down of where they are from. Who holds them
// finds the copies by the numbers that they had before.
func TestNumbersOfCopies(t *testing.T) {
	base := t.TempDir()
	must(t, unix.Mount("none", base, "ramfs", 0, "mode=0755"))
	defer unix.Unmount(base, unix.MNT_DETACH)
	w := newTrailTreeIn(t, base, false)
	defer func() { w.close() }()
	w.close()
	must(t, os.Symlink("file", w.lower[0]+"/link"))
	w.tree.open()
	w.u.LeaveTrail(w.mem)

	at := &paths{u: w.u}
	files := map[string]uint64{}
	for _, name := range []string{"/link", "/file", "/dir/file", "/dir/sub/deep/file", "/dir/sub/deep/other"} {
		files[name] = w.find(name)
	}
	date := func(seconds int64) {
		t.Helper()
		for name, id := range files {
			n, err := w.u.Locate(id)
			must(t, err)
			var a Attr
			must(t, w.u.Setattr(n, &SetAttr{Valid: SetMtime, Mtime: unix.Timespec{Sec: seconds}}, &a))
			w.u.Forget(n, 1)
			if name == "" {
				continue // nobody can look it up
			}
			if n, a, err := w.walk(name); err != nil || n.id != id || a.Mtime.Sec != seconds {
				t.Errorf("%s, of number %#x: %+v, %v", name, id, a, err)
			}
		}
	}
	date(1)
	at.rename("/dir/file", "/dir/sub/moved", 0)
	at.rename("/link", "/dir/link", 0)
	at.unlink("/dir/sub/deep/other")
	must(t, at.err)
	for from, to := range map[string]string{"/dir/file": "/dir/sub/moved", "/link": "/dir/link", "/dir/sub/deep/other": ""} {
		files[to] = files[from]
		delete(files, from)
	}
	for round := range int64(3) {
		w.kill()
		date(2 + round)
		if w.searched() {
			t.Error("the tree was looked through")
		}
	}
	if n := w.u.spares.count.Load(); n != int32(len(files)) {
		t.Errorf("%d of %d numbers are written down", n, len(files))
	}
}

// TestManySpares writes more numbers down than there is room for, and gives all up.
func TestManySpares(t *testing.T) {
	mem := make([]uint64, spareSize)
	var s spares
	s.share(mem)
	for round := range 2 {
		for id := uint64(1); id <= spareMax+5; id++ {
			s.add(id, id+1, 7, id)
			s.move(id, 8, id)
		}
		s = spares{}
		s.share(mem)
		for id := uint64(1); id <= spareMax+5; id++ {
			if got, want := s.of(id+1, 8, id), id; got != want && id <= spareMax || s.has(id) != (id <= spareMax) {
				t.Fatalf("round %d: %d of %d is %d", round, id, spareMax, got)
			}
		}
		for id := uint64(spareMax + 5); id > 0; id-- {
			s.drop(id)
		}
		if s.count.Load() != 0 || len(s.places) != 0 || len(s.free) != spareMax {
			t.Fatalf("round %d: %d are left, at %d places; %d are free", round, s.count.Load(), len(s.places), len(s.free))
		}
	}
}
