package layerstore

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// workbench is an image with a writable upper branch.
type workbench struct {
	t           *testing.T
	s           *Store
	image       *Image
	upper, work string
	u           *cow.Union
}

func newWorkbench(t *testing.T, s *Store, i *Image) *workbench {
	w := &workbench{t: t, s: s, image: i, upper: t.TempDir(), work: t.TempDir()}
	if err := os.Chmod(w.upper, 0o755); err != nil {
		t.Fatal(err)
	}
	w.open()
	return w
}

func (w *workbench) open() {
	w.t.Helper()
	b, err := w.image.Branch()
	if err == nil {
		w.u, err = cow.New(cow.Options{Lower: []cow.Branch{b}, Upper: w.upper, Work: w.work})
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *workbench) close() {
	w.t.Helper()
	if err := w.u.Close(); err != nil {
		w.t.Fatal(err)
	}
}

// at calls do with the directory that a path is in, unless there is none.
func (w *workbench) at(p string, do func(dir *cow.Node, name string) error) error {
	n := w.u.Root()
	dir, name := path.Split(p)
	for part := range strings.SplitSeq(strings.Trim(dir, "/"), "/") {
		if part == "" {
			continue
		}
		var a cow.Attr
		next, err := w.u.Lookup(n, part, &a)
		w.u.Forget(n, 1)
		if err != nil {
			return err
		}
		n = next
	}
	defer w.u.Forget(n, 1)
	if n.Kind() != unix.S_IFDIR {
		return unix.ENOTDIR
	}
	return do(n, name)
}

// node calls do with what is at a path.
func (w *workbench) node(p string, do func(n *cow.Node, a *cow.Attr) error) error {
	return w.at(p, func(dir *cow.Node, name string) error {
		var a cow.Attr
		n, err := w.u.Lookup(dir, name, &a)
		if err != nil {
			return err
		}
		defer w.u.Forget(n, 1)
		return do(n, &a)
	})
}

// remove deletes whatever is at a path.
func (w *workbench) remove(p string) error {
	return w.at(p, func(dir *cow.Node, name string) error {
		var a cow.Attr
		n, err := w.u.Lookup(dir, name, &a)
		if err != nil {
			return err
		}
		names := w.names(n, &a)
		w.u.Forget(n, 1)
		for _, sub := range names {
			if err := w.remove(p + "/" + sub); err != nil {
				return err
			}
		}
		if a.IsDir() {
			return w.u.Rmdir(dir, name)
		}
		return w.u.Unlink(dir, name)
	})
}

func (w *workbench) names(n *cow.Node, a *cow.Attr) []string {
	var all []string
	if !a.IsDir() {
		return nil
	}
	for after := uint64(0); ; {
		got, err := w.u.ReadDir(n, after, make([]cow.DirEnt, 0, 64))
		if err != nil {
			w.t.Fatal(err)
		}
		if len(got) == 0 {
			return all
		}
		for _, e := range got {
			all = append(all, e.Name)
		}
		after = got[len(got)-1].Cookie
	}
}

func (w *workbench) exists(p string) bool {
	return w.node(p, func(*cow.Node, *cow.Attr) error { return nil }) == nil
}

func (w *workbench) isDir(p string) (is bool) {
	w.node(p, func(_ *cow.Node, a *cow.Attr) error { is = a.IsDir(); return nil })
	return is
}

// step does something random. It may fail, as something may not be there.
func (w *workbench) step(rng *rand.Rand) {
	var names = []string{"a", "b", "c", "d"}
	some := func() string {
		p := names[rng.IntN(len(names))]
		for range rng.IntN(3) {
			p += "/" + names[rng.IntN(len(names))]
		}
		return p
	}
	owner := cow.Owner{UID: uint32(rng.IntN(3)), GID: uint32(rng.IntN(3))}
	p := some()
	var a cow.Attr
	made := func(n *cow.Node, err error) error {
		if err == nil {
			w.u.Forget(n, 1)
		}
		return err
	}
	switch rng.IntN(12) {
	case 0, 1:
		w.at(p, func(dir *cow.Node, name string) error {
			n, err := w.u.Create(dir, name, unix.S_IFREG|0o640, owner, &a)
			if err != nil {
				return err
			}
			defer w.u.Forget(n, 1)
			_, err = w.u.Write(n, int64(rng.IntN(5000)), []byte(p))
			return err
		})
	case 2:
		w.at(p, func(dir *cow.Node, name string) error {
			return made(w.u.Mkdir(dir, name, 0o750, owner, &a))
		})
	case 3:
		w.at(p, func(dir *cow.Node, name string) error {
			return made(w.u.Symlink(dir, name, "/to/"+p, owner, &a))
		})
	case 4:
		w.at(p, func(dir *cow.Node, name string) error {
			return made(w.u.Mknod(dir, name, unix.S_IFCHR|0o600, uint32(unix.Mkdev(300, 70000)), owner, &a))
		})
	case 5, 6:
		w.remove(p)
	case 7, 8:
		// What the kernel would not let through: it never asks the union.
		to := some()
		if to == p || strings.HasPrefix(to, p+"/") || strings.HasPrefix(p, to+"/") || w.isDir(p) != w.isDir(to) && w.exists(to) {
			return
		}
		w.at(p, func(from *cow.Node, oldName string) error {
			return w.at(to, func(dir *cow.Node, name string) error { return w.u.Rename(from, oldName, dir, name, 0) })
		})
	case 9:
		w.node(p, func(n *cow.Node, at *cow.Attr) error {
			if at.IsDir() {
				return unix.EPERM
			}
			return w.at(some(), func(dir *cow.Node, name string) error { return w.u.Link(n, dir, name, &a) })
		})
	case 10:
		w.node(p, func(n *cow.Node, _ *cow.Attr) error {
			return w.u.Setxattr(n, []string{"user.x", "user.y", "trusted.z"}[rng.IntN(3)], []byte(p+"\x00="), 0)
		})
	case 11:
		w.node(p, func(n *cow.Node, at *cow.Attr) error {
			s := cow.SetAttr{Valid: cow.SetMode | cow.SetMtime, Mode: uint32(rng.IntN(0o10000)), Mtime: unix.Timespec{Sec: int64(rng.IntN(1 << 33)), Nsec: int64(rng.IntN(1e9))}}
			if at.Mode&unix.S_IFMT == unix.S_IFLNK {
				s.Valid = cow.SetMtime
			}
			return w.u.Setattr(n, &s, &a)
		})
	}
}

// snapshot is what the union shows.
func (w *workbench) snapshot() snapshot {
	s := snapshot{}
	groups := map[uint64]string{}
	var lines []func()
	var walk func(n *cow.Node, a cow.Attr, p string)
	walk = func(n *cow.Node, a cow.Attr, p string) {
		content := ""
		var err error
		switch a.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b := make([]byte, a.Size)
			_, err = w.u.Read(n, 0, b)
			content = string(b)
		case unix.S_IFLNK:
			content, err = w.u.Readlink(n)
		}
		names, xerr := w.u.Listxattr(n)
		if err != nil || xerr != nil {
			w.t.Fatal(p, err, xerr)
		}
		xattrs := map[string]string{}
		for _, name := range names {
			v, err := w.u.Getxattr(n, name)
			if err != nil {
				w.t.Fatal(p, err)
			}
			xattrs[name] = string(v)
		}
		if g, ok := groups[a.Ino]; !ok || p < g {
			groups[a.Ino] = p
		}
		lines = append(lines, func() { s[p] = line(&a, content, xattrs, groups[a.Ino]) })
		for _, name := range w.names(n, &a) {
			var sub cow.Attr
			child, err := w.u.Lookup(n, name, &sub)
			if err != nil {
				w.t.Fatal(p, name, err)
			}
			walk(child, sub, path.Join(p, name))
			w.u.Forget(child, 1)
		}
	}
	var a cow.Attr
	if err := w.u.Getattr(w.u.Root(), &a); err != nil {
		w.t.Fatal(err)
	}
	walk(w.u.Root(), a, "")
	for _, f := range lines {
		f()
	}
	delete(s, "")
	return s
}

// unlinked is a snapshot without its root and without what it says of hard links: a union counts the names that were deleted
// from a file that it didn't change.
func unlinked(s snapshot) snapshot {
	links := regexp.MustCompile(` nlink \d+|linked with \S+ `)
	out := snapshot{}
	for p, l := range s {
		if p != "." {
			out[p] = strings.ReplaceAll(links.ReplaceAllString(l, ""), "  ", " ")
		}
	}
	return out
}

// layer is the tar of what the upper branch changes. The union is closed.
func (w *workbench) layer() []byte {
	w.t.Helper()
	b, err := w.image.Branch()
	if err != nil {
		w.t.Fatal(err)
	}
	defer b.Close()
	d, err := cow.Compare(w.upper, []cow.Branch{b})
	if err != nil {
		w.t.Fatal(err)
	}
	defer d.Close()
	var out bytes.Buffer
	a := NewArchive(&out)
	if err := d.Export(a.Add); err != nil {
		w.t.Fatal(err)
	}
	if err := a.Close(); err != nil {
		w.t.Fatal(err)
	}
	return out.Bytes()
}
