package cow

import (
	"golang.org/x/sys/unix"
)

// Branch is one directory tree of a union, as the union's lower layers see it: read only, and unchanging for as long as
// it is mounted. There are two kinds: a directory branch ([OpenDirBranch]) and the index branch of an image
// (layerstore). Every implementation must pass the suite in cow/branchtest.
//
// Errors of the file system itself are [unix.Errno] values, or wrap one, so that they reach the caller of open(2)
// unchanged: ENOENT for a name that is not there, ENODATA for an xattr that is not there, EIO for damage.
//
// All methods of Branch and Dir may be called by many goroutines at once.
type Branch interface {
	// Root returns the root directory of the branch. It costs no system call after the first.
	Root() (Dir, error)

	// Describe says in one line what the branch is, for people: a path, or an image reference. It is what
	// "unionfs which" and the xattr user.unionfs.branch report for directories and branches with one source.
	Describe() string

	// Indexed reports whether Lookup is a constant number of memory probes and List is sorted by cookie without
	// reading anything else. The union merges the listings of branches that are not indexed once and keeps the
	// result; it asks an indexed one directly every time.
	Indexed() bool

	// Statfs describes the file system that the branch's data is on.
	Statfs(*unix.Statfs_t) error

	// Close releases what the branch holds. No Dir of it may be used after.
	Close() error
}

// Dir is a directory of a branch. It holds no reference that must be given back: the garbage collector frees it.
//
// Files are named by an [Entry] that a Lookup or List of the same Dir returned. Names are never paths: they have no
// slash and are neither "." nor "..". No symbolic link is ever followed.
type Dir interface {
	// Lookup finds a name. The error is ENOENT if the directory has no such name; a whiteout is not an error but an
	// entry with Whiteout set.
	Lookup(name string) (Entry, error)

	// List calls yield with every entry but "." and "..", whiteouts included, until yield returns false.
	// The marks that only say something about the directory (.wh..wh..opq, opaque xattrs) are not entries.
	// For an indexed branch, entries come in ascending order of Cookie(name), starting with the first whose
	// cookie is above after; otherwise after is 0 and the order is the directory's own.
	List(after uint64, yield func(Entry) bool) error

	// Opaque reports whether the directory hides the content of the same directory in every branch below.
	Opaque() (bool, error)

	// Redirect returns where the same directory is in the branches below if it isn't at the same path: a path
	// from the root of the branches (leading slash) or a name in the same parent. Empty for nearly all. (The
	// kernel's overlay.redirect; an image has none.)
	Redirect() (string, error)

	// Self is the entry by which the methods below take the directory itself.
	Self() Entry

	// Sub opens the directory that e names. ENOTDIR if it is none.
	Sub(e Entry) (Dir, error)

	// Stat fills in everything about e. Attr.Ino is unique and constant within the branch for as long as the
	// branch's content is the same, across processes, and is shared by exactly the names that are hard links of
	// each other. It is below 1<<48.
	Stat(e Entry, a *Attr) error

	// Open returns where the bytes of the regular file e are.
	Open(e Entry) (*Data, error)

	// Readlink returns the target of the symbolic link e.
	Readlink(e Entry) (string, error)

	// Getxattr returns the value of one extended attribute; ENODATA if there is none. Names are as on the file
	// itself: the union strips and escapes overlay.* names, not the branch.
	Getxattr(e Entry, name string) ([]byte, error)

	// Listxattr returns the names of the extended attributes that e has.
	Listxattr(e Entry) ([]string, error)

	// Describe says which layer or directory provides e: the branch's own description, or for the merged index of
	// an image the diff ID of the layer.
	Describe(e Entry) string
}

// RefDir is a Dir whose entries can be found again by their Ref alone, so that the union needs to keep nothing else of them.
type RefDir interface {
	Dir

	// Entry returns the entry of this directory that has the Ref.
	Entry(ref uint64) (Entry, error)
}

// Entry is a name in a directory of a branch.
type Entry struct {
	Name string // without slashes; as in the merged directory unless whiteouts were decoded from it
	Ref  uint64 // what the branch finds the file by; opaque to the union
	Ino  uint64 // the same as Attr.Ino where it is known without a stat, else 0
	Type uint32 // S_IFREG, S_IFDIR, …: the S_IFMT part of the mode

	// Whiteout says that this name of the branches below is deleted. Type, Ref and Ino are then meaningless.
	Whiteout bool
}

// Data is the content of a regular file of a branch: Size bytes at Off of a descriptor. It stays readable, also when the
// file is unlinked from the branch, until Release is called. The descriptor may be shared with other files; only
// positioned calls (pread, splice with offset, FICLONERANGE) may be made on it.
type Data struct {
	FD      int
	Off     int64
	Size    int64
	Release func()

	// Elsewhere says that the file is a metadata-only copy (the kernel's overlay.metacopy), which has no bytes of its
	// own: they are those of the file in the branches below that Redirect leads to, a path from the root of the
	// branches or a name in the same directory, or if it is empty of the file of the same name. An image has none.
	Elsewhere bool
	Redirect  string
}

// Attr is what stat(2) says of a file.
type Attr struct {
	Ino                 uint64
	Size                uint64 // bytes
	Blocks              uint64 // units of 512 bytes
	Atime, Mtime, Ctime unix.Timespec
	Mode                uint32 // with the S_IFMT bits
	Nlink               uint32
	UID, GID            uint32
	Rdev                uint32 // as unix.Mkdev makes it, cut to 32 bits
	Blksize             uint32
}

// IsDir reports whether the file is a directory.
func (a *Attr) IsDir() bool { return a.Mode&unix.S_IFMT == unix.S_IFDIR }
