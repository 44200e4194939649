package cow

import (
	"encoding/binary"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// trailNames are names of files in directories of many names. An entry of a trail says at which place in the listing of its directory a
// file is, and so the directory has to be read before the file is found. With its name it is found at once.
//
// The names are in a ring, each after the file's number and its own length; the newest overwrite the oldest. An index of buckets,
// by a hash of the number, says where in the ring they are. A file has two buckets, of which the second is used when the first is
// full: first ones are close together, for the same reason as in a trail. As there, what it leads to is believed if it is the file.
type trailNames struct {
	mu    sync.Mutex
	next  *uint64  // where the next name goes; 0 before the first
	index []uint64 // the low half of a number's hash, above it a place in ring, which is never 0
	ring  []byte
}

const (
	nameSlots  = 1 << 21
	nameNear   = 1 << 15 // of the slots are those of first buckets
	nameBucket = 16
	nameRing   = 1 << 26 // bytes
	nameHeader = 9       // before each name
	nameFirst  = 8       // the first place

	trailNamesSize = 8 + nameSlots*8 + nameRing

	// namesToNote is how many names a directory has if those of its files are noted: fewer are read in a millisecond.
	namesToNote = 1 << 10
)

// share has the names kept in mem, which may have some of a union before.
func (t *trailNames) share(mem []uint64) {
	t.next, t.index = &mem[0], mem[1:][:nameSlots]
	t.ring = unsafe.Slice((*byte)(unsafe.Pointer(&mem[1+nameSlots])), nameRing)
}

// bucket returns the first or the second part of the index that a file's entry can be in, and the half of its hash that is in an entry.
func (t *trailNames) bucket(id uint64, second bool) (bucket []uint64, tag uint32) {
	h := fmix(id)
	part := t.index[:nameNear]
	if second {
		part = t.index[nameNear:]
	}
	return part[h>>32%uint64(len(part)/nameBucket)*nameBucket:][:nameBucket], uint32(h)
}

// find returns a file's entry, and its name; or if it has none the place for one, nil if there is none.
func (t *trailNames) find(id uint64) (entry *uint64, tag uint32, name []byte) {
	for _, second := range []bool{false, true} {
		var bucket []uint64
		bucket, tag = t.bucket(id, second)
		for i, e := range bucket {
			if e == 0 {
				return &bucket[i], tag, nil
			}
			if uint32(e) != tag {
				continue
			}
			if name, ok := t.at(uint32(e>>32), id); ok {
				return &bucket[i], tag, name
			}
		}
	}
	return nil, tag, nil
}

// at returns the name at a place of the ring; false if it is not the file's. The caller holds mu.
func (t *trailNames) at(place uint32, id uint64) ([]byte, bool) {
	if int(place) > len(t.ring)-nameHeader-unix.NAME_MAX {
		return nil, false
	}
	r := t.ring[place:]
	return r[nameHeader:][:r[nameHeader-1]], binary.NativeEndian.Uint64(r) == id
}

// note notes the name of a file.
func (t *trailNames) note(id uint64, name string) {
	if t.index == nil || len(name) > unix.NAME_MAX {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	to, tag, was := t.find(id)
	if was != nil && string(was) == name {
		return
	}
	next := *t.next
	if to == nil {
		bucket, _ := t.bucket(id, true)
		to = &bucket[next%nameBucket]
	}
	if next < nameFirst || next > uint64(len(t.ring)-nameHeader-unix.NAME_MAX) {
		next = nameFirst
	}
	r := t.ring[next:]
	binary.NativeEndian.PutUint64(r, id)
	r[nameHeader-1] = byte(len(name))
	copy(r[nameHeader:], name)
	*t.next = next + uint64(nameHeader+len(name))
	// Last, and whole: the process can be killed in between.
	atomic.StoreUint64(to, next<<32|uint64(tag))
}

// of returns the name that was noted of a file; "" if there is none.
func (t *trailNames) of(id uint64) string {
	if t.index == nil {
		return ""
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if *t.next == 0 {
		return ""
	}
	_, _, name := t.find(id)
	return string(name)
}

// fmix is fmix64 of MurmurHash3 (Appleby).
func fmix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

// noteName notes the name of a file if its directory has many.
func (u *Union) noteName(id uint64, dir *Node, name string) {
	if u.trail != nil && dir.dir.large.Load() {
		u.names.note(id, name)
	}
}
