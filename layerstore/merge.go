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
	keys    []key // of the directory that is being merged
	others  []key
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
	record
}

// key is a candidate before its record was looked at, which those of lower layers mostly never are.
type key struct {
	cookie uint64
	at
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
	root, err := m.roots(0, int32(len(m.sources)))
	if err != nil {
		return err
	}
	if !root.found || len(root.parts) == 0 {
		return errors.New("the root of the image is no directory")
	}
	no, err := m.emit(root.attrs, 0, nil)
	if err != nil {
		return err
	}
	dirs, numbers = append(dirs, root.parts), append(numbers, no)
	for i := 0; i < len(dirs); i++ {
		parts, d := dirs[i], numbers[i]
		dirs[i] = nil
		if err := m.gather(parts); err != nil {
			return err
		}
		first := uint64(len(m.out.records))
		subdirs := uint32(0)
		for rest := m.keys; len(rest) > 0; {
			n := 1
			for n < len(rest) && rest[n].cookie == rest[0].cookie {
				n++
			}
			same := rest[:n]
			rest = rest[n:]
			for len(same) > 0 {
				var c combined
				var name []byte
				if name, same, err = m.group(same, &c); err != nil {
					return err
				}
				if !c.found {
					continue
				}
				no, err := m.emit(c.attrs, d, name)
				if err != nil {
					return err
				}
				if len(c.parts) > 0 {
					dirs, numbers = append(dirs, c.parts), append(numbers, no)
					subdirs++
				}
			}
		}
		r := &m.out.records[d]
		r.a, r.b, r.nlink = first, uint64(len(m.out.records))-first, 2+subdirs
	}
	return nil
}

// gather sets keys to the children of the directories, sorted by cookie and, for the same cookie, top first.
func (m *merger) gather(parts []at) error {
	m.keys = m.keys[:0]
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
			var r record
			if err := s.child(p.rec, i, &r); err != nil {
				return err
			}
			m.keys = append(m.keys, key{r.cookie, at{p.src, i}})
		}
	}
	if len(parts) > 1 {
		slices.SortFunc(m.keys, func(x, y key) int {
			return cmp.Or(cmp.Compare(x.cookie, y.cookie), cmp.Compare(y.src, x.src))
		})
	}
	return nil
}

// group combines the candidates for the name of the first key. It returns those with another name: their cookies are the
// same by chance, or by malice.
func (m *merger) group(keys []key, c *combined) (name []byte, others []key, err error) {
	m.others = m.others[:0]
	more := true
	for i, k := range keys {
		s := m.sources[k.src]
		cand := candidate{at: k.at}
		if err := s.record(k.rec, &cand.record); err != nil {
			return nil, nil, err
		}
		n, err := s.name(&cand.record)
		if err != nil {
			return nil, nil, err
		}
		if i == 0 {
			if name, err = s.checkedName(&cand.record); err != nil {
				return nil, nil, err
			}
		} else if string(n) != string(name) {
			m.others = append(m.others, k)
			continue
		}
		if more {
			more = c.add(&cand)
		}
	}
	return name, slices.Clone(m.others), nil
}

// combined is what the sources have under one name, by the rules between layers.
type combined struct {
	found  bool      // the name is there
	attrs  candidate // whose attributes count
	parts  []at      // what a directory is merged from, top first; else empty
	opaque bool      // only attributes are still missing
}

// add adds what the next lower source has. False if nothing below matters.
func (c *combined) add(n *candidate) (more bool) {
	if n.flags&flagWhiteout != 0 {
		return false
	}
	if n.mode&unix.S_IFMT != unix.S_IFDIR || n.flags&flagLink != 0 {
		// A directory above replaces this, and this hides what is below.
		if !c.found {
			c.found, c.attrs = true, *n
		}
		return false
	}
	// The attributes of a directory that has no header are those of the one below, even if its content is hidden. If no
	// layer has a header, the lowest has made it.
	if !c.found || c.attrs.flags&flagImplied != 0 {
		c.found, c.attrs = true, *n
	}
	if !c.opaque {
		c.parts = append(c.parts, n.at)
	}
	c.opaque = c.opaque || n.flags&flagOpaque != 0
	return n.flags&flagReplaces == 0 && (!c.opaque || c.attrs.flags&flagImplied != 0)
}

// roots combines the roots of sources[from:to].
func (m *merger) roots(from, to int32) (combined, error) {
	var c combined
	for i := to - 1; i >= from; i-- {
		cand := candidate{at: at{src: i}}
		if err := m.sources[i].record(0, &cand.record); err != nil {
			return c, err
		}
		if !c.add(&cand) {
			break
		}
	}
	return c, nil
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
	dir, err := m.roots(from, to)
	if err != nil {
		return candidate{}, err
	}
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		var c combined
		for _, p := range dir.parts {
			s := m.sources[p.src]
			cand := candidate{at: at{src: p.src}}
			var dr record
			err := s.record(p.rec, &dr)
			if err == nil {
				cand.rec, err = s.lookup(p.rec, &dr, name, &cand.record)
			}
			if errors.Is(err, unix.ENOENT) {
				continue
			}
			if err != nil {
				return cand, err
			}
			if !c.add(&cand) {
				break
			}
		}
		if !c.found || rest != "" && len(c.parts) == 0 {
			return candidate{}, unix.ENOENT
		}
		dir = c
	}
	return dir.attrs, nil
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
