package fs

import (
	"slices"
	"strings"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// aclPrefix begins the names of the attributes that are ACLs.
const aclPrefix = "system.posix_acl_"

// refused reports whether an attribute is an ACL and the mount has none: the kernel then lets them through as if they were just
// attributes, and whoever set one would believe that it counts.
func (h *handler) refused(name string) bool { return !h.acl && strings.HasPrefix(name, aclPrefix) }

func (h *handler) GetXAttr(in *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n := h.node(in.NodeId)
	if n == nil {
		return 0, stale
	}
	if h.refused(name) {
		return 0, fuse.Status(unix.EOPNOTSUPP)
	}
	v, err := h.u.Getxattr(n, name)
	if err != nil {
		if isUnsupported(err) && strings.HasPrefix(name, aclPrefix) {
			// What the kernel asks before it lets somebody in; only ENODATA is "no ACL" to it (fs/fuse/acl.c).
			return 0, fuse.ENODATA
		}
		return 0, h.status("getxattr", err)
	}
	if len(dest) < len(v) {
		return uint32(len(v)), fuse.ERANGE
	}
	return uint32(copy(dest, v)), fuse.OK
}

func (h *handler) ListXAttr(in *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := h.node(in.NodeId)
	if n == nil {
		return 0, stale
	}
	names, err := h.u.Listxattr(n)
	if err != nil {
		return 0, h.status("listxattr", err)
	}
	names = slices.DeleteFunc(names, h.refused)
	size := 0
	for _, name := range names {
		size += len(name) + 1
	}
	if len(dest) < size {
		return uint32(size), fuse.ERANGE
	}
	dest = dest[:0]
	for _, name := range names {
		dest = append(append(dest, name...), 0)
	}
	return uint32(size), fuse.OK
}

func (h *handler) SetXAttr(in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	if h.refused(name) {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	if err := h.setXAttr(in, n, name, value); err != nil {
		return h.status("setxattr", err)
	}
	if in.SetXAttrFlags&fuse.SETXATTR_ACL_KILL_SGID != 0 {
		return h.status("setxattr", h.clearSetgid(n))
	}
	return fuse.OK
}

// clearSetgid does what setting an access ACL does to the file of a caller who is not in its group: only the kernel knows
// who calls, and the branch's file system sees this server.
func (h *handler) clearSetgid(n *cow.Node) error {
	var a cow.Attr
	if err := h.u.Getattr(n, &a); err != nil {
		return err
	}
	if a.Mode&unix.S_ISGID == 0 {
		return nil
	}
	return h.u.Setattr(n, &cow.SetAttr{Valid: cow.SetMode, Mode: a.Mode & 0o7777 &^ unix.S_ISGID}, &a)
}

func (h *handler) RemoveXAttr(in *fuse.InHeader, name string) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	if h.refused(name) {
		return fuse.Status(unix.EOPNOTSUPP)
	}
	return h.status("removexattr", h.removeXAttr(in, n, name))
}
