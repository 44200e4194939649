package fs

import (
	"math"
	"os"
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

const (
	// spliceMin is from how many bytes on a READ is answered by splice(2), which copies once less but takes five
	// system calls instead of two.
	spliceMin = 64 << 10

	// spliceMax is what fits with the header into the largest pipe that everybody may have (fs.pipe-max-size, 1 MiB,
	// in pages, of which go-fuse leaves one free).
	spliceMax = 1<<20 - 3*4096
)

func (h *handler) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	n := h.node(in.NodeId)
	if n == nil {
		return nil, stale
	}
	f, err := h.u.Data(n)
	if err != nil {
		return nil, h.status("read", err)
	}
	off := int64(in.Offset)
	if size := min(int64(len(buf)), f.Size-off); f.Direct() && size >= spliceMin && size <= spliceMax {
		if size, err = present(&f, off, size); err != nil {
			f.Release()
			return nil, h.status("read", err)
		}
		if off >= 0 && size >= spliceMin && fitsPipe(f.Off+off, size) {
			return &dataResult{f: f, off: off, size: int(size)}, fuse.OK
		}
	}
	got := 0
	if off >= 0 {
		got, err = f.ReadAt(buf, off)
	}
	f.Release()
	if err != nil {
		return nil, h.status("read", err)
	}
	if got == 0 {
		return fuse.ReadResultData(nil), fuse.OK
	}
	r := h.results.Get().(*copied)
	r.data[0] = buf[:got]
	return r, fuse.OK
}

// fitsPipe reports whether the pipe that the library takes for a reply of size bytes (trySplice) holds as many from this offset of a
// file. A pipe has a place for each page that is touched, and one for the header; the library counts bytes, and sends what
// did not fit as if the file ended there. Tars have their files at multiples of 512 bytes.
func fitsPipe(off, size int64) bool {
	const header = 16 // struct fuse_out_header
	page := int64(os.Getpagesize())
	places := int64(1)
	for places*page < header+size+page { // as the kernel rounds up (fs/pipe.c, round_pipe_size)
		places *= 2
	}
	return 1+(off%page+size+page-1)/page <= places
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

// copied is the answer to a READ in memory. Since it has Slices, it is sent by one writev(2); fuse.ReadResultData would go
// through a pipe, in four calls.
type copied struct {
	data [1][]byte
	pool *sync.Pool // where it belongs when it is sent
}

func (r *copied) Slices() ([][]byte, fuse.Status) { return r.data[:], fuse.OK }

func (r *copied) Size() int { return len(r.data[0]) }

func (r *copied) Bytes([]byte) ([]byte, fuse.Status) { return r.data[0], fuse.OK }

func (r *copied) Done() {
	r.data[0] = nil
	r.pool.Put(r)
}

// dataResult is the answer to a READ straight from the descriptor of a branch. The descriptor is held until the kernel
// has the data.
type dataResult struct {
	f    cow.File
	off  int64 // in the file
	size int
}

func (r *dataResult) Seekable() (fd uintptr, off int64, size int) {
	return uintptr(r.f.FD), r.f.Off + r.off, r.size
}

func (r *dataResult) Size() int { return r.size }

// Bytes is called when splicing does not work.
func (r *dataResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	n, err := r.f.ReadAt(buf[:min(len(buf), r.size)], r.off)
	return buf[:n], fuse.ToStatus(err)
}

func (r *dataResult) Done() { r.f.Release() }

func (h *handler) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
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

// Writev is what the server calls first. From /dev/fuse the data always comes in one piece.
func (h *handler) Writev(c <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	if len(data) != 1 {
		return 0, fuse.ENOSYS // not the kernel's answer: the server then calls Write with the pieces joined
	}
	return h.Write(c, in, data[0])
}

func (h *handler) Fallocate(_ <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	if err := h.killPrivOf(&in.InHeader, n); err != nil {
		return h.status("fallocate", err)
	}
	return h.status("fallocate", h.u.Fallocate(n, in.Mode, int64(in.Offset), int64(in.Length), h.writeback))
}

func (h *handler) CopyFileRange(_ <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
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

func (h *handler) Lseek(_ <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
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

func (h *handler) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return h.fsync(in)
}

func (h *handler) fsync(in *fuse.FsyncIn) fuse.Status {
	// FUSE_FSYNC_FDATASYNC in include/uapi/linux/fuse.h.
	const dataOnly = 1 << 0

	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	return h.status("fsync", h.u.Fsync(n, in.FsyncFlags&dataOnly != 0))
}
