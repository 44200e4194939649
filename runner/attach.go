package runner

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// audience is who is attached to a container's output, beside its log. A writer never waits for them: who doesn't take what there
// is, so that more than maxUnread waits, is let go.
type audience struct {
	mu   sync.Mutex
	all  map[*attachment]bool
	left map[*attachment]bool // those who were there at the end, and aren't told of it yet
	over bool
}

// maxUnread is in bytes.
const maxUnread = 4 << 20

// endGrace is how long the end of a container waits for those who read slowly.
const endGrace = 2 * time.Second

// attachment is one who is attached.
type attachment struct {
	wire    *wire
	outputs [2]*os.File // standard output and error

	mu     sync.Mutex
	more   *sync.Cond
	queue  []chunk
	size   int  // of the queue, in bytes
	closed bool // nothing more comes
	done   chan struct{}
}

type chunk struct {
	stream int // 0 standard output, 1 standard error
	data   []byte
}

// writer returns what everything of a stream is written to.
func (a *audience) writer(stream int) io.Writer { return audienceWriter{a, stream} }

type audienceWriter struct {
	audience *audience
	stream   int
}

func (w audienceWriter) Write(p []byte) (int, error) {
	w.audience.mu.Lock()
	defer w.audience.mu.Unlock()
	for at := range w.audience.all {
		at.push(chunk{w.stream, append([]byte(nil), p...)})
	}
	return len(p), nil
}

// add attaches somebody. It reports false if the output has ended.
func (a *audience) add(w *wire, outputs [2]*os.File) (*attachment, bool) {
	at := &attachment{wire: w, outputs: outputs, done: make(chan struct{})}
	at.more = sync.NewCond(&at.mu)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.over {
		return nil, false
	}
	if a.all == nil {
		a.all = map[*attachment]bool{}
	}
	a.all[at] = true
	go at.run()
	return at, true
}

func (a *audience) remove(at *attachment) {
	a.mu.Lock()
	delete(a.all, at)
	delete(a.left, at)
	a.mu.Unlock()
	at.finish()
	for _, f := range at.outputs {
		_ = f.SetDeadline(time.Now()) // a write that waits ends
	}
	<-at.done
}

// end lets everybody have what there still is. They are told of the end when it is written down, by tell.
func (a *audience) end() {
	a.mu.Lock()
	all := a.all
	a.all, a.left, a.over = nil, maps.Clone(all), true
	a.mu.Unlock()
	for at := range all {
		at.finish()
		for _, f := range at.outputs {
			_ = f.SetWriteDeadline(time.Now().Add(endGrace))
		}
	}
	for at := range all {
		<-at.done
	}
}

// tell tells those who were attached how the container ended.
func (a *audience) tell(end outcome) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for at := range a.left {
		_ = at.wire.send(end.message())
		at.wire.shut()
	}
	a.left = nil
}

func (at *attachment) push(c chunk) {
	at.mu.Lock()
	defer at.mu.Unlock()
	if at.closed {
		return
	}
	if at.size+len(c.data) > maxUnread {
		at.closed, at.queue = true, nil
		_ = at.wire.send(message{Kind: msgExited, Code: exitOurs, Error: fmt.Sprintf("more than %d MiB of output were not read", maxUnread>>20)})
		at.more.Signal()
		return
	}
	at.queue = append(at.queue, c)
	at.size += len(c.data)
	at.more.Signal()
}

func (at *attachment) finish() {
	at.mu.Lock()
	defer at.mu.Unlock()
	at.closed = true
	at.more.Signal()
}

// run writes what comes.
func (at *attachment) run() {
	defer close(at.done)
	defer func() {
		for _, f := range at.outputs {
			f.Close()
		}
	}()
	for {
		at.mu.Lock()
		for len(at.queue) == 0 && !at.closed {
			at.more.Wait()
		}
		if len(at.queue) == 0 {
			at.mu.Unlock()
			return
		}
		c := at.queue[0]
		at.queue = at.queue[1:]
		at.mu.Unlock()
		if _, err := at.outputs[c.stream].Write(c.data); err != nil {
			at.finish()
			at.mu.Lock()
			at.queue = nil
			at.mu.Unlock()
			return
		}
		at.mu.Lock()
		at.size -= len(c.data)
		at.mu.Unlock()
	}
}

// attach serves somebody who wants to be attached: fds are their input, or a descriptor that is never read, and the outputs. It
// returns when they go, or the output ends.
func (s *supervisor) attach(w *wire, fds []int) error {
	s.mu.Lock()
	streams := s.streams
	ready := s.started && !s.finished
	s.mu.Unlock()
	switch {
	case !ready:
		return fmt.Errorf("container %s is not running", s.container.Name)
	case streams == nil:
		return fmt.Errorf("container %s runs in front of somebody, who has its output: only one in the background can be attached to", s.container.Name)
	}
	files, err := attachedFiles(fds)
	if err != nil {
		return err
	}
	defer files[0].Close()
	at, ok := streams.audience.add(w, [2]*os.File{files[1], files[2]})
	if !ok {
		return fmt.Errorf("container %s has ended", s.container.Name)
	}
	s.container.note("attach")
	_ = w.send(message{Kind: msgStarted})
	typed := make(chan struct{})
	go func() {
		defer close(typed)
		if to := streams.inputOf(); to != nil {
			_, _ = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{files[0]})
		}
	}()
	for {
		m, fds, err := w.recv()
		closeAll(fds)
		if err != nil {
			break
		}
		switch m.Kind {
		case msgSignal:
			s.signal(unix.Signal(m.Signal))
		case msgResize:
			streams.resize(m.Rows, m.Columns)
		}
	}
	streams.audience.remove(at)
	// What they typed before they went still goes to the command, if that takes it.
	select {
	case <-typed:
	case <-time.After(endGrace):
	}
	s.container.note("detach")
	return nil
}

// attachedFiles are the input, or what is never read, and the outputs of somebody who sent their descriptors, which stay the caller's.
func attachedFiles(fds []int) ([3]*os.File, error) {
	var files [3]*os.File
	if len(fds) != len(files) {
		return files, errors.New("want three descriptors")
	}
	for i, fd := range fds {
		again, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			closeFiles(files[:i])
			return files, err
		}
		_ = unix.SetNonblock(again, true) // sockets: it is theirs alone
		files[i] = os.NewFile(uintptr(again), "attached")
	}
	return files, nil
}

// inputOf is where input goes; nil if the command reads none.
func (s *streams) inputOf() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.master != nil {
		return s.master
	}
	return s.input
}

// resize gives the container's terminal, if it has or gets one, a size.
func (s *streams) resize(rows, columns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.size = &unix.Winsize{Row: uint16(rows), Col: uint16(columns)}
	if s.master != nil {
		_ = unix.IoctlSetWinsize(int(s.master.Fd()), unix.TIOCSWINSZ, s.size)
	}
}
