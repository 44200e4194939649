package cow

import (
	"math"

	"golang.org/x/sys/unix"
)

// File is the content of a regular file, to be read from or written to by positioned calls. It must be released.
type File struct {
	FD   int
	Off  int64 // where in FD the content begins
	Size int64 // how much of it there is; math.MaxInt64 where the descriptor's own end is the file's
	fds  *Descriptors
	d    *descriptor
	part *partial
}

// Release ends the use of the descriptor.
func (f File) Release() {
	if f.part != nil {
		f.part.release()
		return
	}
	f.fds.release(f.d)
}

// Direct reports whether the content may be read from FD itself. Of a file that is being copied up by block it may not; use
// ReadAt.
func (f File) Direct() bool { return f.part == nil }

// ReadAt reads at an offset of the file. At its end it returns less, with no error.
func (f File) ReadAt(p []byte, off int64) (int, error) {
	if f.part != nil {
		return f.part.read(p, off)
	}
	if off >= f.Size {
		return 0, nil
	}
	p = p[:min(int64(len(p)), f.Size-off)]
	total := 0
	for total < len(p) {
		m, err := unix.Pread(f.FD, p[total:], f.Off+off+int64(total))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return total, err
		}
		if m == 0 {
			break
		}
		total += m
	}
	return total, nil
}

// Data returns where the content of a regular file is now. Once a copy-up has replaced it, the content of the lower file may
// still be read through what an earlier call returned.
func (u *Union) Data(n *Node) (File, error) { return u.open(n, false) }

// WriteFD returns the descriptor by which a regular file is written to; it copies the file up first.
func (u *Union) WriteFD(n *Node) (File, error) {
	if err := u.copyUp(n, wholeSize); err != nil {
		return File{}, err
	}
	return u.open(n, true)
}

func (u *Union) open(n *Node, write bool) (File, error) {
	if !n.regular() {
		return File{}, unix.EINVAL
	}
	n.fdMu.Lock()
	if f, ok := u.cached(n, write); ok {
		n.fdMu.Unlock()
		return f, nil
	}
	n.fdMu.Unlock()

	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	n.fdMu.Lock()
	defer n.fdMu.Unlock()
	if f, ok := u.cached(n, write); ok {
		return f, nil
	}
	if p := n.part; p != nil && p.acquire() {
		return File{FD: p.fd, Size: math.MaxInt64, part: p}, nil
	}
	var d *descriptor
	if n.inUpper && !n.meta {
		p, err := u.at(n)
		if err != nil {
			return File{}, err
		}
		defer p.done()
		if d, err = u.openUpperFile(p, write); err != nil {
			return File{}, err
		}
	} else {
		if write {
			return File{}, unix.EIO // the caller copies up first
		}
		data, err := u.lowerData(n)
		if err != nil {
			return File{}, err
		}
		if n.meta {
			// A cut that a kill interrupted may have come as far as the size.
			p, err := u.at(n)
			var st unix.Stat_t
			if err == nil {
				err = statAt(p.dir, p.name, &st)
				p.done()
			}
			if err != nil {
				data.Release()
				return File{}, err
			}
			data.Size = min(data.Size, st.Size)
		}
		d = u.fds.addData(data)
	}
	u.fds.drop(n.fd)
	n.fd = d
	return u.file(d), nil
}

// cached returns the node's open descriptor if it serves. The caller holds n.fdMu.
func (u *Union) cached(n *Node, write bool) (File, bool) {
	if n.fd == nil || write && !n.fd.writable || !u.fds.acquire(n.fd) {
		return File{}, false
	}
	return u.file(n.fd), true
}

func (u *Union) file(d *descriptor) File {
	f := File{FD: d.fd, Size: math.MaxInt64, fds: u.fds, d: d}
	if d.data != nil {
		f.Off, f.Size = d.data.Off, d.data.Size
	}
	return f
}

// openUpperFile opens a file of the upper branch for reading and, if it can, writing. The kernel has checked the caller's
// permissions; where this process is not privileged and the file's owner took his own away, they are given back for
// the moment of opening.
func (u *Union) openUpperFile(p place, write bool) (*descriptor, error) {
	const flags = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	fd, err := unix.Openat(p.dir, p.name, unix.O_RDWR|flags, 0)
	writable := err == nil
	if err == unix.EACCES || err == unix.EPERM {
		if !write {
			fd, err = unix.Openat(p.dir, p.name, unix.O_RDONLY|flags, 0)
		}
		if err == unix.EACCES {
			var st unix.Stat_t
			if statAt(p.dir, p.name, &st) == nil && unix.Fchmodat(p.dir, p.name, st.Mode&0o7777|0o600, 0) == nil {
				fd, err = unix.Openat(p.dir, p.name, unix.O_RDWR|flags, 0)
				writable = err == nil
				unix.Fchmodat(p.dir, p.name, st.Mode&0o7777, 0)
			}
		}
	}
	if err != nil {
		return nil, err
	}
	return u.fds.add(fd, writable), nil
}

// Read reads at an offset. At the end of the file it returns 0.
func (u *Union) Read(n *Node, off int64, p []byte) (int, error) {
	f, err := u.Data(n)
	if err != nil {
		return 0, err
	}
	defer f.Release()
	return f.ReadAt(p, off)
}

// Write writes at an offset; it copies the file up first.
func (u *Union) Write(n *Node, off int64, p []byte) (int, error) {
	f, err := u.WriteFD(n)
	if err != nil {
		return 0, err
	}
	defer f.Release()
	if f.part != nil {
		return f.part.write(p, off)
	}
	return pwriteAll(f.FD, p, off)
}

func pwriteAll(fd int, p []byte, off int64) (int, error) {
	total := 0
	for total < len(p) {
		m, err := unix.Pwrite(fd, p[total:], off+int64(total))
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			if total > 0 {
				return total, nil
			}
			return 0, err
		}
		total += m
	}
	return total, nil
}

// Fallocate is fallocate(2), with its modes. With keepTime the modification time stays as it is; see writeback.go.
func (u *Union) Fallocate(n *Node, mode uint32, off, length int64, keepTime bool) error {
	f, err := u.WriteFD(n)
	if err != nil {
		return err
	}
	defer f.Release()
	return u.keepingTime(n, &f, keepTime, func() error { return fallocate(&f, mode, off, length) })
}

func fallocate(f *File, mode uint32, off, length int64) error {
	do := func() error { return unix.Fallocate(f.FD, mode, off, length) }
	switch {
	case f.part == nil || mode&^unix.FALLOC_FL_KEEP_SIZE == 0:
		return do()
	case mode&(unix.FALLOC_FL_COLLAPSE_RANGE|unix.FALLOC_FL_INSERT_RANGE) != 0:
		// Blocks change places: only a whole file can do that.
		if err := f.part.complete(nil); err != nil {
			return err
		}
		return do()
	}
	return f.part.overwrite(off, length, do)
}

// SeekData is lseek(2) with SEEK_DATA and SEEK_HOLE.
func (u *Union) SeekData(n *Node, off int64, whence int) (int64, error) {
	f, err := u.Data(n)
	if err != nil {
		return 0, err
	}
	defer f.Release()
	if f.part != nil {
		var st unix.Stat_t
		if err := unix.Fstat(f.FD, &st); err != nil {
			return 0, err
		}
		f.Size = st.Size
	} else if f.Off == 0 {
		return unix.Seek(f.FD, off, whence)
	}
	// Within a layer's tar there are no holes, and those of a file that is not whole yet aren't its own.
	switch {
	case off < 0 || off >= f.Size:
		return 0, unix.ENXIO
	case whence == unix.SEEK_DATA:
		return off, nil
	case whence == unix.SEEK_HOLE:
		return f.Size, nil
	}
	return 0, unix.EINVAL
}

// CopyRange is copy_file_range(2) of at most length bytes between two files of the union, as far as the host does it without
// the data passing through this process; EXDEV or EOPNOTSUPP otherwise. With keepTime the modification time stays as it is.
func (u *Union) CopyRange(src *Node, srcOff int64, dst *Node, dstOff, length int64, keepTime bool) (int64, error) {
	to, err := u.WriteFD(dst)
	if err != nil {
		return 0, err
	}
	defer to.Release()
	from, err := u.Data(src)
	if err != nil {
		return 0, err
	}
	defer from.Release()
	if from.part != nil || to.part != nil {
		return 0, unix.EXDEV
	}
	if srcOff >= from.Size {
		return 0, nil
	}
	length = min(length, from.Size-srcOff, math.MaxInt32&^4095)
	srcOff += from.Off
	if keepTime {
		length = min(length, copyStep)
	}
	m := 0
	err = u.keepingTime(dst, &to, keepTime, func() (err error) {
		m, err = unix.CopyFileRange(from.FD, &srcOff, to.FD, &dstOff, int(length), 0)
		return err
	})
	return int64(m), err
}

// copyStep is the most bytes that are copied while others wait for the file's attributes.
const copyStep = 16 << 20

// Fsync makes a file's data, and unless dataOnly its metadata, durable; of a directory, its names.
func (u *Union) Fsync(n *Node, dataOnly bool) error {
	if u.upper == nil || u.volatile {
		return nil
	}
	n.mu.RLock()
	inUpper, removed, meta := n.inUpper, n.removed, n.meta
	n.mu.RUnlock()
	switch {
	case !inUpper:
		return nil
	case meta:
		return u.withPlace(n, func(p place) error {
			d, err := u.openUpperFile(p, false)
			if err != nil {
				return err
			}
			defer u.fds.release(d)
			defer u.fds.drop(d)
			return unix.Fsync(d.fd)
		})
	case n.regular():
		f, err := u.Data(n)
		if err != nil {
			return err
		}
		defer f.Release()
		if f.part != nil {
			return f.part.sync()
		}
		if dataOnly {
			return unix.Fdatasync(f.FD)
		}
		return unix.Fsync(f.FD)
	case n.isDir() && !removed:
		u.tree.RLock()
		defer u.tree.RUnlock()
		dir, d, err := u.dirFD(n)
		if err != nil {
			return err
		}
		if d != nil {
			defer u.fds.release(d)
		}
		fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return unix.Fsync(fd)
	}
	return nil
}
