package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// A request that a killed server had not answered comes again. Most do no harm when they are carried out twice, or show by what is
// there that they were: the kernel keeps a directory locked while one of its names changes, so a name that is to be removed
// and is gone was removed by this very request. Of the others a server notes, before it begins, that it does. The notes are in
// shared memory that outlives the server. There is room for as many as can be unanswered at once; older ones are overwritten.
//
// Layout, in the machine's own byte order: the magic (journalMagic, 16 bytes), the number of notes made so far (8), and from
// journalHeader on journalNotes notes of three numbers: the request's, and two that depend on the request. From journalTrail on
// it is the union's (cow.Union.LeaveTrail): where files are found again, of a fixed size too, of which what nobody wrote to
// takes no memory.
const (
	journalMagic  = "unionfs notes 5\n"
	journalHeader = 64
	journalNotes  = 1024
	noteSize      = 24
	journalTrail  = (journalHeader + journalNotes*noteSize + 4095) &^ 4095

	// JournalSize is the size of a journal's file in bytes.
	JournalSize = journalTrail + cow.TrailSize
)

// journal is nil for a mount that no other server can take over.
type journal struct {
	mem   []byte
	count *uint64
}

// NewJournal makes the file of a journal, in memory only.
func NewJournal() (*os.File, error) {
	fd, err := unix.MemfdCreate("unionfs-journal", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("making a journal: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal")
	if err = f.Truncate(JournalSize); err == nil {
		_, err = f.WriteAt([]byte(journalMagic), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("making a journal: %w", err)
	}
	return f, nil
}

// openJournal maps a journal for as long as the process lives.
func openJournal(f *os.File) (*journal, error) {
	if f == nil {
		return nil, nil
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if info.Size() != JournalSize {
		return nil, errors.New("the journal of the mount is that of another version of this program")
	}
	mem, err := unix.Mmap(int(f.Fd()), 0, JournalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping the journal of the mount: %w", err)
	}
	if string(mem[:len(journalMagic)]) != journalMagic {
		unix.Munmap(mem)
		return nil, errors.New("the journal of the mount is that of another version of this program")
	}
	return &journal{mem: mem, count: (*uint64)(unsafe.Pointer(&mem[len(journalMagic)]))}, nil
}

// note records that a request is about to be carried out.
func (j *journal) note(in *fuse.InHeader, a, b uint64) {
	if j == nil {
		return
	}
	n := (atomic.AddUint64(j.count, 1) - 1) % journalNotes
	at := j.mem[journalHeader+n*noteSize:]
	binary.NativeEndian.PutUint64(at[8:], a)
	binary.NativeEndian.PutUint64(at[16:], b)
	// Last, and whole: a server that is killed before this has not begun.
	atomic.StoreUint64((*uint64)(unsafe.Pointer(&at[0])), in.Unique&^resentBit)
}

// noted reports whether a former server may have carried the request out, with what it noted.
func (h *handler) noted(in *fuse.InHeader) (a, b uint64, ok bool) {
	if h.journal == nil || !h.resent(in) {
		return 0, 0, false
	}
	for n := range journalNotes {
		at := h.journal.mem[journalHeader+n*noteSize:]
		if atomic.LoadUint64((*uint64)(unsafe.Pointer(&at[0]))) == in.Unique&^resentBit {
			return binary.NativeEndian.Uint64(at[8:]), binary.NativeEndian.Uint64(at[16:]), true
		}
	}
	return 0, 0, false
}

// exchange is a RENAME_EXCHANGE: done twice it undoes itself.
func (h *handler) exchange(in *fuse.RenameIn, from *cow.Node, oldName string, to *cow.Node, newName string) error {
	if h.journal == nil {
		return h.u.Rename(from, oldName, to, newName, in.Flags)
	}
	var a cow.Attr
	n, err := h.u.Lookup(from, oldName, &a)
	if err != nil {
		return err
	}
	defer h.u.Forget(n, 1)
	if _, target, ok := h.noted(&in.InHeader); ok && n.ID() == target {
		return nil
	}
	target, err := h.u.Lookup(to, newName, &a)
	if err != nil {
		return err
	}
	defer h.u.Forget(target, 1)
	h.journal.note(&in.InHeader, n.ID(), target.ID())
	return h.u.Rename(from, oldName, to, newName, in.Flags)
}

// setXAttr sets an attribute. One that must not be there yet is there if a former server had set it.
func (h *handler) setXAttr(in *fuse.SetXAttrIn, n *cow.Node, name string, value []byte) error {
	flags := int(in.Flags)
	if flags&unix.XATTR_CREATE != 0 && h.journal != nil {
		if _, _, ok := h.noted(&in.InHeader); ok {
			flags &^= unix.XATTR_CREATE
		} else if _, err := h.u.Getxattr(n, name); err == nil {
			return unix.EEXIST
		}
		h.journal.note(&in.InHeader, 0, 0)
	}
	return h.u.Setxattr(n, name, value, flags)
}

// removeXAttr removes an attribute. One that is not there was removed if a former server had found it there.
func (h *handler) removeXAttr(in *fuse.InHeader, n *cow.Node, name string) error {
	_, _, done := h.noted(in)
	if h.journal != nil && !done {
		if _, err := h.u.Getxattr(n, name); err != nil {
			return h.u.Removexattr(n, name) // says why it can't be removed
		}
		h.journal.note(in, 0, 0)
	}
	err := h.u.Removexattr(n, name)
	if err == unix.ENODATA && done {
		return nil
	}
	return err
}
