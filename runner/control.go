package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// control is the socket ROOT/containers/ID/control, on which the supervisor listens for processes of the same user that
// want something of the container: SOCK_SEQPACKET, with the messages in wire.go. It is reached through the container's
// directory, which nobody else may enter; and a process of the container itself is turned away, should it have been given
// that directory as a volume.
type control struct {
	supervisor *supervisor
	fd         int
	path       string

	accepting chan struct{}  // closed when nobody is let in any more
	reading   sync.WaitGroup // those who were let in and may yet ask for the end

	mu      sync.Mutex
	waiters map[*wire]bool // those to tell of the end
	end     *outcome       // what they have been told
}

func (c *Container) controlPath() string { return filepath.Join(c.Dir(), "control") }

// controlAddress is the socket's address, good until dir is closed. Its path may be longer than an address can be (108
// bytes, unix(7)).
func (c *Container) controlAddress() (address *unix.SockaddrUnix, dir int, err error) {
	dir, err = unix.Open(c.Dir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil, -1, fmt.Errorf("%w: %s", ErrNotFound, c.ID)
	}
	if err != nil {
		return nil, -1, err
	}
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/control", dir)}, dir, nil
}

// listen opens the socket. The caller has the container's lock.
func (s *supervisor) listen() (*control, error) {
	address, dir, err := s.container.controlAddress()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c := &control{supervisor: s, fd: fd, path: s.container.controlPath(), accepting: make(chan struct{}), waiters: map[*wire]bool{}}
	if err := os.Remove(c.path); err != nil && !errors.Is(err, os.ErrNotExist) { // a killed supervisor's
		unix.Close(fd)
		return nil, err
	}
	err = unix.Bind(fd, address)
	if err == nil {
		err = unix.Chmod(c.path, 0o600)
	}
	if err == nil {
		err = unix.Listen(fd, 64)
	}
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	go c.accept()
	return c, nil
}

// leave takes the socket away; who is connected stays.
func (c *control) leave() { _ = os.Remove(c.path) }

// tell tells those who wait of the end.
func (c *control) tell(end outcome) {
	if c == nil {
		return
	}
	_ = unix.Shutdown(c.fd, unix.SHUT_RDWR)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end = &end
	for w := range c.waiters {
		_ = w.send(end.message())
		w.shut()
	}
}

// answerLate tells those of the end who had connected before it and were not served yet: they can't read it in state.json any more where
// the container is gone. One who says nothing is left alone after a while.
func (c *control) answerLate() {
	if c == nil {
		return
	}
	answered := make(chan struct{})
	go func() {
		<-c.accepting // the kernel gives us those who are in the queue of a socket that is shut down
		c.reading.Wait()
		close(answered)
	}()
	select {
	case <-answered:
	case <-time.After(lateLimit):
	}
}

// lateLimit is how long the end of a container that removes itself waits for those who have connected and say nothing.
const lateLimit = 5 * time.Second

func (c *control) accept() {
	defer close(c.accepting)
	for {
		fd, _, err := unix.Accept4(c.fd, unix.SOCK_CLOEXEC)
		switch {
		case err == nil:
			c.reading.Add(1)
			go c.serve(fd)
		case errors.Is(err, unix.EINVAL): // shut down
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ECONNABORTED):
		default:
			fmt.Fprintln(os.Stderr, "unionfs: waiting for other commands:", err)
			return
		}
	}
}

// serve does what a connected process wants.
func (c *control) serve(fd int) {
	w := &wire{fd: fd}
	defer unix.Close(fd) // no shutdown: the init may have the connection
	read := sync.OnceFunc(c.reading.Done)
	defer read()
	// Its message is taken also if it is turned away: closed with something unread, the connection would lose our answer.
	m, fds, err := w.recv()
	defer closeAll(fds)
	if err != nil {
		return
	}
	if m.Kind != msgWait {
		read() // for the others, no answer is one
	}
	if err := checkPeer(fd); err != nil {
		_ = w.send(message{Kind: msgExited, Code: exitOurs, Error: err.Error()})
		return
	}
	if do := requestOf(m.Kind); do != nil {
		_ = w.send(message{Kind: msgDone, Error: errorText(do(c.supervisor, m))})
		return
	}
	switch m.Kind {
	case msgWait:
		c.mu.Lock()
		if c.end != nil {
			_ = w.send(c.end.message())
			c.mu.Unlock()
			return
		}
		c.waiters[w] = true
		c.mu.Unlock()
		read()
		_, fds, _ := w.recv() // until it goes, or is told
		closeAll(fds)
		c.mu.Lock()
		delete(c.waiters, w)
		c.mu.Unlock()
	case msgNetwork:
		_ = w.send(message{Kind: msgNetwork, Error: errorText(c.supervisor.updateNetwork())})
	case msgAttach:
		if err := c.supervisor.attach(w, fds); err != nil {
			_ = w.send(message{Kind: msgExited, Code: exitOurs, Error: err.Error()})
		}
	case msgFiles:
		if err := c.supervisor.files(m.Files, fd, fds); err != nil {
			_ = w.send(message{Kind: msgDone, Error: err.Error()})
		}
	case msgExec:
		if c.supervisor.isPaused() {
			_ = w.send(message{Kind: msgExited, Code: exitOurs, Error: fmt.Sprintf("container %s is paused: unpause it first", c.supervisor.container.Name)})
			return
		}
		if err := c.supervisor.pass(m, append(fds, fd)); err != nil {
			_ = w.send(message{Kind: msgExited, Code: exitOurs, Error: err.Error()})
		}
	}
}

// pass hands a message on to the init, if the command runs.
func (s *supervisor) pass(m message, fds []int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started || s.finished {
		return fmt.Errorf("container %s is not running", s.container.Name)
	}
	return s.init.wire.send(m, fds...)
}

// checkPeer turns away whoever is not the supervisor's user, and processes of the container. A process of the same user
// that is not below our user namespace can't be looked into; one of the container always can.
func checkPeer(fd int) error {
	peer, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return err
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d may not control this container", peer.Uid)
	}
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return err
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", peer.Pid))
	if errors.Is(err, os.ErrPermission) || err == nil && theirs == own {
		return nil
	}
	return errors.New("a container can't be controlled from within a container")
}

// connect connects to the container's supervisor. The error wraps errNoSupervisor if there is none.
func (c *Container) connect() (*wire, error) {
	address, dir, err := c.controlAddress()
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Connect(fd, address)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		unix.Close(fd)
		return nil, errNoSupervisor
	case err != nil:
		unix.Close(fd)
		return nil, fmt.Errorf("connecting to the supervisor of container %s: %w", c.Name, err)
	}
	return &wire{fd: fd}, nil
}

// errNoSupervisor says that nobody listens for a container: it isn't running.
var errNoSupervisor = errors.New("the container has no supervisor")
