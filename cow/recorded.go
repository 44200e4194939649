package cow

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Recorded ownership: with OwnerPolicy.Record, an owner that this process can't give a file, since its user namespace doesn't
// have the ID, stands in the same xattr as with OwnerPolicy.Xattr. Other than there, a file that has an owner of the
// namespace's has no xattr, and one that has keeps its mode in the inode too. The union itself shows OwnerPolicy.Other,
// since the kernel refuses writes to files whose owner it can't map; the difference, an export and a copy of the branch
// show what is recorded.
//
// What can't have an xattr (symbolic links, FIFOs, sockets) or can't be made (devices) is a regular file that stands
// for it: the xattr has its type, its content is the target of a link. containers/storage does the same.

// recorded reports whether an owner has to be recorded.
func (p *OwnerPolicy) recorded(o Owner) bool {
	return p.Record && (p.UIDs != nil && !inRanges(p.UIDs, o.UID) || p.GIDs != nil && !inRanges(p.GIDs, o.GID))
}

// standsFor reports whether a file of this type is to be made as a regular file that stands for it. So is what has an owner of the
// namespace's: when it is given another later, it stays the same inode, by whose number a union that goes on from this one finds it.
func (u *Union) standsFor(mode uint32) bool { return u.owners.Record && !canBeVirtual(mode) }

// standInMode is the mode on disk of a stand-in.
const standInMode = 0o600

// makeStandIn makes a regular file that stands for another kind of file; target is a symbolic link's.
func makeStandIn(dir int, name string, o override, target string) error {
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, standInMode)
	if err != nil {
		return err
	}
	n, err := unix.Write(fd, []byte(target))
	unix.Close(fd)
	if err == nil && n < len(target) {
		err = unix.ENOSPC
	}
	if err == nil {
		err = writeStandIn(dir, name, o)
	}
	if err != nil {
		unix.Unlinkat(dir, name, 0)
	}
	return err
}

// writeStandIn says in the xattr of a regular file what it stands for.
func writeStandIn(dir int, name string, o override) error {
	var kind string
	switch o.kind {
	case unix.S_IFLNK:
		kind = typeSymlink
	case unix.S_IFIFO:
		kind = typePipe
	case unix.S_IFSOCK:
		kind = typeSocket
	case unix.S_IFBLK:
		kind = fmt.Sprintf("%s-%d-%d", typeBlock, unix.Major(uint64(o.rdev)), unix.Minor(uint64(o.rdev)))
	case unix.S_IFCHR:
		kind = fmt.Sprintf("%s-%d-%d", typeChar, unix.Major(uint64(o.rdev)), unix.Minor(uint64(o.rdev)))
	}
	value := fmt.Sprintf("%d:%d:%o:%s", o.UID, o.GID, o.mode&0o7777, kind)
	return setxattrAt(dir, name, overrideXattr, []byte(value), 0)
}

// copyStandIn makes, in new/, a stand-in like a lower file.
func (u *Union) copyStandIn(n *Node, tmp string, low *Attr) (err error) {
	target := ""
	if n.kind == unix.S_IFLNK {
		if target, err = n.low.dir.Readlink(n.low.entry); err != nil {
			return err
		}
	}
	fresh := u.upper.fresh
	if err := makeStandIn(fresh, tmp, override{u.owners.copied(low), low.Mode, n.kind, low.Rdev}, target); err != nil {
		return err
	}
	return unix.UtimesNanoAt(fresh, tmp, []unix.Timespec{low.Atime, low.Mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

// setRecorded does those parts of a Setattr that are recorded, and returns the rest.
func (u *Union) setRecorded(n *Node, p place, s *SetAttr) (*SetAttr, error) {
	if s.Valid&(SetUID|SetGID|SetMode|KillPriv) == 0 {
		return s, nil
	}
	var st unix.Stat_t
	if err := statAt(p.dir, p.name, &st); err != nil {
		return nil, err
	}
	var a Attr
	if err := u.fill(&a, &st, p.dir, p.name); err != nil {
		return nil, err
	}
	was := Owner{a.UID, a.GID}
	uid, gid, err := u.owners.chowned(s)
	if err != nil {
		return nil, err
	}
	if uid != noID {
		a.UID = uid
	}
	if gid != noID {
		a.GID = gid
	}
	if s.Valid&SetMode != 0 {
		a.Mode = a.Mode&unix.S_IFMT | s.Mode&0o7777
	} else if s.Valid&KillPriv != 0 && n.regular() {
		a.Mode = withoutPriv(a.Mode)
	}
	now := Owner{a.UID, a.GID}
	if s.Valid&(SetUID|SetGID) != 0 {
		n.claimed = uid != noID && gid != noID && !u.owners.recorded(now)
	}
	rest := *s
	switch {
	case a.Mode&unix.S_IFMT != st.Mode&unix.S_IFMT:
		if n.kind == unix.S_IFLNK && s.Valid&SetMode != 0 {
			return nil, unix.EOPNOTSUPP
		}
		err = writeStandIn(p.dir, p.name, override{now, a.Mode, n.kind, a.Rdev})
		rest.Valid &^= SetUID | SetGID | SetMode | KillPriv
	case u.owners.recorded(now) && canBeVirtual(a.Mode):
		err = writeOverride(p.dir, p.name, now, a.Mode)
		rest.Valid &^= SetUID | SetGID
	case u.owners.recorded(now):
		if err = u.replaceByStandIn(p, &st, override{now, a.Mode, n.kind, a.Rdev}); err == nil {
			rest.Valid &^= SetUID | SetGID | SetMode | KillPriv
		}
	case was != Owner{st.Uid, st.Gid}:
		err = removexattrAt(p.dir, p.name, overrideXattr)
		rest.Valid |= SetUID | SetGID
		rest.UID, rest.GID = now.UID, now.GID
	}
	return &rest, err
}

// replaceByStandIn puts a stand-in where the upper branch has a file of another kind, as those from before have that this version
// would make as stand-ins. One with several names stays: EPERM.
func (u *Union) replaceByStandIn(p place, st *unix.Stat_t, o override) error {
	if st.Nlink > 1 {
		return unix.EPERM
	}
	target := ""
	if o.kind == unix.S_IFLNK {
		var err error
		if target, err = readlinkAt(p.dir, p.name); err != nil {
			return err
		}
	}
	origin, err := originOf(p.dir, p.name)
	if err != nil {
		return err
	}
	tmp := u.upper.name()
	if err := makeStandIn(u.upper.fresh, tmp, o, target); err != nil {
		return err
	}
	err = unix.UtimesNanoAt(u.upper.fresh, tmp, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	if err == nil && origin != 0 {
		_, err = setOrigin(u.upper.fresh, tmp, origin)
	}
	if err == nil {
		err = u.appear(tmp, p)
	}
	if err != nil {
		unix.Unlinkat(u.upper.fresh, tmp, 0)
	}
	return err
}

// inheritOwner is a part of a rename that replaces a file which has a recorded owner. Who changes a file by writing a new one
// beside it gives that the old one's owner, as stat(2) said it was: the one that the union shows. So a new file that was given
// this by name, as useradd(8) does with /etc/shadow, gets the recorded owner.
func (u *Union) inheritOwner(m *move) error {
	t := m.target
	if !u.owners.Record || t == nil || !t.regular() || !m.n.regular() || !m.n.claimed {
		return nil
	}
	var a Attr
	if t.inUpper {
		p, err := u.at(t)
		if err != nil {
			return err
		}
		defer p.done()
		var st unix.Stat_t
		if err := statAt(p.dir, p.name, &st); err != nil {
			return err
		}
		if err := u.fill(&a, &st, p.dir, p.name); err != nil {
			return err
		}
	} else if err := t.low.dir.Stat(t.low.entry, &a); err != nil {
		return err
	}
	owner := Owner{a.UID, a.GID}
	if !u.owners.recorded(owner) {
		return nil
	}
	var st unix.Stat_t
	if err := statAt(m.oldAt.dir, m.oldName, &st); err != nil {
		return err
	}
	return writeOverride(m.oldAt.dir, m.oldName, owner, st.Mode)
}

// InDirectories returns the IDs of the directories in which the union knows a name of a file.
func (u *Union) InDirectories(n *Node) []uint64 {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	var ids []uint64
	for _, l := range n.links {
		ids = append(ids, l.parent.id)
	}
	return ids
}

// readAnyLink reads the target of a symbolic link or of a file that stands for one.
func readAnyLink(dir int, name string) (string, error) {
	target, err := readlinkAt(dir, name)
	if err != unix.EINVAL {
		return target, err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, unix.PathMax))
	return string(data), err
}

// ownersXattr, on an upper directory, says that owners are recorded in it.
const ownersXattr = "owners"

// RecordsOwners reports whether a union with [OwnerPolicy].Record has used an upper directory. It is then to be opened with
// Record, or as a branch with [DirOptions].Override.
func RecordsOwners(upper string) (bool, error) {
	fd, err := unix.Open(upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, branchError(upper, err)
	}
	defer unix.Close(fd)
	v, err := ownXattr(fd, "", ownersXattr)
	if noXattr(err) {
		return false, nil
	}
	return string(v) == "recorded", err
}

// markRecorded makes RecordsOwners true.
func (b *upperBranch) markRecorded() error {
	v, err := ownXattr(b.root, "", ownersXattr)
	if err == nil && string(v) == "recorded" {
		return nil
	}
	if err := setOwnXattr(b.root, "", ownersXattr, []byte("recorded")); err != nil {
		return fmt.Errorf("upper branch %s can't keep owners, which needs extended attributes: %w", b.path, err)
	}
	return nil
}
