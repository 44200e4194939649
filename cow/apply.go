package cow

import (
	"errors"
	"fmt"
	"path"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Apply does the changes to another tree, which should be what the lower branches show: the host's own root, say. Each file is
// made whole beside its place and then moved there, so an interruption leaves every file either as it was or as it
// should be, and a second Apply finishes. Links in the paths of the target are not followed: they would be where the
// target has changed since.
func (d *Difference) Apply(target string) error {
	root, err := unix.Open(target, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", target, err)
	}
	defer unix.Close(root)
	a := application{d: d, root: root, linked: map[uint64]string{}}
	for _, c := range d.Changes {
		if err := a.change(c); err != nil {
			return fmt.Errorf("applying %c %s to %s: %w", c.Kind, c.Path, target, err)
		}
	}
	// Last, since what happens in a directory changes its times.
	for i := len(a.dirs) - 1; i >= 0; i-- {
		if err := a.metadata(a.dirs[i]); err != nil {
			return fmt.Errorf("setting the attributes of %s in %s: %w", a.dirs[i], target, err)
		}
	}
	return nil
}

// application is an Apply under way.
type application struct {
	d       *Difference
	root    int
	dirs    []string          // directories whose attributes are to be set at the end
	linked  map[uint64]string // where a file with several names was made first
	noClone atomic.Bool
}

// parent opens the directory that a path of the target is in.
func (a *application) parent(p string) (int, error) {
	dir := strings.Trim(path.Dir(p), "/")
	if dir == "" {
		dir = "."
	}
	return unix.Openat2(a.root, dir, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// at finds a path in a union; the caller forgets it.
func at(u *Union, p string, a *Attr) (*Node, error) {
	n := u.root
	u.ref(n)
	for name := range strings.SplitSeq(strings.Trim(p, "/"), "/") {
		next, err := u.Lookup(n, name, a)
		u.Forget(n, 1)
		if err != nil {
			return nil, err
		}
		n = next
	}
	return n, nil
}

func (a *application) change(c Change) error {
	dir, err := a.parent(c.Path)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	name := path.Base(c.Path)
	if c.Kind == Deleted {
		return removeAllAt(dir, name)
	}
	var attr Attr
	n, err := at(a.d.merged, c.Path, &attr)
	if err != nil {
		return err
	}
	defer a.d.merged.Forget(n, 1)
	var there unix.Stat_t
	err = statAt(dir, name, &there)
	if err != nil && err != unix.ENOENT {
		return err
	}
	exists := err == nil
	if n.isDir() {
		a.dirs = append(a.dirs, c.Path)
		if exists && there.Mode&unix.S_IFMT == unix.S_IFDIR {
			return nil
		}
		if exists {
			if err := unix.Unlinkat(dir, name, 0); err != nil {
				return err
			}
		}
		return unix.Mkdirat(dir, name, 0o700)
	}
	tmp := ".unionfs-apply-" + idName(n.id)
	if err := removeAllAt(dir, tmp); err != nil {
		return err
	}
	if err := a.make(n, &attr, dir, tmp); err != nil {
		removeAllAt(dir, tmp)
		return err
	}
	if exists && there.Mode&unix.S_IFMT == unix.S_IFDIR {
		if err := removeAllAt(dir, name); err != nil {
			return err
		}
	}
	if err := unix.Renameat(dir, tmp, dir, name); err != nil {
		removeAllAt(dir, tmp)
		return err
	}
	if attr.Nlink > 1 {
		a.linked[n.id] = c.Path
	}
	return nil
}

// make makes a file that is no directory under a temporary name.
func (a *application) make(n *Node, attr *Attr, dir int, tmp string) error {
	if first, ok := a.linked[n.id]; ok {
		from, err := a.parent(first)
		if err != nil {
			return err
		}
		defer unix.Close(from)
		return unix.Linkat(from, path.Base(first), dir, tmp, 0)
	}
	u := a.d.merged
	switch n.kind {
	case unix.S_IFREG:
		fd, err := unix.Openat(dir, tmp, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		f, err := u.Data(n)
		if err != nil {
			return err
		}
		data := &Data{FD: f.FD, Off: f.Off, Size: int64(attr.Size)}
		if !cloneData(fd, data, data.Size, &a.noClone) {
			err = copyData(fd, data, data.Size, int64(attr.Blocks)*512 < data.Size)
		}
		f.Release()
		if err == nil {
			err = unix.Fdatasync(fd)
		}
		if err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := u.Readlink(n)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, dir, tmp); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(dir, tmp, n.kind|0o600, int(attr.Rdev)); err != nil {
			return err
		}
	}
	return u.imitate(n.lowerSource(), dir, tmp)
}

// metadata sets the attributes of a directory.
func (a *application) metadata(p string) error {
	dir, err := a.parent(p)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	var attr Attr
	n, err := at(a.d.merged, p, &attr)
	if err != nil {
		return err
	}
	defer a.d.merged.Forget(n, 1)
	src := n.lowerSource()
	err = errors.Join(a.dropXattrs(src, dir, path.Base(p)), a.d.merged.imitate(src, dir, path.Base(p)))
	if errors.Is(err, unix.EPERM) && a.onlyTimes(p, n, &attr) {
		// Somebody else's directory, /tmp say, in which an ordinary user may make files and no more. What was made in it
		// has set its times.
		return nil
	}
	return err
}

// onlyTimes reports whether a directory differs from the one below it by nothing but its times and what is in it.
func (a *application) onlyTimes(p string, n *Node, attr *Attr) bool {
	var was Attr
	o, err := at(a.d.base, p, &was)
	if err != nil {
		return false
	}
	defer a.d.base.Forget(o, 1)
	nx, nerr := xattrs(a.d.merged, n)
	ox, oerr := xattrs(a.d.base, o)
	return nerr == nil && oerr == nil && nx == ox && was.Mode == attr.Mode && was.UID == attr.UID && was.GID == attr.GID
}

// dropXattrs removes from a directory of the target what the merged one has no more.
func (a *application) dropXattrs(src source, dir int, name string) error {
	have, err := listxattrAt(dir, name)
	if err != nil {
		if noXattr(err) {
			return nil
		}
		return err
	}
	want, err := src.dir.Listxattr(src.entry)
	if err != nil && !noXattr(err) {
		return err
	}
	keep := map[string]bool{}
	for _, x := range want {
		keep[x] = true
	}
	for _, x := range have {
		if _, shown := unescapeXattr(x); shown && !keep[x] && strings.HasPrefix(x, "user.") {
			if err := removexattrAt(dir, name, x); err != nil && !noXattr(err) {
				return err
			}
		}
	}
	return nil
}
