package cow

import (
	"golang.org/x/sys/unix"
)

// Unlink removes a name of a file that is no directory. What still holds the file goes on using it.
func (u *Union) Unlink(dir *Node, name string) error { return u.remove(dir, name, false) }

// Rmdir removes an empty directory.
func (u *Union) Rmdir(dir *Node, name string) error { return u.remove(dir, name, true) }

func (u *Union) remove(dir *Node, name string, wantDir bool) error {
	if u.upper == nil {
		return unix.EROFS
	}
	if !dir.isDir() {
		return unix.ENOTDIR
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	if err := u.raise(dir); err != nil {
		return err
	}
	if err := u.load(dir); err != nil {
		return err
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	f, err := u.find(dir, name)
	if err != nil {
		return err
	}
	n, err := u.want(dir, &f)
	if err != nil {
		return err
	}
	defer u.Forget(n, 1)
	switch {
	case wantDir && !n.isDir():
		return unix.ENOTDIR
	case !wantDir && n.isDir():
		return unix.EISDIR
	}
	if wantDir {
		if err := u.load(n); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if wantDir {
		if empty, err := n.dir.empty(); err != nil || !empty {
			if err == nil {
				err = unix.ENOTEMPTY
			}
			return err
		}
	}
	p, err := u.in(dir, name)
	if err != nil {
		return err
	}
	defer p.done()
	if err := u.removeAt(n, &f, p); err != nil {
		return err
	}
	if f.hasLower {
		dir.dir.put(upperName{name: name, whiteout: true, byFile: u.upper.whiteoutsByFile()})
	} else {
		dir.dir.remove(name)
	}
	return u.unlinked(n, dir, name)
}

// empty reports whether a merged directory has no names. The caller holds Node.mu and has loaded it.
func (d *directory) empty() (bool, error) {
	for _, x := range d.upper {
		if !x.whiteout {
			return false, nil
		}
	}
	if d.direct {
		empty := true
		err := d.sources[0].dir.List(0, func(e Entry) bool {
			empty = e.Whiteout || d.upper[e.Name] != nil
			return empty
		})
		return empty, err
	}
	for i := range d.lower.ents {
		if d.upper[d.lower.nameOf(&d.lower.ents[i])] == nil {
			return false, nil
		}
	}
	return true, nil
}

// removeAt takes a name out of the upper branch and leaves a whiteout where a lower branch has the name too, in one step that
// a crash can't divide. The file itself is parked if this was the last name that is known of it.
func (u *Union) removeAt(n *Node, f *found, p place) error {
	if f.upper == nil {
		return u.upper.whiteout(p.dir, p.name)
	}
	if n.others(p.name, f) {
		if !f.hasLower {
			return unix.Unlinkat(p.dir, p.name, 0)
		}
		tmp := u.upper.name()
		return u.replaceByWhiteout(p, func() error {
			return unix.Renameat2(p.dir, p.name, u.upper.fresh, tmp, unix.RENAME_WHITEOUT)
		}, func() error {
			return unix.Unlinkat(p.dir, p.name, 0)
		}, func() error {
			return unix.Unlinkat(u.upper.fresh, tmp, 0)
		})
	}
	id := idName(n.id)
	move := func() error { return unix.Renameat(p.dir, p.name, u.upper.park, id) }
	if f.hasLower {
		err := u.replaceByWhiteout(p, func() error {
			return unix.Renameat2(p.dir, p.name, u.upper.park, id, unix.RENAME_WHITEOUT)
		}, move, nil)
		if err != nil {
			return err
		}
	} else if err := move(); err != nil {
		return err
	}
	n.parked = true
	return nil
}

// replaceByWhiteout takes a name away by the first call, which leaves a whiteout device, or if the host can't make those by
// the second, after the whiteout file is there (beside the name, which counts as long as it exists). Then it cleans up.
func (u *Union) replaceByWhiteout(p place, atomically, plainly, clean func() error) error {
	if !u.upper.noDevice.Load() {
		err := atomically()
		if err == nil && clean != nil {
			err = clean()
		}
		if err != unix.EPERM && err != unix.EINVAL && err != unix.EOPNOTSUPP {
			return err
		}
		u.upper.noDevice.Store(true)
	}
	if u.upper.noFile.Load() {
		return u.thenWhiteout(p, plainly)
	}
	err := u.upper.whiteout(p.dir, p.name)
	if err == unix.EEXIST && u.upper.noFile.Load() {
		return u.thenWhiteout(p, plainly) // found out just now
	}
	if err != nil {
		return err
	}
	return plainly()
}

// thenWhiteout is for marks that take the name's own place and can't be made in the same step. Better that for a moment what is
// below shows again than that nothing is left.
func (u *Union) thenWhiteout(p place, plainly func() error) error {
	if err := plainly(); err != nil {
		return err
	}
	return u.upper.xattrWhiteout(p.dir, p.name)
}

// others reports whether a file is reachable in the upper branch by something else than the name that is being removed. The
// caller holds n.mu.
func (n *Node) others(name string, f *found) bool {
	if n.isDir() {
		return false
	}
	if n.parked || n.indexed {
		return true
	}
	names := 0
	for i := range n.links {
		if n.links[i].upper {
			names++
		}
	}
	return names > 1
}

// unlinked records that a name of n is gone. The caller holds n.mu, and the directory by more than n.
func (u *Union) unlinked(n, dir *Node, name string) error {
	if n.isDir() {
		// The link stays, since parents of directories are read without n.mu; removed says that it doesn't count.
		n.removed = true
		return nil
	}
	if !n.inUpper {
		n.fewer++
	}
	u.dropLink(n, dir, name)
	u.unseen(n, dir, name)
	n.removed = len(n.links) == 0
	return u.addNlink(n, -1)
}
