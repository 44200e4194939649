package cow

import "golang.org/x/sys/unix"

// BirthDir is a Dir that knows when its files were made.
type BirthDir interface {
	Dir

	// Birth returns when the file was made; false if the file system doesn't say.
	Birth(e Entry) (unix.Timespec, bool)
}

// Birth returns when a file was made; false if nobody knows. It stays when the file is copied up; but of one that was renamed then, another
// union only knows the copy's.
func (u *Union) Birth(n *Node) (unix.Timespec, bool) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	if s, ok := u.bornAs(n); ok {
		d, ok := s.dir.(BirthDir)
		if !ok {
			return unix.Timespec{}, false
		}
		return d.Birth(s.entry)
	}
	n.mu.RLock()
	defer n.mu.RUnlock()
	p, err := u.at(n)
	if err != nil {
		return unix.Timespec{}, false
	}
	defer p.done()
	return birthAt(p.dir, p.name)
}

// bornAs returns the lower file that a node is or was copied up from, if it is known where that is. The caller holds tree.
func (u *Union) bornAs(n *Node) (source, bool) {
	n.mu.RLock()
	s, from := n.low, n.links
	if n.isDir() && len(n.dir.sources) > 0 {
		s = n.dir.sources[0]
	}
	var l link
	if len(from) > 0 {
		l = from[0]
	}
	n.mu.RUnlock()
	if s.dir != nil || n.id < 1<<inoBits || l.parent == nil {
		return s, s.dir != nil
	}
	// Only where it comes from is recorded. Most files are where they were.
	l.parent.mu.RLock()
	defer l.parent.mu.RUnlock()
	lookup := l.parent.dir.lookupLower
	if !l.parent.dir.loaded {
		lookup = l.parent.dir.lookupUnread
	}
	low, ok, err := lookup(l.name)
	if err != nil || !ok {
		return source{}, false
	}
	id, err := u.sourceID(&low.source)
	return low.source, err == nil && id == n.id
}

func (d *hostDir) Birth(e Entry) (unix.Timespec, bool) {
	fd, h, err := d.open()
	if err != nil {
		return unix.Timespec{}, false
	}
	defer d.release(h)
	return birthAt(fd, e.Name)
}

func birthAt(dir int, name string) (unix.Timespec, bool) {
	var st unix.Statx_t
	err := unix.Statx(dir, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH, unix.STATX_BTIME, &st)
	return unix.Timespec{Sec: st.Btime.Sec, Nsec: int64(st.Btime.Nsec)}, err == nil && st.Mask&unix.STATX_BTIME != 0
}
