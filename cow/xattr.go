package cow

import (
	"strings"

	"golang.org/x/sys/unix"
)

// BranchXattr is a read-only attribute that every file of a union has and no listing shows: which branch or layer provides the
// file, and after a newline each that it hides or is merged with.
const BranchXattr = "user.unionfs.branch"

// capabilityXattr is what the kernel asks for at the first write to a file (security/commoncap.c, cap_inode_need_killpriv).
const capabilityXattr = "security.capability"

// Getxattr returns the value of an extended attribute; ENODATA if the file has none of that name.
func (u *Union) Getxattr(n *Node, name string) ([]byte, error) {
	// What the kernel asks of every file that is made.
	if name == capabilityXattr && n.noXattrs.Load() || name == aclDefaultXattr && n.noDefaultACL.Load() {
		return nil, unix.ENODATA
	}
	return u.getxattr(n, name)
}

func (u *Union) getxattr(n *Node, name string) ([]byte, error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	if name == BranchXattr {
		return u.describe(n)
	}
	disk := escapeXattr(name)
	if disk == name && u.private(name) {
		return nil, unix.ENODATA
	}
	if n.inUpper {
		p, err := u.at(n)
		if err != nil {
			return nil, err
		}
		defer p.done()
		v, err := getxattrAt(p.dir, p.name, disk)
		if name == aclDefaultXattr && noXattr(err) && n.isDir() {
			n.noDefaultACL.Store(true)
		}
		return u.owners.shownXattr(name, v), err
	}
	s := n.lowerSource()
	v, err := s.dir.Getxattr(s.entry, disk)
	return u.owners.shownXattr(name, v), err
}

// lowerSource is the lower file that a node which is not in the upper branch is.
func (n *Node) lowerSource() source {
	if n.isDir() {
		return n.dir.sources[0]
	}
	return n.low
}

// Listxattr returns the names of a file's extended attributes, without those that the format on disk needs for itself.
func (u *Union) Listxattr(n *Node) ([]string, error) {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	var names []string
	var err error
	if n.inUpper {
		var p place
		if p, err = u.at(n); err == nil {
			names, err = listxattrAt(p.dir, p.name)
			p.done()
		}
	} else {
		s := n.lowerSource()
		names, err = s.dir.Listxattr(s.entry)
	}
	if err != nil {
		if noXattr(err) {
			return nil, nil
		}
		return nil, err
	}
	shown := names[:0]
	for _, x := range names {
		// By its name on disk: a user's own attribute may be called what the format's are.
		if own, ok := unescapeXattr(x); ok && (own != x || !u.private(x)) {
			shown = append(shown, own)
		}
	}
	return shown, nil
}

// Setxattr sets an extended attribute, with the flags of setxattr(2).
func (u *Union) Setxattr(n *Node, name string, value []byte, flags int) error {
	value, err := u.owners.storedXattr(name, value)
	if err != nil {
		return err
	}
	return u.changeXattr(n, name, func(p place, disk string) error {
		return setxattrAt(p.dir, p.name, disk, value, flags)
	})
}

// Removexattr removes an extended attribute; ENODATA if the file has none of that name.
func (u *Union) Removexattr(n *Node, name string) error {
	return u.changeXattr(n, name, func(p place, disk string) error {
		return removexattrAt(p.dir, p.name, disk)
	})
}

func (u *Union) changeXattr(n *Node, name string, change func(p place, disk string) error) error {
	if u.upper == nil {
		return unix.EROFS
	}
	disk := escapeXattr(name)
	if disk == name && u.private(name) || name == BranchXattr {
		return unix.EPERM
	}
	if u.owners.Xattr && isACL(name) {
		return unix.EOPNOTSUPP // it would be in the mode of the inode
	}
	return u.change(n, func(p place) error { return change(p, disk) })
}

// describe says where a file comes from, and what it hides. The caller holds tree and n.mu.
func (u *Union) describe(n *Node) ([]byte, error) {
	var from []string
	if n.inUpper {
		from = append(from, u.upper.path)
	}
	switch {
	case n == u.root:
		for _, s := range n.dir.sources {
			from = append(from, u.lowers[s.branch].Describe())
		}
	case n.isDir():
		for _, s := range n.dir.sources {
			from = append(from, s.dir.Describe(s.entry))
		}
	case len(n.links) > 0:
		lower, err := providers(n.links[0])
		if err != nil {
			return nil, err
		}
		from = append(from, lower...)
	}
	if len(from) == 0 && n.low.dir != nil {
		from = append(from, n.low.dir.Describe(n.low.entry))
	}
	return []byte(strings.Join(from, "\n")), nil
}

// providers says which lower branches have a name, from the top down to where it is deleted.
func providers(l link) ([]string, error) {
	// The lock of a directory comes before those of what is in it. Where it is being changed, less of an answer is better than
	// that order broken.
	if !l.parent.mu.TryRLock() {
		return nil, nil
	}
	defer l.parent.mu.RUnlock()
	var from []string
	for _, s := range l.parent.dir.sources {
		e, err := s.dir.Lookup(l.name)
		if err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, err
		}
		if e.Whiteout {
			break
		}
		from = append(from, s.dir.Describe(e))
	}
	return from, nil
}
