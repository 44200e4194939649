package cow

import (
	"sync"

	"golang.org/x/sys/unix"
)

// Descriptors is a bounded cache of open file descriptors. A union is told neither when a file is opened nor when it is
// closed (see the package fs), so it can't tie descriptors to opens: it opens what an operation needs, keeps it, and
// closes the least recently used one when there are too many. Branches and a union of one process share one cache, since
// the limit is the process's.
//
// The bound is soft: descriptors in use at one instant are never closed, so concurrent operations may exceed it by
// their number.
type Descriptors struct {
	mu   sync.Mutex
	max  int
	open int
	lru  descriptor // ring of idle and busy descriptors; lru.next is the most recently used

	// *[]byte, to read directories of the host. All branches have them together: each would seldom use its own.
	buffers sync.Pool
}

// descriptor is one place of the cache. The owner points to it for as long as it likes and passes it to acquire, which
// opens it anew where it was evicted. All fields are guarded by Descriptors.mu.
type descriptor struct {
	next, prev *descriptor
	fd         int
	refs       int
	dropped    bool // to be closed, not kept, when refs falls to 0
	writable   bool
	data       *Data // what to release in place of closing fd, if it came from a branch
}

// NewDescriptors returns a cache that keeps at most limit descriptors open; with limit 0 a quarter of the process's limit
// (RLIMIT_NOFILE), and at least 64.
func NewDescriptors(limit int) *Descriptors {
	if limit == 0 {
		limit = 256
		var lim unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
			limit = int(min(lim.Cur/4, 8192))
		}
		limit = max(limit, 64)
	}
	c := &Descriptors{max: limit}
	c.lru.next, c.lru.prev = &c.lru, &c.lru
	c.buffers.New = func() any {
		buf := make([]byte, direntBuffer)
		return &buf
	}
	return c
}

// Close closes everything that is not in use, and whatever still is as soon as it isn't. It is called after the unions and
// branches that share the cache are closed.
func (c *Descriptors) Close() {
	c.mu.Lock()
	c.max = 0
	victims := c.evict()
	c.mu.Unlock()
	closeAll(victims)
}

// add puts a freshly opened descriptor into the cache, in use once.
func (c *Descriptors) add(fd int, writable bool) *descriptor {
	d := &descriptor{fd: fd, refs: 1, writable: writable}
	c.mu.Lock()
	c.open++
	c.pushFront(d)
	victims := c.evict()
	c.mu.Unlock()
	closeAll(victims)
	return d
}

// addData is add for the content of a branch's file.
func (c *Descriptors) addData(data *Data) *descriptor {
	d := c.add(data.FD, false)
	d.data = data // nobody else has d yet, and it is in use
	return d
}

// acquire returns d's descriptor and marks it as in use, or false if it was closed meanwhile (or d is nil): the caller
// then opens the file again and calls add.
func (c *Descriptors) acquire(d *descriptor) bool {
	if d == nil {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if d.fd < 0 || d.dropped {
		return false
	}
	d.refs++
	if c.lru.next != d {
		c.unlink(d)
		c.pushFront(d)
	}
	return true
}

// release ends one use.
func (c *Descriptors) release(d *descriptor) {
	c.mu.Lock()
	d.refs--
	victims := c.evict()
	if d.refs == 0 && d.dropped && d.fd >= 0 {
		victims = append(victims, c.remove(d))
	}
	c.mu.Unlock()
	closeAll(victims)
}

// drop closes d as soon as nobody uses it; it is never handed out again.
func (c *Descriptors) drop(d *descriptor) {
	if d == nil {
		return
	}
	c.mu.Lock()
	var victims []victim
	d.dropped = true
	if d.refs == 0 && d.fd >= 0 {
		victims = append(victims, c.remove(d))
	}
	c.mu.Unlock()
	closeAll(victims)
}

// victim is a descriptor that is out of the cache and to be closed.
type victim struct {
	fd   int
	data *Data
}

// evict takes idle descriptors out until the bound is kept, and returns them to be closed without the lock held:
// closing the last descriptor of an unlinked file can take as long as freeing its blocks.
func (c *Descriptors) evict() []victim {
	var victims []victim
	for d := c.lru.prev; c.open > c.max && d != &c.lru; {
		prev := d.prev
		if d.refs == 0 {
			victims = append(victims, c.remove(d))
		}
		d = prev
	}
	return victims
}

func (c *Descriptors) remove(d *descriptor) victim {
	c.unlink(d)
	c.open--
	v := victim{d.fd, d.data}
	d.fd, d.data = -1, nil
	return v
}

func (c *Descriptors) pushFront(d *descriptor) {
	d.next, d.prev = c.lru.next, &c.lru
	d.next.prev, c.lru.next = d, d
}

func (c *Descriptors) unlink(d *descriptor) {
	d.next.prev, d.prev.next = d.prev, d.next
	d.next, d.prev = nil, nil
}

func closeAll(victims []victim) {
	for _, v := range victims {
		if v.data != nil {
			v.data.Release()
			continue
		}
		unix.Close(v.fd)
	}
}
