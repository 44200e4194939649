package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

func (h *handler) GetAttr(in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	a := h.attr()
	defer h.done(a)
	var err error
	if h.former == nil {
		var dir uint64
		if dir, err = h.u.GetattrID(in.NodeId, a); dir != 0 {
			h.dropListing(dir)
		}
	} else {
		n := h.node(in.NodeId)
		if n == nil {
			return stale
		}
		err = h.u.Getattr(n, a)
	}
	if err != nil {
		return h.status("getattr", err)
	}
	h.fillAttrOut(a, out)
	return fuse.OK
}

// attr returns memory for one request, which done takes back: what is handed to a branch can't be on the stack.
func (h *handler) attr() *cow.Attr { return h.attrs.Get().(*cow.Attr) }

func (h *handler) done(a *cow.Attr) { h.attrs.Put(a) }

func (h *handler) fillAttrOut(a *cow.Attr, out *fuse.AttrOut) {
	out.AttrValid, out.AttrValidNsec = h.attrLife.sec, h.attrLife.nsec
	fillAttr(a, &out.Attr)
}

func (h *handler) SetAttr(in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	a := h.attr()
	defer h.done(a)
	s := setAttr(in)
	var err error
	if s.Valid == 0 {
		// Only a ctime, which the kernel keeps itself under writeback and no host lets anyone set.
		err = h.u.Getattr(n, a)
	} else {
		err = h.u.Setattr(n, &s, a)
	}
	if err != nil {
		return h.status("setattr", err)
	}
	h.fillAttrOut(a, out)
	return fuse.OK
}

// setAttr translates the request. Under HANDLE_KILLPRIV_V2 (include/uapi/linux/fuse.h) clearing setuid and setgid is the
// server's: at a truncation when the kernel says that the caller lacks CAP_FSETID, at a change of owner always.
func setAttr(in *fuse.SetAttrIn) cow.SetAttr {
	s := cow.SetAttr{
		Mode: in.Mode & 0o7777,
		UID:  in.Uid,
		GID:  in.Gid,
		Size: in.Size,
		Atime: unix.Timespec{
			Sec: int64(in.Atime), Nsec: int64(in.Atimensec),
		},
		Mtime: unix.Timespec{
			Sec: int64(in.Mtime), Nsec: int64(in.Mtimensec),
		},
	}
	v := in.Valid
	set := func(bit uint32, m cow.SetAttrMask) {
		if v&bit != 0 {
			s.Valid |= m
		}
	}
	set(fuse.FATTR_MODE, cow.SetMode)
	set(fuse.FATTR_UID, cow.SetUID)
	set(fuse.FATTR_GID, cow.SetGID)
	set(fuse.FATTR_SIZE, cow.SetSize)
	set(fuse.FATTR_KILL_SUIDGID, cow.KillPriv)
	// With the NOW bit the kernel sets the plain one as well.
	if v&fuse.FATTR_ATIME_NOW != 0 {
		s.Valid |= cow.SetAtimeNow
	} else {
		set(fuse.FATTR_ATIME, cow.SetAtime)
	}
	if v&fuse.FATTR_MTIME_NOW != 0 {
		s.Valid |= cow.SetMtimeNow
	} else {
		set(fuse.FATTR_MTIME, cow.SetMtime)
	}
	if v&(fuse.FATTR_UID|fuse.FATTR_GID) != 0 && v&fuse.FATTR_MODE == 0 {
		s.Valid |= cow.KillPriv
	}
	return s
}

// killPriv clears setuid and setgid of a file that is about to be changed by a caller without CAP_FSETID.
func (h *handler) killPriv(n *cow.Node) error {
	var a cow.Attr
	if err := h.u.Getattr(n, &a); err != nil {
		return err
	}
	if a.Mode&(unix.S_ISUID|unix.S_ISGID) == 0 {
		return nil
	}
	return h.u.Setattr(n, &cow.SetAttr{Valid: cow.KillPriv}, &a)
}
