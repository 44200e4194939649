package fs

import (
	"bytes"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

const (
	inHeaderSize  = int(unsafe.Sizeof(fuse.InHeader{}))
	outHeaderSize = int(unsafe.Sizeof(fuse.OutHeader{}))

	// fixedRoom is at least the size of every struct that a reply may begin with; the largest is that of STATX.
	fixedRoom = 512

	// smallRequest is up to how many bytes a request is copied out of the buffer that it was read into.
	smallRequest = 4096

	// ownRoom is how much memory for the data of replies a request keeps.
	ownRoom = 64 << 10
)

// bytesOf is the memory of some words as bytes. Words, so that structs can be in it.
func bytesOf(words []uint64) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
}

// request is a request of the kernel's, as it was read, and the reply to it. Its memory is used again for the next one, so what
// points into it is gone when the request has been answered.
type request struct {
	in    []byte // header, struct and payload
	at    int    // where in it the payload begins, once the struct was asked for
	short bool   // it is shorter than its kind has to be

	head  [(outHeaderSize + fixedRoom) / 8]uint64 // the reply's header and struct
	fixed int                                     // the size of the struct
	data  []byte                                  // what follows that
	file  *dataResult                             // or this, which is spliced

	own      []byte // memory for data
	borrowed []byte // the same, from conn.large
	large    *large
	spliced  dataResult
	iov      [2]unix.Iovec
}

// sendFile answers with a part of a file, and takes the file over.
func (r *request) sendFile(f cow.File, off int64, size int) {
	r.spliced = dataResult{f, off, size}
	r.file = &r.spliced
}

func (r *request) reset(in []byte) {
	r.in, r.at, r.short = in, inHeaderSize, false
	r.fixed, r.data, r.file = 0, nil, nil
}

func (r *request) header() *fuse.InHeader { return (*fuse.InHeader)(unsafe.Pointer(&r.in[0])) }

// body returns the request as the struct of its kind, all of which begin with the header.
func body[T any](r *request) *T {
	size := int(unsafe.Sizeof(*new(T)))
	if len(r.in) < size {
		r.short = true
		return new(T)
	}
	r.at = size
	return (*T)(unsafe.Pointer(&r.in[0]))
}

// out returns the struct that the reply begins with, zeroed.
func out[T any](r *request) *T {
	var zero T
	r.fixed = int(unsafe.Sizeof(zero))
	p := (*T)(unsafe.Pointer(&r.head[outHeaderSize/8]))
	*p = zero
	return p
}

// payload is what follows the struct.
func (r *request) payload() []byte { return r.in[r.at:] }

// name returns the next string of the payload.
func (r *request) name() string {
	b := r.payload()
	i := bytes.IndexByte(b, 0)
	if i < 0 {
		r.short = true
		return ""
	}
	r.at += i + 1
	return string(b[:i])
}

// room returns memory for the data of the reply, until the request has been answered. Its content is arbitrary. It is less than n bytes where
// no reply can have as many.
func (r *request) room(n int) []byte {
	n = min(n, max(r.large.size, ownRoom))
	switch {
	case n <= len(r.own):
		return r.own[:n]
	case n <= ownRoom:
		r.own = make([]byte, (n+4095)&^4095)
		return r.own[:n]
	}
	r.borrowed = r.large.get()
	return r.borrowed[:n]
}

// done gives back what was needed for this request only.
func (r *request) done() {
	if r.file != nil {
		r.file.f.Release()
		r.file = nil
	}
	if r.borrowed != nil {
		r.large.put(r.borrowed)
		r.borrowed = nil
	}
	r.data = nil
}

// reply completes the header and returns the header with the struct, and the size of the whole. An error has nothing else.
func (r *request) reply(status fuse.Status, more int) []byte {
	if status != fuse.OK {
		r.fixed, r.data, more = 0, nil, 0
	}
	head := bytesOf(r.head[:])[:outHeaderSize+r.fixed]
	o := (*fuse.OutHeader)(unsafe.Pointer(&r.head))
	o.Length = uint32(len(head) + more)
	o.Status = -int32(status)
	o.Unique = r.header().Unique
	return head
}

// send answers the request.
func (r *request) send(c *conn, status fuse.Status) error {
	if status == fuse.OK && r.file != nil {
		if done, err := r.splice(c); done {
			return err
		}
		r.data = r.room(r.file.size)
		n, err := r.file.f.ReadAt(r.data, r.file.off)
		r.data = r.data[:max(n, 0)]
		if err != nil {
			status = fuse.ToStatus(err)
		}
	}
	head := r.reply(status, len(r.data))
	count := 1
	r.iov[0].Base = &head[0]
	r.iov[0].SetLen(len(head))
	if len(r.data) > 0 {
		count = 2
		r.iov[1].Base = &r.data[0]
		r.iov[1].SetLen(len(r.data))
	}
	_, _, errno := unix.Syscall(unix.SYS_WRITEV, uintptr(c.fd), uintptr(unsafe.Pointer(&r.iov)), uintptr(count))
	r.iov[1].Base = nil
	if errno != 0 {
		return errno
	}
	return nil
}
