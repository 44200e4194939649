package layerstore

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// merger makes the merged index of an image from the indexes of its layers, or from the merged index of its lower layers
// and the indexes of the rest. It goes through the directories breadth first and looks at each in all sources that
// have it at once, so nothing is built for what a higher layer hides.
type merger struct {
	sources []*index // bottom first; the first may be a merged index
	base    int      // layers that sources[0] stands for, if it is merged; else 0
	out     *indexWriter
	origins []origin // where the record of the same number comes from
	linked  map[origin]bool
	shared  map[sharedXattrs]uint32
	cands   []candidate // of the directory that is being merged
}

// at is a record of a source.
type at struct {
	src int32
	rec uint32
}

// origin identifies an inode: where its source has its first name.
type origin struct {
	src   int32
	ino   uint32
	group bool // it has, or may have, more than one name
}

type sharedXattrs struct {
	src int32
	off uint32
}

// candidate is what one source has under a name.
type candidate struct {
	at
	cookie uint64
	name   []byte
	record
}

// mergeIndexes merges sources, bottom first, into an index whose layers are diffIDs.
func mergeIndexes(sources []*index, diffIDs []digest.Digest) (*indexWriter, error) {
	m := &merger{
		sources: sources,
		out:     newIndexWriter(kindMerged, diffIDs),
		linked:  make(map[origin]bool),
		shared:  make(map[sharedXattrs]uint32),
	}
	if sources[0].kind == kindMerged {
		m.base = sources[0].layerCount()
	}
	if m.layersOf() != len(diffIDs) {
		return nil, fmt.Errorf("merging %d layers into an image of %d", m.layersOf(), len(diffIDs))
	}
	biggest := uint32(0)
	for _, s := range sources {
		biggest = max(biggest, s.count())
	}
	m.out.records = make([]record, 0, biggest)
	m.origins = make([]origin, 0, biggest)
	if err := m.run(); err != nil {
		return nil, err
	}
	m.number()
	return m.out, nil
}

func (m *merger) layersOf() int {
	if m.base > 0 {
		return m.base + len(m.sources) - 1
	}
	return len(m.sources)
}

// layer returns the number, in the output, of the layer that a record of a source is from.
func (m *merger) layer(src int32, r *record) uint16 {
	switch {
	case m.base == 0:
		return uint16(src)
	case src == 0:
		return r.layer
	}
	return uint16(m.base + int(src) - 1)
}

// checkLayer makes sure that the layer of a candidate is one of the output's.
func (m *merger) checkLayer(c *candidate) error {
	if n := m.layer(c.src, &c.record); int(n) >= len(m.out.layers) {
		return m.sources[c.src].damage("record %d is of layer %d", c.rec, n)
	}
	return nil
}

// run emits the root and then the children of every directory.
func (m *merger) run() error {
	var dirs [][]at // dirs[i] has the directories, top first, that the i-th output directory is merged from
	var numbers []uint32
	root := make([]candidate, 0, len(m.sources))
	for i := len(m.sources) - 1; i >= 0; i-- {
		c := candidate{at: at{src: int32(i)}}
		if err := m.sources[i].record(0, &c.record); err != nil {
			return err
		}
		root = append(root, c)
	}
	attrs, parts := combine(root)
	if attrs == nil || len(parts) == 0 {
		return errors.New("the root of the image is no directory")
	}
	no, err := m.emit(*attrs, 0, nil)
	if err != nil {
		return err
	}
	dirs, numbers = append(dirs, parts), append(numbers, no)
	for i := 0; i < len(dirs); i++ {
		parts, d := dirs[i], numbers[i]
		dirs[i] = nil
		if err := m.gather(parts); err != nil {
			return err
		}
		first := uint64(len(m.out.records))
		subdirs := uint32(0)
		for rest := m.cands; len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[n].cookie == rest[0].cookie && string(rest[n].name) == string(rest[0].name) {
				n++
			}
			group := rest[:n]
			rest = rest[n:]
			attrs, parts := combine(group)
			if attrs == nil {
				continue
			}
			no, err := m.emit(*attrs, d, group[0].name)
			if err != nil {
				return err
			}
			if len(parts) > 0 {
				dirs, numbers = append(dirs, parts), append(numbers, no)
				subdirs++
			}
		}
		r := &m.out.records[d]
		r.a, r.b, r.nlink = first, uint64(len(m.out.records))-first, 2+subdirs
	}
	return nil
}

// gather sets cands to the children of the directories, sorted by name and, for the same name, top first.
func (m *merger) gather(parts []at) error {
	m.cands = m.cands[:0]
	for _, p := range parts {
		s := m.sources[p.src]
		var dr record
		if err := s.record(p.rec, &dr); err != nil {
			return err
		}
		first, end, err := s.children(p.rec, &dr)
		if err != nil {
			return err
		}
		for i := first; i < end; i++ {
			c := candidate{at: at{p.src, i}}
			if err := s.child(p.rec, i, &c.record); err != nil {
				return err
			}
			if c.name, err = s.checkedName(&c.record); err != nil {
				return err
			}
			c.cookie = c.record.cookie
			m.cands = append(m.cands, c)
		}
	}
	if len(parts) > 1 {
		slices.SortFunc(m.cands, func(x, y candidate) int {
			return cmp.Or(cmp.Compare(x.cookie, y.cookie), strings.Compare(string(x.name), string(y.name)), cmp.Compare(y.src, x.src))
		})
	}
	return nil
}

// combine applies the rules between layers to what the sources have under one name, top first. It returns the entry
// whose attributes count, nil if the name is deleted, and for a directory what it is merged from, top first.
func combine(group []candidate) (attrs *candidate, parts []at) {
	opaque := false
	for i := range group {
		c := &group[i]
		if c.flags&flagWhiteout != 0 {
			break
		}
		if c.mode&unix.S_IFMT != unix.S_IFDIR || c.flags&flagLink != 0 {
			// A directory above replaces this, and this hides what is below.
			if len(parts) == 0 {
				attrs = c
			}
			break
		}
		// The attributes of a directory that has no header are those of the one below, even if its content is hidden. If
		// no layer has a header, the lowest has made it.
		if attrs == nil || attrs.flags&flagImplied != 0 {
			attrs = c
		}
		if !opaque {
			parts = append(parts, c.at)
		}
		if c.flags&flagReplaces != 0 {
			break
		}
		opaque = opaque || c.flags&flagOpaque != 0
		if opaque && attrs.flags&flagImplied == 0 {
			break
		}
	}
	return attrs, parts
}

// emit writes the record of an entry of a source under a name.
func (m *merger) emit(c candidate, parent uint32, name []byte) (uint32, error) {
	cookie := c.cookie
	if err := m.checkLayer(&c); err != nil {
		return 0, err
	}
	linked := c.flags&flagLink != 0
	if linked {
		target, err := m.resolve(c)
		if err != nil {
			return 0, fmt.Errorf("hard link %q in layer %s: %w", name, m.out.layers[m.layer(c.src, &c.record)], err)
		}
		c = target
		if err := m.checkLayer(&c); err != nil {
			return 0, err
		}
		m.linked[origin{src: c.src, ino: c.ino}] = true
	}
	s := m.sources[c.src]
	r := c.record
	r.cookie, r.parent, r.flags = cookie, parent, 0
	r.layer = m.layer(c.src, &c.record)
	dir := r.mode&unix.S_IFMT == unix.S_IFDIR
	m.origins = append(m.origins, origin{c.src, r.ino, !dir && (linked || r.nlink > 1)})
	if r.mode&unix.S_IFMT == unix.S_IFLNK {
		t, err := s.target(&r)
		if err != nil {
			return 0, err
		}
		r.a = m.out.addTarget(t)
	}
	x, err := m.xattrs(c.src, &r)
	if err != nil {
		return 0, err
	}
	r.xattr = x
	return m.out.add(r, name)
}

// xattrs copies the xattrs of a record and returns where they are now.
func (m *merger) xattrs(src int32, r *record) (uint32, error) {
	if r.xattr == 0 {
		return 0, nil
	}
	key := sharedXattrs{src, r.xattr}
	if off, ok := m.shared[key]; ok {
		return off, nil
	}
	s := m.sources[src]
	b, err := s.xattrSet(r)
	if err != nil {
		return 0, err
	}
	n, ok := walkXattrs(b, func(_, _ []byte) bool { return true })
	if !ok {
		return 0, s.damage("xattrs at %d run out of their section", r.xattr)
	}
	off, err := m.out.addXattrs(b[:n])
	m.shared[key] = off
	return off, err
}

var errUnresolved = errors.New("neither in the layer nor in those below")

// resolve finds what a hard link that its layer couldn't resolve points to: an entry of the layers below or, if they
// have none, a later one of the same layer.
func (m *merger) resolve(c candidate) (candidate, error) {
	for range maxLinks {
		b, err := m.sources[c.src].target(&c.record)
		if err != nil {
			return c, err
		}
		path := string(b)
		to, err := m.find(path, 0, c.src)
		if errors.Is(err, unix.ENOENT) {
			to, err = m.find(path, c.src, c.src+1)
		}
		if errors.Is(err, unix.ENOENT) {
			return c, fmt.Errorf("its target %q is %w", clip(path), errUnresolved)
		}
		if err != nil {
			return c, err
		}
		if to.flags&flagLink == 0 {
			if to.mode&unix.S_IFMT == unix.S_IFDIR {
				return c, fmt.Errorf("its target %q is a directory", clip(path))
			}
			return to, nil
		}
		c = to
	}
	return c, errors.New("it leads to itself")
}

// find looks a path up in what sources[from:to] are merged.
func (m *merger) find(path string, from, to int32) (candidate, error) {
	var parts []at
	for i := to - 1; i >= from; i-- {
		parts = append(parts, at{src: i})
	}
	// An opaque root ends the list; roots are always directories.
	var roots []candidate
	for _, p := range parts {
		c := candidate{at: p}
		if err := m.sources[p.src].record(0, &c.record); err != nil {
			return c, err
		}
		roots = append(roots, c)
	}
	_, parts = combine(roots)
	var found candidate
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		var group []candidate
		for _, p := range parts {
			s := m.sources[p.src]
			c := candidate{at: at{src: p.src}}
			var dr record
			err := s.record(p.rec, &dr)
			if err == nil {
				c.rec, err = s.lookup(p.rec, &dr, name, &c.record)
			}
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return c, err
			}
			group = append(group, c)
		}
		attrs, dirs := combine(group)
		if attrs == nil || rest != "" && len(dirs) == 0 {
			return found, unix.ENOENT
		}
		found, parts = *attrs, dirs
	}
	return found, nil
}

// number gives every inode its number and counts its links.
func (m *merger) number() {
	type group struct{ ino, nlink uint32 }
	groups := make(map[origin]*group)
	for i := range m.origins {
		o := &m.origins[i]
		r := &m.out.records[i]
		if r.mode&unix.S_IFMT == unix.S_IFDIR {
			r.ino = uint32(i) + 1
			continue
		}
		key := origin{src: o.src, ino: o.ino}
		if !o.group && (len(m.linked) == 0 || !m.linked[key]) {
			r.ino, r.nlink = uint32(i)+1, 1
			continue
		}
		o.group = true
		g := groups[key]
		if g == nil {
			g = &group{ino: uint32(i) + 1}
			groups[key] = g
		}
		g.nlink++
		r.ino = g.ino
	}
	for i, o := range m.origins {
		if o.group {
			m.out.records[i].nlink = groups[origin{src: o.src, ino: o.ino}].nlink
		}
	}
}
