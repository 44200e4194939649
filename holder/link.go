package holder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// The packets. Their first byte is one of these.
const (
	packetStart   = 's' // payload: what was kept; descriptors too
	packetStandby = 'b' // as packetStart, for a server that is to take over from a living one
	packetKeep    = 'k' // payload and descriptors to be kept; those that were kept before are given up
	packetReady   = 'r'
	packetFailed  = 'f' // payload: why, for people
	packetPing    = 'p'
	packetPong    = 'q'
	packetWaiting = 'w'
	packetGo      = 'g'
	packetWrite   = 'n' // payload: eight bytes to tell it by, and what to write to the descriptor Config.Device
	packetWritten = 'd' // payload: the eight bytes

	packetQuestion = 'a' // payload: eight bytes to tell it by, and the question
	packetAgain    = 'A' // a question that another server has got
	packetAnswer   = 'e' // payload: the eight bytes, and the answer
)

const (
	// linkVariable names the server's end of the link in its environment, by its number.
	linkVariable = "_UNIONFS_HOLDER_FD"

	maxPacket = 16 << 10
	maxFiles  = 4
)

// Kept is what outlives a server: descriptors, and bytes that say how to use them. What they mean only servers know.
type Kept struct {
	Files []*os.File
	Data  []byte
}

func (k *Kept) close() {
	for _, f := range k.Files {
		f.Close()
	}
	k.Files = nil
}

// send sends a packet.
func send(sock *os.File, kind byte, k Kept) error {
	var rights []byte
	if len(k.Files) > 0 {
		fds := make([]int, len(k.Files))
		for i, f := range k.Files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	return unix.Sendmsg(int(sock.Fd()), append([]byte{kind}, k.Data...), rights, nil, unix.MSG_NOSIGNAL)
}

// receive waits for a packet; io.EOF when the other end is closed.
func receive(sock *os.File) (kind byte, k Kept, err error) {
	buf := make([]byte, maxPacket)
	rights := make([]byte, unix.CmsgSpace(4*maxFiles))
	var n, nr, flags int
	for {
		n, nr, flags, _, err = unix.Recvmsg(int(sock.Fd()), buf, rights, unix.MSG_CMSG_CLOEXEC)
		if err != unix.EINTR {
			break
		}
	}
	if err == unix.ECONNRESET {
		err = io.EOF
	}
	if err != nil {
		return 0, k, err
	}
	messages, err := unix.ParseSocketControlMessage(rights[:nr])
	if err != nil {
		return 0, k, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			k.Files = append(k.Files, os.NewFile(uintptr(fd), "kept"))
		}
	}
	switch {
	case n == 0:
		k.close()
		return 0, k, io.EOF
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		k.close()
		return 0, k, errors.New("a packet between a mount's server and its holder is too large")
	}
	k.Data = buf[1:n]
	return buf[0], k, nil
}

// Link is a server's connection to its holder.
type Link struct {
	sock    *os.File
	kept    *Kept // what an earlier server gave to keep; nil for the first
	standby bool

	sending sync.Mutex
	alone   chan struct{} // closed when there is no holder any more

	writing sync.Mutex
	writes  uint64                   // how many were asked for
	pending map[uint64]chan struct{} // those that are not done

	answer func(question []byte, again bool) []byte // nil if nothing is asked
}

// Attach connects a process that a holder started. It returns nil if none did. Children of this process inherit nothing of it.
func Attach() (*Link, error) {
	value := os.Getenv(linkVariable)
	if value == "" {
		return nil, nil
	}
	os.Unsetenv(linkVariable)
	fd, err := strconv.Atoi(value)
	if err != nil {
		return nil, fmt.Errorf("the holder's descriptor %q is not a number", value)
	}
	unix.CloseOnExec(fd)
	l := &Link{sock: os.NewFile(uintptr(fd), "holder"), alone: make(chan struct{}), pending: map[uint64]chan struct{}{}}
	kind, kept, err := receive(l.sock)
	if err != nil {
		return nil, fmt.Errorf("hearing from the mount's holder: %w", err)
	}
	if kind != packetStart && kind != packetStandby {
		return nil, fmt.Errorf("the mount's holder begins with %q, as this program's version does not", kind)
	}
	if len(kept.Files) > 0 {
		l.kept = &kept
	}
	l.standby = kind == packetStandby
	return l, nil
}

// Kept is what the server before this one gave to keep, or nil if this one is the first.
func (l *Link) Kept() *Kept { return l.kept }

// AwaitTurn is called when all is prepared that can be while another server works, and returns when that has ended. For a
// server that takes nobody's place it returns at once.
func (l *Link) AwaitTurn() error {
	if !l.standby {
		return nil
	}
	if err := l.send(packetWaiting, Kept{}); err != nil {
		return err
	}
	kind, kept, err := receive(l.sock)
	if err != nil {
		return fmt.Errorf("waiting for the turn to serve the mount: %w", err)
	}
	kept.close()
	if kind != packetGo {
		return fmt.Errorf("waiting for the turn to serve the mount, the holder said %q", kind)
	}
	return nil
}

// Keep gives the holder what the next server needs.
func (l *Link) Keep(k Kept) error { return l.send(packetKeep, k) }

// Failed tells the holder why this server can't serve.
func (l *Link) Failed(reason error) {
	text := reason.Error()
	_ = l.send(packetFailed, Kept{Data: []byte(text[:min(len(text), maxPacket-1)])}) // the exit code tells it as well
}

// Ready tells the holder that requests are answered, and from then on answers it as long as alive returns.
func (l *Link) Ready(alive func()) error {
	if err := l.send(packetReady, Kept{}); err != nil {
		return err
	}
	go func() {
		defer close(l.alone)
		for {
			kind, kept, err := receive(l.sock)
			if err != nil {
				return
			}
			kept.close()
			switch kind {
			case packetWritten:
				l.written(kept.Data)
			case packetQuestion, packetAgain:
				go l.question(kept.Data, kind == packetAgain)
			case packetPing:
				alive()
				if l.send(packetPong, Kept{}) != nil {
					return
				}
			}
		}
	}()
	return nil
}

// Write has the holder write to the device, and returns when it has. A process that itself waits there for the kernel, which may
// wait for an answer of this process, could not even be killed: the kernel would wait for a thread of it.
func (l *Link) Write(b []byte) error {
	done := make(chan struct{})
	l.writing.Lock()
	l.writes++
	id := l.writes
	l.pending[id] = done
	l.writing.Unlock()
	if err := l.send(packetWrite, Kept{Data: append(binary.NativeEndian.AppendUint64(nil, id), b...)}); err != nil {
		return err
	}
	select {
	case <-done:
		return nil
	case <-l.alone:
		return errors.New("the mount has no holder any more")
	}
}

func (l *Link) written(b []byte) {
	if len(b) != 8 {
		return
	}
	id := binary.NativeEndian.Uint64(b)
	l.writing.Lock()
	defer l.writing.Unlock()
	if done := l.pending[id]; done != nil {
		close(done)
		delete(l.pending, id)
	}
}

// Alone is closed when a server that was ready has lost its holder: the mount then lives as long as this process.
func (l *Link) Alone() <-chan struct{} { return l.alone }

func (l *Link) send(kind byte, k Kept) error {
	l.sending.Lock()
	defer l.sending.Unlock()
	if err := send(l.sock, kind, k); err != nil {
		return fmt.Errorf("talking to the mount's holder: %w", err)
	}
	return nil
}
