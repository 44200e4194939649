package cow

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"
)

// ChangeKind says how a path differs.
type ChangeKind byte

// The kinds, as "docker diff" prints them.
const (
	Added   ChangeKind = 'A'
	Changed ChangeKind = 'C'
	Deleted ChangeKind = 'D'
)

// Change is a path that an upper branch adds to, changes in or deletes from the branches below. Path has a leading slash.
type Change struct {
	Path string
	Kind ChangeKind
}

// Difference is what an upper branch changes in the branches below it.
type Difference struct {
	// Changes are in the order of their paths, each directory before what is in it. A directory is Changed if its own
	// attributes are other ones or something in it is. What was in a deleted or replaced directory is not listed.
	Changes []Change

	merged, base *Union
	upper        Branch
	fds          *Descriptors

	// The files with several names, by ID, of which one name or more is Added or Changed, and those of which one or
	// more is the same as before.
	touched, untouched map[uint64]bool
}

// Compare finds what the overlay directory upper changes in the lower branches (top first). The upper branch may be in use: it
// is only read; owners that are recorded in it ([OwnerPolicy].Record) count. The lower branches stay the caller's, and must stay open until Close.
func Compare(upper string, lower []Branch) (*Difference, error) {
	recorded, err := RecordsOwners(upper)
	if err != nil {
		return nil, err
	}
	fds := NewDescriptors(0)
	top, err := OpenDirBranch(upper, DirOptions{Descriptors: fds, Override: recorded})
	if err != nil {
		return nil, err
	}
	d := &Difference{upper: top, fds: fds}
	if d.merged, err = New(Options{Lower: append([]Branch{top}, lower...), Descriptors: fds}); err != nil {
		return nil, err
	}
	base := lower
	if len(base) == 0 {
		base = []Branch{emptyBranch{}}
	}
	if d.base, err = New(Options{Lower: base, Descriptors: fds}); err != nil {
		d.Close()
		return nil, err
	}
	var now, was Attr
	err = d.merged.Getattr(d.merged.root, &now)
	if err == nil {
		err = d.base.Getattr(d.base.root, &was)
	}
	if err == nil {
		d.Changes, err = d.all()
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("comparing %s with what is below it: %w", upper, err)
	}
	return d, nil
}

// Close releases the upper branch.
func (d *Difference) Close() error {
	d.fds.Close()
	return d.upper.Close()
}

// all compares everything. A file that got a further name, or is new under one of its names, is Changed under its others
// too, though each of them by itself shows nothing: Apply makes all its names together.
func (d *Difference) all() ([]Change, error) {
	d.touched, d.untouched = map[uint64]bool{}, map[uint64]bool{}
	c, err := d.directory("", d.merged.root, d.base.root)
	for id := range d.touched {
		if err == nil && d.untouched[id] {
			return d.directory("", d.merged.root, d.base.root)
		}
	}
	return c, err
}

// directory compares a directory of the merged tree with what the branches below have at the same path; was is nil if
// that is no directory.
func (d *Difference) directory(path string, now, was *Node) ([]Change, error) {
	names := map[string]bool{} // whether the merged directory has it
	if was != nil {
		if err := each(d.base, was, func(e DirEnt) { names[e.Name] = false }); err != nil {
			return nil, err
		}
	}
	if err := each(d.merged, now, func(e DirEnt) { names[e.Name] = true }); err != nil {
		return nil, err
	}
	sorted := make([]string, 0, len(names))
	for name := range names {
		sorted = append(sorted, name)
	}
	slices.SortFunc(sorted, cmp.Compare[string])
	var changes []Change
	for _, name := range sorted {
		p := path + "/" + name
		if !names[name] {
			changes = append(changes, Change{p, Deleted})
			continue
		}
		c, err := d.name(p, name, now, was)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", p, err)
		}
		changes = append(changes, c...)
	}
	return changes, nil
}

// each calls f for every entry of a directory.
func each(u *Union, n *Node, f func(DirEnt)) error {
	buf := make([]DirEnt, 0, 256)
	for after := uint64(0); ; {
		got, err := u.ReadDir(n, after, buf[:0])
		if err != nil {
			return err
		}
		if len(got) == 0 {
			return nil
		}
		for _, e := range got {
			f(e)
		}
		after = got[len(got)-1].Cookie
	}
}

// name compares one name, which the merged directory has.
func (d *Difference) name(path, name string, now, was *Node) ([]Change, error) {
	var nowAttr, wasAttr Attr
	n, err := d.merged.Lookup(now, name, &nowAttr)
	if err != nil {
		return nil, err
	}
	defer d.merged.Forget(n, 1)
	var o *Node
	if was != nil {
		o, err = d.base.Lookup(was, name, &wasAttr)
		if err != nil && err != unix.ENOENT {
			return nil, err
		}
		if o != nil {
			defer d.base.Forget(o, 1)
			if o.id == n.id {
				// The same file of the same branch; the numbering of branches is from the bottom.
				return nil, nil
			}
		}
	}
	kind := Added
	if o != nil {
		kind = Changed
	}
	var inside []Change
	if n.isDir() {
		old := o
		if o != nil && !o.isDir() {
			old = nil
		}
		if inside, err = d.directory(path, n, old); err != nil {
			return nil, err
		}
	}
	if o != nil && len(inside) == 0 {
		same, err := d.same(n, o, &nowAttr, &wasAttr)
		if err == nil && same && d.touched[n.id] {
			same = false
		}
		if err != nil || same {
			if !n.isDir() && nowAttr.Nlink > 1 {
				d.untouched[n.id] = true
			}
			return nil, err
		}
	}
	if !n.isDir() && nowAttr.Nlink > 1 {
		d.touched[n.id] = true
	}
	return append([]Change{{path, kind}}, inside...), nil
}

// same reports whether two files can't be told apart but by their numbers.
func (d *Difference) same(n, o *Node, a, b *Attr) (bool, error) {
	if a.Mode != b.Mode || a.UID != b.UID || a.GID != b.GID || a.Mtime != b.Mtime || a.Rdev != b.Rdev || !n.isDir() && a.Size != b.Size {
		return false, nil
	}
	ax, err := xattrs(d.merged, n)
	if err != nil {
		return false, err
	}
	bx, err := xattrs(d.base, o)
	if err != nil || ax != bx {
		return false, err
	}
	switch n.kind {
	case unix.S_IFLNK:
		at, err := d.merged.Readlink(n)
		if err != nil {
			return false, err
		}
		bt, err := d.base.Readlink(o)
		return at == bt, err
	case unix.S_IFREG:
		return d.sameData(n, o)
	}
	return true, nil
}

// xattrs puts all extended attributes of a file into one string.
func xattrs(u *Union, n *Node) (string, error) {
	names, err := u.Listxattr(n)
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	var b bytes.Buffer
	for _, name := range names {
		v, err := u.Getxattr(n, name)
		if err != nil && !noXattr(err) {
			return "", err
		}
		fmt.Fprintf(&b, "%q=%q\n", name, v)
	}
	return b.String(), nil
}

func (d *Difference) sameData(n, o *Node) (bool, error) {
	a, b := make([]byte, 256<<10), make([]byte, 256<<10)
	for off := int64(0); ; {
		k, err := d.merged.Read(n, off, a)
		if err != nil {
			return false, err
		}
		m, err := d.base.Read(o, off, b)
		if err != nil {
			return false, err
		}
		if k != m || !bytes.Equal(a[:k], b[:m]) {
			return false, nil
		}
		if k == 0 {
			return true, nil
		}
		off += int64(k)
	}
}

// emptyBranch has nothing in it.
type emptyBranch struct{}

func (emptyBranch) Root() (Dir, error)          { return emptyDir{}, nil }
func (emptyBranch) Describe() string            { return "nothing" }
func (emptyBranch) Indexed() bool               { return true }
func (emptyBranch) Statfs(*unix.Statfs_t) error { return nil }
func (emptyBranch) Close() error                { return nil }

// emptyDir is its root.
type emptyDir struct{}

func (emptyDir) Lookup(string) (Entry, error)           { return Entry{}, unix.ENOENT }
func (emptyDir) List(uint64, func(Entry) bool) error    { return nil }
func (emptyDir) Opaque() (bool, error)                  { return false, nil }
func (emptyDir) Redirect() (string, error)              { return "", nil }
func (emptyDir) Self() Entry                            { return Entry{Type: unix.S_IFDIR, Ino: 1} }
func (d emptyDir) Sub(Entry) (Dir, error)               { return d, nil }
func (emptyDir) Open(Entry) (*Data, error)              { return nil, unix.EISDIR }
func (emptyDir) Readlink(Entry) (string, error)         { return "", unix.EINVAL }
func (emptyDir) Getxattr(Entry, string) ([]byte, error) { return nil, unix.ENODATA }
func (emptyDir) Listxattr(Entry) ([]string, error)      { return nil, nil }
func (emptyDir) Describe(Entry) string                  { return "nothing" }
func (emptyDir) Stat(_ Entry, a *Attr) error {
	*a = Attr{Ino: 1, Mode: unix.S_IFDIR | 0o755, Nlink: 2}
	return nil
}
