package cow

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// Hard links of lower files. When a file with several names is copied up by one of them, the others must go on being the same
// file. So the copy also gets a name in work/index, its node ID, by which a lookup of another name finds it. When the union
// is closed the other names are made in the upper branch, so that it is complete without the work directory.

// nlinkXattr is how many names the union has for a file whose lower had several: work/index holds the file, and the upper
// branch only those names through which it was changed.
const nlinkXattr = "nlink"

// indexHardLink makes the copy findable for the file's other names, which stay in the lower branches. The caller holds n.mu.
func (u *Union) indexHardLink(n *Node, tmp string, low *Attr) error {
	count := strconv.FormatUint(uint64(low.Nlink-n.fewer), 10)
	if err := setOwnXattr(u.upper.fresh, tmp, nlinkXattr, []byte(count)); err != nil {
		if err == unix.EOPNOTSUPP || err == unix.EPERM {
			return nil // the names come apart, as in an overlayfs without index
		}
		return err
	}
	err := unix.Linkat(u.upper.fresh, tmp, u.upper.index, idName(n.id), 0)
	if err == unix.EEXIST {
		// Left by a copy-up that was killed before its rename.
		if err = unix.Unlinkat(u.upper.index, idName(n.id), 0); err == nil {
			err = unix.Linkat(u.upper.fresh, tmp, u.upper.index, idName(n.id), 0)
		}
	}
	if err != nil {
		return err
	}
	u.upper.hasIndex.Store(true)
	n.indexed = true
	return nil
}

// fixNlink corrects the link count of a file for what the upper branch keeps besides its names. The caller holds n.mu.
func (u *Union) fixNlink(n *Node, a *Attr) {
	if n.part != nil && a.Nlink > 0 && n.part.live() {
		a.Nlink--
	}
	switch {
	case n.indexed:
		if p, err := u.at(n); err == nil {
			v, err := ownXattr(p.dir, p.name, nlinkXattr)
			p.done()
			if c, perr := strconv.ParseUint(string(v), 10, 32); err == nil && perr == nil {
				a.Nlink = uint32(c)
			} else if noXattr(err) {
				a.Nlink-- // complete but for the name in the index, which is about to go
			}
		}
	case n.isDir() && n.removed, n.removed && !n.inUpper:
		a.Nlink = 0
	case n.parked:
		a.Nlink--
	case n.fewer > 0 && a.Nlink > n.fewer:
		a.Nlink -= n.fewer
	}
}

// addNlink changes the count that an indexed file carries. The caller holds n.mu exclusively.
func (u *Union) addNlink(n *Node, by int) error {
	if !n.indexed {
		return nil
	}
	var a Attr
	u.fixNlink(n, &a)
	p, err := u.at(n)
	if err != nil {
		return err
	}
	defer p.done()
	return setOwnXattr(p.dir, p.name, nlinkXattr, []byte(strconv.Itoa(max(int(a.Nlink)+by, 0))))
}

// finishHardLinks gives every copied-up file all the names that the union shows for it, and empties work/index. A union that was
// killed before leaves that to the next.
func (u *Union) finishHardLinks() error {
	if u.upper == nil || !u.upper.hasHardLinks() {
		return nil
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	var ids []uint64
	missing := map[uint64]bool{}
	var failed error
	err := listAt(u.upper.index, "", func(e dirent) bool {
		id, err := strconv.ParseUint(e.name, 16, 64)
		if err != nil {
			return true // not ours
		}
		ids = append(ids, id)
		var st unix.Stat_t
		if failed = statAt(u.upper.index, e.name, &st); failed != nil {
			return false
		}
		v, err := ownXattr(u.upper.index, e.name, nlinkXattr)
		if noXattr(err) {
			return true // all its names were made before, by a union that was killed before it had put the index away
		}
		if err != nil {
			failed = err
			return false
		}
		if count, err := strconv.ParseUint(string(v), 10, 32); err != nil || uint64(st.Nlink)-1 < count {
			missing[id] = true
		}
		return true
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("reading the index of hard links: %w", err)
	}
	if len(missing) > 0 {
		if err := u.linkMissing(u.root, missing); err != nil {
			return fmt.Errorf("completing hard links in the upper branch: %w", err)
		}
	}
	for _, id := range ids {
		for _, p := range [...]string{ownPrefix, ownTrustedPrefix} {
			err := removexattrAt(u.upper.index, idName(id), p+nlinkXattr)
			if err != nil && !noXattr(err) && err != unix.EPERM {
				return err
			}
		}
		if err := unix.Unlinkat(u.upper.index, idName(id), 0); err != nil {
			return err
		}
	}
	return nil
}

// linkMissing looks through a directory and those in it for lower names of the given files. The caller holds tree.
func (u *Union) linkMissing(dir *Node, ids map[uint64]bool) error {
	if err := u.load(dir); err != nil {
		return err
	}
	var subs, links []string
	buf := make([]DirEnt, 0, 256)
	for after := uint64(0); ; {
		got, err := u.readDir(dir, after, buf[:0])
		if err != nil {
			return err
		}
		if len(got) == 0 {
			break
		}
		for _, e := range got {
			switch {
			case e.Type == unix.S_IFDIR:
				subs = append(subs, e.Name)
			case ids[e.Ino]:
				links = append(links, e.Name)
			}
		}
		after = got[len(got)-1].Cookie
	}
	for _, name := range links {
		if err := u.linkName(dir, name); err != nil {
			return err
		}
	}
	for _, name := range subs {
		var a Attr
		dir.mu.RLock()
		f, err := u.find(dir, name)
		var n *Node
		if err == nil {
			n, err = u.resolve(dir, &f, &a)
		}
		dir.mu.RUnlock()
		if err != nil {
			return err
		}
		err = u.linkMissing(n, ids)
		u.Forget(n, 1)
		if err != nil {
			return err
		}
	}
	return nil
}

// linkName makes one lower name of an indexed file a name of the upper branch.
func (u *Union) linkName(dir *Node, name string) error {
	if err := u.raise(dir); err != nil {
		return err
	}
	dir.mu.Lock()
	defer dir.mu.Unlock()
	f, err := u.find(dir, name)
	if err != nil || f.upper != nil {
		return err
	}
	var a Attr
	n, err := u.resolve(dir, &f, &a)
	if err != nil {
		return err
	}
	defer u.Forget(n, 1)
	if !n.indexed {
		return nil
	}
	p, err := u.in(dir, name)
	if err != nil {
		return err
	}
	defer p.done()
	// The directory does not change by it, so neither do its times.
	var st unix.Stat_t
	if err := statAt(p.dir, "", &st); err != nil {
		return err
	}
	if err := u.materialise(n, &f, p, dir); err != nil {
		return err
	}
	return unix.UtimesNanoAt(p.dir, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// materialise gives a copied-up hard link the name in the upper branch that so far only lower branches have.
func (u *Union) materialise(n *Node, f *found, p place, dir *Node) error {
	if f.upper != nil {
		return nil
	}
	if err := unix.Linkat(u.upper.index, idName(n.id), p.dir, p.name, 0); err != nil {
		return err
	}
	n.mu.Lock()
	dir.dir.put(n.upperName(p.name))
	f.upper = dir.dir.upper[p.name]
	u.addLink(n, dir, p.name, true)
	n.mu.Unlock()
	return nil
}
