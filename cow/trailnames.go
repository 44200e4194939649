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
// by a hash of the number, says where in the ring they are. As with a trail, what it leads to is believed if it is the file.
type trailNames struct {
	mu    sync.Mutex
	next  *uint64  // where the next name goes; 0 before the first
	index []uint64 // the low half of a number's hash, above it a place in ring, which is never 0
	ring  []byte
}

const (
	nameSlots  = 1 << 21
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

// bucket returns the part of the index that a file's entry is in, and the half of its hash that is in an entry.
func (t *trailNames) bucket(id uint64) (bucket []uint64, tag uint32) {
	h := fmix(id)
	return t.index[h>>32%(nameSlots/nameBucket)*nameBucket:][:nameBucket], uint32(h)
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
	bucket, tag := t.bucket(id)
	next := *t.next
	to := &bucket[next%nameBucket] // if all are taken
	for i := range bucket {
		e := bucket[i]
		if e == 0 {
			to = &bucket[i]
			break
		}
		if uint32(e) != tag {
			continue
		}
		if was, ok := t.at(uint32(e>>32), id); ok {
			if string(was) == name {
				return
			}
			to = &bucket[i]
			break
		}
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
	bucket, tag := t.bucket(id)
	for _, e := range bucket {
		if e == 0 || uint32(e) != tag {
			continue
		}
		if name, ok := t.at(uint32(e>>32), id); ok {
			return string(name)
		}
	}
	return ""
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
