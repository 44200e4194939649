package fs

import (
	"encoding/binary"
	"errors"
	"slices"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// ACLs as they are in xattrs: include/uapi/linux/posix_acl_xattr.h. A version, then entries of tag, permissions and ID,
// all little endian.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"

	aclVersion   = 2
	aclHeader    = 4
	aclEntrySize = 8

	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

// inherited is what a new file gets from its directory.
type inherited struct {
	mode   uint32 // with the S_IFMT bits
	access []byte // its access ACL, nil if mode says all there is to say
	dir    []byte // its default ACL, if it is a directory
}

// inherit works out mode and ACLs of a new file. The kernel leaves that to the server when ACLs are on: a default ACL of
// the directory takes the place of umask (acl(5), "Object creation and default ACLs").
func (h *handler) inherit(dir *cow.Node, mode, umask uint32) (inherited, error) {
	if !h.acl {
		return inherited{mode: mode}, nil // umask is applied already
	}
	acl, err := h.u.Getxattr(dir, aclDefault)
	if err != nil {
		if errors.Is(err, unix.ENODATA) || isUnsupported(err) {
			return inherited{mode: mode &^ (umask & 0o777)}, nil
		}
		return inherited{}, err
	}
	inh := inherited{}
	if inh.mode, inh.access, err = maskACL(acl, mode); err != nil {
		return inherited{}, err
	}
	if mode&unix.S_IFMT == unix.S_IFDIR {
		inh.dir = acl
	}
	return inh, nil
}

// maskACL is what the default ACL of a directory makes of the mode that a new file in it is asked for: the file's mode and
// its access ACL, nil if that has no more than the three classes. See posix_acl_create_masq in fs/posix_acl.c.
func maskACL(acl []byte, mode uint32) (uint32, []byte, error) {
	if len(acl) < aclHeader || (len(acl)-aclHeader)%aclEntrySize != 0 ||
		binary.LittleEndian.Uint32(acl) != aclVersion {
		return 0, nil, unix.EIO
	}
	acl = slices.Clone(acl)
	var group, mask []byte // the permissions in the entries of that tag
	extended := false
	perms := mode & 0o777
	limit := func(p []byte, shift uint) {
		v := binary.LittleEndian.Uint16(p) & uint16(perms>>shift&7)
		binary.LittleEndian.PutUint16(p, v)
		perms = perms&^(7<<shift) | uint32(v)<<shift
	}
	for e := acl[aclHeader:]; len(e) > 0; e = e[aclEntrySize:] {
		perm := e[2:4]
		switch binary.LittleEndian.Uint16(e) {
		case aclUserObj:
			limit(perm, 6)
		case aclOther:
			limit(perm, 0)
		case aclGroupObj:
			group = perm
		case aclMask:
			mask, extended = perm, true
		case aclUser, aclGroup:
			extended = true
		default:
			return 0, nil, unix.EIO
		}
	}
	switch {
	case mask != nil:
		limit(mask, 3)
	case group != nil:
		limit(group, 3)
	default:
		return 0, nil, unix.EIO
	}
	mode = mode&^0o777 | perms
	if !extended {
		return mode, nil, nil
	}
	return mode, acl, nil
}

// setInherited gives a new file the ACLs that it inherits, and fills a again if that was any.
func (h *handler) setInherited(n *cow.Node, inh *inherited, a *cow.Attr) error {
	if inh.access == nil && inh.dir == nil {
		return nil
	}
	for _, x := range []struct {
		name  string
		value []byte
	}{{aclAccess, inh.access}, {aclDefault, inh.dir}} {
		if x.value == nil {
			continue
		}
		// A lower branch can have ACLs where the upper can't: the file has its mode then.
		if err := h.u.Setxattr(n, x.name, x.value, 0); err != nil && !isUnsupported(err) {
			return err
		}
	}
	return h.u.Getattr(n, a)
}
