package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

func (h *handler) Lookup(in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	a := h.attr()
	defer h.done(a)
	id, err := h.u.LookupID(dir, name, a)
	if err != nil {
		st := h.status("lookup", err)
		if st == fuse.ENOENT && h.entryLife != (lifetime{}) {
			h.fillNegative(out)
			return fuse.OK
		}
		return st
	}
	h.fillEntry(id, a, out)
	return fuse.OK
}

// Forget takes back references. The node can be unknown: a server that took this mount over has not seen the lookups of
// the one before.
func (h *handler) Forget(nodeid, nlookup uint64) {
	if h.former != nil {
		h.forgetFormer(nodeid, nlookup)
		return
	}
	h.u.ForgetID(nodeid, nlookup)
}

// fillEntry answers with a node that the caller holds a reference of, which thereby becomes the kernel's.
func (h *handler) fillEntry(id uint64, a *cow.Attr, out *fuse.EntryOut) {
	out.NodeId = id
	if h.former != nil {
		h.former.hand(id)
	}
	out.EntryValid, out.EntryValidNsec = h.entryLife.sec, h.entryLife.nsec
	out.AttrValid, out.AttrValidNsec = h.attrLife.sec, h.attrLife.nsec
	fillAttr(a, &out.Attr)
}

// fillNegative answers that there is no such name, for as long as a name that is there would be kept.
func (h *handler) fillNegative(out *fuse.EntryOut) {
	*out = fuse.EntryOut{EntryValid: h.entryLife.sec, EntryValidNsec: h.entryLife.nsec}
}

func fillAttr(a *cow.Attr, out *fuse.Attr) {
	*out = fuse.Attr{
		Ino:       a.Ino,
		Size:      a.Size,
		Blocks:    a.Blocks,
		Atime:     uint64(a.Atime.Sec),
		Mtime:     uint64(a.Mtime.Sec),
		Ctime:     uint64(a.Ctime.Sec),
		Atimensec: uint32(a.Atime.Nsec),
		Mtimensec: uint32(a.Mtime.Nsec),
		Ctimensec: uint32(a.Ctime.Nsec),
		Mode:      a.Mode,
		Nlink:     a.Nlink,
		Owner:     fuse.Owner{Uid: a.UID, Gid: a.GID},
		Rdev:      a.Rdev,
		Blksize:   a.Blksize,
	}
}

func (h *handler) Readlink(in *fuse.InHeader) ([]byte, fuse.Status) {
	n := h.node(in.NodeId)
	if n == nil {
		return nil, stale
	}
	target, err := h.u.Readlink(n)
	if err != nil {
		return nil, h.status("readlink", err)
	}
	return []byte(target), fuse.OK
}

func (h *handler) StatFs(out *fuse.StatfsOut) fuse.Status {
	var st unix.Statfs_t
	if err := h.u.Statfs(&st); err != nil {
		return h.status("statfs", err)
	}
	*out = fuse.StatfsOut{
		Blocks:  st.Blocks,
		Bfree:   st.Bfree,
		Bavail:  st.Bavail,
		Files:   st.Files,
		Ffree:   st.Ffree,
		Bsize:   uint32(st.Bsize),
		NameLen: uint32(st.Namelen),
		Frsize:  uint32(st.Frsize),
	}
	return fuse.OK
}
