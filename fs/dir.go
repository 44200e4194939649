package fs

import (
	"errors"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// What a listing is called in messages.
const (
	opReadDir     = "readdir"
	opReadDirPlus = "readdirplus"
)

const (
	// Positions in a listing are cow's cookies, which leave the numbers below 16 to these.
	posDot    = 1
	posDotDot = 2

	// direntBatch is how many entries are asked of cow at once. A reply to getdents(2) from glibc (32 KiB) holds
	// about 200 with attributes and 800 without.
	direntBatch = 256

	// direntSize is struct fuse_dirent without the name, direntPlusSize with the struct fuse_entry_out before it.
	direntSize     = 24
	direntPlusSize = direntSize + int(unsafe.Sizeof(fuse.EntryOut{}))
)

func (h *handler) ReadDir(in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	add := func(e *cow.DirEnt) bool {
		return out.AddDirEntry(fuse.DirEntry{Name: e.Name, Mode: e.Type, Ino: e.Ino, Off: e.Cookie})
	}
	return h.list(opReadDir, dir, in.Offset, add)
}

// ReadDirPlus answers with attributes. Every entry but "." and ".." counts as a lookup, with a reference that is the
// kernel's as soon as it has the reply.
func (h *handler) ReadDirPlus(in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := h.node(in.NodeId)
	if dir == nil {
		return stale
	}
	left := int(in.Size)
	var a cow.Attr
	add := func(e *cow.DirEnt) bool {
		need := direntPlusSize + (len(e.Name)+7)&^7
		if need > left {
			return false // found out before the lookup, which is the dear part
		}
		d := fuse.DirEntry{Name: e.Name, Mode: e.Type, Ino: e.Ino, Off: e.Cookie}
		if e.Cookie == posDot || e.Cookie == posDotDot {
			left -= need
			return out.AddDirLookupEntry(d) != nil
		}
		id, err := h.u.LookupEntry(dir, e, &a)
		if errors.Is(err, unix.ENOENT) {
			return true // removed since it was listed
		}
		if err == nil {
			d.Mode, d.Ino = a.Mode, a.Ino
		}
		entry := out.AddDirLookupEntry(d)
		if entry == nil {
			if err == nil {
				h.u.ForgetID(id, 1)
			}
			return false
		}
		left -= need
		if err != nil {
			// Node 0 here means a name without attributes; whoever asks for it gets the error.
			h.status(opReadDirPlus, err)
			return true
		}
		h.fillEntry(id, &a, entry)
		return true
	}
	return h.list(opReadDirPlus, dir, in.Offset, add)
}

// list gives add the entries after the position pos, in order, until it says that there is no more room.
func (h *handler) list(op string, dir *cow.Node, pos uint64, add func(*cow.DirEnt) bool) fuse.Status {
	dots := pos < posDotDot // then this is not yet the end
	if pos < posDot && !add(&cow.DirEnt{Name: ".", Cookie: posDot, Ino: h.ino(dir), Type: unix.S_IFDIR}) {
		return fuse.OK
	}
	if pos < posDotDot {
		up := h.ino(h.u.Parent(dir))
		if !add(&cow.DirEnt{Name: "..", Cookie: posDotDot, Ino: up, Type: unix.S_IFDIR}) {
			return fuse.OK
		}
	}
	buf := h.dirents.Get().(*[]cow.DirEnt)
	defer func() {
		clear((*buf)[:cap(*buf)]) // the names
		h.dirents.Put(buf)
	}()
	start := pos <= posDotDot
	if start {
		pos = 0
		dir.BeginListing()
	}
	var subs []string
	ahead, first := false, true
	defer func() {
		if ahead {
			h.u.Listed(dir, subs, start, op == opReadDirPlus)
		}
	}()
	for {
		ents, err := h.u.ReadDir(dir, pos, (*buf)[:0])
		if err != nil {
			if first {
				return h.status(op, err)
			}
			return fuse.OK // the kernel asks for the rest, and gets the error then
		}
		if first {
			ahead = h.u.ReadsAhead(dir)
		}
		for i := range ents {
			e := &ents[i]
			if !add(e) {
				return fuse.OK
			}
			if ahead && e.Type == unix.S_IFDIR {
				subs = append(subs, e.Name)
			}
		}
		if len(ents) == 0 {
			if first && !dots && !dir.KeepListing() {
				h.dropListing(dir.ID())
			}
			return fuse.OK
		}
		pos, first = ents[len(ents)-1].Cookie, false
	}
}

// ino is the st_ino of a directory.
func (h *handler) ino(n *cow.Node) uint64 {
	if id := n.ID(); id != fuse.FUSE_ROOT_ID {
		return id
	}
	return h.rootIno
}
