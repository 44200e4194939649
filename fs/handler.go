package fs

import (
	"errors"
	"log/slog"
	"os"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// handler answers the kernel's requests. It has no state of its own but what is fixed at the mount and pools of memory:
// see the package documentation for why.
type handler struct {
	u         *cow.Union
	entryLife lifetime
	attrLife  lifetime
	rootIno   uint64 // st_ino of the root, whose node ID is 1

	acl       bool // POSIX ACLs are on; new files inherit them, and umask is applied here
	writeback bool

	setxattrExt bool // the kernel knows the flags of SETXATTR

	log    *slog.Logger
	logged sync.Map // string → struct{}: what was reported once already

	conn    *conn              // set before the first request is carried out
	former  *former            // what is known of the servers before; nil for a mount's first
	journal *journal           // notes for the servers after; nil if there will be none
	notify  func([]byte) error // Options.Notify

	released <-chan struct{} // closed when nobody is answered any more, see Server.Release

	pipes   pipes
	dirents sync.Pool // *[]cow.DirEnt
	attrs   sync.Pool // *cow.Attr
}

func newHandler(u *cow.Union, o *Options, readOnly bool) (*handler, error) {
	h := &handler{
		u:         u,
		entryLife: newLifetime(o.EntryTimeout),
		attrLife:  newLifetime(o.AttrTimeout),
		acl:       !o.NoACL,
		writeback: !readOnly && !o.NoWriteback,
		log:       o.Logger,
		notify:    o.Notify,
		pipes:     pipes{page: os.Getpagesize()},
	}
	h.dirents.New = func() any {
		s := make([]cow.DirEnt, 0, direntBatch)
		return &s
	}
	h.attrs.New = func() any { return new(cow.Attr) }
	var err error
	if h.journal, err = openJournal(o.Journal); err != nil {
		return nil, err
	}
	if h.journal != nil {
		u.LeaveTrail(h.journal.mem[journalTrail:])
	}
	var a cow.Attr
	if err := u.Getattr(u.Root(), &a); err != nil {
		return nil, err
	}
	h.rootIno = a.Ino
	return h, nil
}

// Ioctl has none to offer. The answer is ENOTTY, as from any file system that doesn't know the number.
func (h *handler) Ioctl() fuse.Status {
	return fuse.Status(unix.ENOTTY)
}

// status is the reply that err becomes. ENOSYS never is one: the kernel would stop sending the request for the rest of
// the mount's life.
func (h *handler) status(op string, err error) fuse.Status {
	if err == nil {
		return fuse.OK
	}
	errno, bare := err.(unix.Errno)
	if !bare && !errors.As(err, &errno) {
		errno = unix.EIO
	}
	if errno == 0 {
		errno = unix.EIO
	}
	if errno == unix.ENOSYS {
		errno = unix.EOPNOTSUPP
	}
	if errno == unix.EIO && !bare {
		if _, again := h.logged.LoadOrStore(op+": "+err.Error(), struct{}{}); !again {
			h.log.Error("a file operation failed", "op", op, "err", err)
		}
	}
	return fuse.Status(errno)
}

// stale is the answer about a node that the union doesn't know: it was forgotten, or another server knew it.
const stale = fuse.Status(syscall.ESTALE)
