package cow

import "sync/atomic"

// A kernel keeps the listing of a directory, and lists it from memory from then on. With a listing that it asks for it gets the
// attributes of all files, and those it may have to ask for again though nothing has changed: with collected writes, after each
// close of a file (fs/fuse/file.c, fuse_flush). Where a directory's files are asked about one by one, by what walks a tree and
// reads it, to have it listed anew is a message in the place of many.
type relist struct {
	asked atomic.Int32 // files that were asked about since the directory was listed
	times atomic.Int32 // listings that are not to be kept
}

const (
	relistAfter = 4
	relistTimes = 16 // then it is seen whether that is still so
)

// askedAbout notes that the kernel had to ask for the attributes of a file in the directory, and reports, once, that it was so of
// several: its listing should be asked for too.
func (n *Node) askedAbout() bool { return n.dir.relist.asked.Add(1) == relistAfter }

// BeginListing says that the kernel lists a directory from its beginning.
func (n *Node) BeginListing() {
	if r := &n.dir.relist; r.asked.Swap(0) >= relistAfter {
		r.times.Store(relistTimes)
	}
}

// KeepListing reports whether the kernel should keep the listing that it has just had to the end.
func (n *Node) KeepListing() bool {
	r := &n.dir.relist
	if r.times.Load() == 0 {
		return true
	}
	r.times.Add(-1)
	return false
}
