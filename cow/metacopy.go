package cow

import (
	"errors"
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Metadata-only copies: a file of which only the mode, say, changes is copied up without its data, as the kernel's overlayfs
// does it with metacopy=on. What is in the upper branch then has the size but no data, and the xattr overlay.metacopy; the
// data is in a branch below, under the same name or where overlay.redirect says (Documentation/filesystems/overlayfs.rst,
// "Metadata only copy up"). This union reads them in any branch, and completes one before its data changes.
//
// What is not complete when the union is closed is completed then, unless Options.Metacopy says otherwise, since not every
// program that reads upper branches knows them. The file work/metacopy says that there may be some, so that a union
// that is killed leaves it to the end of the next.

// metacopyXattr is without the prefix. Its value, if any, is the digest of the data for fs-verity.
const metacopyXattr = "metacopy"

// lowerData opens the content of a node's lower file.
func (u *Union) lowerData(n *Node) (*Data, error) {
	s, in := n.low, n.lowIn
	for s.dir != nil {
		data, err := s.dir.Open(s.entry)
		if err != nil || !data.Elsewhere {
			return data, err
		}
		redirect := data.Redirect
		data.Release()
		if s, in, err = u.below(in, s.entry.Name, redirect, s.branch+1); err != nil {
			return nil, err
		}
	}
	return nil, unix.EIO // a metadata-only copy of nothing
}

// below finds a regular file in the branches from the given one down: by its name in a directory, or by what overlay.redirect
// says of it. The source is zero if there is none.
func (u *Union) below(in *directory, name, redirect string, branch int) (source, *directory, error) {
	if strings.HasPrefix(redirect, "/") {
		dir, base := path.Split(redirect)
		var err error
		if in, err = u.follow(nil, dir, branch); err != nil {
			return source{}, nil, err
		}
		if err := u.trim(in); err != nil {
			return source{}, nil, err
		}
		name = base
	} else if redirect != "" {
		name = redirect
	}
	for i := range in.sources {
		s := &in.sources[i]
		if s.branch < branch {
			continue
		}
		e, err := s.dir.Lookup(name)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return source{}, nil, err
		}
		if e.Whiteout || e.Type != unix.S_IFREG {
			break
		}
		return source{branch: s.branch, dir: s.dir, entry: e}, in, nil
	}
	return source{}, nil, nil
}

// Metacopy says what a union does when only the metadata of a lower file changes.
type Metacopy int

const (
	MetacopyUntilClose Metacopy = iota // copy the data when it changes, or else when the union is closed
	MetacopyKeep                       // copy the data only when it changes; the upper branch is for readers of overlay.metacopy
	MetacopyOff                        // copy the data at once
)

// metacopyMark is the file in the work directory.
const metacopyMark = "metacopy"

// markMetacopy marks a new file of the upper branch, in new/ as yet, as a metadata-only copy. False if it can't be one.
func (u *Union) markMetacopy(tmp string) bool {
	b := u.upper
	if u.metacopy == MetacopyOff || b.noMetacopy.Load() {
		return false
	}
	if !b.metacopies.Load() {
		fd, err := unix.Openat(b.work, metacopyMark, unix.O_CREAT|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false
		}
		unix.Close(fd)
		b.metacopies.Store(true)
	}
	err := setxattrAt(b.fresh, tmp, b.prefix+metacopyXattr, nil, 0)
	if err == unix.EOPNOTSUPP {
		b.noMetacopy.Store(true)
	}
	return err == nil
}

// copyUpMetadata makes sure that a file which is no directory is in the upper branch, if need be without its data. Until unlock is
// called the data is not copied up.
func (u *Union) copyUpMetadata(n *Node) (unlock func(), err error) {
	if u.upper == nil {
		return nil, unix.EROFS
	}
	if n.whole() {
		return func() {}, nil
	}
	lock := u.copyLock(n)
	lock.Lock()
	if !n.isInUpper() {
		if err := u.copyUpLower(n, wholeSize, true); err != nil {
			lock.Unlock()
			return nil, err
		}
	}
	return lock.Unlock, nil
}

// copyUpToMove copies a file up that is about to get another name: a metadata-only copy then says from where in the lower branches
// its data is.
func (u *Union) copyUpToMove(n *Node) error {
	if n.regular() && u.metacopy != MetacopyOff && !u.noRedirect {
		unlock, err := u.copyUpMetadata(n)
		if err != nil {
			return err
		}
		unlock()
		if err := u.anchor(n); err == nil {
			return nil
		}
	}
	return u.copyUp(n, wholeSize)
}

// anchor records where the data of a metadata-only copy is, by a path that holds whatever the file is called.
func (u *Union) anchor(n *Node) error {
	path := u.lowerPathOf(n)
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.meta || n.anchored {
		return nil
	}
	if path == "" {
		return unix.ENOENT
	}
	p, err := u.at(n)
	if err != nil {
		return err
	}
	defer p.done()
	err = setxattrAt(p.dir, p.name, u.upper.prefix+"redirect", []byte(path), 0)
	n.anchored = err == nil
	return err
}

// lost reports whether nobody would find the data of a node under another name. The caller holds tree exclusively.
func (n *Node) lost() bool { return n.meta && !n.anchored }

// lowerPathOf is where a file's content is in the lower branches, from their root; "" if nobody can say.
func (u *Union) lowerPathOf(n *Node) string {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	redirect := ""
	if n.meta {
		p, err := u.at(n)
		if err != nil {
			return ""
		}
		_, redirect, err = metadataOnly(p.dir, p.name)
		p.done()
		if err != nil || strings.HasPrefix(redirect, "/") {
			return redirect
		}
	}
	// As long as nothing else is said the data is under the name of the file, whichever it has.
	if len(n.links) == 0 {
		return ""
	}
	l := &n.links[0]
	if redirect == "" {
		redirect = l.name
	}
	return u.lowerPath(l.parent) + "/" + redirect
}

// fixBlocks gives the attributes of a metadata-only copy the blocks that its data has, as the kernel does: who reads a file that
// has none takes it for one hole. The caller holds n.mu.
func (n *Node) fixBlocks(a *Attr) error {
	if !n.meta || n.low.dir == nil {
		return nil
	}
	var low Attr
	if err := n.low.dir.Stat(n.low.entry, &low); err != nil {
		return err
	}
	a.Blocks = low.Blocks
	return nil
}

// complete gives a metadata-only copy in the upper branch its data, of which at most size bytes are wanted, or has that done block
// by block. The caller holds the lock of its copy-ups.
func (u *Union) complete(n *Node, size int64) error {
	path := u.lowerPathOf(n)
	var fd int
	var st unix.Stat_t
	err := u.withPlace(n, func(p place) (err error) {
		d, err := u.openUpperFile(p, true)
		if err != nil {
			return err
		}
		defer u.fds.release(d)
		defer u.fds.drop(d)
		fd, err = unix.FcntlInt(uintptr(d.fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return err
	}
	var part *partial
	defer func() {
		if part == nil {
			unix.Close(fd)
		}
	}()
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	size = min(size, st.Size)
	shared, err := u.shareLower(n, fd, st.Size)
	if err != nil {
		return err
	}
	if !shared && path != "" && u.partialWanted(size) {
		var low Attr
		if err := n.low.dir.Stat(n.low.entry, &low); err != nil {
			return err
		}
		err := u.withPlace(n, func(p place) (err error) {
			part, err = u.startPartial(n, p, fd, &low, size, path)
			return err
		})
		if err == nil && size < st.Size {
			err = unix.Ftruncate(fd, size)
		}
		if err == nil {
			err = u.completed(n, part)
		}
		if err != nil {
			if part == nil {
				return err
			}
			return errors.Join(err, part.end())
		}
		u.completeLater(part)
		return nil
	}
	// All of it also if the end is about to be cut off: as long as it has the mark, its size can't be another than that of its data,
	// and without the mark it can't lack any.
	if !shared {
		if err := u.fillUpper(n, fd, st.Size); err != nil {
			return err
		}
	}
	if !u.volatile {
		if err := unix.Fdatasync(fd); err != nil {
			return err
		}
	}
	if err := u.restoreTimes(n, &st); err != nil {
		return err
	}
	return u.completed(n, nil)
}

// shareLower has the upper file fd of a metadata-only copy share the first size bytes with the lower one, if the file system can.
func (u *Union) shareLower(n *Node, fd int, size int64) (bool, error) {
	if size == 0 {
		return true, nil
	}
	if u.upper.noClone.Load() {
		return false, nil
	}
	data, err := u.lowerData(n)
	if err != nil {
		return false, err
	}
	defer data.Release()
	return cloneData(fd, data, size, &u.upper.noClone), nil
}

// fillUpper copies the first size bytes of the data of a metadata-only copy to its upper file fd. They are read from below until
// completed is called.
func (u *Union) fillUpper(n *Node, fd int, size int64) error {
	data, err := u.lowerData(n)
	if err != nil {
		return err
	}
	defer data.Release()
	return copyData(fd, data, min(size, data.Size), true)
}

func (u *Union) restoreTimes(n *Node, st *unix.Stat_t) error {
	return u.withPlace(n, func(p place) error {
		return unix.UtimesNanoAt(p.dir, p.name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// completed takes the mark away from a metadata-only copy that has its data, or part of it.
func (u *Union) completed(n *Node, part *partial) error {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.Lock()
	defer n.mu.Unlock()
	p, err := u.at(n)
	if err != nil {
		return err
	}
	defer p.done()
	if err := unmarkMetacopy(p.dir, p.name); err != nil {
		return err
	}
	n.meta, n.anchored, n.low, n.lowIn = false, false, source{}, nil
	n.fdMu.Lock()
	u.fds.drop(n.fd)
	n.fd, n.part = nil, part
	n.fdMu.Unlock()
	return nil
}

// unmarkMetacopy makes a metadata-only copy a file like any other.
func unmarkMetacopy(dir int, name string) error {
	for _, attr := range [...]string{metacopyXattr, "redirect"} { // in this order: without the latter the former misleads
		for _, prefix := range [...]string{trustedPrefix, userPrefix} {
			if err := removexattrAt(dir, name, prefix+attr); err != nil && !noXattr(err) && err != unix.EPERM {
				return err
			}
		}
	}
	return nil
}

// withPlace calls do with where the upper branch has a node.
func (u *Union) withPlace(n *Node, do func(place) error) error {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	p, err := u.at(n)
	if err != nil {
		return err
	}
	defer p.done()
	return do(p)
}

// whole reports whether the upper branch has all of a node.
func (n *Node) whole() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.inUpper && !n.meta
}

func (n *Node) isInUpper() bool {
	n.mu.RLock()
	defer n.mu.RUnlock()
	return n.inUpper
}

// wholeSize is the size of data to copy for a change that keeps all of it.
const wholeSize = math.MaxInt64
