package cow

import (
	"slices"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// maxBranches is bounded by the bits that the branch's number has in a file's ID.
const maxBranches = 1<<(62-inoBits) - 2

// Node is a file of the union that somebody holds: one for all hard links of a file. Lookup, Create and their like add a
// reference, Forget takes them away; a link that a held node has in a directory holds that directory too. The root is
// always held.
//
// Its ID is what stat(2) shows as the inode number. It is derived from what the file was made from: branch and inode number
// of the lower file, also after it was copied up (which the xattr user.unionfs.origin remembers), or the inode number of
// the upper file. So it stays the same over copy-up, over renames and over another start of the server.
type Node struct {
	id   uint64
	kind uint32 // S_IFMT bits; never changes
	refs int64  // guarded by the shard's lock

	mu      sync.RWMutex
	links   []link     // known names. A directory has at most one, which only Rename changes, holding Union.tree
	inUpper bool       // the upper branch has it: at a link marked upper, or parked, or in the index of hard links
	indexed bool       // the upper branch has it under its ID in work/index
	claimed bool       // somebody gave it the union's own owner, on purpose; see recorded.go
	parked  bool       // its last known name was removed, and it is kept under its ID in work/parked until it is forgotten
	removed bool       // the union has no name for it any more
	only    bool       // it is a lower branch's file that has no other names there
	fewer   uint32     // how many lower names were removed while the file was not in the upper branch
	low     source     // where the lower file is, for what is not a directory; zero branch and dir if there is none
	lowIn   *directory // the directory that low is in
	meta    bool       // the upper branch has only the metadata, low the data; see metacopy.go
	// anchored says of a metadata-only copy that overlay.redirect says where in the lower branches its data is.
	anchored bool
	dir      *directory
	part     *partial // set while not all of its data is copied up, and for a while after

	// What is known not to be, so that the host isn't asked for every file that is made. Set with mu held at least shared,
	// cleared with it held.
	noDefaultACL atomic.Bool // a directory has no default ACL
	noSetgid     atomic.Bool // a directory of the upper branch has no setgid bit
	noXattrs     atomic.Bool // a file has been given no xattr since it was made, by us or a default ACL

	fdMu sync.Mutex
	fd   *descriptor // guarded by fdMu: for a directory that is in the upper branch, it (O_PATH); for a regular file its data
}

// link is a name of a node.
type link struct {
	parent *Node
	name   string
	upper  bool // the upper branch has this name
}

// source is an entry of a lower branch. For a directory, dir is the directory itself and entry its own entry; else dir is the
// directory that the entry is in.
type source struct {
	branch int
	dir    Dir
	entry  Entry
}

// ID is the node's number in the FUSE protocol and its st_ino.
func (n *Node) ID() uint64 { return n.id }

// Kind is the S_IFMT part of the node's mode.
func (n *Node) Kind() uint32 { return n.kind }

// lowerID makes an ID of a lower file's number. Branches are counted from the bottom, so that a branch added on top leaves
// the numbers below as they were.
func (u *Union) lowerID(branch int, ino uint64) uint64 {
	return uint64(len(u.lowers)-branch)<<inoBits | ino&(1<<inoBits-1)
}

// obtain returns the live node with this ID with one more reference, or makes it with fill, which gives it one link, in
// parent; the caller holds that. With no parent it gets no link, else a name. A live node that is not the
// same file (an upper file whose recorded origin belongs to another stack of branches, say) keeps the ID, and the new
// one gets an unused one.
func (u *Union) obtain(id uint64, parent *Node, name string, same func(*Node) bool, fill func(id uint64) *Node) *Node {
	own := id
	if parent != nil && u.spares.count.Load() > 0 {
		if lasting := u.spares.of(id, parent.id, Cookie(name)); lasting != 0 {
			id = lasting
		}
	}
	for {
		s := u.shard(id)
		s.mu.Lock()
		n := s.nodes[id]
		if n == nil && s.thin[id].refs > 0 {
			s.mu.Unlock()
			if u.thicken(id) == nil {
				u.dropThin(id) // its directory is gone, or its branch is damaged
			}
			continue
		}
		if n == nil {
			n = fill(id)
			n.refs = 1
			if u.former != nil && !n.parked {
				n.parked = u.former.take(id)
			}
			u.seen(n) // before anybody else can reach it
			s.nodes[id] = n
			s.mu.Unlock()
			if parent != nil {
				u.ref(parent)
			}
			return n
		}
		n.refs++
		s.mu.Unlock()
		if same(n) {
			return n
		}
		u.Forget(n, 1)
		id = spareBit | u.spare.Add(1)
		if parent != nil {
			u.spares.add(id, own, parent.id, Cookie(name))
		}
	}
}

// known returns the node of an upper name that is no directory's, with one more reference, if somebody holds it already; else nil.
// The caller holds tree and the directory's mu.
func (u *Union) known(dir *Node, f *found) *Node {
	if f.upper == nil || f.upper.id == 0 || f.upper.kind == unix.S_IFDIR {
		return nil
	}
	s := u.shard(f.upper.id)
	s.mu.Lock()
	n := s.nodes[f.upper.id]
	if n == nil || n.isDir() {
		s.mu.Unlock()
		return nil
	}
	n.refs++
	s.mu.Unlock()
	n.mu.RLock()
	is := n.inUpper && n.hasLink(link{parent: dir, name: f.name})
	n.mu.RUnlock()
	if !is {
		u.Forget(n, 1)
		return nil
	}
	return n
}

// want is resolve for who needs no attributes.
func (u *Union) want(dir *Node, f *found) (*Node, error) {
	if n := u.known(dir, f); n != nil {
		return n, nil
	}
	var a Attr
	return u.resolve(dir, f, &a)
}

// hold takes a reference of a live node that is known by its ID only; nil if there is none.
func (u *Union) hold(id uint64) *Node {
	s := u.shard(id)
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[id]
	if n != nil {
		n.refs++
	}
	return n
}

func (u *Union) ref(n *Node) {
	s := u.shard(n.id)
	s.mu.Lock()
	n.refs++
	s.mu.Unlock()
}

// Forget takes count references away. A node that is held no more lets go of its data if it has no name.
func (u *Union) Forget(n *Node, count uint64) {
	for n != nil && n.id != RootID {
		s := u.shard(n.id)
		s.mu.Lock()
		n.refs -= int64(count)
		if n.refs > 0 {
			s.mu.Unlock()
			return
		}
		if n.parked && u.former != nil {
			u.former.keep(n) // before anybody can make another node of it
		}
		if s.nodes[n.id] == n {
			delete(s.nodes, n.id)
		}
		s.mu.Unlock()
		// Nobody else can reach n from here on: what refers to it holds a reference.
		if u.former == nil {
			u.spares.drop(n.id)
		}
		if n.parked && u.former == nil {
			u.upper.unpark(n.id, n.isDir())
			if n.part != nil {
				u.dropPartial(n.part)
			}
		}
		n.fdMu.Lock()
		u.fds.drop(n.fd)
		n.fd = nil
		n.fdMu.Unlock()
		n.mu.Lock()
		links := n.links
		n.links = nil
		n.mu.Unlock()
		var next *Node
		for i, l := range links {
			if i == 0 {
				next = l.parent
				continue
			}
			u.Forget(l.parent, 1)
		}
		n, count = next, 1
	}
}

// Parent returns the directory that a directory is in, without a reference; the root's is the root.
func (u *Union) Parent(n *Node) *Node {
	u.tree.RLock()
	defer u.tree.RUnlock()
	n.mu.RLock()
	defer n.mu.RUnlock()
	if len(n.links) == 0 {
		return u.root
	}
	return n.links[0].parent
}

// addLink records a name of n. The caller holds n.mu and the parent by more than n.
func (u *Union) addLink(n, parent *Node, name string, upper bool) {
	n.removed = false
	for i := range n.links {
		if l := &n.links[i]; l.parent == parent && l.name == name {
			l.upper = l.upper || upper
			return
		}
	}
	u.ref(parent)
	n.links = append(n.links, link{parent, name, upper})
	u.seen(n)
}

// dropLink forgets a name of n. The caller holds n.mu, and parent otherwise.
func (u *Union) dropLink(n, parent *Node, name string) {
	n.links = slices.DeleteFunc(n.links, func(l link) bool {
		if l.parent != parent || l.name != name {
			return false
		}
		u.unref(parent)
		return true
	})
}

// unref takes a reference that can't be the last one.
func (u *Union) unref(n *Node) {
	s := u.shard(n.id)
	s.mu.Lock()
	n.refs--
	s.mu.Unlock()
}

// upperName is what a directory of the upper branch knows of a node under a name. The caller holds n.mu or tree exclusively.
func (n *Node) upperName(name string) upperName {
	return upperName{name: name, id: n.id, kind: n.kind, meta: n.meta}
}

// regular reports whether the node is a regular file.
func (n *Node) regular() bool { return n.kind == unix.S_IFREG }

// isDir reports whether the node is a directory.
func (n *Node) isDir() bool { return n.kind == unix.S_IFDIR }
