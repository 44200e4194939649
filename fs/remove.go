package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

func (h *handler) Unlink(in *fuse.InHeader, name string) fuse.Status {
	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	err := h.u.Unlink(dir, name)
	if err == unix.ENOENT && h.resent(in) {
		return fuse.OK // done: the kernel, which keeps the directory locked, knew the name to be there
	}
	return h.status("unlink", err)
}

func (h *handler) Rmdir(in *fuse.InHeader, name string) fuse.Status {
	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	err := h.u.Rmdir(dir, name)
	if err == unix.ENOENT && h.resent(in) {
		return fuse.OK
	}
	return h.status("rmdir", err)
}

// Rename is RENAME and RENAME2; the flags of the former are 0.
func (h *handler) Rename(in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, to := h.node(in.NodeId), h.node(in.Newdir)
	if from == nil || to == nil {
		return stale
	}
	if in.Flags&unix.RENAME_EXCHANGE != 0 {
		return h.status("rename", h.exchange(in, from, oldName, to, newName))
	}
	err := h.u.Rename(from, oldName, to, newName, in.Flags)
	if err == unix.ENOENT && h.resent(&in.InHeader) {
		return fuse.OK // done: the old name, which the kernel knew to be there, has gone
	}
	return h.status("rename", err)
}
