package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// The three processes of a container talk in JSON messages over SOCK_SEQPACKET pairs: one packet a message, with the
// descriptors it carries. The end of a process is the end of the stream for the others.
//
//	P0 → P1   made          to a supervisor that was started ahead: its container is there, and Usual or not
//	          signal        pass the signal on to the command
//	          ready         the terminal has its size, and the caller's is in raw mode: the command may start
//	          detach        + the terminal's master: go on in the background
//	          attach        + input, output and error, the ends of sockets; Rows, Columns: the first, of a caller that watches
//	          resize        Rows, Columns: of the terminal of such a one
//	P1 → P0   detached      the caller may go; Error: or not
//	          console       + the terminal's master
//	          started       the command runs
//	          exited        Code, Error: the end, after the root was unmounted and state.json written
//	P1 → P2   config        + a memory file with the JSON of initConfig: what the container is to be
//	          root          it is mounted: set the container up
//	          filter        + a memory file with the JSON of its seccompFilter: the command may start
//	          sealed        nobody can write to P2's program any more: the command may start
//	          signal
//	          ready         the answer to console
//	          connected     the container has its network: the command may start
//	          owned         Owner.ID, Code: the answer to owner and device, an error number or 0
//	P2 → P1   console       + the terminal's master
//	          started       Paths: placeholders made
//	          owner         Owner: a file of the root belongs to somebody whom the user namespace doesn't have
//	          device        Owner: a device is to be made
//	          failed        Code (125, 126, 127) and Error: the command did not start
//	          exited        Code: the command's end
//
// Any process of the same user may connect to the supervisor's socket (control.go) and say, as its first message,
//
//	→ P1      wait          to be told of the end
//	P1 →      exited        Code, Error
//	→ P1      network       to have the container's networks looked at again
//	P1 →      network       Error: done, or why not
//	→ P1      pause, unpause
//	→ P1      update        Update
//	→ P1      stopping      don't start it again
//	P1 →      done          Error: the answer to each of these
//	→ P1      files         Files + the stream of a tar
//	P1 →      done          Error, File: from the process that it started for that
//	→ P1      attach        + input, output and error, the ends of sockets
//	P1 →      started
//	→ P1      signal, resize (Rows, Columns)
//	P1 →      exited        Code, Error
//	→ P1      exec          Exec + standard input, output and error: another command; the connection goes on to P2
//	P2 →      console       + the terminal's master
//	→ P2      ready         the answer to console
//	P2 →      started       with Exec.Detach the last
//	→ P2      signal
//	→ P2      detach        + the terminal's master: the caller goes, and the command stays
//	P2 →      detached      Error: or not
//	P2 →      exited        Code, Error: why it did not start
const (
	msgWait      = "wait"
	msgNetwork   = "network"
	msgExec      = "exec"
	msgPause     = "pause"
	msgUnpause   = "unpause"
	msgFiles     = "files"
	msgUpdate    = "update"
	msgStopping  = "stopping"
	msgAttach    = "attach"
	msgResize    = "resize"
	msgDetach    = "detach"
	msgDetached  = "detached"
	msgDone      = "done"
	msgMade      = "made"
	msgRoot      = "root"
	msgFilter    = "filter"
	msgSealed    = "sealed"
	msgSignal    = "signal"
	msgConsole   = "console"
	msgReady     = "ready"
	msgConnected = "connected"
	msgStarted   = "started"
	msgFailed    = "failed"
	msgExited    = "exited"
	msgOwner     = "owner"
	msgDevice    = "device"
	msgOwned     = "owned"
)

type message struct {
	Kind    string        `json:"kind"`
	Signal  int           `json:"signal,omitempty"`
	Code    int           `json:"code,omitempty"`
	Error   string        `json:"error,omitempty"`
	Paths   []string      `json:"paths,omitempty"`
	Rows    int           `json:"rows,omitempty"`
	Columns int           `json:"columns,omitempty"`
	Exec    *execRequest  `json:"exec,omitempty"`
	Files   *filesRequest `json:"files,omitempty"`
	File    *FileInfo     `json:"file,omitempty"`

	// Update is an [UpdateOptions], whose many types a process would else learn with the first message that it reads.
	Update json.RawMessage `json:"update,omitempty"`

	// Usual says that the container's init is most probably to be started as most are.
	Usual bool `json:"usual,omitempty"`

	// Lingers says that the sender has more to do, which nobody need wait for.
	Lingers bool `json:"lingers,omitempty"`

	Owner *ownerRequest `json:"owner,omitempty"`
}

// maxMessage bounds a packet. The longest carry an error line or the placeholders.
const maxMessage = 64 << 10

// maxDescriptors bounds those that come with a packet.
const maxDescriptors = 64

// wire is one end of such a pair. Any number of goroutines may send; one may receive.
type wire struct {
	fd   int
	once sync.Once
	buf  []byte // of the one who receives
}

// newWire returns our end, and the other one as a file to give to a child. Both are close-on-exec.
func newWire() (*wire, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("making a socket pair: %w", err)
	}
	return &wire{fd: fds[0]}, os.NewFile(uintptr(fds[1]), "wire"), nil
}

// send sends m with descriptors. An error means that the other end is gone, and is then of no interest to most.
func (w *wire) send(m message, fds ...int) error {
	if len(m.Error) > maxMessage/8 {
		m.Error = m.Error[:maxMessage/8]
	}
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(data) > maxMessage {
		m.Paths = nil // only placeholders can be that many
		if data, err = json.Marshal(m); err != nil {
			return err
		}
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(w.fd, data, rights, nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// recv waits for a message. The error is io.EOF when the other end is closed. Descriptors are close-on-exec and the
// caller's to close.
func (w *wire) recv() (message, []int, error) {
	var m message
	if w.buf == nil {
		w.buf = make([]byte, maxMessage)
	}
	buf := w.buf
	oob := make([]byte, unix.CmsgSpace(maxDescriptors*4))
	var n, oobn int
	var err error
	for {
		n, oobn, _, _, err = unix.Recvmsg(w.fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.ECONNRESET {
		return m, nil, io.EOF
	}
	if err != nil {
		return m, nil, err
	}
	var fds []int
	cmsgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		return m, nil, err
	}
	for i := range cmsgs {
		more, err := unix.ParseUnixRights(&cmsgs[i])
		if err != nil {
			continue
		}
		fds = append(fds, more...)
	}
	if n == 0 {
		return m, fds, io.EOF
	}
	if err := json.Unmarshal(buf[:n], &m); err != nil {
		return m, fds, errors.Join(errors.New("reading a message of another process of the container"), err)
	}
	return m, fds, nil
}

// shut ends the stream for both sides; a recv that waits returns io.EOF. The descriptor stays until the process ends, so
// that no goroutine can come to use another file's number.
func (w *wire) shut() {
	w.once.Do(func() { _ = unix.Shutdown(w.fd, unix.SHUT_RDWR) })
}

// close ends the stream and closes the descriptor. No other goroutine may be using the wire.
func (w *wire) close() {
	w.shut()
	unix.Close(w.fd)
}

// closeAll closes descriptors that came with a message nobody wanted.
func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}
