package cow

import (
	"cmp"
	"math"
	"slices"
	"strings"
	"sync/atomic"

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
	direct bool    // the only source is indexed: ask it every time, lower is empty
	lower  listing // what the lower branches have, merged; never changes once loaded
	upper  map[string]*upperName
	order  []*upperName // all of upper that were known at the last listing, in the order of Cookie
	fresh  []*upperName // those that came since
	stale  int          // how many of order are deleted

	listed atomic.Bool // somebody has listed it; see ahead
	large  atomic.Bool // it has many names; see trailNames
	relist relist

	// reading is how far it is read where that takes a while; nil before and after. See many.go.
	reading *reading
}

// child makes the source that the directory is which s, a name in another directory, leads to.
func (s *source) child() (source, error) {
	sub, err := s.dir.Sub(s.entry)
	if err != nil {
		return source{}, err
	}
	self := sub.Self()
	self.Ino = s.entry.Ino
	return source{branch: s.branch, dir: sub, entry: self}, nil
}

// lowerName is a name that lower branches have, whiteouts applied.
type lowerName struct {
	source          // the name in the directory that it is in, also if it is a directory itself
	more   []source // for a directory, where else it is, further down

	// place finds the name again in the same directory: a position in directory.lower, or with a direct one Entry.Ref.
	// It is known if placed is set.
	place  uint32
	placed bool
}

// all returns the sources of a lower directory, top first.
func (l *lowerName) all() ([]source, error) {
	all := make([]source, 0, 1+len(l.more))
	s, err := l.child()
	if err != nil {
		return nil, err
	}
	all = append(all, s)
	for i := range l.more {
		if s, err = l.more[i].child(); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
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
	for {
		n.mu.RLock()
		done, reading := n.dir.loaded, n.dir.reading
		n.mu.RUnlock()
		if done {
			return nil
		}
		if reading == nil {
			begun, err := u.loadNow(n, nil)
			if begun || err != nil {
				return err
			}
			continue
		}
		reading.waited.Store(true)
		<-reading.done
		if reading.err != nil {
			return reading.err
		}
	}
}

// loadNow is load where the directory is not being read. False if it is meanwhile.
func (u *Union) loadNow(n *Node, stop enough) (begun bool, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dir
	if d.loaded || d.reading != nil {
		return d.loaded, nil
	}
	if n.inUpper {
		fd, h, err := u.dirFD(n)
		if err != nil {
			return true, err
		}
		if h != nil {
			defer u.fds.release(h)
		}
		if err := u.loadUpper(d, fd, stop); err != nil {
			return true, err
		}
	}
	if err := u.loadLower(d, stop); err != nil {
		return true, err
	}
	d.done()
	return true, nil
}

// done says that all of the directory is there.
func (d *directory) done() {
	d.loaded = true
	if len(d.upper)+len(d.lower.ents) >= namesToNote {
		d.large.Store(true)
	}
}

// loadUpper reads the upper branch's directory, of which fd is a descriptor.
func (u *Union) loadUpper(d *directory, fd int, stop enough) (err error) {
	d.upper, d.order = map[string]*upperName{}, nil
	xattrForm := false
	if len(d.sources) > 0 {
		if _, xattrForm, err = markedOpaque(fd, ""); err != nil {
			return err
		}
	}
	var failed error
	err = listAt(fd, "", func(e dirent) bool {
		if stop != nil {
			if failed = stop(len(d.upper)); failed != nil {
				return false
			}
		}
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

// loadLower reads the listings of the sources, finds out which of these are hidden or elsewhere, and merges the rest.
func (u *Union) loadLower(d *directory, stop enough) error {
	if len(d.sources) == 0 {
		return nil
	}
	if len(d.sources) == 1 && u.lowers[d.sources[0].branch].Indexed() {
		d.direct = true
		return nil
	}
	parts, err := u.readSources(d, stop)
	if err != nil {
		return err
	}
	if len(d.sources) == 1 && u.lowers[d.sources[0].branch].Indexed() {
		d.direct = true // the others turned out to be hidden
		return nil
	}
	all := parts[0]
	for _, p := range parts[1:] {
		if err := all.join(p); err != nil {
			return err
		}
	}
	all.seal()
	d.lower = *all
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
		return directName(&s, e), true, nil
	}
	i, ok := d.lower.find(name)
	if !ok {
		return lowerName{}, false, nil
	}
	l, err := d.lowerAt(i)
	return l, err == nil, err
}

// directName is the entry e of a directory that is asked every time.
func directName(s *source, e Entry) lowerName {
	_, again := s.dir.(RefDir)
	return lowerName{source: source{s.branch, s.dir, e}, place: uint32(e.Ref), placed: again && e.Ref <= math.MaxUint32}
}

// lowerAt returns the name at a position of d.lower.
func (d *directory) lowerAt(i int) (lowerName, error) {
	e := &d.lower.ents[i]
	l := lowerName{place: uint32(i), placed: true}
	var err error
	name, kind := d.lower.nameOf(e), uint32(e.kind)<<kindShift
	if l.source, err = d.source(e.inoAt>>inoBits, e.inoAt&inoMask, name, kind); err != nil || kind != unix.S_IFDIR {
		return l, err
	}
	more := d.lower.more[uint32(i)]
	if len(more) == 0 {
		return l, nil
	}
	l.more = make([]source, len(more))
	for j, m := range more {
		if l.more[j], err = d.source(uint64(m.at), m.ino, name, kind); err != nil {
			return l, err
		}
	}
	return l, nil
}

// source makes the source of a name in the directory's source at a position.
func (d *directory) source(at, ino uint64, name string, kind uint32) (source, error) {
	s := &d.sources[at]
	if r, ok := s.dir.(RefDir); ok { // its reference is not in the listing
		e, err := r.Lookup(name)
		return source{s.branch, s.dir, e}, err
	}
	return source{s.branch, s.dir, Entry{Name: name, Ino: ino, Type: kind}}, nil
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
	if len(d.upper) == namesToNote {
		d.large.Store(true)
	}
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

	at    int32 // for the union: position in directory.lower; above that inDirect or inUpper
	entry Entry // if inDirect
}

const (
	inUpper  = -1
	inDirect = -2
)

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
			dst = append(dst, DirEnt{Name: x.name, Cookie: x.cookie, Ino: x.id, Type: x.kind, at: inUpper})
		}
		return len(dst) < cap(dst), nil
	}
	var failed error
	full := false
	emit := func(e DirEnt) bool {
		more, err := upTo(e.Cookie)
		if err != nil || !more {
			failed, full = err, true
			return false
		}
		if d.upper[e.Name] == nil {
			dst = append(dst, e)
		}
		return true
	}
	if d.direct {
		src := d.sources[0]
		err := src.dir.List(after, func(e Entry) bool {
			return e.Whiteout || emit(DirEnt{e.Name, Cookie(e.Name), u.lowerID(src.branch, e.Ino), e.Type, inDirect, e})
		})
		if err != nil {
			return dst, err
		}
	} else {
		for i := d.lower.from(after + 1); i < len(d.lower.ents); i++ {
			e := &d.lower.ents[i]
			branch := d.sources[e.inoAt>>inoBits].branch
			if !emit(DirEnt{Name: d.lower.nameOf(e), Cookie: e.cookie, Ino: u.lowerID(branch, e.inoAt), Type: uint32(e.kind) << kindShift, at: int32(i)}) {
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
