package cow

import (
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A trail says where files were when they were last seen: in which directory, at which place in its listing. A union that goes on from a
// killed one finds a file by it without looking through the tree. It is memory that outlives the process, of a fixed size,
// and a hint only: a file's entry can be missing, since another's is at its place, or be of a moment ago. What it leads to
// is believed if it is the file.
//
// An entry is at the first of trailWays places that is free, which depend on the file's number alone. Numbers that a file system gave
// out one after the other are beside each other, in blocks; where the blocks are, and where in each the first number is, is a
// hash, since file systems give directories numbers far apart, at regular distances, and some of them all files. Where all places
// are taken, one of the entries there goes to another of its own: so hardly any is lost before the table is nearly full.
// Directories have a part of their own: the way to every file leads through some, and files, of which there are more, must not
// overwrite them.
//
// Each page that is touched for the first time costs as much as looking a file up (and 4 KiB), and numbers are mostly scattered. So
// the first places of all entries are close together, in a small part of the table, which is full before the rest of it is used.

const (
	trailDirs  = 1 << 17
	trailFiles = 1 << 21
	trailEntry = 24
	trailWays  = 6
	trailNear  = 2  // of the places of an entry are in the small part,
	trailShare = 64 // which is this fraction of the table
	trailBlock = 64 // numbers

	// TrailSize is how many bytes [Union.LeaveTrail] takes. After the table come spares, and names.
	TrailSize = (trailDirs+trailFiles)*trailEntry + spareSize*8 + trailNamesSize

	// trailGone, in the third number of an entry, says that the file is a lower branch's, which was all there was of it,
	// and that it was removed from that place. Cookies don't have this bit.
	trailGone = 1 << 63
)

// trail is the memory; nil if nobody needs one. The numbers of an entry are the file's, its directory's and its Cookie.
type trail []uint64

// LeaveTrail has the union note in mem where files are, which a union that goes on from this one is then given. mem is of
// TrailSize bytes, aligned to 8, zeros at first, and stays as long as the union does. It is called before anything else is
// done with the union.
func (u *Union) LeaveTrail(mem []byte) {
	all := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), TrailSize/8)
	const table = (trailDirs + trailFiles) * trailEntry / 8
	u.trail = all[:table]
	u.spares.share(all[table:][:spareSize])
	u.names.share(all[table+spareSize:])
}

// place returns one of the places that an entry can have.
func (t trail) place(id uint64, dir bool, way int) []uint64 {
	// The table of a test can be smaller, with parts of the same proportion.
	blocks := uint64(len(t)) / (trailEntry / 8 * trailBlock)
	first, size := uint64(0), blocks*trailFiles/(trailDirs+trailFiles)
	if dir {
		first, size = size, blocks-size
	}
	if near := max(1, size/trailShare); way < trailNear {
		size = near
	} else {
		first, size = first+near, size-near
	}
	// One multiplication would not be enough of a hash: numbers at regular distances would meet in the same blocks.
	h := fmix(id/trailBlock*trailWays + uint64(way))
	block := first + h>>32*size>>32
	at := block*trailBlock + (id+h)%trailBlock
	return t[at*trailEntry/8:][:trailEntry/8]
}

// entry returns a file's entry; nil if it has none.
func (t trail) entry(id uint64, dir bool) []uint64 {
	for way := range trailWays {
		if e := t.place(id, dir, way); atomic.LoadUint64(&e[0]) == id {
			return e
		}
	}
	return nil
}

// entryOrFree returns a file's entry, or if it has none the place for one; nil if all its places are taken. It looks no further than
// the first free place, since to look at another can bring a page into memory: no entry is behind a free place of the same
// file, unless a process was killed just when it filled that. The older entry is then not found any more.
func (t trail) entryOrFree(id uint64, dir bool) []uint64 {
	for way := range trailWays {
		e := t.place(id, dir, way)
		if at := atomic.LoadUint64(&e[0]); at == id || at == 0 {
			return e
		}
	}
	return nil
}

// set notes where a file is.
func (t trail) set(id uint64, dir bool, parent, cookie uint64) {
	if t == nil {
		return
	}
	e := t.entryOrFree(id, dir)
	if e == nil {
		e = t.makeRoom(id, dir, int(cookie%trailWays))
	}
	if atomic.LoadUint64(&e[0]) == id && atomic.LoadUint64(&e[1]) == parent && atomic.LoadUint64(&e[2]) == cookie {
		return
	}
	writeEntry(e, id, parent, cookie)
}

// writeEntry fills a place. The process can be killed in between: no entry must be half of one file's and half of another's.
func writeEntry(e []uint64, id, parent, cookie uint64) {
	atomic.StoreUint64(&e[0], 0)
	atomic.StoreUint64(&e[1], parent)
	atomic.StoreUint64(&e[2], cookie)
	atomic.StoreUint64(&e[0], id)
}

// makeRoom returns one of the places of an entry, all of which are taken: the entry there goes to another of its own places. If
// none can, that at the given way is lost.
func (t trail) makeRoom(id uint64, dir bool, way int) []uint64 {
	for w := range trailWays {
		e := t.place(id, dir, w)
		other := atomic.LoadUint64(&e[0])
		for o := range trailWays {
			free := t.place(other, dir, o)
			if atomic.LoadUint64(&free[0]) != 0 {
				continue
			}
			parent, cookie := atomic.LoadUint64(&e[1]), atomic.LoadUint64(&e[2])
			if atomic.LoadUint64(&e[0]) == other { // else somebody else is writing it
				writeEntry(free, other, parent, cookie)
				return e
			}
		}
	}
	return t.place(id, dir, way)
}

// get returns where a file was; false if that isn't known.
func (t trail) get(id uint64) (parent, cookie uint64, gone, ok bool) {
	if t == nil {
		return 0, 0, false, false
	}
	for _, dir := range []bool{true, false} {
		e := t.entry(id, dir)
		if e == nil {
			continue
		}
		parent, cookie = atomic.LoadUint64(&e[1]), atomic.LoadUint64(&e[2])
		return parent, cookie &^ trailGone, cookie&trailGone != 0, true
	}
	return 0, 0, false, false
}

// seen notes where a node is. The caller holds n.mu, or has n for itself.
func (u *Union) seen(n *Node) {
	if len(n.links) > 0 && (u.trail != nil || u.spares.has(n.id)) {
		l := &n.links[0]
		u.leave(n, l.parent, Cookie(l.name))
		u.noteName(n.id, l.parent, l.name)
	}
}

func (u *Union) leave(n, dir *Node, cookie uint64) {
	if !u.spares.move(n.id, dir.id, cookie) {
		u.trail.set(n.id, n.isDir(), dir.id, cookie)
	}
}

// unseen notes that a name of a node is gone. The caller holds n.mu.
func (u *Union) unseen(n, dir *Node, name string) {
	switch {
	case len(n.links) > 0:
		u.seen(n)
	case !n.inUpper && n.only:
		u.leave(n, dir, Cookie(name)|trailGone)
	default:
		u.spares.move(n.id, dir.id, 0) // it is found under its number in work/parked
	}
}

// trailDepth is how deep a tree the trail is followed down. Paths of more names are possible, but rare; and should entries ever
// lead in a circle, it ends.
const trailDepth = 1000

// track finds a file by the trail and returns it with a reference; nil if the trail doesn't lead to it.
func (u *Union) track(id uint64) *Node {
	dir, cookie, gone := u.trackDir(id, trailDepth)
	if dir == nil {
		return nil
	}
	defer u.Forget(dir, 1)
	if gone {
		return nil
	}
	return u.byCookie(dir, cookie, id)
}

// trackDir finds the directory in which a file was, and returns that with a reference, and where in it.
func (u *Union) trackDir(id uint64, depth int) (dir *Node, cookie uint64, gone bool) {
	_, at, cookie, ok := u.spares.where(id)
	cookie, gone = cookie&^trailGone, cookie&trailGone != 0
	if !ok {
		at, cookie, gone, ok = u.trail.get(id)
	}
	if !ok || cookie == 0 || depth == 0 {
		return nil, 0, false
	}
	if at == RootID {
		u.ref(u.root)
		return u.root, cookie, gone
	}
	if dir = u.hold(at); dir == nil {
		up, c, _ := u.trackDir(at, depth-1)
		if up == nil {
			return nil, 0, false
		}
		dir = u.byCookie(up, c, at)
		u.Forget(up, 1)
	}
	if dir != nil && !dir.isDir() {
		u.Forget(dir, 1)
		dir = nil
	}
	return dir, cookie, gone
}

// byCookie returns the file with the ID that is at a place in the listing of a directory, with a reference; nil if it isn't there.
// An error is none of the file's: it is looked for elsewhere then, and that one is reported.
func (u *Union) byCookie(dir *Node, cookie, id uint64) *Node {
	if name := u.names.of(id); name != "" && Cookie(name) == cookie {
		var a Attr
		if n, err := u.Lookup(dir, name, &a); err == nil {
			if n.id == id {
				return n
			}
			u.Forget(n, 1)
		}
	}
	// Two names can have the same cookie.
	got, err := u.ReadDir(dir, cookie-1, make([]DirEnt, 0, 2))
	if err != nil {
		return nil
	}
	for _, e := range got {
		if e.Cookie != cookie {
			break
		}
		var a Attr
		n, err := u.Lookup(dir, e.Name, &a)
		if err != nil {
			continue
		}
		if n.id == id {
			return n
		}
		u.Forget(n, 1)
	}
	return nil
}

// trackRemoved finds a file of a lower branch that has lost its only name, and adopts it; nil if the trail doesn't lead to it.
// The caller sees to it that nobody does the same at the same time, and that the file has no node.
func (u *Union) trackRemoved(id uint64) *Node {
	dir, cookie, gone := u.trackDir(id, trailDepth)
	if dir == nil {
		return nil
	}
	defer u.Forget(dir, 1)
	if !gone || u.load(dir) != nil {
		return nil
	}
	dir.mu.RLock()
	defer dir.mu.RUnlock()
	own := id
	if written, _, _, ok := u.spares.where(id); ok {
		own = written
	}
	low, ok := u.hiddenLower(dir.dir, cookie, own)
	if !ok {
		return nil
	}
	return u.adopt(&Node{id: id, kind: low.entry.Type, low: low, lowIn: dir.dir, only: true})
}

// hiddenLower finds a file of the lower branches at a place in a loaded directory that the upper branch hides. The caller holds
// the directory's mu.
func (u *Union) hiddenLower(d *directory, cookie, id uint64) (source, bool) {
	var found []lowerName
	if d.direct {
		src := d.sources[0]
		_ = src.dir.List(cookie-1, func(e Entry) bool { // what can't be listed is not found
			if Cookie(e.Name) != cookie {
				return false
			}
			if !e.Whiteout {
				found = append(found, directName(&src, e))
			}
			return true
		})
	} else {
		for i := d.lower.from(cookie); i < len(d.lower.ents) && d.lower.ents[i].cookie == cookie; i++ {
			if l, err := d.lowerAt(i); err == nil {
				found = append(found, l)
			}
		}
	}
	for _, l := range found {
		var a Attr
		hidden := d.upper[l.entry.Name] != nil
		if hidden && l.dir.Stat(l.entry, &a) == nil && u.lowerID(l.branch, a.Ino) == id && a.Mode&unix.S_IFMT == l.entry.Type && a.Nlink <= 1 {
			return l.source, true
		}
	}
	return source{}, false
}
