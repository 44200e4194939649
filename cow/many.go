package cow

import (
	"errors"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// To list a directory of a million names takes a second and more. Who looks a name up in it doesn't wait for that: it is read in the
// background, and meanwhile every branch is asked for the name by itself. Whatever needs to know all names, or changes one,
// waits (load), so nothing of the directory changes while it is read.

// namesAtOnce is how many names of one branch are read at once: 10 to 20 ms.
const namesAtOnce = 1 << 14

var (
	errMany     = errors.New("a directory has many names")
	errStopping = unix.EINTR // the union is being closed
)

// reading is a directory that is being read. Its sources are already what they will be.
type reading struct {
	xattrForm bool          // the upper branch's directory may have whiteouts that are marked by xattrs
	waited    atomic.Bool   // somebody waits for it
	done      chan struct{} // closed when it has been read, or hasn't
	err       error         // valid then
}

// prepare makes a directory ready to look names up in it: read, or if that takes too long about to be. It is called without n.mu.
func (u *Union) prepare(n *Node) error {
	n.mu.RLock()
	ready := n.dir.loaded || n.dir.reading != nil
	n.mu.RUnlock()
	if ready {
		return nil
	}
	_, err := u.loadNow(n, func(names int) error {
		if names >= u.many {
			return errMany
		}
		return nil
	})
	if err == errMany {
		err = u.readLater(n)
	}
	return err
}

// readLater has a directory read in the background.
func (u *Union) readLater(n *Node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dir
	if d.loaded || d.reading != nil {
		return nil
	}
	r := &reading{done: make(chan struct{})}
	fd := -1
	if n.inUpper {
		dir, h, err := u.dirFD(n)
		if err != nil {
			return err
		}
		// The directory may be moved while it is read, and its descriptor go.
		fd, err = unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 3)
		if h != nil {
			u.fds.release(h)
		}
		if err != nil {
			return err
		}
	}
	if err := u.settleSources(d, fd, r); err != nil {
		if fd >= 0 {
			unix.Close(fd)
		}
		return err
	}
	d.reading = r
	d.large.Store(true)
	u.ref(n)
	u.readings.Add(1)
	go u.readInBackground(n, fd, &directory{sources: d.sources, parent: d.parent})
	return nil
}

// settleSources finds out which sources a directory has, without listing any. fd is the upper branch's, or -1.
func (u *Union) settleSources(d *directory, fd int, r *reading) (err error) {
	if fd >= 0 && len(d.sources) > 0 {
		if _, r.xattrForm, err = markedOpaque(fd, ""); err != nil {
			return err
		}
		var st unix.Stat_t
		switch err := statAt(fd, opaqueName, &st); err {
		case nil:
			d.sources = nil
		case unix.ENOENT:
		default:
			return err
		}
	}
	return u.trim(d)
}

// readInBackground reads a directory into another one, with no lock held, and then makes that n's.
func (u *Union) readInBackground(n *Node, fd int, read *directory) {
	defer u.readings.Done()
	defer u.Forget(n, 1)
	stop := func(int) error {
		if u.stopping.Load() {
			return errStopping
		}
		return nil
	}
	if u.heldBack != nil {
		u.heldBack(u, n)
	}
	var err error
	if fd >= 0 {
		err = u.loadUpper(read, fd, stop)
		unix.Close(fd)
	}
	if err == nil {
		err = u.loadLower(read, stop)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	d := n.dir
	if err == nil && len(read.sources) != len(d.sources) {
		err = unix.ESTALE // somebody changes lower branches; what was read is of other ones than were asked meanwhile
	}
	if err == nil {
		d.lower, d.direct, d.upper, d.order = read.lower, read.direct, read.upper, read.order
		d.done()
	}
	d.reading.err = err
	close(d.reading.done)
	d.reading = nil
}

// stopReading ends what is being read in the background, also ahead.
func (u *Union) stopReading() {
	u.stopping.Store(true)
	u.ahead.end()
	u.readings.Wait()
}

// findUnread is find in a directory that is being read.
func (u *Union) findUnread(n *Node, name string) (found, error) {
	f := found{name: name}
	var err error
	if f.lower, f.hasLower, err = n.dir.lookupUnread(name); err != nil {
		return f, err
	}
	if n.inUpper {
		if err := u.findUpper(n, name, &f); err != nil {
			return f, err
		}
	}
	if f.whiteout != nil || f.upper == nil && !f.hasLower {
		return f, unix.ENOENT
	}
	return f, nil
}

// findUpper asks the upper branch for a name.
func (u *Union) findUpper(n *Node, name string, f *found) error {
	if reservedName(name) {
		return nil
	}
	p, err := u.in(n, name)
	if err != nil {
		return err
	}
	defer p.done()
	var st unix.Stat_t
	err = statAt(p.dir, name, &st)
	if err == unix.ENOENT {
		if len(name)+len(whiteoutPrefix) > unix.NAME_MAX || statAt(p.dir, whiteoutPrefix+name, &st) != nil {
			return nil
		}
		f.whiteout = &upperName{name: name, cookie: Cookie(name), whiteout: true, byFile: true}
		return nil
	}
	if err != nil {
		return err
	}
	x := &upperName{name: name, cookie: Cookie(name), kind: st.Mode & unix.S_IFMT, whiteout: isWhiteoutDevice(&st)}
	if n.dir.reading.xattrForm && x.kind == unix.S_IFREG && st.Size == 0 {
		v, err := overlayXattr(p.dir, name, "whiteout")
		if err != nil {
			return err
		}
		x.whiteout = v != nil
	}
	if x.whiteout {
		f.whiteout = x
	} else {
		f.upper = x
	}
	return nil
}

// lookupUnread is lookupLower in a directory that is being read. The caller holds Node.mu.
func (d *directory) lookupUnread(name string) (lowerName, bool, error) {
	var l lowerName
	found := false
	for i := range d.sources {
		s := &d.sources[i]
		e, err := s.dir.Lookup(name)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return lowerName{}, false, err
		}
		if e.Whiteout || found && e.Type != unix.S_IFDIR {
			break
		}
		at := source{s.branch, s.dir, e}
		if found {
			l.more = append(l.more, at)
		} else {
			l.source, found = at, true
		}
		if e.Type != unix.S_IFDIR {
			break
		}
		if h, ok := s.dir.(*hostDir); ok {
			below, err := h.whitedOut(name)
			if err != nil {
				return lowerName{}, false, err
			}
			if below {
				break
			}
		}
	}
	return l, found, nil
}

// whitedOut reports whether there is a .wh. file beside a name that is there: it is about the branches below.
func (d *hostDir) whitedOut(name string) (bool, error) {
	if len(name)+len(whiteoutPrefix) > unix.NAME_MAX {
		return false, nil
	}
	fd, h, err := d.open()
	if err != nil {
		return false, err
	}
	defer d.release(h)
	var st unix.Stat_t
	if err = statAt(fd, whiteoutPrefix+name, &st); err == unix.ENOENT {
		return false, nil
	}
	return err == nil, err
}
