package fs

import (
	"sync"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

const (
	// spliceMin is from how many bytes on a READ is answered by splice(2), which copies once less but takes three system calls
	// instead of two.
	spliceMin = 64 << 10

	// pipeSize is the largest pipe that everybody may have (fs.pipe-max-size).
	pipeSize = 1 << 20
)

// pipes are those through which files get into replies. They are empty when nobody has them.
type pipes struct {
	page int

	mu   sync.Mutex
	free [][2]int // of pipeSize
	none bool     // none that large is to be had
}

// fits reports whether a pipe holds a reply with size bytes from this offset of a file: it has a place for each page that is touched,
// and one for the header. Tars have their files at multiples of 512 bytes.
func (p *pipes) fits(off, size int64) bool {
	page := int64(p.page)
	return 1+(off%page+size+page-1)/page <= pipeSize/page
}

func (p *pipes) get() (pipe [2]int, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if last := len(p.free) - 1; last >= 0 {
		pipe = p.free[last]
		p.free = p.free[:last]
		return pipe, true
	}
	if p.none || unix.Pipe2(pipe[:], unix.O_CLOEXEC) != nil {
		return pipe, false
	}
	if _, err := unix.FcntlInt(uintptr(pipe[1]), unix.F_SETPIPE_SZ, pipeSize); err != nil {
		p.none = true // the limit of this user (fs.pipe-user-pages-soft)
		closePipe(pipe)
		return pipe, false
	}
	return pipe, true
}

func (p *pipes) put(pipe [2]int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) > readerMost {
		closePipe(pipe)
		return
	}
	p.free = append(p.free, pipe)
}

func (p *pipes) close() {
	for _, pipe := range p.free {
		closePipe(pipe)
	}
	p.free = nil
}

func closePipe(pipe [2]int) {
	unix.Close(pipe[0])
	unix.Close(pipe[1])
}

// dataResult is the reply to a READ straight from the descriptor of a branch, which is held until the kernel has the data.
type dataResult struct {
	f    cow.File
	off  int64 // in the file
	size int
}

// splice answers with r.file. If done is false nothing was sent, and it has to be read.
func (r *request) splice(c *conn) (done bool, err error) {
	pipe, ok := c.h.pipes.get()
	if !ok {
		return false, nil
	}
	head := r.reply(fuse.OK, r.file.size)
	off := r.file.f.Off + r.file.off
	n, err := unix.Write(pipe[1], head)
	if err == nil && n == len(head) {
		var m int64
		m, err = unix.Splice(r.file.f.FD, &off, pipe[1], nil, r.file.size, 0)
		n += int(m)
	}
	if err != nil || n != len(head)+r.file.size {
		closePipe(pipe) // the file has become shorter, say
		return false, nil
	}
	m, err := unix.Splice(pipe[0], nil, c.fd, nil, n, 0)
	if err != nil || int(m) != n {
		closePipe(pipe)
		return true, err
	}
	c.h.pipes.put(pipe)
	return true, nil
}
