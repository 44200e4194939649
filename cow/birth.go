package cow

import "golang.org/x/sys/unix"

// BirthDir is a Dir that knows when its files were made.
type BirthDir interface {
	Dir

	// Birth returns when the file was made; false if the file system doesn't say.
	Birth(e Entry) (unix.Timespec, bool)
}

// Birth returns when a file was made; false if nobody knows. Of a file that was copied up it is the copy's, as in overlayfs.
func (u *Union) Birth(n *Node) (unix.Timespec, bool) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	if n.inUpper {
		p, err := u.at(n)
		if err != nil {
			return unix.Timespec{}, false
		}
		defer p.done()
		return birthAt(p.dir, p.name)
	}
	s := &n.low
	if n.isDir() {
		s = &n.dir.sources[0]
	}
	if d, ok := s.dir.(BirthDir); ok {
		return d.Birth(s.entry)
	}
	return unix.Timespec{}, false
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
