package fs

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	// fuseMinRead is FUSE_MIN_READ_BUFFER of include/uapi/linux/fuse.h.
	fuseMinRead = 8192

	// readerMost is how many threads wait for a request at once, where requests overlap. One more than that is one more that
	// has to find a CPU of Go's when it wakes.
	readerMost = 2

	// parkedMost is how many workers without work are kept, and bufferMost how many of the buffers that large writes had in use at once.
	parkedMost, bufferMost = 4, 5

	// largeMost is how many large writes are carried out at once before one more worker is wanted: they are copying, not waiting, and each has a
	// buffer.
	largeMost = 4

	// aloneAfter is after how many requests of which none overlapped another one worker serves alone, and togetherAfter after how
	// many in a row that had been waiting it no longer does.
	aloneAfter, togetherAfter = 32, 4

	// idleAfter is the time without a request after which nothing is known of the next ones.
	idleAfter = 10 * time.Millisecond

	// watchEvery is how long a request can hold up another one while one worker serves alone.
	watchEvery = 2 * time.Millisecond

	// yieldEvery is after how long a worker lets others of its process run. To Go's monitor, one that never does is a goroutine that
	// has run for 10 ms (forcePreemptNS in runtime/proc.go): it takes its CPU away, and looks every 20 µs from then on, which
	// costs each twentieth request another wake-up. Four works of small requests got faster by 3 to 5 %.
	yieldEvery = 5 * time.Millisecond
)

// conn is the kernel's end of a mount: requests are read from it, by one worker or several, and carried out where they were read.
//
// Who wakes whom is what a request costs. A thread that was woken begins to run 5 to 20 µs later, and one of Go's that can't
// have the place that it had (GOMAXPROCS) waits for the next look of the runtime's monitor besides. The kernel hands requests to those
// who wait for them in turn, so that with two waiting each is woken cold. Most programs ask for one thing after the other. While
// that is so, one worker serves alone: nobody else waits for requests while it carries one out, which takes some microseconds. For
// the case that it takes longer a watch looks every now and then, and has another worker wait for requests, as is always so
// where requests overlap.
type conn struct {
	fd       int
	dev      *os.File // a duplicate of it, for those who are no workers; closed when the mount has ended
	h        *handler
	settings fuse.InitIn // the kernel's INIT
	size     int         // of the buffer for a request
	resident bool        // see buffer
	debug    bool
	large    *large

	workers sync.WaitGroup
	busy    atomic.Int32 // requests that somebody waits for

	mu      sync.Mutex
	reading int       // workers that wait for a request
	taken   uint64    // requests so far
	alone   bool      // one worker serves alone
	single  int       // requests in a row that did not overlap
	queued  int       // requests in a row that had been waiting, while alone
	caller  uint32    // whose the last one was, while alone
	watched bool      // there is a watch
	ended   bool      // the mount is gone, or was released
	parked  []*worker // what waits for work
	buffers [][]byte  // for requests, not in use
}

// worker is a goroutine that serves.
type worker struct {
	c     *conn
	req   request
	buf   []byte // for reading; nil while another has it
	small [smallRequest / 8]uint64
	wake  chan struct{}
}

func newConn(h *handler, fd int, o *Options) *conn {
	h.conn = &conn{
		fd: fd, h: h, size: max(o.MaxWrite+fuseMinRead/2, fuseMinRead), debug: o.Debug, large: newLarge(o.MaxWrite),
		resident: o.Notify != nil, // there is a holder that outlives this process
	}
	return h.conn
}

// serve carries out requests until the mount is gone or [conn.end] is called. It closes the descriptor.
func (c *conn) serve() {
	c.mu.Lock()
	c.another()
	c.mu.Unlock()
	c.workers.Wait()
	c.h.pipes.close()
	unix.Close(c.fd)
}

// another has one more worker wait for requests. The caller holds mu.
func (c *conn) another() {
	if c.ended {
		return
	}
	c.reading++
	if last := len(c.parked) - 1; last >= 0 {
		w := c.parked[last]
		c.parked = c.parked[:last]
		w.wake <- struct{}{}
		return
	}
	w := &worker{c: c, wake: make(chan struct{}, 1)}
	w.req.large = c.large
	c.workers.Add(1)
	go w.work()
}

// spare sees to it that a request is read also if this one, which waits for others to be carried out, is never done.
func (c *conn) spare() {
	c.mu.Lock()
	if c.reading == 0 {
		c.alone, c.single = false, 0
		c.another()
	}
	c.mu.Unlock()
}

// work reads and carries out requests. The worker counts as reading when it begins.
func (w *worker) work() {
	c := w.c
	defer c.workers.Done()
	yielded := time.Now()
	for {
		if w.buf == nil {
			w.buf = c.buffer()
		}
		began := time.Now()
		if began.Sub(yielded) > yieldEvery {
			runtime.Gosched()
			began = time.Now()
			yielded = began
		}
		n, err := unix.Read(c.fd, w.buf)
		waited := time.Since(began)
		if err != nil || n < inHeaderSize {
			if err == unix.EINTR || err == unix.ENOENT { // of a request that was interrupted before it was read
				continue
			}
			c.end(err)
			return
		}
		w.req.reset(w.buf[:n])
		op := w.req.header().Opcode
		c.took(w, op, waited)
		w.answer(op)
		if !c.goOn(w) {
			return
		}
	}
}

// took notes that a worker has a request, and decides whether another one is to wait for the next.
func (c *conn) took(w *worker, op uint32, waited time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading--
	c.taken++
	if !unanswered(op) {
		c.judge(&w.req, waited, int(c.busy.Add(1)))
	}
	if c.alone {
		return
	}
	switch {
	case c.reading > 0 || unanswered(op):
	case len(w.req.in) > smallRequest && c.busy.Load() >= largeMost:
		c.lookOut() // should they be waiting after all
	default:
		c.another()
	}
	w.compact()
}

// judge decides whether one worker serves alone from here on.
func (c *conn) judge(r *request, waited time.Duration, busy int) {
	hdr := r.header()
	if c.alone {
		other := hdr.Pid != c.caller || len(r.in) > smallRequest || hdr.Opcode == opRead
		c.caller = hdr.Pid
		switch {
		case waited > 3*time.Microsecond+time.Duration(len(r.in)/4): // more than it takes to copy it
			c.queued = 0
		case other:
			// It had been waiting, and not because its caller was faster than this worker.
			if c.queued++; c.queued >= togetherAfter {
				c.alone, c.single = false, 0
			}
		}
		return
	}
	switch {
	case waited > idleAfter:
		c.single = 0
	case busy > 1:
		c.single = max(c.single-4, 0)
	default:
		c.single++
	}
	if c.single >= aloneAfter {
		c.alone, c.queued = true, 0
		c.lookOut()
	}
}

// lookOut sees to it that there is a watch. The caller holds mu.
func (c *conn) lookOut() {
	if !c.watched {
		c.watched = true
		go c.watch()
	}
}

// watch looks after a worker that serves alone, and after those with large writes, while nobody else waits for requests.
func (c *conn) watch() {
	var seen uint64
	for idle := time.Duration(0); ; {
		time.Sleep(watchEvery)
		c.mu.Lock()
		switch {
		case c.taken != seen:
			seen, idle = c.taken, 0
		case c.reading == 0:
			c.alone, c.single = false, 0
			c.another()
		default:
			if idle += watchEvery; idle > idleAfter {
				c.alone, c.single = false, 0
			}
		}
		if !c.alone && c.reading > 0 || c.ended {
			c.watched = false
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
	}
}

// goOn notes that a worker has carried out its request. It returns when the worker is to read another, or false when it is not
// needed any more.
func (c *conn) goOn(w *worker) bool {
	c.mu.Lock()
	most := readerMost
	if c.alone {
		most = 1
	}
	if !c.ended && c.reading < most {
		c.reading++
		c.mu.Unlock()
		return true
	}
	c.release(w)
	if c.ended || len(c.parked) >= parkedMost {
		c.mu.Unlock()
		return false
	}
	c.parked = append(c.parked, w)
	c.mu.Unlock()
	<-w.wake
	return !c.over()
}

func (c *conn) over() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended
}

// end has all workers end.
func (c *conn) end(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reading--
	if c.ended {
		return
	}
	c.ended = true
	for _, w := range c.parked {
		w.wake <- struct{}{}
	}
	c.parked = nil
	if !expected(err) {
		c.h.log.Error("reading from the kernel failed; the mount is no longer served", "err", err)
	}
}

// answer carries out the request that was read, and sends the reply.
func (w *worker) answer(op uint32) {
	c, r := w.c, &w.req
	status := c.h.carryOut(r)
	if c.debug {
		hdr := r.header()
		c.h.log.Debug("fuse", "request", opName(op), "unique", hdr.Unique, "node", hdr.NodeId, "length", len(r.in), "pid", hdr.Pid,
			"status", status, "reply", r.fixed+len(r.data))
	}
	if !unanswered(op) {
		c.busy.Add(-1) // before the reply: the next request comes as soon as that is there
		// ENOENT: the caller was killed meanwhile.
		if err := r.send(c, status); err != nil && err != unix.ENOENT && !expected(err) {
			c.h.log.Warn("answering the kernel failed", "request", opName(op), "err", err)
		}
	}
	r.done()
}

// expected reports whether an error of the descriptor says that the mount is gone (ENODEV) or that the server was released (EBADF).
func expected(err error) bool { return err == unix.ENODEV || err == unix.EBADF }

// compact moves a small request out of the buffer that it was read into, so that there need be no more of these than are read into
// at once. The caller holds mu.
func (w *worker) compact() {
	if n := len(w.req.in); n <= smallRequest {
		small := bytesOf(w.small[:])[:n]
		copy(small, w.req.in)
		w.req.in = small
		w.c.release(w)
	}
}

// release puts a worker's buffer back. The caller holds mu.
func (c *conn) release(w *worker) {
	if w.buf != nil && len(c.buffers) < bufferMost {
		c.buffers = append(c.buffers, w.buf)
	}
	w.buf = nil
}

// buffer returns memory to read a request into. Where another server may follow, it is resident memory: where the kernel has to fault a page
// in while it hands a request to a process that is just being killed, it gives up and answers the request with EIO, and nobody can
// carry it out any more (fs/fuse/dev.c, fuse_dev_do_read; mm/gup.c looks for a fatal signal first). Into resident memory it copies, and the
// request comes again.
func (c *conn) buffer() []byte {
	c.mu.Lock()
	if last := len(c.buffers) - 1; last >= 0 {
		b := c.buffers[last]
		c.buffers = c.buffers[:last]
		c.mu.Unlock()
		return b
	}
	c.mu.Unlock()
	b := make([]byte, c.size)
	if c.resident {
		populate(b)
	}
	return b
}

// populate makes memory resident. Where the kernel can do it (Linux 5.14) it takes a twentieth of the time that writing to each page takes:
// under a hypervisor, what the guest's kernel fills costs nothing of what the first use of a page does.
func populate(b []byte) {
	if unix.Madvise(b, unix.MADV_POPULATE_WRITE) == nil {
		return
	}
	for i := 0; i < len(b); i += os.Getpagesize() {
		b[i] = 0
	}
}

// large is the memory for replies with much data.
type large struct {
	pool sync.Pool
	size int
}

func newLarge(size int) *large {
	l := &large{size: size}
	l.pool.New = func() any {
		b := make([]byte, l.size)
		return &b
	}
	return l
}

func (l *large) get() []byte { return *l.pool.Get().(*[]byte) }

func (l *large) put(b []byte) { l.pool.Put(&b) }
