package cow

import (
	"strings"

	"golang.org/x/sys/unix"
)

// found is what a directory has under a name: an upper name, a lower one, or both (an upper one that hides or merges with the
// lower one).
type found struct {
	name     string
	upper    *upperName // never a whiteout
	whiteout *upperName // the upper branch's whiteout, if the name is deleted
	lower    lowerName
	hasLower bool // lower is set; it shows only if upper is nil, or both are directories
}

// find looks a name up in a loaded directory, or one that is being read. The caller holds n.mu. ENOENT if the union has no such name;
// found then still says what of it is hidden.
func (u *Union) find(n *Node, name string) (found, error) {
	if !n.dir.loaded {
		return u.findUnread(n, name)
	}
	f := found{name: name}
	var err error
	f.lower, f.hasLower, err = n.dir.lookupLower(name)
	if err != nil {
		return f, err
	}
	if x := n.dir.upper[name]; x != nil {
		if x.whiteout {
			f.whiteout = x
			return f, unix.ENOENT
		}
		f.upper = x
		return f, nil
	}
	if !f.hasLower {
		return f, unix.ENOENT
	}
	return f, nil
}

// checkName refuses names that no file of a union can have: the format on disk keeps .wh. names for itself.
func checkName(name string) error {
	if len(name) > unix.NAME_MAX {
		return unix.ENAMETOOLONG
	}
	return nil
}

// reservedName reports whether a name can't be created, since on disk it is the mark of a whiteout.
func reservedName(name string) bool { return strings.HasPrefix(name, whiteoutPrefix) }

// Lookup finds a name in a directory and takes a reference to it. a is filled with its attributes.
func (u *Union) Lookup(dir *Node, name string, a *Attr) (*Node, error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	f, err := u.lookup(dir, name)
	if err != nil {
		return nil, err
	}
	defer dir.mu.RUnlock()
	return u.resolve(dir, &f, a)
}

// lookup finds a name for callers that hold tree. If there is no error, dir.mu is held, shared.
func (u *Union) lookup(dir *Node, name string) (found, error) {
	if !dir.isDir() {
		return found{}, unix.ENOTDIR
	}
	if err := checkName(name); err != nil {
		return found{}, err
	}
	if dir.isRemoved() {
		return found{}, unix.ENOENT
	}
	if err := u.prepare(dir); err != nil {
		return found{}, err
	}
	dir.mu.RLock()
	f, err := u.find(dir, name)
	if err != nil {
		dir.mu.RUnlock()
	}
	return f, err
}

// resolve makes a node of what was found in dir, with one reference. The caller holds tree, and dir.mu at least shared.
func (u *Union) resolve(dir *Node, f *found, a *Attr) (*Node, error) {
	var n *Node
	var err error
	if f.upper != nil {
		n, err = u.resolveUpper(dir, f, a)
	} else {
		n, err = u.resolveLower(dir, f, a)
	}
	if err != nil {
		return nil, err
	}
	u.owners.apply(a)
	a.Ino = n.id
	return n, nil
}

func (u *Union) resolveUpper(dir *Node, f *found, a *Attr) (*Node, error) {
	p, err := u.in(dir, f.name)
	if err != nil {
		return nil, err
	}
	defer p.done()
	var st unix.Stat_t
	if err := statAt(p.dir, f.name, &st); err != nil {
		return nil, err
	}
	if err := u.fill(a, &st, p.dir, f.name); err != nil {
		return nil, err
	}
	l := link{dir, f.name, true}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		d, id, err := u.upperDirectory(dir, f, p.dir, &st)
		if err != nil {
			return nil, err
		}
		if len(d.sources) > 0 {
			a.Nlink = 1
		}
		return u.obtain(id, dir, f.name, func(n *Node) bool {
			return n.isDir() && n.links != nil && n.links[0] == l
		}, func(id uint64) *Node {
			return &Node{id: id, kind: unix.S_IFDIR, links: []link{l}, inUpper: true, dir: d}
		}), nil
	}
	id, meta := f.upper.id, f.upper.meta
	if id == 0 {
		if id, meta, err = u.upperID(p.dir, f.name, &st); err != nil {
			return nil, err
		}
	}
	var low source
	var lowIn *directory
	anchored := false
	if meta {
		var redirect string
		if meta, redirect, err = metadataOnly(p.dir, f.name); err != nil {
			return nil, err
		}
		if meta { // not completed since the directory was read
			if low, lowIn, err = u.below(dir.dir, f.name, redirect, 0); err != nil {
				return nil, err
			}
			anchored = strings.HasPrefix(redirect, "/")
		}
	}
	indexed := false
	if st.Nlink > 1 && u.upper.hasHardLinks() {
		var i unix.Stat_t
		indexed = statAt(u.upper.index, idName(id), &i) == nil && i.Ino == st.Ino
	}
	n := u.obtain(id, dir, f.name, func(n *Node) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.isDir() || !n.inUpper {
			return false
		}
		if !n.hasLink(l) {
			// Another name of a file that is held: it must be the same inode.
			var other unix.Stat_t
			p, err := u.at(n)
			if err != nil {
				return false
			}
			defer p.done()
			if statAt(p.dir, p.name, &other) != nil || other.Ino != st.Ino {
				return false
			}
			u.addLink(n, dir, f.name, true)
		}
		return true
	}, func(id uint64) *Node {
		return &Node{id: id, kind: a.Mode & unix.S_IFMT, links: []link{l}, inUpper: true, indexed: indexed, meta: meta, anchored: anchored, low: low, lowIn: lowIn, part: u.partialOf(st.Ino)}
	})
	n.mu.RLock()
	u.fixNlink(n, a)
	err = n.fixBlocks(a)
	n.mu.RUnlock()
	if err != nil {
		u.Forget(n, 1)
		return nil, err
	}
	return n, nil
}

func (n *Node) hasLink(l link) bool {
	for i := range n.links {
		if n.links[i].parent == l.parent && n.links[i].name == l.name {
			return true
		}
	}
	return false
}

// upperID is the ID of an upper file that isn't a directory, and whether that has only the metadata of a lower one.
func (u *Union) upperID(dir int, name string, st *unix.Stat_t) (id uint64, meta bool, err error) {
	id = foldIno(st.Ino, 0, 0)
	if len(u.lowers) == 0 {
		return id, false, nil
	}
	attrs, err := listxattrAt(dir, name)
	if err != nil {
		if noXattr(err) {
			err = nil
		}
		return id, false, err
	}
	for _, x := range attrs {
		switch x {
		case ownPrefix + originXattr, ownTrustedPrefix + originXattr:
			origin, err := originOf(dir, name)
			if err != nil {
				return 0, false, err
			}
			if origin != 0 {
				id = origin
			}
		case trustedPrefix + metacopyXattr, userPrefix + metacopyXattr:
			meta = st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size > 0
		}
	}
	return id, meta, nil
}

// upperDirectory finds what an upper directory merges with, and its ID: that of its topmost lower directory, so that it is the
// same before and after the copy-up.
func (u *Union) upperDirectory(dir *Node, f *found, fd int, st *unix.Stat_t) (*directory, uint64, error) {
	d := &directory{parent: dir.dir}
	if len(u.lowers) > 0 {
		opaque, _, err := markedOpaque(fd, f.name)
		if err != nil {
			return nil, 0, err
		}
		redirect, err := overlayXattr(fd, f.name, "redirect")
		if err != nil {
			return nil, 0, err
		}
		switch {
		case opaque:
		case len(redirect) > 0:
			to, err := u.follow(dir.dir, string(redirect), 0)
			if err != nil {
				return nil, 0, err
			}
			d.sources = to.sources
			if d.lowerPath = string(redirect); !strings.HasPrefix(d.lowerPath, "/") {
				d.lowerPath, d.relative = u.lowerPath(dir)+"/"+d.lowerPath, true
			}
		case f.hasLower && f.lower.entry.Type == unix.S_IFDIR:
			if d.sources, err = f.lower.all(); err != nil {
				return nil, 0, err
			}
		}
	}
	if len(d.sources) > 0 {
		id, err := u.sourceID(&d.sources[0])
		return d, id, err
	}
	return d, foldIno(st.Ino, 0, 0), nil
}

// lowerPath is where a directory's sources are below the roots of their branches, with a leading slash but for the root,
// which is "". The caller holds tree.
func (u *Union) lowerPath(n *Node) string {
	if n == u.root {
		return ""
	}
	if p := n.dir.lowerPath; p != "" {
		return p
	}
	return u.lowerPath(n.links[0].parent) + "/" + n.links[0].name
}

// sourceID is the ID of a node that is made from a lower file.
func (u *Union) sourceID(s *source) (uint64, error) {
	if s.entry.Ino != 0 && u.lowers[s.branch].Indexed() {
		return u.lowerID(s.branch, s.entry.Ino), nil
	}
	var a Attr
	if err := s.dir.Stat(s.entry, &a); err != nil {
		return 0, err
	}
	return u.lowerID(s.branch, a.Ino), nil
}

// follow finds the directories that a redirect of a directory in parent names, in the branches from the given one down: a path
// from their roots (leading slash) or a name beside it. If there are none it has no sources.
func (u *Union) follow(parent *directory, redirect string, branch int) (*directory, error) {
	at := &directory{}
	if strings.HasPrefix(redirect, "/") {
		for i, b := range u.lowers[branch:] {
			r, err := b.Root()
			if err != nil {
				return nil, err
			}
			at.sources = append(at.sources, source{branch: branch + i, dir: r, entry: r.Self()})
		}
	} else if parent != nil {
		at.parent = parent.parent
		for _, s := range parent.sources {
			if s.branch >= branch {
				at.sources = append(at.sources, s)
			}
		}
	}
	redirect = strings.Trim(redirect, "/")
	if redirect == "" {
		return at, nil
	}
	for name := range strings.SplitSeq(redirect, "/") {
		if name == "" || name == "." || name == ".." || len(at.sources) == 0 {
			return &directory{}, nil
		}
		if err := u.loadLower(at, nil); err != nil {
			return nil, err
		}
		l, ok, err := at.lookupLower(name)
		if err != nil {
			return nil, err
		}
		if !ok || l.entry.Type != unix.S_IFDIR {
			return &directory{}, nil
		}
		all, err := l.all()
		if err != nil {
			return nil, err
		}
		at = &directory{sources: all, parent: at}
	}
	return at, nil
}

func (u *Union) resolveLower(dir *Node, f *found, a *Attr) (*Node, error) {
	s := f.lower.source
	if err := s.dir.Stat(s.entry, a); err != nil {
		return nil, err
	}
	kind := a.Mode & unix.S_IFMT
	id := u.lowerID(s.branch, a.Ino)
	l := link{dir, f.name, false}
	if kind == unix.S_IFDIR {
		if len(f.lower.more) > 0 {
			a.Nlink = 1
		}
		sources, err := f.lower.all()
		if err != nil {
			return nil, err
		}
		return u.obtain(id, dir, f.name, func(n *Node) bool {
			return n.isDir() && n.links != nil && n.links[0].parent == dir && n.links[0].name == f.name
		}, func(id uint64) *Node {
			return &Node{id: id, kind: kind, links: []link{l}, dir: &directory{sources: sources, parent: dir.dir}}
		}), nil
	}
	indexed, meta, anchored := false, false, false
	var part *partial
	if a.Nlink > 1 && u.upper != nil && u.upper.hasHardLinks() {
		var st unix.Stat_t
		err := statAt(u.upper.index, idName(id), &st)
		if err != nil && err != unix.ENOENT {
			return nil, err
		}
		if indexed = err == nil; indexed {
			if err := u.fill(a, &st, u.upper.index, idName(id)); err != nil {
				return nil, err
			}
			part = u.partialOf(st.Ino)
			var redirect string
			if meta, redirect, err = metadataOnly(u.upper.index, idName(id)); err != nil {
				return nil, err
			}
			anchored = strings.HasPrefix(redirect, "/")
		}
	}
	only := a.Nlink <= 1
	n := u.obtain(id, dir, f.name, func(n *Node) bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.isDir() || n.inUpper && !n.indexed && !indexed {
			return false
		}
		u.addLink(n, dir, f.name, false)
		return true
	}, func(id uint64) *Node {
		return &Node{id: id, kind: kind, links: []link{l}, low: s, lowIn: dir.dir, only: only, inUpper: indexed, indexed: indexed, meta: meta, anchored: anchored, part: part}
	})
	n.mu.RLock()
	u.fixNlink(n, a)
	n.mu.RUnlock()
	return n, nil
}

// identify finds the ID of an upper name for a listing. The caller holds n.mu exclusively.
func (u *Union) identify(n *Node, x *upperName) error {
	p, err := u.in(n, x.name)
	if err != nil {
		return err
	}
	defer p.done()
	var st unix.Stat_t
	if err := statAt(p.dir, x.name, &st); err != nil {
		return err
	}
	x.kind = st.Mode & unix.S_IFMT
	if x.kind != unix.S_IFDIR {
		if u.owners.Record {
			var a Attr
			if err := u.fill(&a, &st, p.dir, x.name); err != nil {
				return err
			}
			x.kind = a.Mode & unix.S_IFMT
		}
		x.id, x.meta, err = u.upperID(p.dir, x.name, &st)
		return err
	}
	f := found{name: x.name, upper: x}
	if f.lower, f.hasLower, err = n.dir.lookupLower(x.name); err != nil {
		return err
	}
	_, x.id, err = u.upperDirectory(n, &f, p.dir, &st)
	return err
}

// Getattr fills a with the attributes of a node.
func (u *Union) Getattr(n *Node, a *Attr) error {
	_, err := u.getattrIn(n, a)
	return err
}

// getattrIn is Getattr, and returns a directory that the file is in; nil if it has no name that is known.
func (u *Union) getattrIn(n *Node, a *Attr) (dir *Node, err error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	if len(n.links) > 0 {
		dir = n.links[0].parent
	}
	return dir, u.getattr(n, a)
}

// getattr is Getattr for callers that hold tree and n.mu.
func (u *Union) getattr(n *Node, a *Attr) error {
	if err := u.stored(n, a); err != nil {
		return err
	}
	u.fixNlink(n, a)
	u.owners.apply(a)
	a.Ino = n.id
	return n.fixBlocks(a)
}

// stored fills a with what the branch that has a node says of it. The caller holds tree and n.mu.
func (u *Union) stored(n *Node, a *Attr) error {
	switch {
	case n.inUpper:
		p, err := u.at(n)
		if err != nil {
			return err
		}
		defer p.done()
		var st unix.Stat_t
		if err := statAt(p.dir, p.name, &st); err != nil {
			return err
		}
		if err := u.fill(a, &st, p.dir, p.name); err != nil {
			return err
		}
		if n.isDir() && len(n.dir.sources) > 0 {
			a.Nlink = 1
		}
	case n.isDir():
		s := &n.dir.sources[0]
		if err := s.dir.Stat(s.entry, a); err != nil {
			return err
		}
		if len(n.dir.sources) > 1 {
			a.Nlink = 1
		}
	default:
		return n.low.dir.Stat(n.low.entry, a)
	}
	return nil
}
