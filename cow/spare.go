package cow

import (
	"sync"
	"sync/atomic"
)

// A file whose number is that of another live file gets a spare one, which can't be worked out from what is in the branches. So while
// somebody holds such a file, it is written down where the file is: who looks it up again finds it under the same number,
// and so does a union that goes on from this one (see trail).

const (
	// spareBit is set in spare numbers and in no others.
	spareBit = 1 << 62

	// spareMax is how many files can have a spare number that lasts; those above it lose it with the process.
	spareMax   = 256
	spareEntry = 4
)

// spares are entries of four numbers: the spare one, the file's own, its directory's, and its Cookie, which is 0 if it has no name
// any more. The first is 0 where there is no entry.
type spares struct {
	count atomic.Int32 // of entries, so that it costs nothing as long as there are none
	mu    sync.Mutex
	mem   []uint64 // guarded by mu; nil until there was one
}

// share has entries kept in mem, which may have some of a union before.
func (s *spares) share(mem []uint64) {
	s.mem = mem
	for i := 0; i < len(mem); i += spareEntry {
		if mem[i] != 0 {
			s.count.Add(1)
		}
	}
}

// each calls do with every entry until it returns false. The caller holds mu.
func (s *spares) each(do func(e []uint64) bool) {
	for i := 0; i < len(s.mem); i += spareEntry {
		if !do(s.mem[i:][:spareEntry]) {
			return
		}
	}
}

// of returns the spare number of the file at a place whose own is id; 0 if it has none.
func (s *spares) of(id, parent, cookie uint64) (spare uint64) {
	if s.count.Load() == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.each(func(e []uint64) bool {
		if e[0] != 0 && e[1] == id && e[2] == parent && e[3] == cookie {
			spare = e[0]
		}
		return spare == 0
	})
	return spare
}

// where returns what is written down of a spare number.
func (s *spares) where(spare uint64) (id, parent, cookie uint64, ok bool) {
	if s.count.Load() == 0 {
		return 0, 0, 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.each(func(e []uint64) bool {
		if ok = e[0] == spare; ok {
			id, parent, cookie = e[1], e[2], e[3]
		}
		return !ok
	})
	return id, parent, cookie, ok
}

// add writes a spare number down, if there is room.
func (s *spares) add(spare, id, parent, cookie uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		s.mem = make([]uint64, spareMax*spareEntry)
	}
	s.each(func(e []uint64) bool {
		if e[0] != 0 {
			return true
		}
		e[1], e[2], e[3] = id, parent, cookie
		atomic.StoreUint64(&e[0], spare) // last: the process can be killed in between
		s.count.Add(1)
		return false
	})
}

// move writes down that the file is elsewhere.
func (s *spares) move(spare, parent, cookie uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.each(func(e []uint64) bool {
		if e[0] != spare {
			return true
		}
		atomic.StoreUint64(&e[3], 0) // in between it is nowhere, rather than at a place that is of both
		atomic.StoreUint64(&e[2], parent)
		atomic.StoreUint64(&e[3], cookie)
		return false
	})
}

// drop gives an entry up: nobody holds the file any more.
func (s *spares) drop(spare uint64) {
	if spare&spareBit == 0 || s.count.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.each(func(e []uint64) bool {
		if e[0] != spare {
			return true
		}
		atomic.StoreUint64(&e[0], 0)
		s.count.Add(-1)
		return false
	})
}
