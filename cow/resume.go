package cow

import (
	"errors"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A union can go on where another process with the same branches was killed ([Options.Resume]). Whoever used that one, the
// kernel, knows files by their IDs, and names that it has looked up no more. This file finds a file by its ID: IDs are
// made from what is in the branches, so nothing had to be written down for it.

// former is what a union knows of the one that it goes on from.
type former struct {
	mu    sync.Mutex
	spots map[uint64]spot // what was seen so far, by ID
	dirs  []*Node         // the directories that were seen, each held; from listed on their names are not in spots yet
	next  int

	keptMu sync.Mutex
	kept   map[uint64]bool // the files in work/parked that have no Node now, by ID; true for a directory
}

// spot is a name: where it is in the listing of a directory.
type spot struct {
	dir    uint32 // index in former.dirs
	cookie uint64
}

// startResume learns what the killed union left: files without a name that somebody may still hold, and copies under way.
func (u *Union) startResume() error {
	u.former = &former{kept: map[uint64]bool{}}
	// The union before may have given such IDs out; those of this one must be others.
	u.spare.Store(uint64(time.Now().UnixNano()) & (1<<61 - 1))
	if u.upper == nil {
		return nil
	}
	if err := u.resumePartials(); err != nil {
		return err
	}
	var names []string
	if err := listAt(u.upper.park, "", func(e dirent) bool { names = append(names, e.name); return true }); err != nil {
		return err
	}
	for _, name := range names {
		id, err := strconv.ParseUint(name, 16, 64)
		if err != nil {
			continue // not ours
		}
		var st unix.Stat_t
		if err := statAt(u.upper.park, name, &st); err != nil {
			return err
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		links := st.Nlink
		if u.partialOf(st.Ino) != nil {
			links--
		}
		if !isDir && links > 1 {
			// It was about to lose its last name. Who asked for that asks again.
			if err := unix.Unlinkat(u.upper.park, name, 0); err != nil {
				return err
			}
			continue
		}
		u.former.kept[id] = isDir
	}
	return nil
}

// stopResume lets go of the directories that were seen.
func (u *Union) stopResume() {
	if u.former != nil {
		u.former.reset(u)
	}
}

// Locate finds a file by its ID, also one that the union before this one has given it, and takes a reference to it; ESTALE if there
// is none.
//
// What has no node yet it looks for: where the union before has last seen it (see trail), or if it isn't there, or nobody noted it, in
// the tree from the top down, which takes as long as listing that up to the file does; it remembers what it saw.
func (u *Union) Locate(id uint64) (*Node, error) {
	if n := u.hold(id); n != nil {
		return n, nil
	}
	f := u.former
	if f == nil {
		u.thicken(id)
		if n := u.hold(id); n != nil {
			return n, nil
		}
		return nil, unix.ESTALE
	}
	if !f.keeps(id) {
		if n := u.track(id); n != nil {
			return n, nil
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if n := u.hold(id); n != nil {
		return n, nil
	}
	if n, err := u.keptNode(id); n != nil || err != nil {
		return n, err
	}
	if n := u.trackRemoved(id); n != nil {
		return n, nil
	}
	again := f.dirs != nil // what was seen is of a while ago: if it has no such file, look anew
	n, err := f.find(u, id)
	if n == nil && err == nil && again {
		f.reset(u)
		n, err = f.find(u, id)
	}
	if n == nil && err == nil {
		n, err = u.removedNode(id)
	}
	return n, err
}

func (f *former) reset(u *Union) {
	for _, d := range f.dirs {
		u.Forget(d, 1)
	}
	f.spots, f.dirs, f.next = nil, nil, 0
}

// find looks for a file in the tree, from the top down, and returns it with a reference; nil if no name leads to it. What can't be
// read is passed over, and its error returned if the file isn't found elsewhere.
func (f *former) find(u *Union, id uint64) (*Node, error) {
	if f.dirs == nil {
		f.spots = map[uint64]spot{}
		u.ref(u.root)
		f.dirs = []*Node{u.root}
	}
	var failed error
	for {
		if s, ok := f.spots[id]; ok {
			n, err := f.at(u, id, s)
			if n != nil || err != nil {
				return n, err
			}
			delete(f.spots, id) // moved since; maybe it has another name
		}
		if f.next == len(f.dirs) {
			return nil, failed
		}
		f.next++
		failed = errors.Join(failed, f.list(u, uint32(f.next-1)))
	}
}

// at returns the file at a spot if it is the wanted one.
func (f *former) at(u *Union, id uint64, s spot) (*Node, error) {
	got, err := u.ReadDir(f.dirs[s.dir], s.cookie-1, make([]DirEnt, 0, 1))
	if err != nil || len(got) == 0 || got[0].Cookie != s.cookie {
		return nil, err
	}
	var a Attr
	n, err := u.Lookup(f.dirs[s.dir], got[0].Name, &a)
	switch {
	case err == unix.ENOENT:
		return nil, nil
	case err != nil:
		return nil, err
	case n.id != id:
		u.Forget(n, 1)
		return nil, nil
	}
	return n, nil
}

// list notes the names of a directory.
func (f *former) list(u *Union, dir uint32) error {
	var failed error
	buf := make([]DirEnt, 0, 512)
	for after := uint64(0); ; {
		got, err := u.ReadDir(f.dirs[dir], after, buf[:0])
		if err != nil || len(got) == 0 {
			return errors.Join(failed, err)
		}
		for _, e := range got {
			if e.Type == unix.S_IFDIR {
				var a Attr
				sub, err := u.Lookup(f.dirs[dir], e.Name, &a)
				if err == unix.ENOENT {
					continue
				}
				if err != nil {
					failed = err
					continue
				}
				e.Ino = sub.id
				f.dirs = append(f.dirs, sub)
			}
			f.spots[e.Ino] = spot{dir, e.Cookie}
		}
		after = got[len(got)-1].Cookie
	}
}

// adopt puts a node that has no name into the table, with one reference.
func (u *Union) adopt(n *Node) *Node {
	n.removed, n.refs = true, 1
	s := u.shard(n.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[n.id] = n
	return n
}

// keptNode is a file in work/parked; nil if there is none of this ID.
func (u *Union) keptNode(id uint64) (*Node, error) {
	if !u.former.take(id) {
		return nil, nil
	}
	var st unix.Stat_t
	if err := statAt(u.upper.park, idName(id), &st); err != nil {
		return nil, err
	}
	n := &Node{id: id, kind: st.Mode & unix.S_IFMT, inUpper: true, parked: true, part: u.partialOf(st.Ino)}
	return n, u.adoptUpper(n, u.upper.park)
}

// adoptUpper completes a node of a file that the upper branch has in a directory of the work directory, and adopts it.
func (u *Union) adoptUpper(n *Node, dir int) error {
	if n.isDir() {
		n.dir = &directory{loaded: true}
		u.adopt(n)
		return nil
	}
	meta, _, err := metadataOnly(dir, idName(n.id))
	if err != nil {
		return err
	}
	if meta && n.regular() {
		if n.low, n.lowIn, err = u.lowerByID(n.id); err != nil {
			return err
		}
		n.meta, n.anchored = true, true // where it is, nobody will look for its data
	}
	u.adopt(n)
	return nil
}

// removedNode is a file that the union has no name for: a hard link in work/index, or a file of a lower branch.
func (u *Union) removedNode(id uint64) (*Node, error) {
	if u.upper != nil && u.upper.hasHardLinks() {
		var st unix.Stat_t
		err := statAt(u.upper.index, idName(id), &st)
		if err == nil {
			n := &Node{id: id, kind: st.Mode & unix.S_IFMT, inUpper: true, indexed: true, part: u.partialOf(st.Ino)}
			return n, u.adoptUpper(n, u.upper.index)
		}
		if err != unix.ENOENT {
			return nil, err
		}
	}
	low, in, err := u.lowerByID(id)
	if err != nil {
		return nil, err
	}
	n := &Node{id: id, kind: low.entry.Type}
	if n.isDir() {
		n.dir = &directory{sources: []source{low}, loaded: true}
	} else {
		n.low, n.lowIn = low, in
	}
	return u.adopt(n), nil
}

// lowerByID finds a file of a lower branch, and the directory that it is in, by its ID; ESTALE if there is none.
func (u *Union) lowerByID(id uint64) (source, *directory, error) {
	branch := len(u.lowers) - int(id>>inoBits)
	if branch < 0 || branch >= len(u.lowers) {
		return source{}, nil, unix.ESTALE
	}
	ino := id & (1<<inoBits - 1)
	root, err := u.lowers[branch].Root()
	if err != nil {
		return source{}, nil, err
	}
	type place struct {
		dir  Dir
		path string
	}
	var failed error
	for queue := []place{{root, ""}}; len(queue) > 0; queue = queue[1:] {
		at := queue[0]
		var found *Entry
		err := at.dir.List(0, func(e Entry) bool {
			if e.Whiteout {
				return true
			}
			if e.Ino == 0 || e.Type == 0 {
				var a Attr
				if failed = at.dir.Stat(e, &a); failed != nil {
					return true
				}
				e.Ino, e.Type = a.Ino, a.Mode&unix.S_IFMT
			}
			if e.Ino == ino {
				found = &e
				return false
			}
			if e.Type == unix.S_IFDIR {
				sub, err := at.dir.Sub(e)
				if err != nil {
					failed = err
					return true
				}
				queue = append(queue, place{sub, at.path + "/" + e.Name})
			}
			return true
		})
		if err != nil {
			failed = err
		}
		if found == nil {
			continue
		}
		s := source{branch: branch, dir: at.dir, entry: *found}
		if found.Type == unix.S_IFDIR {
			s, err = s.child()
			return s, nil, err
		}
		in, err := u.follow(nil, "/"+at.path, branch)
		return s, in, err
	}
	if failed != nil {
		return source{}, nil, failed
	}
	return source{}, nil, unix.ESTALE
}

// keep remembers a file in work/parked whose node goes: the kernel, which knew it from the union before, may still hold it.
func (f *former) keep(n *Node) {
	f.keptMu.Lock()
	f.kept[n.id] = n.isDir()
	f.keptMu.Unlock()
}

// keeps reports whether a file is in work/parked and has no Node now.
func (f *former) keeps(id uint64) bool {
	f.keptMu.Lock()
	defer f.keptMu.Unlock()
	_, kept := f.kept[id]
	return kept
}

// take reports whether a file that now has a node is in work/parked, which the node then says.
func (f *former) take(id uint64) bool {
	f.keptMu.Lock()
	defer f.keptMu.Unlock()
	_, kept := f.kept[id]
	delete(f.kept, id)
	return kept
}

// Unpark is told that nobody holds the file with this ID any more, which may have a node or none.
func (u *Union) Unpark(id uint64) {
	u.spares.drop(id)
	f := u.former
	f.keptMu.Lock()
	isDir, kept := f.kept[id]
	delete(f.kept, id)
	f.keptMu.Unlock()
	if !kept {
		return
	}
	var st unix.Stat_t
	err := statAt(u.upper.park, idName(id), &st)
	u.upper.unpark(id, isDir)
	if err == nil {
		if p := u.partialOf(st.Ino); p != nil {
			u.dropPartial(p)
		}
	}
}
