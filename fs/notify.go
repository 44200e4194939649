package fs

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// What is changed in the union by this process itself, and not through the mount, has to be said to the kernel, which else
// keeps what it knows. They may not be called from within a request of the kernel's, but for dropListing: it holds locks that they
// want. An error says that the kernel doesn't know the file, and is of no interest.

// AttributesChanged says that the attributes of a file, by its node ID, are other ones.
func (s *Server) AttributesChanged(node uint64) { s.h.invalInode(node, -1) }

// NameChanged says that a name of a directory, by its node ID, means another file, or one at all.
func (s *Server) NameChanged(dir uint64, name string) {
	const invalEntry = 3 // FUSE_NOTIFY_INVAL_ENTRY of include/uapi/linux/fuse.h
	b := notification(invalEntry, 16+len(name)+1)
	b = binary.NativeEndian.AppendUint64(b, dir) // struct fuse_notify_inval_entry_out
	b = binary.NativeEndian.AppendUint32(b, uint32(len(name)))
	b = binary.NativeEndian.AppendUint32(b, 0)
	s.h.say(append(append(b, name...), 0))
}

// invalInode says that the attributes of a file are other ones, and with an offset from 0 up also its data from there on, which the
// kernel then writes back first if it has changed it.
func (h *handler) invalInode(node uint64, off int64) { h.say(inodeChanged(node, off)) }

func inodeChanged(node uint64, off int64) []byte {
	const invalInode = 2 // FUSE_NOTIFY_INVAL_INODE
	b := notification(invalInode, 24)
	b = binary.NativeEndian.AppendUint64(b, node) // struct fuse_notify_inval_inode_out
	b = binary.NativeEndian.AppendUint64(b, uint64(off))
	return binary.NativeEndian.AppendUint64(b, 0) // to the end
}

// dropListing has the kernel forget what it keeps of a directory: its listing and its own attributes, but no names. It may be called
// from within a request: the kernel waits for nobody else there, as no directory has anything to be written back
// (fs/fuse/inode.c, fuse_reverse_inval_inode).
func (h *handler) dropListing(dir uint64) { _, _ = unix.Write(h.conn.fd, inodeChanged(dir, 0)) }

// say tells the kernel something that it has not asked. Until it is done it may have requests carried out.
func (h *handler) say(b []byte) {
	h.conn.spare()
	if h.notify == nil || h.notify(b) != nil {
		_, _ = h.conn.dev.Write(b)
	}
}

// notification is the beginning of a message of the given kind and size that the kernel gets without asking: struct fuse_out_header.
func notification(kind uint32, size int) []byte {
	b := make([]byte, 0, 16+size)
	b = binary.NativeEndian.AppendUint32(b, uint32(16+size))
	b = binary.NativeEndian.AppendUint32(b, kind)
	return binary.NativeEndian.AppendUint64(b, 0)
}
