package cow

import (
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// read lists the directory and reads its marks, in as few system calls as can be: open, flistxattr, fstat, and getdents64 until
// its end. The descriptor stays in the cache, for what is then asked of the directory's entries.
func (d *hostDir) read(p *lowerPart, at int) error {
	if d.hidden() {
		return nil
	}
	fd, err := d.openToRead()
	if err != nil {
		return err
	}
	err = d.readFrom(fd, p, at)
	d.keep(fd, err == nil)
	return err
}

// keep puts a descriptor into the cache if there is none of the directory, and else closes it.
func (d *hostDir) keep(fd int, good bool) {
	if !good || d.parent == nil {
		unix.Close(fd)
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.b.fds.acquire(d.fd) {
		d.b.fds.release(d.fd)
		unix.Close(fd)
		return
	}
	d.fd = d.b.fds.add(fd, false)
	d.b.fds.release(d.fd)
}

func (d *hostDir) readFrom(fd int, p *lowerPart, at int) error {
	opaque, xattrForm, redirect, err := directoryMarks(fd)
	if err != nil {
		return err
	}
	p.opaque, p.redirect = opaque, redirect
	var self unix.Stat_t
	if err := unix.Fstat(fd, &self); err != nil {
		return err
	}
	buf := d.b.fds.buffers.Get().(*[]byte)
	defer d.b.fds.buffers.Put(buf)
	var failed error
	err = eachDirent(fd, *buf, func(de dirent) bool {
		e := Entry{Type: de.mode, Ino: foldIno(de.ino, self.Dev, d.b.dev)}
		if name, ok := strings.CutPrefix(de.name, whiteoutPrefix); ok {
			if de.name == opaqueName {
				p.opaque = true
				return true
			}
			if name == "" {
				return true
			}
			failed = p.take(de.raw[len(whiteoutPrefix):], &Entry{Whiteout: true}, at)
			return failed == nil
		}
		// Only a stat tells a whiteout from a device, or anything where the file system gives no type. Empty files
		// matter only in directories that say so.
		if e.Type == 0 || e.Type == unix.S_IFCHR || xattrForm && e.Type == unix.S_IFREG {
			name := strings.Clone(de.name)
			var st unix.Stat_t
			if err := statAt(fd, name, &st); err != nil {
				if err == unix.ENOENT {
					return true
				}
				failed = err
				return false
			}
			e.Type, e.Ino = st.Mode&unix.S_IFMT, d.b.ino(&st)
			e.Whiteout = isWhiteoutDevice(&st) ||
				xattrForm && e.Type == unix.S_IFREG && st.Size == 0 && d.xattrWhiteout(fd, name)
		}
		failed = p.take(de.raw, &e, at)
		return failed == nil
	})
	if err == nil {
		err = failed
	}
	return err
}

// directoryMarks reads what an open directory's xattrs say of it; see markedOpaque. Nearly always that is one system call.
func directoryMarks(fd int) (opaque, xattrWhiteouts bool, redirect string, err error) {
	var buf [512]byte
	n, err := unix.Flistxattr(fd, buf[:])
	if noXattr(err) || err == nil && n == 0 {
		return false, false, "", nil
	}
	if err == nil && !slices.ContainsFunc(strings.Split(string(buf[:n]), "\x00"), privateXattr) {
		return false, false, "", nil
	}
	if opaque, xattrWhiteouts, err = markedOpaque(fd, ""); err != nil {
		return false, false, "", err
	}
	v, err := overlayXattr(fd, "", "redirect")
	return opaque, xattrWhiteouts, string(v), err
}
