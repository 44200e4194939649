package cow

import (
	"math"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Metadata-only copies: the kernel's overlayfs with metacopy=on copies up a file whose mode, say, changes without its data. What
// is in the upper branch then has the size but no data, and the xattr overlay.metacopy; the data is in a branch below, under
// the same name or where overlay.redirect says (Documentation/filesystems/overlayfs.rst, "Metadata only copy up"). This union
// reads them in any branch, and completes one before it changes anything about it.

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

// complete gives a metadata-only copy in the upper branch its data, of which at most size bytes are wanted. Until the last
// step, which takes the mark away, the data is read from below.
func (u *Union) complete(n *Node, size int64) error {
	var d *descriptor
	err := u.withPlace(n, func(p place) (err error) {
		d, err = u.openUpperFile(p, true)
		return err
	})
	if err != nil {
		return err
	}
	defer u.fds.drop(d)
	defer u.fds.release(d)
	var st unix.Stat_t
	if err := unix.Fstat(d.fd, &st); err != nil {
		return err
	}
	if size = min(size, st.Size); size > 0 {
		data, err := u.lowerData(n)
		if err != nil {
			return err
		}
		if !cloneData(d.fd, data, size, &u.upper.noClone) {
			err = copyData(d.fd, data, size, true)
		}
		data.Release()
		if err != nil {
			return err
		}
	}
	if !u.volatile {
		if err := unix.Fdatasync(d.fd); err != nil {
			return err
		}
	}
	err = u.withPlace(n, func(p place) error {
		if err := unix.UtimesNanoAt(p.dir, p.name, []unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		for _, prefix := range [...]string{trustedPrefix, userPrefix} {
			if err := removexattrAt(p.dir, p.name, prefix+metacopyXattr); err != nil && !noXattr(err) && err != unix.EPERM {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.meta, n.low, n.lowIn = false, source{}, nil
	n.mu.Unlock()
	n.fdMu.Lock()
	u.fds.drop(n.fd)
	n.fd = nil
	n.fdMu.Unlock()
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

// wholeSize is the size of data to copy for a change that keeps all of it.
const wholeSize = math.MaxInt64
