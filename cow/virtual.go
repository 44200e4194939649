package cow

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Virtual ownership: with OwnerPolicy.Xattr, who owns a regular file or a directory and what its mode is stand in an xattr,
// and the inode itself belongs to this process and is open to it. So an upper branch keeps every owner on a host that
// can't chown, in the form that podman's and buildah's storage has for it (force_mask). Links, devices, FIFOs and sockets
// can't have such an xattr; theirs is set as far as the host allows.
const (
	overrideXattr = "user.containers.override_stat"

	// fuse-overlayfs 1.10 writes this; the value is the same.
	overrideXattrOld = fusePrefix + "override_stat"
)

// The mode on disk of what has its mode in the xattr.
const virtualMode = 0o755

// virtual reports whether a file of this type has its owner and mode in the xattr.
func (u *Union) virtual(mode uint32) bool { return u.owners.Xattr && canBeVirtual(mode) }

func canBeVirtual(mode uint32) bool {
	kind := mode & unix.S_IFMT
	return kind == unix.S_IFREG || kind == unix.S_IFDIR
}

// private reports whether an attribute on disk is not shown.
func (u *Union) private(name string) bool {
	return privateXattr(name) || (u.owners.Xattr || u.owners.Record) && name == overrideXattr
}

// fill makes attributes of what stat(2) says of a file of the upper branch.
func (u *Union) fill(a *Attr, st *unix.Stat_t, dir int, name string) error {
	a.fromStat(st)
	if !u.owners.Xattr && !u.owners.Record {
		return nil
	}
	return readOverride(a, dir, name)
}

// readOverride puts what a file's xattr says in place of its owner and mode, and for a stand-in of its type. A value that
// makes no sense counts as none: it may be anybody's.
func readOverride(a *Attr, dir int, name string) error {
	if !canBeVirtual(a.Mode) {
		return nil
	}
	for _, x := range [...]string{overrideXattr, overrideXattrOld} {
		v, err := getxattrAt(dir, name, x)
		if err == nil {
			if o, ok := parseOverride(string(v)); ok {
				o.apply(a)
			}
			return nil
		}
		if !noXattr(err) {
			return err
		}
	}
	return nil
}

// override is the content of the xattr.
type override struct {
	Owner
	mode uint32 // without the bits of the type
	kind uint32 // S_IFMT bits of what a regular file stands for; 0 for itself
	rdev uint32
}

// The types that a regular file can stand for, as containers/storage writes them (pkg/idtools). Devices have their numbers
// after the name: "char-1-3".
const (
	typeSymlink = "symlink"
	typePipe    = "pipe"
	typeSocket  = "socket"
	typeBlock   = "block"
	typeChar    = "char"
)

// parseOverride reads "uid:gid:mode" or "uid:gid:mode:type", the mode octal and with or without the bits of the type.
func parseOverride(v string) (o override, ok bool) {
	fields := strings.Split(v, ":")
	if len(fields) < 3 {
		return o, false
	}
	uid, err1 := strconv.ParseUint(fields[0], 10, 32)
	gid, err2 := strconv.ParseUint(fields[1], 10, 32)
	m, err3 := strconv.ParseUint(fields[2], 8, 32)
	if err1 != nil || err2 != nil || err3 != nil {
		return o, false
	}
	o = override{Owner: Owner{uint32(uid), uint32(gid)}, mode: uint32(m) & 0o7777}
	if len(fields) == 3 {
		return o, true
	}
	kind, numbers, _ := strings.Cut(fields[3], "-")
	switch kind {
	case typeSymlink:
		o.kind = unix.S_IFLNK
	case typePipe:
		o.kind = unix.S_IFIFO
	case typeSocket:
		o.kind = unix.S_IFSOCK
	case typeBlock, typeChar:
		o.kind = unix.S_IFCHR
		if kind == typeBlock {
			o.kind = unix.S_IFBLK
		}
		major, minor, _ := strings.Cut(numbers, "-")
		ma, err1 := strconv.ParseUint(major, 10, 12)
		mi, err2 := strconv.ParseUint(minor, 10, 20)
		o.rdev = uint32(unix.Mkdev(uint32(ma), uint32(mi)))
		if err1 != nil || err2 != nil || o.kind == unix.S_IFCHR && o.rdev == 0 {
			return o, false
		}
	}
	return o, true
}

// apply puts it in place of what the inode says.
func (o *override) apply(a *Attr) {
	a.UID, a.GID, a.Mode = o.UID, o.GID, a.Mode&unix.S_IFMT|o.mode
	if o.kind == 0 || a.Mode&unix.S_IFMT != unix.S_IFREG {
		return
	}
	a.Mode, a.Rdev = o.kind|o.mode, o.rdev
	if a.Blocks = 0; o.kind != unix.S_IFLNK {
		a.Size = 0
	}
}

// writeOverride gives a file of the upper branch its owner and mode.
func writeOverride(dir int, name string, o Owner, mode uint32) error {
	value := fmt.Sprintf("%d:%d:%o", o.UID, o.GID, mode&0o7777)
	return setxattrAt(dir, name, overrideXattr, []byte(value), 0)
}

// setVirtual does those parts of a Setattr that the xattr keeps, and returns the rest.
func (u *Union) setVirtual(n *Node, p place, s *SetAttr) (*SetAttr, error) {
	const kept = SetUID | SetGID | SetMode | KillPriv
	if s.Valid&kept == 0 {
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
		a.Mode = s.Mode
	} else if s.Valid&KillPriv != 0 && n.regular() {
		a.Mode = withoutPriv(a.Mode)
	}
	if err := writeOverride(p.dir, p.name, Owner{a.UID, a.GID}, a.Mode); err != nil {
		return nil, err
	}
	rest := *s
	rest.Valid &^= kept
	return &rest, nil
}

// withoutPriv is what a write by another than the owner leaves of a file's mode (file_remove_privs in fs/inode.c): setuid goes,
// and setgid if the group may execute.
func withoutPriv(mode uint32) uint32 {
	mode &^= unix.S_ISUID
	if mode&unix.S_IXGRP != 0 {
		mode &^= unix.S_ISGID
	}
	return mode
}
