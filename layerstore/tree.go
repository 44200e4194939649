package layerstore

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// layerTree is what the headers of one layer's tar amount to, by the rules that hold within a layer. The rules between
// layers are merge.go's.
type layerTree struct {
	root     *node
	nodes    int
	metadata int // bytes of names, targets and xattrs

	// The directory of the last entry: tars list directories together, and walking from the root for each file would
	// be most of the work.
	lastPath string
	lastDir  *node
}

// node is a name in a layer. Without inode and link it is only a whiteout.
type node struct {
	name     string
	children map[string]*node // nil unless a directory, and in an empty one
	inode    *inode
	link     string // path that the name is a hard link to, if the layer had no such entry before it
	replaces bool   // the name is hidden in the layers below: a whiteout, or once something else than a directory
	opaque   bool   // the content of the directory is hidden in the layers below
	implied  bool   // a directory that has no header
}

// inode is what hard links share.
type inode struct {
	mode, uid, gid, rdev uint32
	sec                  int64
	nsec                 uint32
	offset, size         uint64
	target               string
	xattrs               []byte

	ino, nlink uint32 // set by index
}

func (n *node) isDir() bool { return n.inode != nil && n.inode.mode&unix.S_IFMT == unix.S_IFDIR }

// isEntry reports whether there is more to the node than a whiteout.
func (n *node) isEntry() bool { return n.inode != nil || n.link != "" }

func newLayerTree() *layerTree {
	return &layerTree{root: &node{inode: impliedInode(), implied: true}, nodes: 1}
}

func impliedInode() *inode { return &inode{mode: unix.S_IFDIR | 0o755} }

// dir returns the directory at path, which is clean and relative, "" being the root. Directories that have no header
// yet are made, as every applier does. It is an error if anything on the way is in this layer and not a directory: a
// symbolic link there is never followed.
func (t *layerTree) dir(path string) (*node, error) {
	if path == t.lastPath && t.lastDir != nil {
		return t.lastDir, nil
	}
	d := t.root
	for rest := path; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		c, err := t.child(d, name)
		if err != nil {
			return nil, err
		}
		if !c.isEntry() {
			c.inode, c.implied = impliedInode(), true
		}
		if !c.isDir() {
			at := strings.TrimSuffix(strings.TrimSuffix(path, rest), "/")
			return nil, fmt.Errorf("it lies beneath %q, which the same layer has as a %s", at, c.kind())
		}
		d = c
	}
	t.lastPath, t.lastDir = path, d
	return d, nil
}

func (n *node) kind() string {
	if n.link != "" {
		return "hard link"
	}
	return kindName(n.inode.mode)
}

func kindName(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFCHR, unix.S_IFBLK:
		return "device"
	case unix.S_IFIFO:
		return "named pipe"
	}
	return "special file"
}

// child returns the node of a name in d and makes it if need be.
func (t *layerTree) child(d *node, name string) (*node, error) {
	if c, ok := d.children[name]; ok {
		return c, nil
	}
	if t.nodes >= maxNodes {
		return nil, fmt.Errorf("the layer has more than %d files", maxNodes)
	}
	if err := t.account(len(name)); err != nil {
		return nil, err
	}
	t.nodes++
	c := &node{name: strings.Clone(name)}
	if d.children == nil {
		d.children = make(map[string]*node)
	}
	d.children[c.name] = c
	return c, nil
}

func (t *layerTree) account(bytes int) error {
	t.metadata += bytes
	if t.metadata > maxMetadata {
		return fmt.Errorf("names and attributes in the layer are more than %d bytes", maxMetadata)
	}
	return nil
}

// put sets the node to an inode. A directory over a directory replaces the attributes, anything else replaces all.
func (t *layerTree) put(n *node, i *inode) error {
	if err := t.account(len(i.target) + len(i.xattrs)); err != nil {
		return err
	}
	dir := i.mode&unix.S_IFMT == unix.S_IFDIR
	if !dir || !n.isDir() {
		t.clear(n)
	}
	if !dir {
		n.replaces = true
	}
	n.inode, n.implied = i, false
	return nil
}

// clear makes a node nothing.
func (t *layerTree) clear(n *node) {
	if n.isDir() {
		t.lastDir = nil
	}
	n.children, n.inode, n.link, n.implied = nil, nil, "", false
}

// find returns the node at a path without making or following anything; nil if there is none.
func (t *layerTree) find(path string) *node {
	n := t.root
	for path != "" && n != nil {
		var name string
		name, path, _ = strings.Cut(path, "/")
		n = n.children[name]
	}
	return n
}

// hardLink makes n a hard link to the entry at path target. If the layer has no such entry yet, it may be in a lower
// layer, or come later.
func (t *layerTree) hardLink(n *node, target string) error {
	to := t.find(target)
	if to == n && n.isEntry() && !n.isDir() {
		return nil
	}
	if to != nil && to.isDir() {
		return fmt.Errorf("it is a hard link to the directory %q", target)
	}
	if err := t.account(len(target)); err != nil {
		return err
	}
	var i *inode
	if to != nil {
		i = to.inode
		if to.link != "" {
			target = to.link
		}
	}
	t.clear(n)
	n.replaces = true
	if i != nil {
		n.inode = i
	} else {
		n.link = strings.Clone(target)
	}
	return nil
}

// index makes the index of the layer.
func (t *layerTree) index(diffID digest.Digest, tarSize int64) (*indexWriter, error) {
	w := newIndexWriter(kindLayer, []digest.Digest{diffID})
	w.tarSize = uint64(tarSize)
	w.records = make([]record, 0, t.nodes)
	nodes := make([]*node, 0, t.nodes) // nodes[i] is what record i is of
	add := func(n *node, parent uint32) error {
		if err := w.addNode(n, parent); err != nil {
			return err
		}
		nodes = append(nodes, n)
		return nil
	}
	if err := add(t.root, 0); err != nil {
		return nil, err
	}
	var sorted []cookieNode
	for d := 0; d < len(nodes); d++ {
		dir := nodes[d]
		if !dir.isDir() {
			continue
		}
		sorted = sortedChildren(dir, sorted[:0])
		r := &w.records[d]
		r.a, r.b = uint64(len(w.records)), uint64(len(sorted))
		r.nlink = 2
		for _, c := range sorted {
			if err := add(c.node, uint32(d)); err != nil {
				return nil, err
			}
			w.records[len(w.records)-1].cookie = c.cookie
			if c.isDir() {
				w.records[d].nlink++
			}
		}
	}
	for i, n := range nodes {
		if n.inode != nil && !n.isDir() {
			w.records[i].ino, w.records[i].nlink = n.inode.ino, n.inode.nlink
		}
	}
	return w, nil
}

// cookieNode is a node and the cookie of its name.
type cookieNode struct {
	*node
	cookie uint64
}

// sortedChildren appends the children of a directory to dst in the order of an index.
func sortedChildren(dir *node, dst []cookieNode) []cookieNode {
	for _, c := range dir.children {
		dst = append(dst, cookieNode{c, cow.Cookie(c.name)})
	}
	slices.SortFunc(dst, func(x, y cookieNode) int {
		return cmp.Or(cmp.Compare(x.cookie, y.cookie), strings.Compare(x.name, y.name))
	})
	return dst
}

// addNode appends the record of a node. The children of a directory and the number of links of other inodes are not
// known yet.
func (w *indexWriter) addNode(n *node, parent uint32) error {
	r := record{parent: parent}
	if n.replaces {
		r.flags |= flagReplaces
	}
	if n.opaque {
		r.flags |= flagOpaque
	}
	if n.implied {
		r.flags |= flagImplied
	}
	no := uint32(len(w.records))
	switch i := n.inode; {
	case i != nil:
		if i.nlink == 0 {
			i.ino = no + 1
		}
		i.nlink++
		r.mode, r.uid, r.gid, r.sec, r.nsec, r.ino = i.mode, i.uid, i.gid, i.sec, i.nsec, i.ino
		switch i.mode & unix.S_IFMT {
		case unix.S_IFREG:
			r.a, r.b = i.offset, i.size
		case unix.S_IFLNK:
			r.a, r.b = w.addTarget([]byte(i.target)), uint64(len(i.target))
		case unix.S_IFCHR, unix.S_IFBLK:
			r.a = uint64(i.rdev)
		}
		var err error
		if r.xattr, err = w.addXattrs(i.xattrs); err != nil {
			return err
		}
	case n.link != "":
		r.flags |= flagLink
		r.a, r.b = w.addTarget([]byte(n.link)), uint64(len(n.link))
	default:
		r.flags |= flagWhiteout
	}
	_, err := w.add(r, []byte(n.name))
	return err
}

// digestBytes returns the 32 bytes of a SHA-256 digest that was checked before.
func digestBytes(d digest.Digest) []byte {
	b, err := hex.DecodeString(d.Encoded())
	if err != nil || len(b) != digestSize {
		panic(fmt.Sprintf("layerstore: unchecked digest %q", d))
	}
	return b
}

func isRegular(r *record) bool {
	return r.mode&unix.S_IFMT == unix.S_IFREG && r.flags&(flagWhiteout|flagLink) == 0
}
