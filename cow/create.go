package cow

import (
	"golang.org/x/sys/unix"
)

// The calls of this file need a process whose umask is 0: the mode that they are given is the file's, less only what a
// default ACL of the directory takes away. New files belong to o; in a directory with the setgid bit they take its group,
// as everywhere on Linux (fs/inode.c, inode_init_owner).

// Create makes an empty regular file. EEXIST if the name is taken.
func (u *Union) Create(dir *Node, name string, mode uint32, o Owner, a *Attr) (*Node, error) {
	return u.make(dir, name, newFile{mode: unix.S_IFREG | mode&0o7777, owner: o}, a)
}

// Mkdir makes a directory.
func (u *Union) Mkdir(dir *Node, name string, mode uint32, o Owner, a *Attr) (*Node, error) {
	return u.make(dir, name, newFile{mode: unix.S_IFDIR | mode&0o7777, owner: o}, a)
}

// Mknod makes a FIFO, a socket, a device or a regular file, as mode's S_IFMT bits say. EPERM for character device 0/0, which
// is the mark of a whiteout.
func (u *Union) Mknod(dir *Node, name string, mode, rdev uint32, o Owner, a *Attr) (*Node, error) {
	if mode&unix.S_IFMT == unix.S_IFCHR && rdev == 0 {
		return nil, unix.EPERM
	}
	if mode&unix.S_IFMT == 0 {
		mode |= unix.S_IFREG
	}
	return u.make(dir, name, newFile{mode: mode, rdev: rdev, owner: o}, a)
}

// Symlink makes a symbolic link.
func (u *Union) Symlink(dir *Node, name, target string, o Owner, a *Attr) (*Node, error) {
	return u.make(dir, name, newFile{mode: unix.S_IFLNK | 0o777, target: target, owner: o}, a)
}

// newFile is what is to be made.
type newFile struct {
	mode   uint32
	rdev   uint32
	target string
	owner  Owner
}

// vacancy is a name in a directory of the upper branch that is free to be taken.
type vacancy struct {
	place
	found
	dir *Node
}

// vacate readies a directory for a new name. The caller holds tree, and afterwards dir.mu, to be unlocked even if there is an
// error.
func (u *Union) vacate(dir *Node, name string) (vacancy, error) {
	v := vacancy{dir: dir}
	err := checkName(name)
	switch {
	case u.upper == nil:
		err = unix.EROFS
	case !dir.isDir():
		err = unix.ENOTDIR
	case err == nil && reservedName(name):
		err = unix.EINVAL
	}
	if err == nil {
		err = u.raise(dir)
	}
	if err == nil {
		err = u.load(dir)
	}
	dir.mu.Lock()
	if err != nil {
		return v, err
	}
	if dir.removed {
		return v, unix.ENOENT
	}
	v.found, err = u.find(dir, name)
	if err == nil {
		return v, unix.EEXIST
	}
	if err != unix.ENOENT {
		return v, err
	}
	v.place, err = u.in(dir, name)
	return v, err
}

// settle moves a file from a directory of the work directory to the vacancy, over the whiteout that is there.
func (u *Union) settle(from int, tmp string, v *vacancy, isDir bool) error {
	w := v.whiteout
	if isDir && w != nil && !w.byFile {
		// A directory can't replace a device: swap the two.
		if err := unix.Renameat2(from, tmp, v.place.dir, v.found.name, unix.RENAME_EXCHANGE); err != nil {
			return err
		}
		return unix.Unlinkat(from, tmp, 0)
	}
	if err := unix.Renameat(from, tmp, v.place.dir, v.found.name); err != nil {
		return err
	}
	if w != nil && w.byFile {
		return unix.Unlinkat(v.place.dir, whiteoutPrefix+v.found.name, 0)
	}
	return nil
}

func (u *Union) make(dir *Node, name string, f newFile, a *Attr) (*Node, error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	v, err := u.vacate(dir, name)
	defer dir.mu.Unlock()
	if err != nil {
		return nil, err
	}
	defer v.done()
	isDir := f.mode&unix.S_IFMT == unix.S_IFDIR
	at, as := v.place.dir, name
	if v.whiteout != nil || u.standsFor(f.mode) { // a stand-in says what it is only when it is complete
		at, as = u.upper.fresh, u.upper.name()
	}
	f.owner = u.owners.created(f.owner)
	group := f.owner.GID
	var st unix.Stat_t
	if !dir.noSetgid.Load() {
		if err := statAt(v.place.dir, "", &st); err != nil {
			return nil, err
		}
		var parent Attr
		if err := u.fill(&parent, &st, v.place.dir, ""); err != nil {
			return nil, err
		}
		setgid := parent.Mode&unix.S_ISGID != 0
		dir.noSetgid.Store(!setgid)
		if setgid {
			group = parent.GID
			if isDir {
				f.mode |= unix.S_ISGID
			}
		}
	}
	fd, err := u.makeAt(at, as, f, group, &st)
	if err == nil && isDir && v.hasLower {
		err = u.upper.markOpaque(at, as)
	}
	if err == nil && at != v.place.dir {
		err = u.settle(at, as, &v, isDir)
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		if err != unix.EEXIST {
			removeAllAt(at, as)
		}
		return nil, err
	}
	if err := u.fill(a, &st, v.place.dir, name); err != nil {
		return nil, err
	}
	kind := a.Mode & unix.S_IFMT
	n := u.obtain(foldIno(st.Ino, 0, 0), dir, name, func(*Node) bool { return false }, func(id uint64) *Node {
		n := &Node{id: id, kind: kind, links: []link{{dir, name, true}}, inUpper: true}
		if isDir {
			n.dir = &directory{loaded: true}
		}
		n.noXattrs.Store(dir.noDefaultACL.Load())
		return n
	})
	if fd >= 0 {
		n.fdMu.Lock()
		n.fd = u.fds.add(fd, true)
		u.fds.release(n.fd)
		n.fdMu.Unlock()
	}
	dir.dir.put(upperName{name: name, id: n.id, kind: kind})
	u.owners.apply(a)
	a.Ino = n.id
	return n, nil
}

// makeAt makes a file with its owner and mode, and describes it. The descriptor is that of a regular file, else -1.
func (u *Union) makeAt(dir int, name string, f newFile, group uint32, st *unix.Stat_t) (fd int, err error) {
	fd = -1
	owner := Owner{f.owner.UID, group}
	if u.standsFor(f.mode) {
		if err := makeStandIn(dir, name, override{owner, f.mode & 0o7777, f.mode & unix.S_IFMT, f.rdev}, f.target); err != nil {
			return -1, err
		}
		return -1, statAt(dir, name, st)
	}
	perm := f.mode & 0o777
	if u.virtual(f.mode) {
		perm = virtualMode
	}
	switch f.mode & unix.S_IFMT {
	case unix.S_IFREG:
		fd, err = unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
	case unix.S_IFDIR:
		err = unix.Mkdirat(dir, name, perm)
	case unix.S_IFLNK:
		err = unix.Symlinkat(f.target, dir, name)
	default:
		err = unix.Mknodat(dir, name, f.mode&unix.S_IFMT|perm, int(f.rdev))
	}
	if err != nil {
		return -1, err
	}
	stat := func() error {
		if fd >= 0 {
			return unix.Fstat(fd, st)
		}
		return statAt(dir, name, st)
	}
	if err := stat(); err != nil {
		return fd, err
	}
	if u.virtual(f.mode) {
		return fd, writeOverride(dir, name, Owner{f.owner.UID, group}, f.mode)
	}
	changed := false
	recorded := u.owners.recorded(owner)
	if !recorded && (st.Uid != f.owner.UID || st.Gid != group) {
		if err := u.chown(dir, name, f.owner.UID, group); err != nil {
			return fd, err
		}
		changed = true
	}
	if special := f.mode & 0o7000; special != st.Mode&0o7000 && f.mode&unix.S_IFMT != unix.S_IFLNK {
		// After chown, which clears setuid and setgid.
		if err := unix.Fchmodat(dir, name, special|st.Mode&0o777, 0); err != nil {
			return fd, err
		}
		changed = true
	}
	if changed {
		err = stat()
	}
	if err == nil && recorded {
		err = writeOverride(dir, name, owner, st.Mode)
	}
	return fd, err
}

// Link gives a file a further name and takes a reference to it.
func (u *Union) Link(n, dir *Node, name string, a *Attr) error {
	if n.isDir() {
		return unix.EPERM
	}
	if err := u.copyUpToMove(n); err != nil {
		return err
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	v, err := u.vacate(dir, name)
	defer dir.mu.Unlock()
	if err != nil {
		return err
	}
	defer v.done()
	n.mu.Lock()
	defer n.mu.Unlock()
	from, err := u.at(n)
	if err != nil {
		return err
	}
	defer from.done()
	switch {
	case n.parked:
		// It gets a name again, or its first one: see Tmpfile.
		if err = u.settle(from.dir, from.name, &v, false); err == nil {
			n.parked = false
		}
	case v.whiteout == nil:
		err = unix.Linkat(from.dir, from.name, v.place.dir, name, 0)
	default:
		tmp := u.upper.name()
		if err = unix.Linkat(from.dir, from.name, u.upper.fresh, tmp, 0); err == nil {
			if err = u.settle(u.upper.fresh, tmp, &v, false); err != nil {
				unix.Unlinkat(u.upper.fresh, tmp, 0)
			}
		}
	}
	if err != nil {
		return err
	}
	if err := u.addNlink(n, 1); err != nil {
		return err
	}
	u.addLink(n, dir, name, true)
	dir.dir.put(n.upperName(name))
	u.ref(n)
	return u.getattr(n, a)
}
