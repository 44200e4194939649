package fs

import (
	"errors"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// makeFile runs one of the calls that make a file: with the mode that umask and the directory's default ACL leave, and with
// the ACLs that the file inherits set afterwards.
func (h *handler) makeFile(op string, in *fuse.InHeader, name string, mode, umask uint32, out *fuse.EntryOut,
	call func(dir *cow.Node, mode uint32, o cow.Owner, a *cow.Attr) (*cow.Node, error)) fuse.Status {

	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	inh, err := h.inherit(dir, mode, umask)
	if err != nil {
		return h.status(op, err)
	}
	var a cow.Attr
	n, err := call(dir, inh.mode, owner(in), &a)
	if err == unix.EEXIST && h.resent(in) {
		n, err = h.madeBefore(in, dir, name, inh.mode, &a)
	}
	if err != nil {
		return h.status(op, err)
	}
	if err := h.setInherited(n, &inh, &a); err != nil {
		h.undo(dir, n, name, a.IsDir())
		return h.status(op, err)
	}
	h.fillEntry(n.ID(), &a, out)
	return fuse.OK
}

// madeBefore finds a file that a former server has made for this request, of which it has told nobody, and completes it: it may
// have been killed before the file had its owner or mode.
func (h *handler) madeBefore(in *fuse.InHeader, dir *cow.Node, name string, mode uint32, a *cow.Attr) (*cow.Node, error) {
	n, err := h.u.Lookup(dir, name, a)
	if err != nil {
		return nil, err
	}
	if n.Kind() != mode&unix.S_IFMT {
		h.u.Forget(n, 1)
		return nil, unix.EEXIST
	}
	s := cow.SetAttr{Valid: cow.SetUID, UID: in.Uid}
	if n.Kind() != unix.S_IFLNK {
		s.Valid |= cow.SetMode
		s.Mode = mode & 0o7777
	}
	var parent cow.Attr
	if err = h.u.Getattr(dir, &parent); err == nil {
		// As cow does for a new file.
		s.Valid |= cow.SetGID
		s.GID = in.Gid
		if parent.Mode&unix.S_ISGID != 0 {
			s.GID = parent.GID
			if n.Kind() == unix.S_IFDIR {
				s.Mode |= unix.S_ISGID
			}
		}
		err = h.u.Setattr(n, &s, a)
	}
	if err != nil {
		h.u.Forget(n, 1)
		return nil, err
	}
	return n, nil
}

// undo removes a file that was just made and could not be given its ACL.
func (h *handler) undo(dir, n *cow.Node, name string, isDir bool) {
	if isDir {
		_ = h.u.Rmdir(dir, name)
	} else {
		_ = h.u.Unlink(dir, name)
	}
	h.u.Forget(n, 1)
}

func owner(in *fuse.InHeader) cow.Owner { return cow.Owner{UID: in.Uid, GID: in.Gid} }

func (h *handler) Mkdir(in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return h.makeFile("mkdir", &in.InHeader, name, unix.S_IFDIR|in.Mode&0o7777, in.Umask, out,
		func(dir *cow.Node, mode uint32, o cow.Owner, a *cow.Attr) (*cow.Node, error) {
			return h.u.Mkdir(dir, name, mode&0o7777, o, a)
		})
}

// Mknod makes files of all kinds but directories and symbolic links. There is no CREATE: the kernel then sends MKNOD for a new file too,
// and since there is no OPEN either it has nothing to RELEASE.
func (h *handler) Mknod(in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return h.makeFile("mknod", &in.InHeader, name, in.Mode, in.Umask, out,
		func(dir *cow.Node, mode uint32, o cow.Owner, a *cow.Attr) (*cow.Node, error) {
			return h.u.Mknod(dir, name, mode, in.Rdev, o, a)
		})
}

// Tmpfile makes a file without a name. If a former server has made one for this request, that is nobody's, and goes when the mount does.
//
// The kernel has a handle of it, which is 0 as everywhere: that it is released changes nothing, since FORGET says that nobody
// holds the file any more. A LINK gives it a name, where O_EXCL was not given; the kernel sees to that.
func (h *handler) Tmpfile(in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	inh, err := h.inherit(dir, unix.S_IFREG|in.Mode&0o7777, in.Umask)
	if err != nil {
		return h.status("tmpfile", err)
	}
	var a cow.Attr
	n, err := h.u.Tmpfile(dir, inh.mode&0o7777, owner(&in.InHeader), &a)
	if err != nil {
		return h.status("tmpfile", err)
	}
	if err := h.setInherited(n, &inh, &a); err != nil {
		h.u.Forget(n, 1)
		if h.former != nil {
			h.u.Unpark(n.ID())
		}
		return h.status("tmpfile", err)
	}
	h.fillEntry(n.ID(), &a, &out.EntryOut)
	return fuse.OK
}

func (h *handler) Symlink(in *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	var a cow.Attr
	n, err := h.u.Symlink(dir, name, target, owner(in), &a)
	if err == unix.EEXIST && h.resent(in) {
		n, err = h.madeBefore(in, dir, name, unix.S_IFLNK, &a)
	}
	if err != nil {
		return h.status("symlink", err)
	}
	h.fillEntry(n.ID(), &a, out)
	return fuse.OK
}

func (h *handler) Link(in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	dir, n := h.node(in.NodeId), h.node(in.Oldnodeid)
	if dir == nil || n == nil {
		return stale
	}
	var a cow.Attr
	err := h.u.Link(n, dir, name, &a)
	if err == unix.EEXIST && h.resent(&in.InHeader) {
		err = h.linkedBefore(n, dir, name, &a)
	}
	if err != nil {
		return h.status("link", err)
	}
	h.fillEntry(n.ID(), &a, out)
	return fuse.OK
}

// linkedBefore finds the name that a former server has given a file for this request, and takes a reference.
func (h *handler) linkedBefore(n, dir *cow.Node, name string, a *cow.Attr) error {
	found, err := h.u.Lookup(dir, name, a)
	if err != nil {
		return err
	}
	if found != n {
		h.u.Forget(found, 1)
		return unix.EEXIST
	}
	return nil
}

// isUnsupported reports that a file system has no such attribute at all.
func isUnsupported(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS)
}
