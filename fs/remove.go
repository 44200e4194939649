package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
)

func (h *handler) Unlink(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	dir := h.u.Node(in.NodeId)
	if dir == nil {
		return stale
	}
	return h.status("unlink", h.u.Unlink(dir, name))
}

func (h *handler) Rmdir(_ <-chan struct{}, in *fuse.InHeader, name string) fuse.Status {
	dir := h.u.Node(in.NodeId)
	if dir == nil {
		return stale
	}
	return h.status("rmdir", h.u.Rmdir(dir, name))
}

// Rename is RENAME and RENAME2; the flags of the former are 0.
func (h *handler) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, to := h.u.Node(in.NodeId), h.u.Node(in.Newdir)
	if from == nil || to == nil {
		return stale
	}
	return h.status("rename", h.u.Rename(from, oldName, to, newName, in.Flags))
}
