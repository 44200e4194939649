package cow

import (
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Exported is a file as a union shows it, on its way into an archive. It is valid until the function that got it returns.
type Exported struct {
	Path   string // without leading slash; empty for the root
	Attr   Attr
	Target string            // of a symbolic link
	Xattrs map[string]string // as the union shows them
	Link   string            // path of a file that came before and is the same one; of this one then only Attr is set

	Deleted bool // the branches below have this path and the union doesn't; nothing else is set
	Opaque  bool // a directory of which nothing that the branches below have in it shows

	u *Union
	n *Node
}

// WriteTo writes the content of a regular file, exactly Attr.Size bytes of it. A file that is cut while it is read is an error.
func (x *Exported) WriteTo(w io.Writer) (int64, error) {
	f, err := x.u.Data(x.n)
	if err != nil {
		return 0, err
	}
	defer f.Release()
	size := int64(x.Attr.Size)
	buf := make([]byte, min(256<<10, size))
	for off := int64(0); off < size; {
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return off, err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return off, err
		}
		off += int64(n)
	}
	return size, nil
}

// Export calls yield for everything in Changes, in that order: a layer that has it makes the merged tree of the one below.
// A directory is opaque if at least two names that the branches below have in it are deleted, and none of them is left; their
// deletions are then not mentioned. Only the content of the trees decides that, so two upper branches that show the same are
// exported in the same way. Directories of which only times changed, since something in them did, are part of it. The root
// comes first if its mode, owner or xattrs changed, or if it is opaque.
func (d *Difference) Export(yield func(*Exported) error) error {
	opaque, err := d.emptied()
	if err != nil {
		return err
	}
	e := exporter{u: d.merged, yield: yield, linked: map[uint64]string{}}
	changed, err := d.rootChanged()
	if err != nil {
		return err
	}
	if changed || opaque["/"] {
		if err := e.root(opaque["/"]); err != nil {
			return err
		}
	}
	for _, c := range d.Changes {
		if c.Kind == Deleted {
			if opaque[path.Dir(c.Path)] {
				continue
			}
			if err := yield(&Exported{Path: c.Path[1:], Deleted: true}); err != nil {
				return err
			}
			continue
		}
		var a Attr
		n, err := at(d.merged, c.Path, &a)
		if err == nil {
			err = e.file(c.Path[1:], n, &a, opaque[c.Path])
			d.merged.Forget(n, 1)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", c.Path, err)
		}
	}
	return nil
}

// emptied returns the directories that lost all names that the branches below have in them.
func (d *Difference) emptied() (map[string]bool, error) {
	deleted := map[string]int{}
	for _, c := range d.Changes {
		if c.Kind == Deleted {
			deleted[path.Dir(c.Path)]++
		}
	}
	const fewest = 2 // with one, a whiteout says the same and says what it is
	opaque := map[string]bool{}
	for dir, count := range deleted {
		if count < fewest {
			continue
		}
		names := 0
		n := d.base.root
		if dir != "/" {
			var a Attr
			var err error
			if n, err = at(d.base, dir, &a); err != nil {
				return nil, fmt.Errorf("%s: %w", dir, err)
			}
		}
		err := each(d.base, n, func(DirEnt) { names++ })
		d.base.Forget(n, 1) // of the root, nothing happens
		if err != nil {
			return nil, fmt.Errorf("%s: %w", dir, err)
		}
		opaque[dir] = names == count
	}
	return opaque, nil
}

// rootChanged reports whether the root has other attributes than before, its times aside.
func (d *Difference) rootChanged() (bool, error) {
	var now, was Attr
	if err := d.merged.Getattr(d.merged.root, &now); err != nil {
		return false, err
	}
	if err := d.base.Getattr(d.base.root, &was); err != nil {
		return false, err
	}
	was.Mtime = now.Mtime
	same, err := d.same(d.merged.root, d.base.root, &now, &was)
	return !same, err
}

// ExportTree calls yield for every file that the branches (top first) show together, sorted by name within each directory,
// which comes before what is in it. The root is first. The branches stay the caller's.
func ExportTree(branches []Branch, yield func(*Exported) error) error {
	fds := NewDescriptors(0)
	defer fds.Close()
	u, err := New(Options{Lower: branches, Descriptors: fds})
	if err != nil {
		return err
	}
	e := exporter{u: u, yield: yield, linked: map[uint64]string{}}
	if err := e.root(false); err != nil {
		return err
	}
	return e.inside("", u.root)
}

// exporter hands out the files of a union.
type exporter struct {
	u      *Union
	yield  func(*Exported) error
	linked map[uint64]string // first path of a file with several names
}

func (e *exporter) root(opaque bool) error {
	var a Attr
	if err := e.u.Getattr(e.u.root, &a); err != nil {
		return err
	}
	return e.file("", e.u.root, &a, opaque)
}

// inside exports what is in a directory.
func (e *exporter) inside(dir string, n *Node) error {
	var names []string
	if err := each(e.u, n, func(x DirEnt) { names = append(names, x.Name) }); err != nil {
		return fmt.Errorf("/%s: %w", dir, err)
	}
	slices.Sort(names)
	for _, name := range names {
		p := strings.TrimPrefix(dir+"/"+name, "/")
		var a Attr
		child, err := e.u.Lookup(n, name, &a)
		if err != nil {
			return fmt.Errorf("/%s: %w", p, err)
		}
		err = e.file(p, child, &a, false)
		if err != nil {
			err = fmt.Errorf("/%s: %w", p, err)
		} else if child.isDir() {
			err = e.inside(p, child)
		}
		e.u.Forget(child, 1)
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *exporter) file(p string, n *Node, a *Attr, opaque bool) error {
	x := &Exported{Path: p, Attr: *a, Opaque: opaque, u: e.u, n: n}
	if !n.isDir() && a.Nlink > 1 {
		if first, ok := e.linked[n.id]; ok {
			x.Link = first
			return e.yield(x)
		}
		e.linked[n.id] = p
	}
	if n.kind == unix.S_IFLNK {
		target, err := e.u.Readlink(n)
		if err != nil {
			return err
		}
		x.Target = target
	}
	names, err := e.u.Listxattr(n)
	if err != nil {
		return err
	}
	for _, name := range names {
		v, err := e.u.Getxattr(n, name)
		if noXattr(err) {
			continue
		}
		if err != nil {
			return err
		}
		if x.Xattrs == nil {
			x.Xattrs = map[string]string{}
		}
		x.Xattrs[name] = string(v)
	}
	return e.yield(x)
}
