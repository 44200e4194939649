package cow

import (
	"cmp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// directory is what a Node knows of the directory that it is: which branches have it, and what they hold. It is read once, when
// it is first needed, and kept: lower branches don't change and nobody else writes to the upper one. All fields are
// guarded by Node.mu.
type directory struct {
	// sources are the same directory in the lower branches, top first. Before loaded it may hold branches that turn
	// out to be hidden by an opaque one.
	sources []source

	// parent is the directory that this one is in by its name in the lower branches, for redirects; nil for the root.
	parent *directory

	// lowerPath is where the sources are below the roots of their branches, for a directory that was renamed (it has
	// the xattr overlay.redirect). Empty for others: they are where their parent is; see Union.lowerPath.
	lowerPath string

	// relative says that the xattr is a name beside the directory, as the kernel writes it for a rename within one
	// directory. It has to become a path when the directory moves to another.
	relative bool

	loaded bool
	direct bool        // the only source is indexed: ask it every time, lower is nil
	lower  []lowerName // what the lower branches have, merged, in the order of Cookie; never changes
	upper  map[string]*upperName
	order  []*upperName // all of upper that were known at the last listing, in the order of Cookie
	fresh  []*upperName // those that came since
	stale  int          // how many of order are deleted
}

// child makes the source that an entry of the directory s is.
func (s *source) child(e Entry) (source, error) {
	if e.Whiteout || e.Type != unix.S_IFDIR {
		return source{branch: s.branch, dir: s.dir, entry: e}, nil
	}
	sub, err := s.dir.Sub(e)
	if err != nil {
		return source{}, err
	}
	self := sub.Self()
	self.Ino = e.Ino
	return source{branch: s.branch, dir: sub, entry: self}, nil
}

// lowerName is a name that lower branches have, whiteouts applied.
type lowerName struct {
	name   string
	cookie uint64
	source
	more []source // for a directory, where else it is, further down
}

// upperName is a name that the upper branch has.
type upperName struct {
	name     string
	cookie   uint64
	id       uint64 // of the node; 0 if not known yet
	kind     uint32 // S_IFMT bits
	whiteout bool
	byFile   bool // the whiteout is a .wh. file, not a device
	meta     bool // the file is a metadata-only copy; known if id is, as it was when that was found out
	deleted  bool // no longer in upper, but still in order
}

// load reads the directory if that has not been done. It is called without n.mu.
func (u *Union) load(n *Node) error {
	n.mu.RLock()
	done := n.dir.loaded
	n.mu.RUnlock()
	if done {
		return nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dir
	if d.loaded {
		return nil
	}
	if n.inUpper {
		if err := u.loadUpper(n); err != nil {
			return err
		}
	}
	if err := u.loadLower(d); err != nil {
		return err
	}
	d.loaded = true
	return nil
}

func (u *Union) loadUpper(n *Node) error {
	fd, h, err := u.dirFD(n)
	if err != nil {
		return err
	}
	if h != nil {
		defer u.fds.release(h)
	}
	d := n.dir
	d.upper = map[string]*upperName{}
	xattrForm := false
	if len(d.sources) > 0 {
		if _, xattrForm, err = markedOpaque(fd, ""); err != nil {
			return err
		}
	}
	var failed error
	err = listAt(fd, "", func(e dirent) bool {
		x := &upperName{name: e.name, kind: e.mode}
		if name, ok := strings.CutPrefix(e.name, whiteoutPrefix); ok {
			if name == "" {
				return true
			}
			if e.name == opaqueName {
				d.sources = nil
				return true
			}
			*x = upperName{name: name, whiteout: true, byFile: true}
		} else if e.mode == 0 || e.mode == unix.S_IFCHR || xattrForm && e.mode == unix.S_IFREG {
			var st unix.Stat_t
			if failed = statAt(fd, e.name, &st); failed != nil {
				return false
			}
			x.kind = st.Mode & unix.S_IFMT
			x.whiteout = isWhiteoutDevice(&st)
			if xattrForm && x.kind == unix.S_IFREG && st.Size == 0 {
				v, err := overlayXattr(fd, e.name, "whiteout")
				if failed = err; err != nil {
					return false
				}
				x.whiteout = v != nil
			}
		}
		if old := d.upper[x.name]; old != nil && !old.whiteout {
			return true // a .wh. file beside the name that it would hide: the name is newer
		}
		x.cookie = Cookie(x.name)
		d.upper[x.name] = x
		return true
	})
	if err == nil {
		err = failed
	}
	if err != nil {
		d.upper = nil
		return err
	}
	for _, x := range d.upper {
		d.order = append(d.order, x)
	}
	slices.SortFunc(d.order, func(a, b *upperName) int { return cmp.Compare(a.cookie, b.cookie) })
	return nil
}

// trim finds out which sources are hidden by an opaque directory above them or are elsewhere because of a redirect.
func (u *Union) trim(d *directory) error {
	for i := 0; i < len(d.sources); i++ {
		s := &d.sources[i]
		if last := s.branch+1 == len(u.lowers); last || u.lowers[s.branch].Indexed() && i+1 == len(d.sources) {
			break // nothing below to be hidden or found elsewhere
		}
		opaque, err := s.dir.Opaque()
		if err != nil {
			return err
		}
		if opaque {
			d.sources = d.sources[:i+1]
			break
		}
		redirect, err := s.dir.Redirect()
		if err != nil {
			return err
		}
		if redirect != "" {
			elsewhere, err := u.follow(d.parent, redirect, s.branch+1)
			if err != nil {
				return err
			}
			d.sources = append(d.sources[:i+1:i+1], elsewhere.sources...)
		}
	}
	return nil
}

// loadLower trims the sources and merges their listings.
func (u *Union) loadLower(d *directory) error {
	if err := u.trim(d); err != nil {
		return err
	}
	if len(d.sources) == 0 {
		return nil
	}
	if len(d.sources) == 1 && u.lowers[d.sources[0].branch].Indexed() {
		d.direct = true
		return nil
	}
	// closed says of a name that what further branches have of it is hidden. All but directories close at once.
	type state struct {
		at     int // in d.lower, or -1 for a whiteout
		closed bool
	}
	seen := map[string]state{}
	for _, s := range d.sources {
		var failed error
		err := s.dir.List(0, func(e Entry) bool {
			st, ok := seen[e.Name]
			if ok && st.closed {
				return true
			}
			isDir := !e.Whiteout && e.Type == unix.S_IFDIR
			entry, err := s.child(e)
			if err != nil {
				failed = err
				return false
			}
			switch {
			case ok && isDir:
				d.lower[st.at].more = append(d.lower[st.at].more, entry)
			case ok:
				st.closed = true
				seen[e.Name] = st
			case e.Whiteout:
				seen[e.Name] = state{-1, true}
			default:
				seen[e.Name] = state{len(d.lower), !isDir}
				d.lower = append(d.lower, lowerName{name: e.Name, cookie: Cookie(e.Name), source: entry})
			}
			return true
		})
		if err == nil {
			err = failed
		}
		if err != nil {
			d.lower = nil
			return err
		}
	}
	slices.SortFunc(d.lower, func(a, b lowerName) int { return cmp.Compare(a.cookie, b.cookie) })
	return nil
}

// lookupLower finds a name in the lower branches; false if they have none. The caller holds Node.mu and has loaded d.
func (d *directory) lookupLower(name string) (lowerName, bool, error) {
	if d.direct {
		s := d.sources[0]
		e, err := s.dir.Lookup(name)
		if err == unix.ENOENT || err == nil && e.Whiteout {
			return lowerName{}, false, nil
		}
		if err != nil {
			return lowerName{}, false, err
		}
		c, err := s.child(e)
		return lowerName{name: name, source: c}, err == nil, err
	}
	c := Cookie(name)
	i, _ := slices.BinarySearchFunc(d.lower, c, func(l lowerName, c uint64) int { return cmp.Compare(l.cookie, c) })
	for ; i < len(d.lower) && d.lower[i].cookie == c; i++ {
		if d.lower[i].name == name {
			return d.lower[i], true, nil
		}
	}
	return lowerName{}, false, nil
}

// put records that the upper branch has a name now. The caller holds Node.mu exclusively.
func (d *directory) put(x upperName) {
	if d.upper == nil {
		d.upper = map[string]*upperName{}
	}
	if old := d.upper[x.name]; old != nil {
		old.id, old.kind, old.whiteout, old.byFile, old.meta = x.id, x.kind, x.whiteout, x.byFile, x.meta
		return
	}
	x.cookie = Cookie(x.name)
	d.upper[x.name] = &x
	d.fresh = append(d.fresh, &x)
}

// remove records that the upper branch has a name no more.
func (d *directory) remove(name string) {
	if old := d.upper[name]; old != nil {
		old.deleted = true
		d.stale++
		delete(d.upper, name)
	}
}

// sorted returns all names of the upper branch in the order of Cookie, deleted ones among them. The caller holds Node.mu
// exclusively.
func (d *directory) sorted() []*upperName {
	if len(d.fresh) > 0 || d.stale > 64 && d.stale > len(d.order)/2 {
		d.order = slices.DeleteFunc(append(d.order, d.fresh...), func(x *upperName) bool { return x.deleted })
		slices.SortFunc(d.order, func(a, b *upperName) int { return cmp.Compare(a.cookie, b.cookie) })
		d.fresh, d.stale = nil, 0
	}
	return d.order
}

// DirEnt is an entry of a merged directory.
type DirEnt struct {
	Name   string
	Cookie uint64 // its position; see Cookie
	Ino    uint64 // the ID of its node, or for a mount point within a branch another number, as readdir(3) has it too
	Type   uint32 // S_IFMT bits
}

// ReadDir appends entries to dst until it is as long as its capacity or the directory is at its end. They come in ascending
// order of their cookies, from the first above after; "." and ".." are not among them. Names that are added or removed
// between two calls are shown or not, all others exactly once.
func (u *Union) ReadDir(n *Node, after uint64, dst []DirEnt) ([]DirEnt, error) {
	if !n.isDir() {
		return dst, unix.ENOTDIR
	}
	u.tree.RLock()
	defer u.tree.RUnlock()
	return u.readDir(n, after, dst)
}

// readDir is ReadDir for callers that hold tree.
func (u *Union) readDir(n *Node, after uint64, dst []DirEnt) ([]DirEnt, error) {
	if n.isRemoved() {
		return dst, nil
	}
	if err := u.load(n); err != nil {
		return dst, err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dir
	ups := d.sorted()
	at, _ := slices.BinarySearchFunc(ups, after+1, func(x *upperName, c uint64) int { return cmp.Compare(x.cookie, c) })
	// upTo emits what the upper branch has below a position, and reports whether there is room for more.
	upTo := func(limit uint64) (bool, error) {
		for ; at < len(ups) && ups[at].cookie <= limit; at++ {
			x := ups[at]
			if x.deleted || x.whiteout {
				continue
			}
			if len(dst) == cap(dst) {
				return false, nil
			}
			if x.id == 0 {
				if err := u.identify(n, x); err != nil {
					return false, err
				}
			}
			dst = append(dst, DirEnt{x.name, x.cookie, x.id, x.kind})
		}
		return len(dst) < cap(dst), nil
	}
	var failed error
	full := false
	emit := func(name string, cookie uint64, branch int, e *Entry) bool {
		more, err := upTo(cookie)
		if err != nil || !more {
			failed, full = err, true
			return false
		}
		if d.upper[name] == nil {
			dst = append(dst, DirEnt{name, cookie, u.lowerID(branch, e.Ino), e.Type})
		}
		return true
	}
	switch {
	case d.direct:
		src := d.sources[0]
		err := src.dir.List(after, func(e Entry) bool {
			return e.Whiteout || emit(e.Name, Cookie(e.Name), src.branch, &e)
		})
		if err != nil {
			return dst, err
		}
	default:
		i, _ := slices.BinarySearchFunc(d.lower, after+1, func(l lowerName, c uint64) int { return cmp.Compare(l.cookie, c) })
		for ; i < len(d.lower); i++ {
			if l := &d.lower[i]; !emit(l.name, l.cookie, l.branch, &l.entry) {
				break
			}
		}
	}
	if failed == nil && !full {
		_, failed = upTo(^uint64(0))
	}
	return dst, failed
}

// isRemoved reports whether the union has no name for the node any more.
func (n *Node) isRemoved() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.removed
}
