package cow

import (
	"golang.org/x/sys/unix"
)

// Rename moves a name, with the flags of renameat2(2): RENAME_NOREPLACE and RENAME_EXCHANGE. RENAME_WHITEOUT is EINVAL, as in
// the kernel's overlayfs: a whiteout can't be a file of a union.
//
// A directory that lower branches have too is moved by moving what the upper branch has of it and recording in
// overlay.redirect where its lower part stays.
func (u *Union) Rename(from *Node, oldName string, to *Node, newName string, flags uint32) error {
	switch {
	case u.upper == nil:
		return unix.EROFS
	case !from.isDir() || !to.isDir():
		return unix.ENOTDIR
	case flags&^(unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE) != 0, flags == unix.RENAME_NOREPLACE|unix.RENAME_EXCHANGE:
		return unix.EINVAL
	case reservedName(newName):
		return unix.EINVAL
	}
	if err := checkName(newName); err != nil {
		return err
	}
	for {
		// Data is copied before the tree is locked; should the name mean another file by then, try again.
		if err := u.copyUpName(from, oldName); err != nil {
			return err
		}
		if flags&unix.RENAME_EXCHANGE != 0 {
			if err := u.copyUpName(to, newName); err != nil {
				return err
			}
		}
		again, err := u.rename(from, oldName, to, newName, flags)
		if !again {
			return err
		}
	}
}

// copyUpName copies up the file that a name means.
func (u *Union) copyUpName(dir *Node, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	n, err := u.named(dir, name)
	if err != nil {
		return err
	}
	defer u.Forget(n, 1)
	if !n.isDir() {
		return u.copyUpToMove(n)
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	if err := u.raise(n); err != nil {
		return err
	}
	return u.load(n)
}

// named is Lookup for who needs no attributes.
func (u *Union) named(dir *Node, name string) (*Node, error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	if dir.isRemoved() {
		return nil, unix.ENOENT
	}
	if err := u.load(dir); err != nil {
		return nil, err
	}
	dir.mu.RLock()
	defer dir.mu.RUnlock()
	f, err := u.find(dir, name)
	if err != nil {
		return nil, err
	}
	return u.want(dir, &f)
}

// move is a rename under way.
type move struct {
	from, to           *Node
	oldName, newName   string
	oldAt, newAt       place
	oldFound, newFound found
	n, target          *Node // target is nil if the new name is free
}

func (u *Union) rename(from *Node, oldName string, to *Node, newName string, flags uint32) (again bool, err error) {
	u.tree.Lock()
	defer u.tree.Unlock()
	// Nobody else is inside the union now but Forget, so Node.mu need not be held for long.
	m := &move{from: from, to: to, oldName: oldName, newName: newName}
	for _, d := range []*Node{from, to} {
		if err := u.raise(d); err != nil {
			return false, err
		}
		if err := u.load(d); err != nil {
			return false, err
		}
	}
	if m.oldFound, err = u.find(from, oldName); err != nil {
		return false, err
	}
	m.newFound, err = u.find(to, newName)
	if err != nil && err != unix.ENOENT {
		return false, err
	}
	exists := err == nil
	exchange := flags&unix.RENAME_EXCHANGE != 0
	switch {
	case exists && flags&unix.RENAME_NOREPLACE != 0:
		return false, unix.EEXIST
	case !exists && exchange:
		return false, unix.ENOENT
	}
	if m.n, err = u.want(from, &m.oldFound); err != nil {
		return false, err
	}
	defer u.Forget(m.n, 1)
	if m.oldFound.upper == nil && !m.n.indexed || m.n.lost() {
		return true, nil
	}
	if exists {
		if m.target, err = u.want(to, &m.newFound); err != nil {
			return false, err
		}
		defer u.Forget(m.target, 1)
		if m.target == m.n {
			return false, nil // two names of one file: rename(2) does nothing
		}
		if exchange && (m.newFound.upper == nil && !m.target.indexed || m.target.lost()) {
			return true, nil
		}
	}
	if u.inside(to, m.n) || exchange && u.inside(from, m.target) {
		return false, unix.EINVAL
	}
	if m.oldAt, err = u.in(from, oldName); err != nil {
		return false, err
	}
	defer m.oldAt.done()
	if m.newAt, err = u.in(to, newName); err != nil {
		return false, err
	}
	defer m.newAt.done()
	if err := u.materialise(m.n, &m.oldFound, m.oldAt, from); err != nil {
		return false, err
	}
	if exchange {
		if err := u.materialise(m.target, &m.newFound, m.newAt, to); err != nil {
			return false, err
		}
		return false, u.exchange(m)
	}
	return false, u.replace(m)
}

// inside reports whether dir is n or beneath it.
func (u *Union) inside(dir, n *Node) bool {
	for ; dir != u.root; dir = dir.links[0].parent {
		if dir == n {
			return true
		}
	}
	return dir == n
}

// settleDirectory marks a directory for its new place: a merged one with where its lower part is, one of the upper branch alone
// as opaque if the lower branches have the new name.
func (u *Union) settleDirectory(n *Node, at place, hidesLower bool) error {
	if !n.isDir() {
		return nil
	}
	if len(n.dir.sources) > 0 {
		if n.dir.lowerPath != "" && !n.dir.relative {
			return nil
		}
		if u.noRedirect {
			return unix.EXDEV
		}
		path := u.lowerPath(n)
		if err := setxattrAt(at.dir, at.name, u.upper.prefix+"redirect", []byte(path), 0); err != nil {
			if err == unix.EOPNOTSUPP || err == unix.ENOSPC || err == unix.E2BIG || err == unix.ERANGE {
				return unix.EXDEV // mv(1) then copies
			}
			return err
		}
		n.dir.lowerPath, n.dir.relative = path, false
		return nil
	}
	if !hidesLower {
		return nil
	}
	return u.upper.markOpaque(at.dir, at.name)
}

func (u *Union) exchange(m *move) error {
	if err := u.settleDirectory(m.n, m.oldAt, m.newFound.hasLower); err != nil {
		return err
	}
	if err := u.settleDirectory(m.target, m.newAt, m.oldFound.hasLower); err != nil {
		return err
	}
	if err := unix.Renameat2(m.oldAt.dir, m.oldName, m.newAt.dir, m.newName, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	m.from.dir.put(m.target.upperName(m.oldName))
	m.to.dir.put(m.n.upperName(m.newName))
	u.relink(m.n, m.from, m.oldName, m.to, m.newName)
	u.relink(m.target, m.to, m.newName, m.from, m.oldName)
	return nil
}

func (u *Union) replace(m *move) error {
	t := m.target
	if t != nil {
		switch {
		case m.n.isDir() && !t.isDir():
			return unix.ENOTDIR
		case !m.n.isDir() && t.isDir():
			return unix.EISDIR
		case t.isDir():
			if err := u.load(t); err != nil {
				return err
			}
			if empty, err := t.dir.empty(); err != nil || !empty {
				if err == nil {
					err = unix.ENOTEMPTY
				}
				return err
			}
		}
	}
	if err := u.settleDirectory(m.n, m.oldAt, m.newFound.hasLower); err != nil {
		return err
	}
	byFile := m.newFound.whiteout != nil && m.newFound.whiteout.byFile
	err := u.inheritOwner(m)
	if err != nil {
		return err
	}
	switch {
	case t != nil && t.isDir() && m.newFound.upper != nil:
		err = u.replaceDirectory(m)
	case m.n.isDir() && m.newFound.whiteout != nil && !byFile:
		err = u.swapWhiteout(m)
	default:
		if t != nil && m.newFound.upper != nil && !t.others(m.newName, &m.newFound) {
			// The rename takes the file's last name away; it stays, for those who hold it, under this one.
			if err := unix.Linkat(m.newAt.dir, m.newName, u.upper.park, idName(t.id), 0); err != nil {
				return err
			}
			t.parked = true
		}
		err = u.moveAway(m.oldAt, m.newAt.dir, m.newName, m.oldFound.hasLower)
		if err != nil && t != nil && t.parked && !t.removed {
			if unix.Unlinkat(u.upper.park, idName(t.id), 0) == nil {
				t.parked = false
			}
		}
	}
	if err != nil {
		return err
	}
	if byFile {
		if err := unix.Unlinkat(m.newAt.dir, whiteoutPrefix+m.newName, 0); err != nil {
			return err
		}
	}
	if m.oldFound.hasLower {
		m.from.dir.put(upperName{name: m.oldName, whiteout: true, byFile: u.upper.whiteoutsByFile()})
	} else {
		m.from.dir.remove(m.oldName)
	}
	m.to.dir.put(m.n.upperName(m.newName))
	if t != nil {
		t.mu.Lock()
		err = u.unlinked(t, m.to, m.newName)
		t.mu.Unlock()
	}
	u.relink(m.n, m.from, m.oldName, m.to, m.newName)
	return err
}

// moveAway renames a name of the upper branch, leaving a whiteout behind if lower branches have it too.
func (u *Union) moveAway(p place, dir int, name string, whiteout bool) error {
	plainly := func() error { return unix.Renameat(p.dir, p.name, dir, name) }
	if !whiteout {
		return plainly()
	}
	return u.replaceByWhiteout(p, func() error {
		return unix.Renameat2(p.dir, p.name, dir, name, unix.RENAME_WHITEOUT)
	}, plainly, nil)
}

// swapWhiteout is a rename of a directory onto a whiteout device, which a directory can't replace: the two change places.
func (u *Union) swapWhiteout(m *move) error {
	if u.upper.noFile.Load() {
		if err := u.upper.allowXattrWhiteouts(m.oldAt.dir); err != nil {
			return err
		}
	}
	if err := unix.Renameat2(m.oldAt.dir, m.oldName, m.newAt.dir, m.newName, unix.RENAME_EXCHANGE); err != nil {
		return err
	}
	if m.oldFound.hasLower {
		return nil // the whiteout is where it is needed
	}
	return unix.Unlinkat(m.oldAt.dir, m.oldName, 0)
}

// replaceDirectory is a rename onto an empty directory, which may still have whiteouts in it and be held by somebody. It is put
// away first and another, really empty one takes its place, as the kernel's overlayfs does it (fs/overlayfs/dir.c,
// ovl_clear_empty): so every step either shows nothing or is the rename.
func (u *Union) replaceDirectory(m *move) error {
	tmp := u.upper.name()
	if err := unix.Mkdirat(u.upper.fresh, tmp, 0o700); err != nil {
		return err
	}
	err := u.likeDirectory(m.newAt, tmp)
	if err == nil && (m.newFound.hasLower || len(m.target.dir.sources) > 0) {
		// Not by a file: the directory has to be empty.
		err = setxattrAt(u.upper.fresh, tmp, u.upper.prefix+"opaque", []byte("y"), 0)
	}
	if err == nil {
		err = unix.Renameat2(u.upper.fresh, tmp, m.newAt.dir, m.newName, unix.RENAME_EXCHANGE)
	}
	if err != nil {
		unix.Unlinkat(u.upper.fresh, tmp, unix.AT_REMOVEDIR)
		if err == unix.EOPNOTSUPP {
			err = unix.EXDEV // mv(1) then copies
		}
		return err
	}
	if err := u.moveAway(m.oldAt, m.newAt.dir, m.newName, m.oldFound.hasLower); err != nil {
		if unix.Renameat2(u.upper.fresh, tmp, m.newAt.dir, m.newName, unix.RENAME_EXCHANGE) == nil {
			unix.Unlinkat(u.upper.fresh, tmp, unix.AT_REMOVEDIR)
		}
		return err
	}
	if err := unix.Renameat(u.upper.fresh, tmp, u.upper.park, idName(m.target.id)); err != nil {
		return err
	}
	m.target.parked = true
	return nil
}

// likeDirectory gives a new directory in new/ the attributes of one in the upper branch.
func (u *Union) likeDirectory(like place, tmp string) error {
	var st unix.Stat_t
	if err := statAt(like.dir, like.name, &st); err != nil {
		return err
	}
	if err := u.chown(u.upper.fresh, tmp, st.Uid, st.Gid); err != nil {
		return err
	}
	if err := unix.Fchmodat(u.upper.fresh, tmp, st.Mode&0o7777, 0); err != nil {
		return err
	}
	return unix.UtimesNanoAt(u.upper.fresh, tmp, []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// relink records that a node has another name. The caller holds tree exclusively.
func (u *Union) relink(n, from *Node, oldName string, to *Node, newName string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range n.links {
		if l := &n.links[i]; l.parent == from && l.name == oldName {
			u.ref(to)
			u.unref(from)
			*l = link{to, newName, true}
			u.seen(n)
			return
		}
	}
	if !n.isDir() {
		u.addLink(n, to, newName, true)
	}
}
