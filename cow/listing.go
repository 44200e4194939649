package cow

import (
	"cmp"
	"slices"

	"golang.org/x/sys/unix"
)

// listing is the names of a directory of one lower branch or, once merged, of all of them. A directory can have a million, so
// it takes 24 bytes a name besides the name itself and the garbage collector finds nothing to follow in it.
//
// It is filled by one goroutine and never changes after seal.
type listing struct {
	names []byte   // all names, one after the other, until sealed
	all   string   // the same from then on
	ents  []listed // once sealed in the order of Cookie
	more  map[uint32][]inSource
}

// listed is an entry of a listing.
type listed struct {
	cookie   uint64
	inoAt    uint64 // Entry.Ino in the low inoBits, above it the position in directory.sources
	name     uint32 // where in the names it begins
	length   uint8
	kind     uint8 // S_IFMT bits, shifted by kindShift
	whiteout bool  // only before seal
}

// inSource is where else a listed directory is, further down.
type inSource struct {
	ino uint64
	at  uint32 // in directory.sources
}

const (
	kindShift = 12
	inoMask   = 1<<inoBits - 1
)

// add takes in a name of the source at that position.
func (l *listing) add(name []byte, e *Entry, at int) error {
	off := len(l.names)
	if off > 1<<32-1-unix.NAME_MAX || len(name) > unix.NAME_MAX {
		return unix.EFBIG
	}
	l.names = append(l.names, name...)
	l.ents = append(l.ents, listed{
		cookie: cookieOf(name), inoAt: e.Ino&inoMask | uint64(at)<<inoBits,
		name: uint32(off), length: uint8(len(name)), kind: uint8(e.Type >> kindShift), whiteout: e.Whiteout,
	})
	return nil
}

// join takes in all of another listing.
func (l *listing) join(o *listing) error {
	off := len(l.names)
	if off+len(o.names) > 1<<32-1 {
		return unix.EFBIG
	}
	l.names = append(l.names, o.names...)
	for _, e := range o.ents {
		e.name += uint32(off)
		l.ents = append(l.ents, e)
	}
	return nil
}

// seal sorts the names, merges what several sources have, and drops what is whited out.
//
// Of a name, what the topmost source has counts. Only directories merge, down to the first source in which the name is
// something else or deleted. A whiteout beside the very name that it would hide is about the sources below.
func (l *listing) seal() {
	l.all, l.names = string(l.names), nil
	slices.SortFunc(l.ents, func(a, b listed) int {
		if a.cookie != b.cookie {
			return cmp.Compare(a.cookie, b.cookie)
		}
		if c := cmp.Compare(a.inoAt>>inoBits, b.inoAt>>inoBits); c != 0 {
			return c
		}
		switch {
		case a.whiteout == b.whiteout:
			return 0
		case b.whiteout:
			return -1
		}
		return 1
	})
	kept := l.ents[:0]
	for i := 0; i < len(l.ents); {
		end := i + 1
		for end < len(l.ents) && l.ents[end].cookie == l.ents[i].cookie {
			end++
		}
		if end == i+1 {
			if !l.ents[i].whiteout {
				kept = append(kept, l.ents[i])
			}
			i = end
			continue
		}
		// Nearly always these are one name; done marks those that were taken with an earlier one.
		group, done := slices.Clone(l.ents[i:end]), make([]bool, end-i)
		for j := range group {
			if done[j] {
				continue
			}
			first := &group[j]
			open := !first.whiteout && first.kind == unix.S_IFDIR>>kindShift
			at := uint32(len(kept))
			if !first.whiteout {
				kept = append(kept, *first)
			}
			for k := j + 1; k < len(group); k++ {
				e := &group[k]
				if done[k] || l.nameOf(e) != l.nameOf(first) {
					continue
				}
				done[k] = true
				if open = open && !e.whiteout && e.kind == first.kind; open {
					if l.more == nil {
						l.more = map[uint32][]inSource{}
					}
					l.more[at] = append(l.more[at], inSource{e.inoAt & inoMask, uint32(e.inoAt >> inoBits)})
				}
			}
		}
		i = end
	}
	l.ents = kept
	if cap(kept)-len(kept) > len(kept)/8 {
		l.ents = slices.Clone(kept)
	}
}

func (l *listing) nameOf(e *listed) string { return l.all[e.name:][:e.length] }

// find returns the position of a name; false if it isn't there.
func (l *listing) find(name string) (int, bool) {
	c := Cookie(name)
	for i := l.from(c); i < len(l.ents) && l.ents[i].cookie == c; i++ {
		if l.nameOf(&l.ents[i]) == name {
			return i, true
		}
	}
	return 0, false
}

// from returns the position of the first name whose cookie is not below c.
func (l *listing) from(c uint64) int {
	i, _ := slices.BinarySearchFunc(l.ents, c, func(e listed, c uint64) int { return cmp.Compare(e.cookie, c) })
	return i
}
