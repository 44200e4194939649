package fs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/internal/mountpoint"
)

// backgroundRequests is how many readahead and writeback requests the kernel has under way at once; its own default is 12.
const backgroundRequests = 64

// Server is a mounted union that this process serves.
//
// It is safe for use by several goroutines. It ends when the last mount of it is gone, in whatever way, or the process.
type Server struct {
	target string
	conn   *conn
	done   chan struct{}

	h        *handler
	released chan struct{} // closed by Release
}

// Mount mounts the union on the directory target and serves it. When it returns the mount answers; until then nothing is
// left behind by an error.
//
// With CAP_SYS_ADMIN, as root of the machine or of a user namespace has it, the mount is made directly, for anybody else
// by fusermount3. The caller closes the union when [Server.Wait] has returned.
//
// The umask of the process becomes 0: it would be taken from the modes of files that others make.
func Mount(u *cow.Union, target string, o Options) (*Server, error) {
	o.setDefaults()
	target, err := resolveTarget(target, o.Device != nil)
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: %w", target, err)
	}
	unix.Umask(0)
	readOnly := o.ReadOnly || u.ReadOnly()
	h, err := newHandler(u, &o, readOnly)
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: reading the union's root: %w", target, err)
	}

	fd, mounted, err := attach(target, &o, readOnly)
	if err != nil {
		return nil, fmt.Errorf("mounting on %s: %w", target, err)
	}
	s, err := start(h, fd, target, &o, nil)
	if err != nil {
		if mounted {
			// Lazily: whoever looked at it already must not keep a dead mount there.
			err = errors.Join(err, Unmount(target, true))
		}
		return nil, fmt.Errorf("mounting on %s: %w", target, err)
	}
	widenReadahead(target)
	return s, nil
}

// resolveTarget returns the real path of a directory to mount on. The path is returned also with an error, for messages.
func resolveTarget(target string, mounted bool) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return target, err
	}
	if mounted {
		// It must not be looked at: nobody answers there yet.
		real, err := mountpoint.Resolve(abs)
		if err != nil {
			return abs, err
		}
		return real, nil
	}
	real, err := filepath.EvalSymlinks(abs)
	if err == nil {
		var st os.FileInfo
		if st, err = os.Stat(real); err == nil && !st.IsDir() {
			return abs, errors.New("it is not a directory")
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT):
		return abs, errors.New("there is no such directory; make it first")
	case errors.Is(err, unix.ENOTCONN):
		return abs, errDead
	case err != nil:
		return abs, err
	}
	return real, vacant(real)
}

var errDead = errors.New("a mount whose server is gone is there; remove it with \"unionfs umount\" first")

// vacant refuses a directory on which a union is mounted already.
func vacant(path string) error {
	m, err := mountpoint.On(path)
	if errors.Is(err, mountpoint.ErrNone) {
		return nil
	}
	if err != nil || m.FSType != fsType {
		return err
	}
	// What the kernel remembers of a dead mount looks alive; only a request shows it.
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); errors.Is(err, unix.ENOTCONN) {
		return errDead
	}
	return errors.New("a union is mounted there already; remove it with \"unionfs umount\" first")
}

// attach returns a FUSE descriptor that is mounted on target, and whether this call mounted it.
func attach(target string, o *Options, readOnly bool) (fd int, mounted bool, err error) {
	if o.Device != nil {
		fd, err = unix.FcntlInt(o.Device.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return -1, false, fmt.Errorf("taking over the FUSE descriptor: %w", err)
		}
		o.Device.Close()
		return fd, false, nil
	}
	if canMount() {
		fd, err = mountDirect(target, o, readOnly)
	} else {
		fd, err = mountByHelper(target, o, readOnly)
	}
	return fd, err == nil, err
}

// start begins a conversation with the kernel, or goes on with one if session is not nil, and serves. It takes fd over.
func start(h *handler, fd int, target string, o *Options, session *Session) (*Server, error) {
	s := &Server{target: target, done: make(chan struct{}), h: h, released: make(chan struct{})}
	h.released = s.released
	s.conn = newConn(h, fd, o)
	fail := func(err error) (*Server, error) {
		unix.Close(fd)
		return nil, err
	}
	var err error
	if session == nil {
		if err = s.conn.answerInit(o); err != nil {
			return fail(fmt.Errorf("answering the kernel: %w", err))
		}
	} else if err = s.conn.goOnWith(session, o); err != nil {
		return fail(err)
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return fail(err)
	}
	s.conn.dev = os.NewFile(uintptr(dup), "/dev/fuse")
	go func() {
		s.conn.serve()
		s.conn.dev.Close()
		close(s.done)
	}()
	return s, nil
}

// Wait returns when the mount is gone and all requests are answered.
func (s *Server) Wait() { <-s.done }

// Done is closed when the mount is gone and all requests are answered.
func (s *Server) Done() <-chan struct{} { return s.done }

// Device returns a duplicate of the FUSE descriptor. Whoever holds one keeps the mount from dying with this process.
func (s *Server) Device() (*os.File, error) {
	c, err := s.conn.dev.SyscallConn()
	if err != nil {
		return nil, err
	}
	var fd int
	var dupErr error
	err = c.Control(func(f uintptr) { fd, dupErr = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 3) })
	if err = errors.Join(err, dupErr); err != nil {
		return nil, fmt.Errorf("%s is not mounted any more: %w", s.target, err)
	}
	return os.NewFile(uintptr(fd), "/dev/fuse"), nil
}

// Unmount takes the mount away. It waits up to a second for files that are just being closed; the error is EBUSY if
// somebody goes on using it. The server has ended when [Server.Wait] returns.
func (s *Server) Unmount() error {
	delay := time.Millisecond
	for {
		select {
		case <-s.done:
			return nil
		default:
		}
		err := Unmount(s.target, false)
		if errors.Is(err, mountpoint.ErrNone) {
			return nil // somebody else was faster
		}
		if !errors.Is(err, unix.EBUSY) || delay > 500*time.Millisecond {
			return err
		}
		time.Sleep(delay)
		delay *= 2
	}
}
