package cow

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// upperBranch is the writable directory and the work directory beside it. This process is their only user: work/lock is locked, and the
// upper directory itself, which another union may have with another work directory.
//
// In the work directory: lock; new/, where what a rename will put into the upper branch is made; parked/, files without a
// name that somebody still holds, by node ID; index/, copied-up files whose lower had several hard links, by node ID. new/
// and parked/ are emptied at the start, index/ belongs to the upper branch; partial/, see partial.go; metacopy, see metacopy.go.
type upperBranch struct {
	path               string
	root, work         int // O_PATH
	fresh, park, index int
	partial            int
	lock, own          int    // work/lock, and the upper directory; own is -1 where that can't be read or locked
	prefix             string // of the overlay xattrs that are written
	count              atomic.Uint64
	noDevice           atomic.Bool // the host refuses whiteout devices: write .wh. files
	noFile             atomic.Bool // and those as well, as another union does: mark empty files by xattrs
	noClone            atomic.Bool // the file system can't share blocks between files
	noMetacopy         atomic.Bool // its files can't be marked as metadata-only copies
	whiteoutMade       atomic.Bool // new/whiteout is a whiteout device, to be linked

	hasIndex   atomic.Bool // index/ has entries
	metacopies atomic.Bool // there may be metadata-only copies: work/metacopy exists
}

func openUpper(upper, work string, resume bool) (_ *upperBranch, err error) {
	if work == "" {
		return nil, errors.New("an upper branch needs a work directory")
	}
	b := &upperBranch{path: upper, root: -1, work: -1, fresh: -1, park: -1, index: -1, partial: -1, lock: -1, own: -1}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	if b.root, err = unix.Open(upper, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, branchError(upper, err)
	}
	wfd, err := unix.Open(work, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("work directory: %w", branchError(work, err))
	}
	b.work = wfd
	var us, ws unix.Stat_t
	if err := errors.Join(statAt(b.root, "", &us), statAt(wfd, "", &ws)); err != nil {
		return nil, err
	}
	if us.Dev != ws.Dev {
		return nil, fmt.Errorf("upper branch %s and work directory %s must be on the same file system", upper, work)
	}
	if within(work, upper) || within(upper, work) {
		return nil, fmt.Errorf("upper branch %s and work directory %s must not contain each other", upper, work)
	}
	if b.lock, err = unix.Openat(wfd, "lock", unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600); err != nil {
		return nil, fmt.Errorf("work directory %s: %w", work, err)
	}
	if err := unix.Flock(b.lock, unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, fmt.Errorf("upper branch %s is in use by another mount (work directory %s is locked)", upper, work)
	}
	if b.own, err = unix.Openat(b.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		b.own = -1 // its owner may have taken the right to read it away
	} else if unix.Flock(b.own, unix.LOCK_EX|unix.LOCK_NB) == unix.EWOULDBLOCK {
		return nil, fmt.Errorf("upper branch %s is in use by another mount, with another work directory than %s", upper, work)
	}
	for _, d := range []struct {
		name string
		fd   *int
		keep bool
	}{{"new", &b.fresh, false}, {"parked", &b.park, resume}, {"index", &b.index, true}, {"partial", &b.partial, true}} {
		if !d.keep {
			if err := removeAllAt(wfd, d.name); err != nil {
				return nil, fmt.Errorf("clearing %s/%s: %w", work, d.name, err)
			}
		}
		if err := unix.Mkdirat(wfd, d.name, 0o700); err != nil && err != unix.EEXIST {
			return nil, fmt.Errorf("making %s/%s: %w", work, d.name, err)
		}
		if *d.fd, err = openDirAt(wfd, d.name); err != nil {
			return nil, fmt.Errorf("opening %s/%s: %w", work, d.name, err)
		}
	}
	err = listAt(b.index, "", func(dirent) bool { b.hasIndex.Store(true); return false })
	if err != nil {
		return nil, err
	}
	var mark unix.Stat_t
	b.metacopies.Store(statAt(wfd, metacopyMark, &mark) == nil)
	// trusted.* needs CAP_SYS_ADMIN in the first user namespace; the kernel's overlayfs reads user.* with -o userxattr.
	b.prefix = userPrefix
	probe := "probe"
	if err := unix.Mkdirat(b.fresh, probe, 0o700); err != nil {
		return nil, fmt.Errorf("work directory %s can't be written: %w", work, err)
	}
	if setxattrAt(b.fresh, probe, trustedPrefix+"opaque", []byte("n"), 0) == nil {
		b.prefix = trustedPrefix
	}
	unix.Unlinkat(b.fresh, probe, unix.AT_REMOVEDIR)
	return b, nil
}

// within reports whether path a is b or beneath it, links resolved as far as they can be.
func within(a, b string) bool {
	ra, err1 := realPath(a)
	rb, err2 := realPath(b)
	if err1 != nil || err2 != nil {
		return false
	}
	rel, err := filepath.Rel(rb, ra)
	return err == nil && rel != ".." && !(len(rel) > 2 && rel[:3] == "../")
}

func realPath(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(abs)
}

func (b *upperBranch) close() error {
	for _, fd := range []int{b.root, b.work, b.fresh, b.park, b.index, b.partial, b.lock, b.own} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	return nil
}

// name returns an unused name in new/.
func (b *upperBranch) name() string { return strconv.FormatUint(b.count.Add(1), 16) }

func idName(id uint64) string { return strconv.FormatUint(id, 16) }

// unpark deletes a parked file. Nothing depends on it: what stays behind is removed at the next start.
func (b *upperBranch) unpark(id uint64, dir bool) {
	if dir {
		removeAllAt(b.park, idName(id))
		return
	}
	unix.Unlinkat(b.park, idName(id), 0)
}

// hasHardLinks reports whether index/ may have entries.
func (b *upperBranch) hasHardLinks() bool { return b.hasIndex.Load() }

// whiteout puts the mark for "deleted here" at a name which the upper branch doesn't have.
func (b *upperBranch) whiteout(dir int, name string) error {
	if !b.noDevice.Load() {
		// As the kernel's overlayfs: one inode for many whiteouts, made anew where it can't have another link.
		if b.whiteoutMade.Load() {
			err := unix.Linkat(b.fresh, "whiteout", dir, name, 0)
			if err == nil || err == unix.EEXIST {
				return err
			}
			b.whiteoutMade.Store(false)
			unix.Unlinkat(b.fresh, "whiteout", 0)
		}
		err := unix.Mknodat(dir, name, unix.S_IFCHR, 0)
		if err == nil {
			b.whiteoutMade.Store(unix.Linkat(dir, name, b.fresh, "whiteout", 0) == nil)
		}
		if err != unix.EPERM && err != unix.EOPNOTSUPP && err != unix.EINVAL {
			return err
		}
		b.noDevice.Store(true)
	}
	if !b.noFile.Load() {
		err := makeEmpty(dir, whiteoutPrefix+name)
		if err != unix.EINVAL && err != unix.EPERM {
			return err
		}
		b.noFile.Store(true)
	}
	return b.xattrWhiteout(dir, name)
}

// xattrWhiteout is the kernel's mark for branches that are themselves in an overlay: an empty file, and a note at its directory
// that such marks may be in it.
func (b *upperBranch) xattrWhiteout(dir int, name string) error {
	if err := b.allowXattrWhiteouts(dir); err != nil {
		return err
	}
	tmp := b.name()
	if err := makeEmpty(b.fresh, tmp); err != nil {
		return err
	}
	err := setxattrAt(b.fresh, tmp, b.prefix+"whiteout", []byte("y"), 0)
	if err == nil {
		err = unix.Renameat2(b.fresh, tmp, dir, name, unix.RENAME_NOREPLACE)
	}
	if err != nil {
		unix.Unlinkat(b.fresh, tmp, 0)
	}
	return err
}

// allowXattrWhiteouts makes the note.
func (b *upperBranch) allowXattrWhiteouts(dir int) error {
	opaque, may, err := markedOpaque(dir, "")
	if err != nil || opaque || may {
		return err
	}
	return setxattrAt(dir, "", b.prefix+"opaque", []byte("x"), 0)
}

func makeEmpty(dir int, name string) error {
	fd, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// whiteoutsByFile reports whether whiteouts are made as .wh. files now.
func (b *upperBranch) whiteoutsByFile() bool { return b.noDevice.Load() && !b.noFile.Load() }

// markOpaque makes a directory hide what lower branches have in it: by an xattr, or where there are none by a file in it.
func (b *upperBranch) markOpaque(dir int, name string) error {
	err := setxattrAt(dir, name, b.prefix+"opaque", []byte("y"), 0)
	if err != unix.EOPNOTSUPP {
		return err
	}
	fd, err := openDirAt(dir, name)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return makeEmpty(fd, opaqueName)
}

// originOf reads which lower file an upper file was copied up from; 0 if none is recorded.
func originOf(dir int, name string) (uint64, error) {
	v, err := ownXattr(dir, name, originXattr)
	if noXattr(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	id, err := strconv.ParseUint(string(v), 16, 64)
	if err != nil || id < 1<<inoBits || id >= 1<<62 {
		return 0, nil // not ours: a file without origin
	}
	return id, nil
}

// setOrigin records it. File systems without user xattrs, and files that can't have any, do without: recorded is false then, and
// the number another when nobody has held the file for a while.
func setOrigin(dir int, name string, id uint64) (recorded bool, err error) {
	err = setOwnXattr(dir, name, originXattr, []byte(strconv.FormatUint(id, 16)))
	if err == unix.EOPNOTSUPP || err == unix.EPERM || err == unix.ENOSPC {
		return false, nil
	}
	return err == nil, err
}

// place is where the upper branch has a file: a directory's descriptor and a name in it. done releases the descriptor.
type place struct {
	dir  int
	name string
	u    *Union
	d    *descriptor
}

func (p place) done() {
	if p.d != nil {
		p.u.fds.release(p.d)
	}
}

// at returns where the upper branch has n. The caller holds tree and n.mu (at least shared), or has n for itself.
func (u *Union) at(n *Node) (place, error) {
	if n == u.root {
		return place{dir: u.upper.root, name: "."}, nil
	}
	if n.parked {
		return place{dir: u.upper.park, name: idName(n.id)}, nil
	}
	for i := range n.links {
		if l := &n.links[i]; l.upper {
			return u.in(l.parent, l.name)
		}
	}
	if n.indexed {
		return place{dir: u.upper.index, name: idName(n.id)}, nil
	}
	return place{}, unix.ENOENT
}

// in returns the place of a name in a directory that is in the upper branch.
func (u *Union) in(dir *Node, name string) (place, error) {
	fd, d, err := u.dirFD(dir)
	return place{fd, name, u, d}, err
}

// dirFD returns the descriptor (O_PATH) of a directory in the upper branch. The caller holds tree and releases it.
func (u *Union) dirFD(n *Node) (int, *descriptor, error) {
	if n == u.root {
		return u.upper.root, nil, nil
	}
	n.fdMu.Lock()
	defer n.fdMu.Unlock()
	if u.fds.acquire(n.fd) {
		return n.fd.fd, n.fd, nil
	}
	if len(n.links) == 0 {
		return -1, nil, unix.ENOENT
	}
	p, err := u.in(n.links[0].parent, n.links[0].name)
	if err != nil {
		return -1, nil, err
	}
	defer p.done()
	fd, err := openDirAt(p.dir, p.name)
	if err != nil {
		return -1, nil, err
	}
	n.fd = u.fds.add(fd, false)
	return fd, n.fd, nil
}
