package cow

import (
	"golang.org/x/sys/unix"
)

// thin is all that the union keeps of most files that the kernel knows: a file of a lower branch, no directory and without hard
// links, that nobody did more with than look it up. It becomes a Node, in the same shard, when [Union.Node] is asked for it.
// The table has no pointers in it, so that a million of these cost the garbage collector nothing.
//
// A thin file holds one reference of its directory, so that is alive, and is a Node, for as long.
type thin struct {
	parent uint64 // ID of the directory; the file's name in that is lowerName.place
	place  uint32
	refs   uint32
}

// LookupID is Lookup for callers that need no more than the ID: to the kernel a file is a number.
func (u *Union) LookupID(dir *Node, name string, a *Attr) (uint64, error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	f, err := u.lookup(dir, name)
	if err != nil {
		return 0, err
	}
	defer dir.mu.RUnlock()
	return u.resolveID(dir, &f, a)
}

// LookupEntry is LookupID for an entry that ReadDir gave of the directory.
func (u *Union) LookupEntry(dir *Node, e *DirEnt, a *Attr) (uint64, error) {
	if e.at != inUpper {
		u.tree.RLock()
		dir.mu.RLock()
		if d := dir.dir; !dir.removed && d.upper[e.Name] == nil {
			defer u.tree.RUnlock()
			defer dir.mu.RUnlock()
			f := found{name: e.Name, hasLower: true}
			var err error
			if e.at == inDirect {
				f.lower = directName(&d.sources[0], e.entry)
			} else if f.lower, err = d.lowerAt(int(e.at)); err != nil {
				return 0, err
			}
			return u.resolveID(dir, &f, a)
		}
		dir.mu.RUnlock()
		u.tree.RUnlock()
	}
	return u.LookupID(dir, e.Name, a)
}

// resolveID is resolve for LookupID.
func (u *Union) resolveID(dir *Node, f *found, a *Attr) (uint64, error) {
	if f.upper == nil && f.lower.placed && f.lower.entry.Type != unix.S_IFDIR {
		s := &f.lower.source
		if err := s.dir.Stat(s.entry, a); err != nil {
			return 0, err
		}
		if a.Nlink <= 1 && a.Mode&unix.S_IFMT == s.entry.Type {
			// A union that goes on from another may have the file already among those without a name, which only a node can tell.
			id := u.lowerID(s.branch, a.Ino)
			if (u.former == nil || !u.former.keeps(id)) && u.obtainThin(id, dir, f.name, f.lower.place) {
				u.owners.apply(a)
				a.Ino = id
				return id, nil
			}
		}
	}
	n, err := u.resolve(dir, f, a)
	if err != nil {
		return 0, err
	}
	return n.id, nil
}

// obtainThin takes a reference of a thin file, new or known. False if the ID is a node's, or another thin file's, or may not be the
// one that the file has.
func (u *Union) obtainThin(id uint64, parent *Node, name string, place uint32) bool {
	s := u.shard(id)
	s.mu.Lock()
	if s.nodes[id] != nil || u.spares.of(id, parent.id, Cookie(name)) != 0 {
		s.mu.Unlock()
		return false
	}
	t, known := s.thin[id]
	if known && (t.parent != parent.id || t.place != place) || t.refs == 1<<32-1 {
		s.mu.Unlock()
		return false
	}
	s.thin[id] = thin{parent.id, place, t.refs + 1}
	s.mu.Unlock()
	if !known {
		u.ref(parent)
		if u.trail != nil {
			u.trail.set(id, false, parent.id, Cookie(name))
			u.noteName(id, parent, name)
		}
	}
	return true
}

// where finds the lower file that a thin one is. The result is nil if it was forgotten meanwhile.
func (u *Union) where(t thin) (parent *Node, l lowerName, err error) {
	s := u.shard(t.parent)
	s.mu.RLock()
	parent = s.nodes[t.parent]
	s.mu.RUnlock()
	if parent == nil {
		return nil, l, unix.ESTALE
	}
	// Neither of these changes once a directory is loaded, as this one was before it could have a thin file.
	d := parent.dir
	if !d.direct {
		l, err = d.lowerAt(int(t.place))
		return parent, l, err
	}
	src := &d.sources[0]
	e, err := src.dir.(RefDir).Entry(uint64(t.place))
	return parent, directName(src, e), err
}

// thicken makes a thin file a node; nil if the union has neither, or not any more, or its branch is damaged.
func (u *Union) thicken(id uint64) *Node {
	s := u.shard(id)
	for {
		s.mu.RLock()
		n, t := s.nodes[id], s.thin[id]
		s.mu.RUnlock()
		if n != nil || t.refs == 0 {
			return n
		}
		parent, l, err := u.where(t)
		if err != nil {
			return nil
		}
		n = &Node{id: id, kind: l.entry.Type, links: []link{{parent, l.entry.Name, false}}, low: l.source, lowIn: parent.dir, only: true}
		s.mu.Lock()
		if now := s.thin[id]; now.refs > 0 && now.parent == t.parent && now.place == t.place {
			n.refs = int64(now.refs)
			delete(s.thin, id)
			s.nodes[id] = n
			s.mu.Unlock()
			return n
		}
		s.mu.Unlock()
	}
}

// GetattrID is Getattr by ID, for a kernel that asks. ESTALE if nobody holds such a file. relist is the ID of the file's directory if
// that is now better listed anew than asked about on (see relist), else 0.
func (u *Union) GetattrID(id uint64, a *Attr) (relist uint64, err error) {
	s := u.shard(id)
	s.mu.RLock()
	n, t := s.nodes[id], s.thin[id]
	s.mu.RUnlock()
	var dir *Node
	switch {
	case n != nil:
		dir, err = u.getattrIn(n, a)
	case t.refs == 0:
		err = unix.ESTALE
	default:
		dir, err = u.getattrThin(id, t, a)
	}
	if err != nil || dir == nil || a.Mode&unix.S_IFMT != unix.S_IFREG || !dir.askedAbout() {
		return 0, err
	}
	return dir.id, nil
}

// getattrThin is getattrIn for a thin file.
func (u *Union) getattrThin(id uint64, t thin, a *Attr) (dir *Node, err error) {
	dir, l, err := u.where(t)
	if err != nil {
		return nil, err
	}
	if err := l.dir.Stat(l.entry, a); err != nil {
		return nil, err
	}
	u.owners.apply(a)
	a.Ino = id
	return dir, nil
}

// ForgetID is Forget by ID. The file can be unknown.
func (u *Union) ForgetID(id, count uint64) {
	s := u.shard(id)
	s.mu.Lock()
	n, t := s.nodes[id], s.thin[id]
	if n != nil || t.refs == 0 {
		s.mu.Unlock()
		u.Forget(n, count)
		return
	}
	if uint64(t.refs) > count {
		t.refs -= uint32(count)
		s.thin[id] = t
		s.mu.Unlock()
		return
	}
	delete(s.thin, id)
	s.mu.Unlock()
	u.ForgetID(t.parent, 1)
}

// dropThin forgets a thin file that can't become a node.
func (u *Union) dropThin(id uint64) {
	s := u.shard(id)
	s.mu.Lock()
	t := s.thin[id]
	delete(s.thin, id)
	s.mu.Unlock()
	if t.refs > 0 {
		u.ForgetID(t.parent, 1)
	}
}
