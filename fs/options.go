package fs

import (
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"
)

const (
	// subtype makes the type of the mount "fuse.unionfs" in /proc/mounts.
	subtype = "unionfs"
	fsType  = "fuse." + subtype

	maxRequest = 1 << 20 // bytes; see Options.MaxWrite

	maxPagesLimit = "/proc/sys/fs/fuse/max_pages_limit"
	// defaultMaxPages is the limit of kernels that have no such file, Linux 4.20 to 6.12.
	defaultMaxPages = 256
)

// Options say how a union is mounted. The zero value is right for most.
type Options struct {
	// FsName is the source of the mount: the first column of df and /proc/mounts. Default "unionfs".
	FsName string

	// AllowOther lets users other than the one who mounts in. When an ordinary user mounts through fusermount3, it
	// takes user_allow_other in /etc/fuse.conf.
	AllowOther bool

	// ReadOnly mounts read only also if the union has an upper branch. Without one the mount is always read only.
	ReadOnly bool

	// The generic mount options of mount(8). fusermount3 sets NoSuid and NoDev for ordinary users in any case.
	NoSuid, NoDev, NoExec, NoAtime bool

	// Context is the SELinux context that all files of the mount get. Only kernels with SELinux take one.
	Context string

	// EntryTimeout and AttrTimeout are how long the kernel may keep names (those that are not there too) and
	// attributes. 0 is for ever, which is right as long as nobody else changes the branches; below 0 is not at all.
	// If AttrTimeout is not 0 a changed mtime also makes the kernel drop the data it has kept.
	EntryTimeout, AttrTimeout time.Duration

	// NoACL turns POSIX ACLs off: the kernel enforces none, and a new file inherits none.
	NoACL bool

	// NoWriteback makes every write(2) a request of its own instead of letting the kernel collect them.
	NoWriteback bool

	// MaxWrite is the most bytes that one READ or WRITE carries, at least a page. Default and most is 1 MiB, or what the
	// kernel allows (/proc/sys/fs/fuse/max_pages_limit). Every one that is carried out takes a buffer of this size.
	MaxWrite int

	// Debug logs every request and reply at slog.LevelDebug.
	Debug bool

	// Logger gets what no caller of a system call can be told. Default: nothing is logged.
	Logger *slog.Logger

	// Journal is where the server notes what another one must know if this one is killed: a file that [NewJournal] made.
	// With none, a request that was carried out but not answered may be carried out twice.
	Journal *os.File

	// Notify, if not nil, writes to the FUSE descriptor from another process. A thread that waits there for the kernel to write
	// back waits for this server, and if it is one of this server's a kill of that has no end.
	Notify func([]byte) error

	// Device is a FUSE descriptor that is mounted on the target already and whose INIT is unanswered, as
	// mount.fuse3's drop_privileges and a privileged parent pass it. Mount then mounts nothing, and takes the
	// descriptor over.
	Device *os.File
}

func (o *Options) setDefaults() {
	if o.FsName == "" {
		o.FsName = subtype
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	most := requestSize()
	if o.MaxWrite <= 0 || o.MaxWrite > most {
		o.MaxWrite = most
	}
	o.MaxWrite = max(o.MaxWrite, os.Getpagesize())
}

// requestSize is the most bytes that a READ or WRITE can have on this kernel.
func requestSize() int {
	pages := defaultMaxPages
	if b, err := os.ReadFile(maxPagesLimit); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && n > 0 {
			pages = n
		}
	}
	return min(maxRequest, pages*os.Getpagesize())
}

// lifetime is a timeout as FUSE replies have it.
type lifetime struct {
	sec  uint64
	nsec uint32
}

// forever is cut by the kernel to what its clock can count (timespec64_to_jiffies), more than a century.
const forever = 1 << 40

func newLifetime(d time.Duration) lifetime {
	switch {
	case d == 0:
		return lifetime{sec: forever}
	case d < 0:
		return lifetime{}
	}
	return lifetime{sec: uint64(d / time.Second), nsec: uint32(d % time.Second)}
}
