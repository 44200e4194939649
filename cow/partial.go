package cow

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// A large lower file on a file system that can't share blocks is copied up by block as it is written: its upper file is made
// at once, sparse, and a record in work/partial says which of its blocks are its own. The others are read from the lower
// file, until a goroutine in the background, or Close, has copied them all. From then on it is a file like any other.
//
// While it lasts, work/partial has two files named by the upper file's inode number: NUMBER.data, a hard link to the upper
// file, and NUMBER.map, the record. A union that is killed leaves both, and the next one completes the copy before it
// does anything else. The record is mapped into memory, so that a kill loses nothing of it; Fsync syncs it after the data.
const (
	partialMin   = 8 << 20   // bytes; what is smaller is copied faster than recorded
	partialBlock = 128 << 10 // bytes
	partialMax   = 64        // files at once; each needs two descriptors
)

// partial is a file of which not every block has been copied up.
type partial struct {
	u    *Union
	ino  uint64 // of the upper file on the host
	fd   int    // of the upper file, for reading and writing
	low  *Data
	size int64 // how much of the lower file counts; what is beyond is the upper file's own

	// mu is held shared while data is read or blocks that are the file's own are written, and exclusively while other
	// blocks become its own.
	mu     sync.RWMutex
	record []byte // the mapped record
	bits   []byte // the part of it that has a bit for each block
	whole  bool   // complete, or given up: nobody takes it up any more
	refs   int    // Files that use fd; the partial counts as one until it is whole
	refsMu sync.Mutex
}

// partials is the set of them.
type partials struct {
	count atomic.Int32 // of live

	mu      sync.Mutex
	live    map[uint64]*partial // by inode number on the host
	stop    chan struct{}       // closed by Close; nil before the background goroutine was started
	done    chan struct{}       // closed when the goroutine has ended
	pending chan *partial
}

func (p *partial) blocks() int { return int((p.size + partialBlock - 1) / partialBlock) }

// owns reports whether a block is the file's own, as all are when it is whole. The caller holds mu.
func (p *partial) owns(block int) bool { return p.whole || p.bits[block/8]&(1<<(block%8)) != 0 }

// take marks a block as the file's own. The caller holds mu exclusively.
func (p *partial) take(block int) {
	if p.whole {
		return // completed since the caller took the partial up: there is no record any more
	}
	p.bits[block/8] |= 1 << (block % 8)
}

// extent is where a block is in the file.
func (p *partial) extent(block int) (off, end int64) {
	off = int64(block) * partialBlock
	return off, min(off+partialBlock, p.size)
}

// fetch copies a block from the lower file. The caller holds mu exclusively.
func (p *partial) fetch(block int) error {
	if p.owns(block) {
		return nil
	}
	off, end := p.extent(block)
	if err := copyRange(p.fd, off, p.low.FD, p.low.Off+off, end-off); err != nil {
		return err
	}
	p.take(block)
	return nil
}

// touched is the range of blocks that a range of bytes touches.
func (p *partial) touched(off, length int64) (first, last int) {
	end := min(off+length, p.size)
	if off >= p.size || length <= 0 {
		return 0, -1
	}
	return int(off / partialBlock), int((end - 1) / partialBlock)
}

// prepare makes the blocks of a range the file's own. What the caller is about to overwrite or cut off whole is not copied.
// The caller holds mu exclusively.
func (p *partial) prepare(off, length int64) error {
	first, last := p.touched(off, length)
	for b := first; b <= last; b++ {
		start, end := p.extent(b)
		if off <= start && off+length >= end {
			continue
		}
		if err := p.fetch(b); err != nil {
			return err
		}
	}
	return nil
}

// overwrite does something that gives a range of bytes new content.
func (p *partial) overwrite(off, length int64, do func() error) error {
	first, last := p.touched(off, length)
	p.mu.RLock()
	owned := true
	for b := first; b <= last && owned; b++ {
		owned = p.owns(b)
	}
	if owned {
		defer p.mu.RUnlock()
		return do()
	}
	p.mu.RUnlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.prepare(off, length); err != nil {
		return err
	}
	if err := do(); err != nil {
		// Perhaps half done; then what there is of these blocks is the lower's again, as if nothing had been written.
		return err
	}
	for b := first; b <= last; b++ {
		p.take(b)
	}
	return nil
}

// write is pwrite(2).
func (p *partial) write(b []byte, off int64) (n int, err error) {
	err = p.overwrite(off, int64(len(b)), func() error {
		n, err = pwriteAll(p.fd, b, off)
		if err == nil && n < len(b) {
			err = unix.ENOSPC
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return n, nil
}

// truncate is ftruncate(2).
func (p *partial) truncate(size int64) error {
	return p.overwrite(size, max(p.size-size, 0), func() error { return unix.Ftruncate(p.fd, size) })
}

// read is pread(2).
func (p *partial) read(b []byte, off int64) (int, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	var st unix.Stat_t
	if err := unix.Fstat(p.fd, &st); err != nil {
		return 0, err
	}
	total := 0
	for total < len(b) && off < st.Size {
		end := st.Size
		fd, at := p.fd, off
		if off < p.size {
			block := int(off / partialBlock)
			_, end = p.extent(block)
			end = min(end, st.Size)
			if !p.owns(block) {
				fd, at = p.low.FD, p.low.Off+off
			}
		}
		n, err := unix.Pread(fd, b[total:min(int64(len(b)), int64(total)+end-off)], at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return total, err
		}
		if n == 0 {
			return total, unix.EIO // the lower file is shorter than it was
		}
		total, off = total+n, off+int64(n)
	}
	return total, nil
}

// sync is fsync(2), and then makes the record durable too.
func (p *partial) sync() error {
	if err := unix.Fsync(p.fd); err != nil {
		return err
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.whole {
		return nil
	}
	return unix.Msync(p.record, unix.MS_SYNC)
}

// live reports whether the upper file has its extra link yet.
func (p *partial) live() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return !p.whole
}

// acquire takes a use of fd; false if the file is whole and to be opened as others are.
func (p *partial) acquire() bool {
	p.mu.RLock()
	defer p.mu.RUnlock()
	if p.whole {
		return false
	}
	p.refsMu.Lock()
	p.refs++
	p.refsMu.Unlock()
	return true
}

// release gives a use back.
func (p *partial) release() {
	p.refsMu.Lock()
	p.refs--
	last := p.refs == 0
	p.refsMu.Unlock()
	if last {
		unix.Close(p.fd)
		p.low.Release()
	}
}

// complete copies what is missing, a block at a time so that nobody waits long, until stop is closed.
func (p *partial) complete(stop <-chan struct{}) error {
	for b := range p.blocks() {
		select {
		case <-stop:
			return nil
		default:
		}
		p.mu.Lock()
		if p.whole {
			p.mu.Unlock()
			return nil
		}
		err := p.keepingTimes(func() error { return p.fetch(b) })
		p.mu.Unlock()
		if err != nil {
			return err
		}
	}
	if !p.u.volatile {
		if err := unix.Fdatasync(p.fd); err != nil {
			return err
		}
	}
	return p.end()
}

// keepingTimes does something to the upper file of which its times shall tell nothing. The caller holds mu exclusively, as does
// whoever sets times.
func (p *partial) keepingTimes(do func() error) error {
	var st unix.Stat_t
	if err := unix.Fstat(p.fd, &st); err != nil {
		return err
	}
	if err := do(); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(p.u.upper.partial, partialName(p.ino, "data"), times, unix.AT_SYMLINK_NOFOLLOW)
}

// end takes the file out of work/partial. It must be whole, or without a name.
func (p *partial) end() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.whole {
		return nil
	}
	b := p.u.upper
	if err := errors.Join(unix.Unlinkat(b.partial, partialName(p.ino, "map"), 0), unix.Unlinkat(b.partial, partialName(p.ino, "data"), 0)); err != nil {
		return err
	}
	p.forget()
	return nil
}

// forget lets go of the record. The caller holds mu exclusively.
func (p *partial) forget() {
	p.whole = true
	unix.Munmap(p.record)
	p.record, p.bits = nil, nil
	s := &p.u.partials
	s.mu.Lock()
	delete(s.live, p.ino)
	s.mu.Unlock()
	s.count.Add(-1)
	p.release()
}

func partialName(ino uint64, kind string) string { return idName(ino) + "." + kind }

// partialWanted reports whether a file of this size is to be copied up by block.
func (u *Union) partialWanted(size int64) bool {
	return size >= partialMin && u.partials.count.Load() < partialMax
}

// hasData reports whether a new file has any blocks: whether its content was shared.
func (b *upperBranch) hasData(fd int) bool {
	_, err := unix.Seek(fd, 0, unix.SEEK_DATA)
	return err != unix.ENXIO
}

// startPartial makes a file of the upper branch that is one hole as yet, in new/ or a metadata-only copy, a partial copy of
// size bytes of n's lower file. It waits for no data, but for the record of the copy to be durable.
func (u *Union) startPartial(n *Node, at place, fd int, low *Attr, size int64, path string) (p *partial, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	p = &partial{u: u, ino: st.Ino, fd: fd, size: size, refs: 1}
	if err := p.makeRecord(path, low); err != nil {
		return nil, fmt.Errorf("recording a copy-up: %w", err)
	}
	if p.low, err = u.lowerData(n); err == nil {
		err = unix.Linkat(at.dir, at.name, u.upper.partial, partialName(p.ino, "data"), 0)
	}
	if err == nil && !u.volatile {
		err = syncDir(u.upper.partial)
	}
	if err != nil {
		unix.Munmap(p.record)
		unix.Unlinkat(u.upper.partial, partialName(p.ino, "map"), 0)
		unix.Unlinkat(u.upper.partial, partialName(p.ino, "data"), 0)
		if p.low != nil {
			p.low.Release()
		}
		return nil, err
	}
	u.addPartial(p)
	return p, nil
}

// addPartial makes a copy under way findable for partialOf.
func (u *Union) addPartial(p *partial) {
	s := &u.partials
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == nil {
		s.live = map[uint64]*partial{}
	}
	s.live[p.ino] = p
	s.count.Add(1)
}

// completeLater has a published copy completed in the background.
func (u *Union) completeLater(p *partial) {
	s := &u.partials
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stop == nil {
		s.stop, s.done, s.pending = make(chan struct{}), make(chan struct{}), make(chan *partial, partialMax*4)
		go func() {
			defer close(s.done)
			for {
				select {
				case <-s.stop:
					return
				case p := <-s.pending:
					// What fails (a full disk, say) is tried again by Close, which reports it.
					_ = p.complete(s.stop)
				}
			}
		}()
	}
	select {
	case s.pending <- p:
	default: // Close will see to it
	}
}

// partialOf finds the copy under way that an upper file is.
func (u *Union) partialOf(ino uint64) *partial {
	s := &u.partials
	if s.count.Load() == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.live[ino]
}

// stopPartials ends the background goroutine.
func (u *Union) stopPartials() {
	if s := &u.partials; s.stop != nil {
		close(s.stop)
		<-s.done
		s.stop = nil
	}
}

// pausePartials ends the background goroutine, and returns the copies under way.
func (u *Union) pausePartials() (rest []*partial) {
	u.stopPartials()
	s := &u.partials
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.live {
		rest = append(rest, p)
	}
	return rest
}

// leavePartials lets go of all copies under way, with their records as they are.
func (u *Union) leavePartials() {
	for _, p := range u.pausePartials() {
		p.mu.Lock()
		p.forget()
		p.mu.Unlock()
	}
}

// finishPartials completes all copies under way.
func (u *Union) finishPartials() error {
	var errs []error
	for _, p := range u.pausePartials() {
		if err := p.complete(nil); err != nil {
			errs = append(errs, fmt.Errorf("completing a copy-up: %w; the next mount of the upper branch goes on with it", err))
		}
	}
	return errors.Join(errs...)
}

// dropPartial gives a copy up whose file has no name any more, so that nobody waits for the data of a deleted file.
func (u *Union) dropPartial(p *partial) {
	if !p.acquire() {
		return
	}
	defer p.release()
	var st unix.Stat_t
	if unix.Fstat(p.fd, &st) == nil && st.Nlink <= 1 { // NUMBER.data
		_ = p.end()
	}
}
