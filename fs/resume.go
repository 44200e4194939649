package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// Session is what keeps a mount alive without its server: whoever holds the descriptor keeps the kernel from ending the
// connection, and a later server needs what the kernel said when it was made.
type Session struct {
	// Device is the FUSE descriptor that was mounted. Whoever has a Session closes it.
	Device *os.File

	// Settings is the kernel's INIT request (struct fuse_in_header and fuse_init_in of include/uapi/linux/fuse.h).
	Settings []byte
}

// Session returns what another server needs to go on with this mount when this one has ended; see [Resume].
func (s *Server) Session() (*Session, error) {
	device, err := s.Device()
	if err != nil {
		return nil, err
	}
	settings := s.conn.settings
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&settings)), unsafe.Sizeof(settings))
	return &Session{Device: device, Settings: append([]byte(nil), raw...)}, nil
}

// Resume serves a mount whose server has ended, killed perhaps in the middle of anything. The union must be one of the same
// branches, opened with [cow.Options.Resume], and o what the first server had. The kernel sends every request again to
// which it has had no answer: no process that uses the mount sees an error. It takes Linux 6.9 (FUSE_NOTIFY_RESEND).
//
// The Session's descriptor is left open.
func Resume(u *cow.Union, target string, session *Session, o Options) (*Server, error) {
	o.setDefaults()
	target, err := filepath.Abs(target)
	if err != nil {
		return nil, err
	}
	fail := func(err error) (*Server, error) {
		return nil, fmt.Errorf("taking over the mount on %s: %w", target, err)
	}
	unix.Umask(0)
	h, err := newHandler(u, &o, o.ReadOnly || u.ReadOnly())
	if err != nil {
		return fail(err)
	}
	h.former = &former{handed: map[uint64]uint64{}}
	fd, err := unix.FcntlInt(session.Device.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fail(err)
	}
	s, err := start(h, fd, target, &o, session)
	if err != nil {
		return fail(err)
	}
	return s, nil
}

// goOnWith takes up a conversation that another server began: the kernel says INIT only once.
func (c *conn) goOnWith(session *Session, o *Options) error {
	if len(session.Settings) != int(unsafe.Sizeof(c.settings)) {
		return errors.New("the settings of its connection are those of another version of this program")
	}
	var err error
	if c.settings, _, err = c.h.negotiate(session.Settings, o); err != nil {
		return err
	}
	return resend(c.fd)
}

// resend has the kernel send again what it has had no answer to (FUSE_NOTIFY_RESEND, fs/fuse/dev.c, fuse_notify_resend).
func resend(fd int) error {
	const notifyResend = 7
	var header [16]byte // struct fuse_out_header: length, code, unique
	binary.NativeEndian.PutUint32(header[0:], uint32(len(header)))
	binary.NativeEndian.PutUint32(header[4:], notifyResend)
	_, err := unix.Write(fd, header[:])
	if errors.Is(err, unix.EINVAL) {
		return errors.New("the kernel can't send requests again; that takes Linux 6.9")
	}
	return err
}

// resentBit marks the number of a request that the kernel sends again (FUSE_UNIQUE_RESEND).
const resentBit = 1 << 63

// resent reports whether a former server may have carried the request out already.
func (h *handler) resent(in *fuse.InHeader) bool { return h.former != nil && in.Unique&resentBit != 0 }

// former is what a server must know after it took over a mount: which references the kernel has from this server. It has
// others, of nodes that it looked up before, whose number nobody knows.
type former struct {
	mu     sync.Mutex
	handed map[uint64]uint64 // by node ID
}

// has reports whether the kernel has references from this server.
func (f *former) has(id uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.handed[id] > 0
}

// adopt counts a reference as the kernel's if that has none from this server.
func (f *former) adopt(id uint64) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.handed[id] > 0 {
		return false
	}
	f.handed[id] = 1
	return true
}

func (f *former) hand(id uint64) {
	f.mu.Lock()
	f.handed[id]++
	f.mu.Unlock()
}

// takeBack returns how many of count references of a node are from this server, and no longer the kernel's.
func (f *former) takeBack(id, count uint64) uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	have := f.handed[id]
	if have <= count {
		delete(f.handed, id)
		return have
	}
	f.handed[id] = have - count
	return count
}

// node finds the node of a request, also one that only a former server has looked up; nil if there is no such file.
//
// The kernel has references of it, perhaps from former servers only. One of them is made one of this server's then, or the node
// could go, and another be made of the same file, while the request is carried out.
func (h *handler) node(id uint64) *cow.Node {
	f := h.former
	if f == nil || id == fuse.FUSE_ROOT_ID || f.has(id) {
		return h.u.Node(id)
	}
	n, err := h.u.Locate(id)
	if err != nil {
		h.status("finding a file again", err)
		return nil
	}
	if !f.adopt(id) {
		h.u.Forget(n, 1) // another request was faster
	}
	return n
}

// forgetFormer is Forget after a takeover.
func (h *handler) forgetFormer(id, count uint64) {
	mine := h.former.takeBack(id, count)
	if mine > 0 {
		h.u.ForgetID(id, mine)
	}
	h.u.Unpark(id)
}
