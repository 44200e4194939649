package cow

import (
	"math"

	"golang.org/x/sys/unix"
)

// SetAttr is what Setattr changes: the fields that Valid names.
type SetAttr struct {
	Valid        SetAttrMask
	Mode         uint32 // the permission bits, setuid, setgid and sticky
	UID, GID     uint32
	Size         uint64
	Atime, Mtime unix.Timespec
}

// SetAttrMask is a set of fields of SetAttr.
type SetAttrMask uint32

const (
	SetMode SetAttrMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
	KillPriv // clear setuid, and setgid of a file that its group may execute, as a write by another than the owner does
)

// Setattr changes attributes and fills a with all of them. For a new size the data is copied up only so far.
func (u *Union) Setattr(n *Node, s *SetAttr, a *Attr) error {
	if u.upper == nil {
		return unix.EROFS
	}
	if s.Valid&SetSize != 0 {
		if err := u.truncate(n, s.Size); err != nil {
			return err
		}
	}
	if same, err := u.sameTimes(n, s, a); same || err != nil {
		return err
	}
	err := u.change(n, func(p place) error {
		if n.part != nil {
			n.part.mu.Lock() // it puts times back
			defer n.part.mu.Unlock()
		}
		return u.setattrAt(n, p, s)
	})
	if err != nil {
		return err
	}
	return u.Getattr(n, a)
}

// truncate sets the size of a regular file. Only as much is copied up as stays.
func (u *Union) truncate(n *Node, size uint64) error {
	if n.isDir() {
		return unix.EISDIR
	}
	if !n.regular() || size > math.MaxInt64 {
		return unix.EINVAL
	}
	if err := u.copyUp(n, int64(size)); err != nil {
		return err
	}
	f, err := u.open(n, true)
	if err != nil {
		return err
	}
	defer f.Release()
	if f.part != nil {
		return f.part.truncate(int64(size))
	}
	return unix.Ftruncate(f.FD, int64(size))
}

// change does something to the metadata of a node where the upper branch has it, after having copied that up. do is called
// with tree and n.mu held, and where the data is not copied up it isn't meanwhile.
func (u *Union) change(n *Node, do func(place) error) error {
	if !n.isDir() {
		unlock, err := u.copyUpMetadata(n)
		if err != nil {
			return err
		}
		defer unlock()
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	if n.isDir() && !n.isRemoved() {
		if err := u.raise(n); err != nil {
			return err
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.noDefaultACL.Store(false)
	n.noSetgid.Store(false)
	n.noXattrs.Store(false)
	p, err := u.at(n)
	if err != nil {
		return err
	}
	defer p.done()
	return do(p)
}

// sameTimes reports whether all that is asked of a file that only lower branches have is to give it the times that it has, and then
// fills a. A kernel that keeps times itself (FUSE_WRITEBACK_CACHE) asks so for every file that it unlinked, and a copy-up
// of what was just deleted would be a waste.
func (u *Union) sameTimes(n *Node, s *SetAttr, a *Attr) (bool, error) {
	if s.Valid&^(SetAtime|SetMtime) != 0 {
		return false, nil
	}
	n.mu.RLock()
	inUpper := n.inUpper
	n.mu.RUnlock()
	if inUpper {
		return false, nil
	}
	if err := u.Getattr(n, a); err != nil {
		return false, err
	}
	return (s.Valid&SetAtime == 0 || s.Atime == a.Atime) && (s.Valid&SetMtime == 0 || s.Mtime == a.Mtime), nil
}

func (u *Union) setattrAt(n *Node, p place, s *SetAttr) error {
	if u.virtual(n.kind) {
		var err error
		if s, err = u.setVirtual(n, p, s); err != nil {
			return err
		}
	}
	if u.owners.Record {
		var err error
		if s, err = u.setRecorded(n, p, s); err != nil {
			return err
		}
	}
	if s.Valid&(SetUID|SetGID) != 0 {
		uid, gid, err := u.owners.chowned(s)
		if err != nil {
			return err
		}
		var before unix.Stat_t
		if err := statAt(p.dir, p.name, &before); err != nil {
			return err
		}
		if err := u.chown(p.dir, p.name, uid, gid); err != nil {
			return err
		}
		// chown(2) cleared setuid and setgid; whether that is right for the caller the kernel decided already, and
		// says by KillPriv or a mode.
		if before.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 && s.Valid&(SetMode|KillPriv) == 0 && n.regular() {
			if err := unix.Fchmodat(p.dir, p.name, before.Mode&0o7777, 0); err != nil {
				return err
			}
		}
	}
	if s.Valid&SetMode != 0 {
		if n.kind == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		if err := unix.Fchmodat(p.dir, p.name, s.Mode&0o7777, 0); err != nil {
			return err
		}
	} else if s.Valid&KillPriv != 0 && n.regular() {
		if err := killPriv(p); err != nil {
			return err
		}
	}
	if s.Valid&(SetAtime|SetMtime|SetAtimeNow|SetMtimeNow) != 0 {
		times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, {Nsec: unix.UTIME_OMIT}}
		set := func(t *unix.Timespec, to, now SetAttrMask, v unix.Timespec) {
			switch {
			case s.Valid&now != 0:
				*t = unix.Timespec{Nsec: unix.UTIME_NOW}
			case s.Valid&to != 0:
				*t = v
			}
		}
		set(&times[0], SetAtime, SetAtimeNow, s.Atime)
		set(&times[1], SetMtime, SetMtimeNow, s.Mtime)
		return unix.UtimesNanoAt(p.dir, p.name, times[:], unix.AT_SYMLINK_NOFOLLOW)
	}
	return nil
}

// killPriv clears setuid and setgid as a write by another than the owner does.
func killPriv(p place) error {
	var st unix.Stat_t
	if err := statAt(p.dir, p.name, &st); err != nil {
		return err
	}
	mode := withoutPriv(st.Mode & 0o7777)
	if mode == st.Mode&0o7777 {
		return nil
	}
	return unix.Fchmodat(p.dir, p.name, mode, 0)
}

// Readlink returns the target of a symbolic link.
func (u *Union) Readlink(n *Node) (string, error) {
	if n.kind != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	if !n.inUpper {
		return n.low.dir.Readlink(n.low.entry)
	}
	p, err := u.at(n)
	if err != nil {
		return "", err
	}
	defer p.done()
	return readAnyLink(p.dir, p.name)
}
