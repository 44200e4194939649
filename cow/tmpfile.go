package cow

import (
	"golang.org/x/sys/unix"
)

// Tmpfile makes a regular file that has no name (open(2), O_TMPFILE) and takes a reference to it. Link gives it one; without that it is
// gone when nobody holds it any more. It gets what a file that is made in dir would get of that, which does not change.
func (u *Union) Tmpfile(dir *Node, mode uint32, o Owner, a *Attr) (*Node, error) {
	switch {
	case u.upper == nil:
		return nil, unix.EROFS
	case !dir.isDir():
		return nil, unix.ENOTDIR
	}
	f := newFile{mode: unix.S_IFREG | mode&0o7777, owner: u.owners.created(o)}
	group := f.owner.GID
	var parent Attr
	u.tree.RLock()
	dir.mu.RLock()
	err := u.stored(dir, &parent)
	dir.mu.RUnlock()
	u.tree.RUnlock()
	if err != nil {
		return nil, err
	}
	if parent.Mode&unix.S_ISGID != 0 {
		group = u.owners.copied(&parent).GID
	}
	// Where a union that was killed leaves it, nobody ever sees it: the kernel has no number of it yet.
	tmp := u.upper.name()
	var st unix.Stat_t
	fd, err := u.makeAt(u.upper.fresh, tmp, f, group, &st)
	if err == nil {
		err = u.fill(a, &st, u.upper.fresh, tmp)
	}
	var n *Node
	if err == nil {
		n = u.obtain(foldIno(st.Ino, 0, 0), nil, "", func(*Node) bool { return false }, func(id uint64) *Node {
			n := &Node{id: id, kind: unix.S_IFREG, inUpper: true, parked: true, removed: true}
			n.noXattrs.Store(dir.noDefaultACL.Load())
			return n
		})
		err = unix.Renameat(u.upper.fresh, tmp, u.upper.park, idName(n.id))
	}
	if err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		if n != nil {
			u.Forget(n, 1)
		}
		unix.Unlinkat(u.upper.fresh, tmp, 0)
		return nil, err
	}
	if fd >= 0 {
		n.fdMu.Lock()
		n.fd = u.fds.add(fd, true)
		u.fds.release(n.fd)
		n.fdMu.Unlock()
	}
	u.owners.apply(a)
	a.Ino, a.Nlink = n.id, 0
	return n, nil
}
