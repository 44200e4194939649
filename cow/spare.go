package cow

import (
	"sync"
	"sync/atomic"
)

// A file's number is worked out from what is in the branches, except for two kinds of files: one whose number is that of another
// live file gets a spare one, and a copy that can't have its origin written on it (symbolic links without privilege, all files
// where the file system has no extended attributes) keeps the number that it had in the lower branch. So while somebody holds such a file, its
// number is written down where the file is: who looks it up again finds it under the same number, and so does a union that
// goes on from this one (see trail).

const (
	// spareBit is set in spare numbers and in no others.
	spareBit = 1 << 62

	// spareMax is how many files can have such a number that lasts; those above it lose it with the process.
	spareMax   = 1<<14 - 1
	spareEntry = 4

	// spareSize is the size of all entries in numbers. The first tells up to where there have been any.
	spareSize = (1 + spareMax) * spareEntry
)

// spares are entries of four numbers: the lasting one, that which the file would have by what is in the branches, its directory's, and
// its Cookie, which is 0 if it has no name any more. The first is 0 where there is no entry.
type spares struct {
	count atomic.Int32 // of entries, so that it costs nothing as long as there are none
	mu    sync.Mutex
	mem   []uint64 // guarded by mu; nil until there was one

	// What is in mem, guarded by mu.
	entries map[uint64]int // the index of an entry, by its number
	places  map[sparePlace]uint64
	free    []int // indexes, below that which mem[0] says
}

// sparePlace is what an entry has besides its number.
type sparePlace struct{ id, parent, cookie uint64 }

func placeOf(e []uint64) sparePlace { return sparePlace{e[1], e[2], e[3]} }

// share has entries kept in mem, which may have some of a union before.
func (s *spares) share(mem []uint64) {
	s.mem, s.entries, s.places = mem, map[uint64]int{}, map[sparePlace]uint64{}
	for i := 1; i <= int(min(mem[0], spareMax)); i++ {
		e := s.entry(i)
		if e[0] == 0 {
			s.free = append(s.free, i)
			continue
		}
		s.count.Add(1)
		s.entries[e[0]] = i
		s.places[placeOf(e)] = e[0]
	}
}

func (s *spares) entry(i int) []uint64 { return s.mem[i*spareEntry:][:spareEntry] }

// of returns the lasting number of the file at a place that would have the number id; 0 if it has none.
func (s *spares) of(id, parent, cookie uint64) uint64 {
	if s.count.Load() == 0 {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.places[sparePlace{id, parent, cookie}]
}

// has reports whether something is written down of a number.
func (s *spares) has(number uint64) bool {
	_, _, _, ok := s.where(number)
	return ok
}

// where returns what is written down of a number.
func (s *spares) where(number uint64) (id, parent, cookie uint64, ok bool) {
	if s.count.Load() == 0 {
		return 0, 0, 0, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.entries[number]
	if !ok {
		return 0, 0, 0, false
	}
	e := s.entry(i)
	return e[1], e[2], e[3], true
}

// add writes a number down, if there is room. What was written of it before is no more.
func (s *spares) add(number, id, parent, cookie uint64) {
	s.drop(number)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mem == nil {
		s.share(make([]uint64, spareSize))
	}
	var i int
	if last := len(s.free) - 1; last >= 0 {
		i, s.free = s.free[last], s.free[:last]
	} else if s.mem[0] < spareMax {
		i = int(s.mem[0]) + 1
		atomic.StoreUint64(&s.mem[0], uint64(i)) // first: the process can be killed in between
	} else {
		return
	}
	e := s.entry(i)
	e[1], e[2], e[3] = id, parent, cookie
	atomic.StoreUint64(&e[0], number) // last, likewise
	s.entries[number] = i
	s.places[placeOf(e)] = number
	s.count.Add(1)
}

// move writes down that the file is elsewhere. False if nothing is written down of it.
func (s *spares) move(number, parent, cookie uint64) bool {
	if s.count.Load() == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.entries[number]
	if !ok {
		return false
	}
	e := s.entry(i)
	s.leavePlace(e)
	atomic.StoreUint64(&e[3], 0) // in between it is nowhere, rather than at a place that is of both
	atomic.StoreUint64(&e[2], parent)
	atomic.StoreUint64(&e[3], cookie)
	s.places[placeOf(e)] = number
	return true
}

// drop gives an entry up: nobody holds the file any more.
func (s *spares) drop(number uint64) {
	if s.count.Load() == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i, ok := s.entries[number]
	if !ok {
		return
	}
	e := s.entry(i)
	s.leavePlace(e)
	atomic.StoreUint64(&e[0], 0)
	delete(s.entries, number)
	s.free = append(s.free, i)
	s.count.Add(-1)
}

// leavePlace is before an entry gets another place or none. The caller holds mu.
func (s *spares) leavePlace(e []uint64) {
	if at := placeOf(e); s.places[at] == e[0] {
		delete(s.places, at)
	}
}
