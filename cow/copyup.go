package cow

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// raise makes sure that a directory, with all above it, is in the upper branch. The caller holds tree and no Node.mu.
func (u *Union) raise(n *Node) error {
	if u.upper == nil {
		return unix.EROFS
	}
	n.mu.RLock()
	inUpper, removed := n.inUpper, n.removed
	n.mu.RUnlock()
	if removed {
		return unix.ENOENT
	}
	if inUpper {
		return nil
	}
	parent, name := n.links[0].parent, n.links[0].name
	if err := u.raise(parent); err != nil {
		return err
	}
	if err := u.load(parent); err != nil {
		return err
	}
	parent.mu.Lock()
	defer parent.mu.Unlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inUpper {
		return nil
	}
	if n.removed {
		return unix.ENOENT
	}
	to, err := u.in(parent, name)
	if err != nil {
		return err
	}
	defer to.done()
	tmp := u.upper.name()
	if err := unix.Mkdirat(u.upper.fresh, tmp, 0o700); err != nil {
		return err
	}
	src := n.dir.sources[0]
	if err = u.imitate(src, u.upper.fresh, tmp); err == nil {
		err = u.appear(tmp, to)
	}
	if err != nil {
		unix.Unlinkat(u.upper.fresh, tmp, unix.AT_REMOVEDIR)
		return err
	}
	n.inUpper, n.links[0].upper = true, true
	parent.dir.put(upperName{name: name, id: n.id, kind: unix.S_IFDIR})
	return nil
}

// copyUp makes sure that a file which is no directory is in the upper branch, with at most size bytes of its data (the rest is
// about to be cut off). The file is made in the work directory and moved into place whole, so at no instant can
// another process or another start see a part of it. The data is copied with no lock held that anything but another
// copy-up waits for.
func (u *Union) copyUp(n *Node, size int64) error {
	if u.upper == nil {
		return unix.EROFS
	}
	if n.whole() {
		return nil
	}
	lock := u.copyLock(n)
	lock.Lock()
	defer lock.Unlock()
	switch {
	case n.whole():
		return nil
	case n.isInUpper():
		return u.complete(n, size)
	}
	return u.copyUpLower(n, size, false)
}

// copyLock is what serialises the copy-ups of a file.
func (u *Union) copyLock(n *Node) *sync.Mutex { return &u.copying[n.id%uint64(len(u.copying))] }

// copyUpLower copies up a file that the upper branch doesn't have, without its data if only the metadata is wanted and
// the upper branch can say so. The caller holds the lock of its copy-ups.
func (u *Union) copyUpLower(n *Node, size int64, onlyMetadata bool) error {
	var low Attr
	if err := n.low.dir.Stat(n.low.entry, &low); err != nil {
		return err
	}
	size = min(size, int64(low.Size))
	record := ""
	if n.regular() && !onlyMetadata && u.partialWanted(size) {
		record = u.lowerPathOf(n)
	}
	c := &freshCopy{tmp: u.upper.name(), low: &low, fd: -1}
	err := u.makeCopy(n, c, size, onlyMetadata, record == "")
	if err == nil {
		c.knows, err = setOrigin(u.upper.fresh, c.tmp, n.id)
	}
	if err == nil && c.fd >= 0 && record != "" && !u.upper.hasData(c.fd) {
		c.part, err = u.startPartial(n, place{dir: u.upper.fresh, name: c.tmp}, c.fd, &low, size, record)
	}
	if err == nil {
		err = u.publish(n, c)
	}
	if err != nil {
		unix.Unlinkat(u.upper.fresh, c.tmp, 0)
		switch {
		case c.part != nil:
			_ = c.part.end()
		case c.fd >= 0:
			unix.Close(c.fd)
		}
		return err
	}
	if c.part != nil {
		u.completeLater(c.part)
	}
	return nil
}

// freshCopy is a copy of a lower file in new/.
type freshCopy struct {
	tmp   string
	low   *Attr    // of the lower file
	fd    int      // of a regular file with data, else -1
	meta  bool     // it is without data, and marked so
	knows bool     // its number is written on it
	part  *partial // if its data is to come block by block
}

// makeCopy makes the copy of a lower file in new/. With copyAll false the data is shared, if the file system can, or left
// out: then the file is one hole.
func (u *Union) makeCopy(n *Node, c *freshCopy, size int64, onlyMetadata, copyAll bool) (err error) {
	fresh := u.upper.fresh
	defer func() {
		if (err != nil || c.meta) && c.fd >= 0 {
			unix.Close(c.fd)
			c.fd = -1
		}
	}()
	if u.standsFor(c.low.Mode) {
		return u.copyStandIn(n, c.tmp, c.low)
	}
	var st unix.Stat_t
	switch n.kind {
	case unix.S_IFREG:
		perm := c.low.Mode & 0o777 // nobody else can enter new/
		if u.virtual(c.low.Mode) {
			perm = virtualMode
		}
		c.fd, err = unix.Openat(fresh, c.tmp, unix.O_CREAT|unix.O_EXCL|unix.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, perm)
		if err != nil {
			return err
		}
		if size > 0 {
			if c.meta = onlyMetadata && u.markMetacopy(c.tmp); c.meta {
				err = unix.Ftruncate(c.fd, size)
			} else {
				err = u.copyContent(n, c.fd, c.low, size, copyAll)
			}
			if err != nil {
				return err
			}
		}
		if err := unix.Fstat(c.fd, &st); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := n.low.dir.Readlink(n.low.entry)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(target, fresh, c.tmp); err != nil {
			return err
		}
	default:
		if err := unix.Mknodat(fresh, c.tmp, n.kind|0o600, int(c.low.Rdev)); err != nil {
			return err
		}
	}
	if st.Ino == 0 {
		if err := statAt(fresh, c.tmp, &st); err != nil {
			return err
		}
	}
	return u.copyMetadata(n.low, c.low, &st, fresh, c.tmp)
}

func (u *Union) copyContent(n *Node, fd int, low *Attr, size int64, copyAll bool) error {
	data, err := u.lowerData(n)
	if err != nil {
		return err
	}
	defer data.Release()
	if cloneData(fd, data, size, &u.upper.noClone) {
		return nil
	}
	if !copyAll {
		return unix.Ftruncate(fd, size)
	}
	// Blocks are what tells a file with holes from one without.
	if err := copyData(fd, data, size, int64(low.Blocks)*512 < int64(low.Size)); err != nil {
		return err
	}
	if u.volatile {
		return nil
	}
	// As the kernel's overlayfs: the name must not become durable before the data.
	return unix.Fdatasync(fd)
}

// publish moves a finished copy to where the union shows it.
func (u *Union) publish(n *Node, c *freshCopy) error {
	u.tree.RLock()
	defer u.tree.RUnlock()
	var parent *Node
	var name string
	for {
		n.mu.RLock()
		parent, name = nil, ""
		if len(n.links) > 0 {
			parent, name = n.links[0].parent, n.links[0].name
		}
		n.mu.RUnlock()
		if parent == nil {
			n.mu.Lock()
			if len(n.links) == 0 {
				defer n.mu.Unlock()
				break
			}
			n.mu.Unlock()
			continue
		}
		if err := u.raise(parent); err != nil {
			return err
		}
		if err := u.load(parent); err != nil {
			return err
		}
		parent.mu.Lock()
		n.mu.Lock()
		if len(n.links) > 0 && n.links[0].parent == parent && n.links[0].name == name {
			defer parent.mu.Unlock()
			defer n.mu.Unlock()
			break
		}
		n.mu.Unlock()
		parent.mu.Unlock()
	}
	others := c.low.Nlink - min(n.fewer, c.low.Nlink)
	if parent != nil {
		others-- // the name that it is published at
	}
	if c.low.Nlink > 1 && others > 0 {
		if err := u.indexHardLink(n, c.tmp, c.low); err != nil {
			return err
		}
	}
	if parent == nil {
		// Removed while it was copied, or before: only those who hold it open see it.
		if err := unix.Renameat(u.upper.fresh, c.tmp, u.upper.park, idName(n.id)); err != nil {
			return err
		}
		n.parked = true
	} else {
		to, err := u.in(parent, name)
		if err != nil {
			return err
		}
		defer to.done()
		if !c.knows || n.id&spareBit != 0 {
			var st unix.Stat_t
			if err := statAt(u.upper.fresh, c.tmp, &st); err != nil {
				return err
			}
			u.spares.add(n.id, foldIno(st.Ino, 0, 0), parent.id, Cookie(name))
		}
		if err := u.appear(c.tmp, to); err != nil {
			return err
		}
		n.links[0].upper = true
		n.meta = c.meta
		parent.dir.put(n.upperName(name))
	}
	n.inUpper, n.meta = true, c.meta
	if c.meta {
		return nil // its data is where it was
	}
	n.fdMu.Lock()
	u.fds.drop(n.fd)
	n.fd = nil
	n.part = c.part
	if c.fd >= 0 && c.part == nil {
		n.fd = u.fds.add(c.fd, true)
		u.fds.release(n.fd)
	}
	n.fdMu.Unlock()
	return nil
}

// appear moves a finished copy into the upper branch. The directory that it comes into has the name already, for all that the
// union shows, so its times stay; should that fail they are the only thing that is wrong.
func (u *Union) appear(tmp string, to place) error {
	var st unix.Stat_t
	if err := statAt(to.dir, "", &st); err != nil {
		return err
	}
	if err := unix.Renameat(u.upper.fresh, tmp, to.dir, to.name); err != nil {
		return err
	}
	_ = unix.UtimesNanoAt(to.dir, ".", []unix.Timespec{st.Atim, st.Mtim}, 0)
	return nil
}

// imitate gives a new file the owner, mode, xattrs and times of a lower one.
func (u *Union) imitate(src source, dir int, name string) error {
	var a Attr
	if err := src.dir.Stat(src.entry, &a); err != nil {
		return err
	}
	var now unix.Stat_t
	if err := statAt(dir, name, &now); err != nil {
		return err
	}
	return u.copyMetadata(src, &a, &now, dir, name)
}

// copyMetadata gives a new file of the upper branch, of which now is known, the owner, mode, xattrs and times of a lower
// one.
func (u *Union) copyMetadata(src source, a *Attr, now *unix.Stat_t, dir int, name string) error {
	owner, mode := u.owners.copied(a), a.Mode&0o7777
	if u.virtual(a.Mode) {
		if err := writeOverride(dir, name, owner, mode); err != nil {
			return err
		}
		mode = virtualMode
	} else if u.owners.recorded(owner) {
		if err := writeOverride(dir, name, owner, mode); err != nil {
			return err
		}
	} else if owner != (Owner{now.Uid, now.Gid}) {
		if err := u.chown(dir, name, owner.UID, owner.GID); err != nil {
			return err
		}
	}
	if a.Mode&unix.S_IFMT != unix.S_IFLNK && mode != now.Mode&0o7777 {
		if err := unix.Fchmodat(dir, name, mode, 0); err != nil {
			return err
		}
	}
	names, err := src.dir.Listxattr(src.entry)
	if err != nil && !noXattr(err) {
		return err
	}
	for _, x := range names {
		if _, ok := unescapeXattr(x); !ok || (u.owners.Xattr || u.owners.Record) && x == overrideXattr {
			continue
		}
		v, err := src.dir.Getxattr(src.entry, x)
		if noXattr(err) {
			continue
		}
		if err != nil {
			return err
		}
		err = setxattrAt(dir, name, x, v, 0)
		// What this process may not set (trusted.* without privilege, security.* under another policy) or the upper's
		// file system can't keep is left out, as cp -a does.
		if err != nil && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
		if err != nil && strings.HasPrefix(x, "user.") && !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	return unix.UtimesNanoAt(dir, name, []unix.Timespec{a.Atime, a.Mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

// chown changes an owner as far as the host lets us: where the union only shows some IDs, the others can't be stored either.
func (u *Union) chown(dir int, name string, uid, gid uint32) error {
	err := unix.Fchownat(dir, name, int(int32(uid)), int(int32(gid)), unix.AT_SYMLINK_NOFOLLOW)
	if (err == unix.EPERM || err == unix.EINVAL) && u.owners.lenient() {
		return nil
	}
	return err
}

// cloneData makes the first size bytes of a branch's file those of dst too, where the file system can share blocks. noClone
// remembers that it can't.
func cloneData(dst int, src *Data, size int64, noClone *atomic.Bool) bool {
	const block = 4096 // FICLONERANGE wants whole blocks but at the end of the file
	if noClone.Load() || src.Off%block != 0 || size != src.Size && size%block != 0 {
		return false
	}
	err := unix.IoctlFileCloneRange(dst, &unix.FileCloneRange{Src_fd: int64(src.FD), Src_offset: uint64(src.Off), Src_length: uint64(size)})
	if err == unix.EOPNOTSUPP || err == unix.ENOTTY {
		noClone.Store(true)
	}
	return err == nil
}

// copyData copies the first size bytes of a branch's file, in the kernel if it can, else through memory. The holes of a sparse
// file stay holes.
func copyData(dst int, src *Data, size int64, sparse bool) error {
	if src.Off > 0 || !sparse {
		return copyRange(dst, 0, src.FD, src.Off, size)
	}
	for at := int64(0); at < size; {
		data, err := unix.Seek(src.FD, at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break // a hole up to the end
		}
		end := size
		if err == nil {
			if end, err = unix.Seek(src.FD, data, unix.SEEK_HOLE); err != nil {
				end = size
			}
		} else {
			data = at
		}
		if data >= size {
			break
		}
		if err := copyRange(dst, data, src.FD, data, min(end, size)-data); err != nil {
			return err
		}
		at = end
	}
	return unix.Ftruncate(dst, size)
}

func copyRange(dst int, dstOff int64, src int, srcOff, n int64) error {
	for n > 0 {
		m, err := unix.CopyFileRange(src, &srcOff, dst, &dstOff, int(min(n, 1<<30)), 0)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ENOSPC || err == unix.EDQUOT || err == unix.EIO {
			return err
		}
		if err != nil || m == 0 {
			break // another file system, or one that can't
		}
		n -= int64(m)
	}
	if n == 0 {
		return nil
	}
	buf := make([]byte, min(n, 1<<20))
	for n > 0 {
		m, err := unix.Pread(src, buf[:min(n, int64(len(buf)))], srcOff)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if m == 0 {
			return unix.EIO // shorter than its branch says
		}
		if w, err := pwriteAll(dst, buf[:m], dstOff); err != nil || w < m {
			return errors.Join(err, unix.ENOSPC)
		}
		srcOff, dstOff, n = srcOff+int64(m), dstOff+int64(m), n-int64(m)
	}
	return nil
}
