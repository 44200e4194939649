package fs

import (
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// Read has the data sent from where it is, or puts it into r.
func (h *handler) Read(in *fuse.ReadIn, r *request) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	f, err := h.u.Data(n)
	if err != nil {
		return h.status("read", err)
	}
	off := int64(in.Offset)
	if size := min(int64(in.Size), f.Size-off); f.Direct() && size >= spliceMin {
		if size, err = present(&f, off, size); err != nil {
			f.Release()
			return h.status("read", err)
		}
		if off >= 0 && size >= spliceMin && h.pipes.fits(f.Off+off, size) {
			r.sendFile(f, off, int(size))
			return fuse.OK
		}
	}
	got := 0
	buf := r.room(int(in.Size))
	if off >= 0 {
		got, err = f.ReadAt(buf, off)
	}
	f.Release()
	if err != nil {
		return h.status("read", err)
	}
	r.data = buf[:got]
	return fuse.OK
}

// present cuts size to what there is of a file whose end only its descriptor knows. To find the end only while splicing is
// dear: the length is in the header that was sent before.
func present(f *cow.File, off, size int64) (int64, error) {
	if f.Size != math.MaxInt64 {
		return size, nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(f.FD, &st); err != nil {
		return 0, err
	}
	return min(size, st.Size-off), nil
}

func (h *handler) Write(in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	n := h.node(in.NodeId)
	if n == nil {
		return 0, stale
	}
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		if err := h.killPriv(n); err != nil {
			return 0, h.status("write", err)
		}
	}
	write := h.u.Write
	if in.WriteFlags&fuse.WRITE_CACHE != 0 {
		write = h.u.WriteBack
	}
	written, err := write(n, int64(in.Offset), data)
	if err != nil && written <= 0 {
		return 0, h.status("write", err)
	}
	return uint32(written), fuse.OK
}

func (h *handler) Fallocate(in *fuse.FallocateIn) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	if err := h.killPrivOf(&in.InHeader, n); err != nil {
		return h.status("fallocate", err)
	}
	return h.status("fallocate", h.u.Fallocate(n, in.Mode, int64(in.Offset), int64(in.Length), h.writeback))
}

func (h *handler) CopyFileRange(in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	src, dst := h.node(in.NodeId), h.node(in.NodeIdOut)
	if src == nil || dst == nil {
		return 0, stale
	}
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	if err := h.killPrivOf(&in.InHeader, dst); err != nil {
		return 0, h.status("copy_file_range", err)
	}
	// The reply counts in 32 bits; whole pages, so that the rest is aligned.
	length := min(in.Len, 1<<31)
	n, err := h.u.CopyRange(src, int64(in.OffIn), dst, int64(in.OffOut), int64(length), h.writeback)
	if err != nil && n <= 0 {
		return 0, h.status("copy_file_range", err)
	}
	return uint32(n), fuse.OK
}

// killPrivOf is killPriv for the requests that have no flag for it. Who has CAP_FSETID can't be known, so all but root
// count as if they had not.
func (h *handler) killPrivOf(in *fuse.InHeader, n *cow.Node) error {
	if in.Uid == 0 {
		return nil
	}
	return h.killPriv(n)
}

func (h *handler) Lseek(in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	if h.writeback {
		// The kernel asks about holes without writing back first what it has collected (fs/fuse/file.c,
		// fuse_lseek): the data would be reported as a hole, and cp(1) would leave it out.
		h.writeBack(in.NodeId, int64(in.Offset))
	}
	off, err := h.u.SeekData(n, int64(in.Offset), int(in.Whence))
	if err != nil {
		return h.status("lseek", err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// writeBack has the kernel write back what it has collected of a file from an offset on.
func (h *handler) writeBack(node uint64, off int64) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.invalInode(node, off)
	}()
	select {
	case <-done:
	case <-h.released: // another server will be asked for what the kernel writes back, and for this anew
	}
}

// Fsync is FSYNC and FSYNCDIR.
func (h *handler) Fsync(in *fuse.FsyncIn) fuse.Status {
	// FUSE_FSYNC_FDATASYNC in include/uapi/linux/fuse.h.
	const dataOnly = 1 << 0

	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	return h.status("fsync", h.u.Fsync(n, in.FsyncFlags&dataOnly != 0))
}
