package fs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
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
	settings := *s.raw.KernelSettings()
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
	fd, kernel, err := replayInit(session)
	if err != nil {
		return fail(err)
	}
	defer unix.Close(kernel)
	s, err := start(h, fd, target, &o, func() error {
		if err := unix.Dup3(int(session.Device.Fd()), fd, unix.O_CLOEXEC); err != nil {
			return err
		}
		return resend(fd)
	})
	if err != nil {
		return fail(err)
	}
	return s, nil
}

// replayInit returns a descriptor from which the kernel's INIT can be read once more, and the other end of it, to which the
// answer goes: the kernel sends it only once, and the library needs it to understand what comes after.
func replayInit(session *Session) (fd, kernel int, err error) {
	var in fuse.InitIn
	if len(session.Settings) != int(unsafe.Sizeof(in)) {
		return -1, -1, errors.New("the settings of its connection are those of another version of this program")
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	if _, err := unix.Write(pair[1], session.Settings); err != nil {
		unix.Close(pair[0])
		unix.Close(pair[1])
		return -1, -1, err
	}
	return pair[0], pair[1], nil
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

// keepResident has the library read requests into resident memory only. Where the kernel has to fault a page in while it hands
// a request to a process that is just being killed, it gives up and answers the request with EIO, and nobody can carry it out
// any more (fs/fuse/dev.c, fuse_dev_do_read; mm/gup.c looks for a fatal signal first). Into resident memory it copies, and
// the request comes again.
//
// The library offers no way to say where its buffers come from. Without its field of this name all works but for that.
func keepResident(server *fuse.Server) {
	field := reflect.ValueOf(server).Elem().FieldByName("readPool")
	if !field.IsValid() || field.Type() != reflect.TypeFor[sync.Pool]() {
		return
	}
	pool := (*sync.Pool)(unsafe.Pointer(field.UnsafeAddr()))
	fresh := pool.New
	pool.New = func() any {
		buf := fresh()
		if b, ok := buf.([]byte); ok {
			for i := 0; i < len(b); i += os.Getpagesize() {
				b[i] = 0
			}
		}
		return buf
	}
	pool.Get() // what INIT was read into
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
	if n := h.u.Node(id); n != nil && mine > 0 {
		h.u.Forget(n, mine)
	}
	h.u.Unpark(id)
}
