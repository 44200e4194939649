package holder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// A holder listens on a socket for who wants its server replaced: a connection brings the program, as a descriptor, and gets the
// answer "" when the new server works or else why it doesn't, and the old one goes on. Only the holder's own user and root
// are listened to.

// Listener takes requests to replace a server.
type Listener struct {
	requests chan *request
	fd       int
	closed   chan struct{} // nobody takes requests any more
	done     chan struct{} // and the socket's name is free
}

type request struct {
	program *os.File
	conn    *os.File
}

func (r *request) answer(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	_ = send(r.conn, packetReady, Kept{Data: []byte(text)}) // whoever asked may be gone
	r.conn.Close()
}

// upgradePatience is how long a program may take until it could take over.
const upgradePatience = 20 * time.Second

// Listen listens on an abstract socket, whose name begins with @.
func Listen(name string) (*Listener, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: name}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("listening on %s: %w", name, err)
	}
	if err := unix.Listen(fd, 4); err != nil {
		unix.Close(fd)
		return nil, err
	}
	l := &Listener{requests: make(chan *request), fd: fd, closed: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(l.done)
		defer unix.Close(fd)
		for {
			c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
			if err == unix.EINTR || err == unix.ECONNABORTED {
				continue
			}
			if err != nil {
				return
			}
			conn := os.NewFile(uintptr(c), "upgrade")
			r := l.hear(conn)
			if r == nil {
				conn.Close()
				continue
			}
			select {
			case l.requests <- r:
			case <-l.closed:
				r.program.Close()
				r.answer(ErrEnded)
			}
		}
	}()
	return l, nil
}

// close ends it. The name is free then: the next mount of a process that lives on, as a container's supervisor does, may have the
// same device number.
func (l *Listener) close() {
	close(l.closed)
	_ = unix.Shutdown(l.fd, unix.SHUT_RDWR) // has accept return
	<-l.done
}

// hear reads a request; nil if it is none that may be granted.
func (l *Listener) hear(conn *os.File) *request {
	who, err := unix.GetsockoptUcred(int(conn.Fd()), unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || who.Uid != 0 && int(who.Uid) != os.Geteuid() {
		return nil
	}
	// One that connects and says nothing must not keep others out for long.
	limit := unix.NsecToTimeval(int64(time.Second))
	if unix.SetsockoptTimeval(int(conn.Fd()), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit) != nil {
		return nil
	}
	kind, kept, err := receive(conn)
	if err != nil || kind != packetStandby || len(kept.Files) != 1 {
		kept.close()
		return nil
	}
	return &request{program: kept.Files[0], conn: conn}
}

// ErrNotYours is the answer to who is neither root nor the user that the mount belongs to.
var ErrNotYours = errors.New("it is somebody else's; only they and root may upgrade it")

// Upgrade asks the holder that listens on a socket to replace its server by the program, and returns when the new one serves. If
// there is an error the old one goes on.
func Upgrade(socket string, program *os.File) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	conn := os.NewFile(uintptr(fd), "holder")
	defer conn.Close()
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: socket}); err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			err = errors.New("no holder of it listens; its server is of an older version, or it is the mount of a server in the foreground")
		}
		return err
	}
	if err := send(conn, packetStandby, Kept{Files: []*os.File{program}}); err != nil {
		return err
	}
	_, answer, err := receive(conn)
	if errors.Is(err, io.EOF) {
		return ErrNotYours
	}
	if err != nil {
		return err
	}
	if len(answer.Data) > 0 {
		return errors.New(string(answer.Data))
	}
	return nil
}

// replace starts the server that is to take over.
func (h *holder) replace(r *request) {
	if h.next != nil || h.request != nil {
		r.answer(errors.New("its server is just being replaced"))
		return
	}
	if err := h.start(r.program, true); err != nil {
		r.answer(err)
		return
	}
	h.request = r
	h.limit(h.next)
}

// limit ends a server that doesn't stand by in time.
func (h *holder) limit(s *server) {
	time.AfterFunc(upgradePatience, func() { h.tell(event{from: s, kind: packetLate}) })
}

// packetLate is the holder's own: a server had time enough to stand by.
const packetLate = 'l'

// refuse tells who asked for it that the server was not replaced.
func (h *holder) refuse(s *server) {
	if h.request == nil {
		return
	}
	reason := s.reason
	if reason == "" {
		reason = "it ended with " + s.cmd.ProcessState.String()
	}
	h.request.answer(fmt.Errorf("the new program can't take over, and the old one goes on: %s", reason))
	h.request = nil
}

// turn lets the server that stands by go on, if there is one, now that the old one has ended.
func (h *holder) turn() bool {
	s := h.next
	if s == nil {
		return false
	}
	if !s.waiting || send(s.sock, packetGo, Kept{}) != nil {
		_ = s.cmd.Process.Kill() // the old one ended by itself, and its like comes back sooner
		return false
	}
	h.serving, h.next = s, nil
	return true
}
