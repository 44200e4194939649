package cow

import (
	"unsafe"

	"github.com/cespare/xxhash/v2"
)

// firstCookie is the smallest cookie that a name can have. The FUSE server uses 1 and 2 for "." and "..", and 0 is where
// a listing starts.
const firstCookie = 16

// Cookie is the position of a name in the listing of any directory: a hash of the name. A listing sorted by it can be
// continued after insertions, deletions and in another process, with no state kept for it; the index of a layer stores
// its names in this order for the same reason. It fits the positive half of off_t, which telldir(3) needs.
func Cookie(name string) uint64 {
	h := xxhash.Sum64String(name) >> 1
	if h < firstCookie {
		h += firstCookie
	}
	return h
}

// cookieOf is Cookie of a name that is in a buffer.
func cookieOf(name []byte) uint64 { return Cookie(unsafe.String(unsafe.SliceData(name), len(name))) }
