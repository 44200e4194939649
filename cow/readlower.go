package cow

import (
	"slices"
	"sync"
	"sync/atomic"
)

// readAtOnce is how many of a directory's sources are read at once: more than there are processors, since on a cold host each is
// a wait for the disk.
const readAtOnce = 8

// lowerPart is what one source of a directory holds, as read in one go.
type lowerPart struct {
	listing
	enough   enough
	opaque   bool
	redirect string
	err      error
}

// enough is asked with each name that is read of a directory how many were read so far, and ends that by an error; nil never does.
type enough func(names int) error

// take is add, unless that is enough.
func (p *lowerPart) take(name []byte, e *Entry, at int) error {
	if p.enough != nil {
		if err := p.enough(len(p.ents)); err != nil {
			return err
		}
	}
	return p.add(name, e, at)
}

// readSources lists the sources of a directory, and drops from d.sources those that an opaque directory hides or a redirect
// replaces.
func (u *Union) readSources(d *directory, stop enough) ([]*listing, error) {
	var parts []*listing
	for {
		unread := u.readParts(d.sources, len(parts), stop)
		redirected := false
		for i := range unread {
			p := &unread[i]
			at := len(parts)
			s := &d.sources[at]
			if p.err != nil {
				return nil, p.err
			}
			parts = append(parts, &p.listing)
			switch {
			case p.opaque:
				d.sources = d.sources[:at+1]
			case p.redirect != "" && s.branch+1 < len(u.lowers):
				elsewhere, err := u.follow(d.parent, p.redirect, s.branch+1)
				if err != nil {
					return nil, err
				}
				d.sources = append(slices.Clip(d.sources[:at+1]), elsewhere.sources...)
				redirected = len(elsewhere.sources) > 0
			default:
				continue
			}
			break
		}
		if !redirected {
			return parts, nil
		}
	}
}

// readParts reads sources from the given one on.
func (u *Union) readParts(sources []source, from int, stop enough) []lowerPart {
	parts := make([]lowerPart, len(sources)-from)
	read := func(i int) {
		parts[i].enough = stop
		parts[i].err = parts[i].read(&sources[from+i], from+i)
	}
	if len(parts) == 1 {
		read(0)
		return parts
	}
	var next atomic.Int32
	work := func() {
		for i := int(next.Add(1)) - 1; i < len(parts); i = int(next.Add(1)) - 1 {
			read(i)
		}
	}
	var others sync.WaitGroup
	for range min(len(parts), readAtOnce) - 1 {
		others.Go(work)
	}
	work()
	others.Wait()
	return parts
}

// read fills the part with what the source at that position of directory.sources holds.
func (p *lowerPart) read(s *source, at int) (err error) {
	if h, ok := s.dir.(*hostDir); ok {
		return h.read(p, at)
	}
	if p.opaque, err = s.dir.Opaque(); err != nil {
		return err
	}
	if p.redirect, err = s.dir.Redirect(); err != nil {
		return err
	}
	var failed error
	err = s.dir.List(0, func(e Entry) bool {
		failed = p.take([]byte(e.Name), &e, at)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return err
}
