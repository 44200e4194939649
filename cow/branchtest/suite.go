// Package branchtest checks that a [cow.Branch] keeps the contract. Every kind of branch runs it.
package branchtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// File is one name of a [Tree].
type File struct {
	Path     string // relative to the root, clean; "" is the root itself
	Mode     uint32 // with S_IFMT bits
	UID, GID uint32
	Mtime    unix.Timespec
	Rdev     uint32            // of a device
	Content  string            // of a regular file
	Target   string            // of a symbolic link
	Link     string            // path of an earlier file that this is a hard link to; all but Path is then ignored
	Xattrs   map[string]string // user.* and trusted.* only
	Whiteout bool              // the name is a whiteout; all but Path is then ignored
	Opaque   bool              // the directory is opaque
}

// Tree is what a branch is to be made of. Directories come before what is in them. The first is the root.
type Tree []File

// IsDir reports whether the file is a directory.
func (f *File) IsDir() bool { return !f.Whiteout && f.Link == "" && f.Mode&unix.S_IFMT == unix.S_IFDIR }

// reserved reports whether an xattr is none of the tree: a branch may show those of its own or of the system.
func reserved(name string) bool {
	return !strings.HasPrefix(name, "user.") && !strings.HasPrefix(name, "trusted.") || strings.Contains(name, ".overlay.") ||
		strings.HasPrefix(name, "user.fuseoverlayfs.")
}

// Run makes branches of trees with make, which must fail the test if it can't, and checks them. The branch is closed by
// Run. It must run as root: trees have owners and devices.
func Run(t *testing.T, make func(t *testing.T, tree Tree) cow.Branch) {
	RunMarked(t, make)
	RunUnmarked(t, make)
}

// RunMarked is the part of Run that has whiteouts and opaque directories.
func RunMarked(t *testing.T, make func(t *testing.T, tree Tree) cow.Branch) {
	t.Run("marks", func(t *testing.T) { runTree(t, make, marks()) })
}

// RunUnmarked is Run for branches that can't have whiteouts and opaque directories, such as a whole image.
func RunUnmarked(t *testing.T, make func(t *testing.T, tree Tree) cow.Branch) {
	cases := []struct {
		name string
		tree Tree
	}{
		{"empty", Tree{dir("", 0o755)}},
		{"kinds", kinds()},
		{"names", names()},
		{"large directory", large()},
		{"deep", deep()},
		{"hard links", hardLinks()},
		{"xattrs", xattrs()},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { runTree(t, make, c.tree) })
	}
	t.Run("data outlives close", func(t *testing.T) { checkOutlives(t, make(t, kinds())) })
}

func runTree(t *testing.T, make func(t *testing.T, tree Tree) cow.Branch, tree Tree) {
	b := make(t, tree)
	defer func() {
		if err := b.Close(); err != nil {
			t.Errorf("closing the branch: %v", err)
		}
	}()
	check(t, b, tree)
}

func dir(p string, perm uint32) File {
	return File{Path: p, Mode: unix.S_IFDIR | perm, Mtime: unix.Timespec{Sec: 1_000_000_000, Nsec: 5}}
}

func file(p, content string) File {
	return File{Path: p, Mode: unix.S_IFREG | 0o644, Content: content, Mtime: unix.Timespec{Sec: 1_234_567_890, Nsec: 123_456_789}}
}

func kinds() Tree {
	big := string(bytes.Repeat([]byte("0123456789abcdef"), 1<<13)) + "end"
	suid := file("suid", "x")
	suid.Mode, suid.UID, suid.GID = unix.S_IFREG|0o6755, 1234, 70000
	old := file("old", "before 1970")
	old.Mtime = unix.Timespec{Sec: -86400, Nsec: 999_999_999}
	far := file("far", "")
	far.Mtime = unix.Timespec{Sec: 1 << 33}
	sticky := dir("tmp", 0o1777)
	sticky.UID = 7
	return Tree{
		dir("", 0o750), dir("d", 0o700), file("d/inside", "content of inside"), file("empty", ""), file("big", big), suid,
		old, far, sticky,
		{Path: "link", Mode: unix.S_IFLNK | 0o777, Target: "d/inside"},
		{Path: "dirlink", Mode: unix.S_IFLNK | 0o777, Target: "d"},
		{Path: "dangling", Mode: unix.S_IFLNK | 0o777, Target: "/../" + strings.Repeat("x/", 500)},
		{Path: "null", Mode: unix.S_IFCHR | 0o666, Rdev: uint32(unix.Mkdev(1, 3))},
		{Path: "block", Mode: unix.S_IFBLK | 0o660, Rdev: uint32(unix.Mkdev(259, 70000))},
		{Path: "pipe", Mode: unix.S_IFIFO | 0o600},
	}
}

func names() Tree {
	tree := Tree{dir("", 0o755)}
	for _, n := range []string{
		"a", "A", "...", "..a", " ", "a\nb", "\xff\xfe", "a\\b", "ünïcödé", strings.Repeat("n", 255), "-rf", "a:b", "%2F", "wh.",
		strings.Repeat("é", 127), "#", "\x01",
	} {
		tree = append(tree, file(n, "content of "+n))
	}
	return tree
}

func large() Tree {
	tree := Tree{dir("", 0o755), dir("many", 0o755)}
	for i := range 1500 {
		tree = append(tree, file(fmt.Sprintf("many/%d", i), fmt.Sprint(i)))
		if i%100 == 0 {
			tree = append(tree, dir(fmt.Sprintf("many/dir%d", i), 0o755))
		}
	}
	return tree
}

func deep() Tree {
	tree := Tree{dir("", 0o755)}
	p := ""
	for i := range 60 {
		p = path.Join(p, fmt.Sprint(i))
		tree = append(tree, dir(p, 0o755))
	}
	return append(tree, file(path.Join(p, "bottom"), "deep"))
}

func marks() Tree {
	opaque := dir("opaque", 0o755)
	opaque.Opaque = true
	return Tree{
		dir("", 0o755), opaque, file("opaque/new", "new"), dir("opaque/plain", 0o755), dir("plain", 0o755),
		{Path: "gone", Whiteout: true}, {Path: "plain/gone too", Whiteout: true}, file("here", "here"),
	}
}

func hardLinks() Tree {
	return Tree{
		dir("", 0o755), dir("d", 0o755), file("one", "shared"), {Path: "two", Link: "one"}, {Path: "d/three", Link: "one"},
		file("other", "shared"), {Path: "sym", Mode: unix.S_IFLNK | 0o777, Target: "x"}, {Path: "sym2", Link: "sym"},
	}
}

func xattrs() Tree {
	f := file("f", "x")
	f.Xattrs = map[string]string{"user.a": "1", "user.empty": "", "trusted.b": "\x00\xff\n", "user.long": strings.Repeat("v", 2000)}
	g := file("g", "y")
	g.Xattrs = map[string]string{"user.a": "2"}
	d := dir("d", 0o755)
	d.Xattrs = map[string]string{"user.dir": "d"}
	link := File{Path: "l", Mode: unix.S_IFLNK | 0o777, Target: "f", Xattrs: map[string]string{"trusted.onlink": "l"}}
	return Tree{dir("", 0o755), f, g, d, link, file("none", "")}
}

// walker compares a branch with a tree.
type walker struct {
	t     *testing.T
	b     cow.Branch
	files map[string]*File
	kids  map[string][]string // names in a directory
	nlink map[string]uint32   // of the path that others link to
	inos  map[uint64]string   // path, hard links resolved, that an inode number was seen for
}

func newWalker(t *testing.T, b cow.Branch, tree Tree) *walker {
	w := &walker{t: t, b: b, files: map[string]*File{}, kids: map[string][]string{}, nlink: map[string]uint32{}, inos: map[uint64]string{}}
	for i := range tree {
		f := &tree[i]
		w.files[f.Path] = f
		if f.Path != "" {
			d := path.Dir(f.Path)
			if d == "." {
				d = ""
			}
			w.kids[d] = append(w.kids[d], path.Base(f.Path))
		}
		w.nlink[w.first(f)]++
	}
	return w
}

// first is the path under which the tree has the content of f.
func (w *walker) first(f *File) string {
	if f.Link != "" {
		return f.Link
	}
	return f.Path
}

func check(t *testing.T, b cow.Branch, tree Tree) {
	w := newWalker(t, b, tree)
	if b.Describe() == "" {
		t.Error("the branch has no description")
	}
	var st unix.Statfs_t
	if err := b.Statfs(&st); err != nil || st.Bsize == 0 {
		t.Errorf("Statfs: block size %d, %v", st.Bsize, err)
	}
	root, err := b.Root()
	if err != nil {
		t.Fatalf("Root: %v", err)
	}
	w.stat(root, root.Self(), w.files[""])
	w.dir(root, "")
	if t.Failed() {
		return
	}
	// The same by many at once, for the race detector.
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			again := newWalker(t, b, tree)
			again.dir(root, "")
		})
	}
	wg.Wait()
}

// dir checks everything beneath a directory.
func (w *walker) dir(d cow.Dir, p string) {
	t := w.t
	opaque, err := d.Opaque()
	if want := w.files[p].Opaque; err != nil || opaque != want {
		t.Errorf("%q: Opaque is %v, %v; expected %v", p, opaque, err, want)
	}
	if r, err := d.Redirect(); err != nil || r != "" {
		t.Errorf("%q: Redirect is %q, %v", p, r, err)
	}
	w.list(d, p)
	for _, absent := range []string{"absent", "zzz", strings.Repeat("x", 255), "in", "d/inside", "\x00"} {
		if strings.ContainsAny(absent, "/\x00") {
			continue // never asked for
		}
		if _, err := d.Lookup(absent); !errors.Is(err, unix.ENOENT) {
			t.Errorf("%q: looking up %.20q, which isn't there: %v", p, absent, err)
		}
	}
	for _, name := range w.kids[p] {
		f := w.files[path.Join(p, name)]
		e, err := d.Lookup(name)
		if err != nil {
			t.Errorf("%q: looking up %q: %v", p, name, err)
			continue
		}
		if e.Name != name || e.Whiteout != f.Whiteout {
			t.Errorf("%q: Lookup(%q) is named %q, whiteout %v", p, name, e.Name, e.Whiteout)
		}
		if !e.Whiteout {
			w.entry(d, e, f)
		}
	}
}

// list checks List from the start, from the middle, and with an early end.
func (w *walker) list(d cow.Dir, p string) {
	t := w.t
	want := slices.Sorted(slices.Values(w.kids[p]))
	var got []string
	cookies := []uint64{0}
	err := d.List(0, func(e cow.Entry) bool {
		got = append(got, e.Name)
		cookies = append(cookies, cow.Cookie(e.Name))
		f := w.files[path.Join(p, e.Name)]
		if f == nil {
			return true
		}
		if e.Whiteout != f.Whiteout {
			t.Errorf("%q: List has %q with whiteout %v", p, e.Name, e.Whiteout)
		}
		if want := w.files[w.first(f)].Mode & unix.S_IFMT; !f.Whiteout && e.Type != want {
			t.Errorf("%q: List has %q with type %o, expected %o", p, e.Name, e.Type, want)
		}
		var a cow.Attr
		if !e.Whiteout {
			if err := d.Stat(e, &a); err != nil || e.Ino != 0 && e.Ino != a.Ino {
				t.Errorf("%q: List has %q with inode %d, Stat has %d, %v", p, e.Name, e.Ino, a.Ino, err)
			}
		}
		return true
	})
	sorted := slices.Sorted(slices.Values(got))
	if err != nil || !slices.Equal(sorted, want) {
		t.Errorf("%q: List: %v; got %.300q, expected %.300q", p, err, sorted, want)
		return
	}
	if len(got) > 1 {
		n := 0
		if err := d.List(0, func(cow.Entry) bool { n++; return false }); err != nil || n != 1 {
			t.Errorf("%q: List went on %d times after false, %v", p, n-1, err)
		}
	}
	if !w.b.Indexed() {
		return
	}
	if !slices.IsSorted(cookies) {
		t.Errorf("%q: List of an indexed branch is not in the order of cookies", p)
		return
	}
	random := rand.New(rand.NewPCG(1, 2))
	for range min(len(got)+1, 20) {
		// After a name that is there, and between names.
		i := random.IntN(len(cookies))
		for _, after := range []uint64{cookies[i], cookies[i] + 1} {
			from := i
			if i+1 < len(cookies) && cookies[i+1] == after {
				from = i + 1
			}
			var rest []string
			err := d.List(after, func(e cow.Entry) bool { rest = append(rest, e.Name); return true })
			if err != nil || !slices.Equal(rest, got[from:]) {
				t.Errorf("%q: List after %#x has %d names, expected %d; %v", p, after, len(rest), len(got)-from, err)
			}
		}
	}
}

// entry checks one file that Lookup found, and what is beneath it.
func (w *walker) entry(d cow.Dir, e cow.Entry, f *File) {
	t := w.t
	content := w.files[w.first(f)]
	if want := content.Mode & unix.S_IFMT; e.Type != want {
		t.Errorf("%q: type is %o, expected %o", f.Path, e.Type, want)
	}
	if d.Describe(e) == "" {
		t.Errorf("%q: no description", f.Path)
	}
	w.stat(d, e, f)
	w.xattrs(d, e, content)
	target, err := d.Readlink(e)
	if content.Mode&unix.S_IFMT == unix.S_IFLNK {
		if err != nil || target != content.Target {
			t.Errorf("%q: Readlink: %q, %v", f.Path, target, err)
		}
	} else if err == nil {
		t.Errorf("%q: Readlink of something else than a link is %q", f.Path, target)
	}
	sub, err := d.Sub(e)
	if content.IsDir() {
		if err != nil {
			t.Errorf("%q: Sub: %v", f.Path, err)
			return
		}
		w.stat(sub, sub.Self(), f)
		w.dir(sub, f.Path)
	} else if !errors.Is(err, unix.ENOTDIR) {
		t.Errorf("%q: Sub of something else than a directory: %v", f.Path, err)
	}
	switch content.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		data, err := d.Open(e)
		if err != nil {
			t.Errorf("%q: Open: %v", f.Path, err)
			return
		}
		defer data.Release()
		if got, err := read(data); err != nil || got != content.Content {
			t.Errorf("%q: content is %.60q (%d bytes), %v; expected %.60q", f.Path, got, len(got), err, content.Content)
		}
	case unix.S_IFDIR, unix.S_IFLNK:
		if data, err := d.Open(e); err == nil {
			data.Release()
			t.Errorf("%q: Open of something else than a regular file succeeded", f.Path)
		}
	}
}

func read(d *cow.Data) (string, error) {
	b := make([]byte, d.Size)
	for n := 0; n < len(b); {
		m, err := unix.Pread(d.FD, b[n:], d.Off+int64(n))
		if err != nil {
			return "", err
		}
		if m == 0 {
			return "", io.ErrUnexpectedEOF
		}
		n += m
	}
	return string(b), nil
}

func (w *walker) stat(d cow.Dir, e cow.Entry, f *File) {
	t := w.t
	var a cow.Attr
	if err := d.Stat(e, &a); err != nil {
		t.Errorf("%q: Stat: %v", f.Path, err)
		return
	}
	first := w.first(f)
	c := w.files[first]
	if a.Mode != c.Mode || a.UID != c.UID || a.GID != c.GID {
		t.Errorf("%q: mode %o of %d:%d, expected %o of %d:%d", f.Path, a.Mode, a.UID, a.GID, c.Mode, c.UID, c.GID)
	}
	if a.Mtime != c.Mtime {
		t.Errorf("%q: mtime %v, expected %v", f.Path, a.Mtime, c.Mtime)
	}
	if a.Ino == 0 || a.Ino >= 1<<48 || e.Ino != 0 && e.Ino != a.Ino {
		t.Errorf("%q: inode number %d, that of the entry %d", f.Path, a.Ino, e.Ino)
	}
	if seen, ok := w.inos[a.Ino]; ok && seen != first {
		t.Errorf("%q has the inode number of %q", f.Path, seen)
	}
	w.inos[a.Ino] = first
	switch c.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if a.Size != uint64(len(c.Content)) {
			t.Errorf("%q: size %d, expected %d", f.Path, a.Size, len(c.Content))
		}
	case unix.S_IFLNK:
		if a.Size != uint64(len(c.Target)) {
			t.Errorf("%q: size %d, expected %d", f.Path, a.Size, len(c.Target))
		}
	case unix.S_IFCHR, unix.S_IFBLK:
		if a.Rdev != c.Rdev {
			t.Errorf("%q: device %#x, expected %#x", f.Path, a.Rdev, c.Rdev)
		}
	}
	if c.IsDir() {
		if a.Nlink == 0 {
			t.Errorf("%q: a directory with no links", f.Path)
		}
	} else if a.Nlink != w.nlink[first] {
		t.Errorf("%q: %d links, expected %d", f.Path, a.Nlink, w.nlink[first])
	}
}

func (w *walker) xattrs(d cow.Dir, e cow.Entry, f *File) {
	t := w.t
	names, err := d.Listxattr(e)
	names = slices.DeleteFunc(names, reserved)
	slices.Sort(names)
	if want := slices.Sorted(maps.Keys(f.Xattrs)); err != nil || !slices.Equal(names, want) {
		t.Errorf("%q: xattrs %q, %v; expected %q", f.Path, names, err, want)
	}
	for name, want := range f.Xattrs {
		if v, err := d.Getxattr(e, name); err != nil || string(v) != want {
			t.Errorf("%q: xattr %s is %.60q, %v; expected %.60q", f.Path, name, v, err, want)
		}
	}
	if v, err := d.Getxattr(e, "user.absent"); !errors.Is(err, unix.ENODATA) {
		t.Errorf("%q: an xattr that isn't there is %q, %v", f.Path, v, err)
	}
}

// checkOutlives reads data that was opened before its branch was closed.
func checkOutlives(t *testing.T, b cow.Branch) {
	root, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	e, err := root.Lookup("big")
	if err != nil {
		t.Fatal(err)
	}
	data, err := root.Open(e)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Errorf("closing the branch: %v", err)
	}
	if got, err := read(data); err != nil || !strings.HasSuffix(got, "end") {
		t.Errorf("reading after Close: %d bytes, %v", len(got), err)
	}
	data.Release()
}
