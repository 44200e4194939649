package cow

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// DirOptions says how a directory of the host becomes a branch. The zero value is right for nearly all.
type DirOptions struct {
	// Descriptors is the cache that the branch shares with the union; nil gives it a small one of its own.
	Descriptors *Descriptors

	// Root, if above zero, is an open directory descriptor (a detached mount tree, say) to use in place of opening
	// the path, which then only describes the branch. The branch closes it.
	Root int

	// Hidden are directories, as paths from the branch's root with a leading slash, that appear empty.
	Hidden []string

	// UnmappedAs, if set, is shown as the owner of files whose owner has no ID in this process's user namespace
	// (which stat reports as /proc/sys/kernel/overflowuid).
	UnmappedAs *Owner

	// Override takes owners and modes, and of regular files that stand for others their type, from the xattr in which podman's and buildah's storage keeps them on hosts that
	// can't chown (user.containers.override_stat), where a file has it.
	Override bool

	// UIDMap and GIDMap say how a mount with an ID map shows the directory, so that the branch has the IDs that are on
	// disk. (podman 4.3 gives fuse-overlayfs such mounts together with the same maps.)
	UIDMap, GIDMap []IDMap
}

// Owner is a user and a group ID, as this process's user namespace numbers them.
type Owner struct{ UID, GID uint32 }

const overflowID = 65534 // /proc/sys/kernel/overflowuid and overflowgid as every distribution leaves them

// dirBranch is a directory of the host, in overlay format.
type dirBranch struct {
	path   string
	opts   DirOptions
	fds    *Descriptors
	ownFDs bool
	rootFD int
	dev    uint64 // of the root; files of other devices get distinguishing inode numbers
	hidden map[string]bool
	root   *hostDir
}

// OpenDirBranch opens a directory as a branch. The error names the path and says whether it is missing or no directory.
func OpenDirBranch(path string, o DirOptions) (Branch, error) {
	b := &dirBranch{path: path, opts: o, fds: o.Descriptors, rootFD: o.Root, hidden: map[string]bool{}}
	if abs, err := filepath.Abs(path); err == nil {
		b.path = abs
	}
	if b.fds == nil {
		b.fds, b.ownFDs = NewDescriptors(32), true
	}
	for _, h := range o.Hidden {
		b.hidden[filepath.Clean("/"+h)] = true
	}
	if b.rootFD == 0 {
		fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, branchError(path, err)
		}
		b.rootFD = fd
	}
	var st unix.Stat_t
	if err := statAt(b.rootFD, "", &st); err != nil {
		unix.Close(b.rootFD)
		return nil, branchError(path, err)
	}
	b.dev = st.Dev
	b.root = &hostDir{b: b}
	return b, nil
}

func branchError(path string, err error) error {
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("branch %s doesn't exist", path)
	case errors.Is(err, unix.ENOTDIR):
		return fmt.Errorf("branch %s is not a directory", path)
	}
	return fmt.Errorf("opening branch %s: %w", path, err)
}

func (b *dirBranch) Root() (Dir, error)             { return b.root, nil }
func (b *dirBranch) Describe() string               { return b.path }
func (b *dirBranch) Indexed() bool                  { return false }
func (b *dirBranch) Statfs(st *unix.Statfs_t) error { return unix.Fstatfs(b.rootFD, st) }
func (b *dirBranch) ino(st *unix.Stat_t) uint64     { return foldIno(st.Ino, st.Dev, b.dev) }
func child(dir, name string) string                 { return strings.TrimPrefix(dir+"/"+name, "/") }

// Close releases the branch's descriptors.
func (b *dirBranch) Close() error {
	if b.ownFDs {
		b.fds.Close()
	}
	return unix.Close(b.rootFD)
}

// inoBits is how many bits of a file's number a branch may use; the union puts the branch's number above them.
const inoBits = 48

// foldIno makes an inode number of the host unique over the mounts within a branch, in 48 bits. Numbers of the branch's
// own device stay as they are (they fit on every file system that counts them up); others are hashed.
func foldIno(ino, dev, rootDev uint64) uint64 {
	if dev == rootDev && ino < 1<<(inoBits-1) {
		return ino
	}
	var b [16]byte
	for i := range 8 {
		b[i], b[8+i] = byte(ino>>(8*i)), byte(dev>>(8*i))
	}
	return xxhash.Sum64(b[:])>>(64-inoBits+1) | 1<<(inoBits-1)
}

// hostDir is one directory of a dirBranch, known by its names from the branch's root down.
type hostDir struct {
	b      *dirBranch
	parent *hostDir // nil for the root
	name   string   // in the parent

	mu sync.Mutex // guards fd; of a directory before that of its parent
	fd *descriptor
}

// path is where the directory is below the branch's root, without leading slash; "" for the root.
func (d *hostDir) path() string {
	if d.parent == nil {
		return ""
	}
	return child(d.parent.path(), d.name)
}

// hidden reports whether the directory is to appear empty.
func (d *hostDir) hidden() bool { return len(d.b.hidden) > 0 && d.b.hidden["/"+d.path()] }

// open returns a descriptor of the directory, good for what O_PATH is, and what releases it.
func (d *hostDir) open() (int, *descriptor, error) {
	if d.parent == nil {
		return d.b.rootFD, nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.b.fds.acquire(d.fd) {
		return d.fd.fd, d.fd, nil
	}
	fd, err := d.openAnew(unix.O_PATH)
	if err != nil {
		return -1, nil, err
	}
	d.fd = d.b.fds.add(fd, false)
	return fd, d.fd, nil
}

// openIfOpen is open where that takes no system call.
func (d *hostDir) openIfOpen() (int, *descriptor, bool) {
	if d.parent == nil {
		return d.b.rootFD, nil, true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.b.fds.acquire(d.fd) {
		return d.fd.fd, d.fd, true
	}
	return -1, nil, false
}

// openAnew opens the directory, from its parent's descriptor if there is one.
func (d *hostDir) openAnew(flags int) (int, error) {
	flags |= unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if d.parent == nil {
		return unix.Openat(d.b.rootFD, ".", flags, 0)
	}
	if dir, h, ok := d.parent.openIfOpen(); ok {
		defer d.release(h)
		return unix.Openat(dir, d.name, flags, 0)
	}
	return openBeneath(d.b.rootFD, d.path(), flags)
}

// openToRead opens the directory to list it. Its access time stays where this process may ask for that: it is listed for the
// union, not for whoever lists the union.
func (d *hostDir) openToRead() (int, error) {
	fd, err := d.openAnew(unix.O_RDONLY | unix.O_NOATIME)
	if err == unix.EPERM {
		fd, err = d.openAnew(unix.O_RDONLY)
	}
	return fd, err
}

// openBeneath opens a directory by a path of any length from another one.
func openBeneath(dir int, path string, flags int) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS,
	}
	if len(path) < unix.PathMax {
		return unix.Openat2(dir, path, &how)
	}
	// No component is longer than NAME_MAX, so there is a slash among so many bytes.
	cut := strings.LastIndexByte(path[:unix.PathMax-1], '/')
	if cut < 0 {
		return -1, unix.ENAMETOOLONG
	}
	how.Flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat2(dir, path[:cut], &how)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return openBeneath(fd, path[cut+1:], flags)
}

func (d *hostDir) release(h *descriptor) {
	if h != nil {
		d.b.fds.release(h)
	}
}

func (d *hostDir) Self() Entry { return Entry{Type: unix.S_IFDIR} }

func (d *hostDir) Describe(Entry) string { return d.b.path }

func (d *hostDir) Sub(e Entry) (Dir, error) {
	if e.Type != unix.S_IFDIR {
		return nil, unix.ENOTDIR
	}
	if e.Name == "" {
		return d, nil
	}
	return &hostDir{b: d.b, parent: d, name: e.Name}, nil
}

func (d *hostDir) Lookup(name string) (Entry, error) {
	if strings.HasPrefix(name, whiteoutPrefix) || d.hidden() {
		return Entry{}, unix.ENOENT
	}
	fd, h, err := d.open()
	if err != nil {
		return Entry{}, err
	}
	defer d.release(h)
	var st unix.Stat_t
	err = statAt(fd, name, &st)
	if err == unix.ENOENT {
		if statAt(fd, whiteoutPrefix+name, &st) == nil {
			return Entry{Name: name, Whiteout: true}, nil
		}
		return Entry{}, err
	}
	if err != nil {
		return Entry{}, err
	}
	e := Entry{Name: name, Ino: d.b.ino(&st), Type: st.Mode & unix.S_IFMT}
	e.Whiteout = isWhiteoutDevice(&st) || st.Size == 0 && e.Type == unix.S_IFREG && d.xattrWhiteout(fd, name)
	return e, nil
}

// xattrWhiteout reports whether an empty file is the kernel's xattr form of a whiteout.
func (d *hostDir) xattrWhiteout(fd int, name string) bool {
	if _, allowed, err := markedOpaque(fd, ""); err != nil || !allowed {
		return false
	}
	v, err := overlayXattr(fd, name, "whiteout")
	return err == nil && v != nil
}

func (d *hostDir) List(_ uint64, yield func(Entry) bool) error {
	var p lowerPart
	if err := d.read(&p, 0); err != nil {
		return err
	}
	p.all = string(p.names)
	for i := range p.ents {
		e := &p.ents[i]
		if !yield(Entry{Name: p.nameOf(e), Type: uint32(e.kind) << kindShift, Ino: e.inoAt & inoMask, Whiteout: e.whiteout}) {
			break
		}
	}
	return nil
}

func (d *hostDir) Opaque() (bool, error) {
	fd, h, err := d.open()
	if err != nil {
		return false, err
	}
	defer d.release(h)
	if opaque, _, err := markedOpaque(fd, ""); err != nil || opaque {
		return opaque, err
	}
	var st unix.Stat_t
	err = statAt(fd, opaqueName, &st)
	if err == unix.ENOENT || err == unix.EACCES {
		return false, nil
	}
	return err == nil, err
}

func (d *hostDir) Redirect() (string, error) {
	fd, h, err := d.open()
	if err != nil {
		return "", err
	}
	defer d.release(h)
	v, err := overlayXattr(fd, "", "redirect")
	return string(v), err
}

func (d *hostDir) Stat(e Entry, a *Attr) error {
	fd, h, err := d.open()
	if err != nil {
		return err
	}
	defer d.release(h)
	var st unix.Stat_t
	if err := statAt(fd, e.Name, &st); err != nil {
		return err
	}
	a.fromStat(&st)
	a.Ino = d.b.ino(&st)
	if id, ok := toDisk(d.b.opts.UIDMap, a.UID); ok {
		a.UID = id
	}
	if id, ok := toDisk(d.b.opts.GIDMap, a.GID); ok {
		a.GID = id
	}
	if d.b.opts.Override {
		if err := readOverride(a, fd, e.Name); err != nil {
			return err
		}
	}
	if o := d.b.opts.UnmappedAs; o != nil {
		if a.UID == overflowID {
			a.UID = o.UID
		}
		if a.GID == overflowID {
			a.GID = o.GID
		}
	}
	return nil
}

func (d *hostDir) Open(e Entry) (*Data, error) {
	dir, h, err := d.open()
	if err != nil {
		return nil, err
	}
	defer d.release(h)
	// O_NONBLOCK: the entry was a regular file when it was listed; should it be a FIFO now, don't hang on it.
	fd, err := unix.Openat(dir, e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = unix.Openat(dir, e.Name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		unix.Close(fd)
		return nil, errors.Join(err, unix.EIO)
	}
	data := &Data{FD: fd, Size: st.Size, Release: func() { unix.Close(fd) }}
	if st.Size > 0 {
		data.Elsewhere, data.Redirect, err = metadataOnly(dir, e.Name)
		if err != nil {
			unix.Close(fd)
			return nil, err
		}
	}
	return data, nil
}

func (d *hostDir) Readlink(e Entry) (string, error) {
	fd, h, err := d.open()
	if err != nil {
		return "", err
	}
	defer d.release(h)
	if d.b.opts.Override {
		return readAnyLink(fd, e.Name)
	}
	return readlinkAt(fd, e.Name)
}

func readlinkAt(dir int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dir, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

func (d *hostDir) Getxattr(e Entry, name string) ([]byte, error) {
	fd, h, err := d.open()
	if err != nil {
		return nil, err
	}
	defer d.release(h)
	if d.b.opts.Override && name == overrideXattr {
		return nil, unix.ENODATA
	}
	return getxattrAt(fd, e.Name, name)
}

func (d *hostDir) Listxattr(e Entry) ([]string, error) {
	fd, h, err := d.open()
	if err != nil {
		return nil, err
	}
	defer d.release(h)
	names, err := listxattrAt(fd, e.Name)
	if d.b.opts.Override {
		names = slices.DeleteFunc(names, func(x string) bool { return x == overrideXattr })
	}
	return names, err
}
