package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// ErrDetached is what [Container.Attach] returns when the detach keys were typed.
var ErrDetached = errors.New("detached")

// DefaultDetachKeys are Docker's.
const DefaultDetachKeys = "ctrl-p,ctrl-q"

// ParseDetachKeys reads a list of keys, separated by commas: single characters, and ctrl- with one of a–z, @, [, \, ], ^ and _.
func ParseDetachKeys(s string) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	var keys []byte
	for key := range strings.SplitSeq(s, ",") {
		control, isControl := strings.CutPrefix(strings.ToLower(key), "ctrl-")
		switch {
		case isControl && len(control) == 1 && (control[0] >= 'a' && control[0] <= 'z' || strings.Contains(`@[\]^_`, control)):
			keys = append(keys, strings.ToUpper(control)[0]&0x1f)
		case !isControl && len(key) == 1:
			keys = append(keys, key[0])
		default:
			return nil, fmt.Errorf("there is no key %q: want a character, or ctrl- and one of a-z, @, [, \\, ], ^ and _", key)
		}
	}
	return keys, nil
}

// AttachOptions is how [Container.Attach] connects the caller to a container.
type AttachOptions struct {
	Stdin, Stdout, Stderr *os.File // as in [RunOptions]

	NoStdin    bool   // pass no input on
	NoSignals  bool   // keep the signals that this process gets
	DetachKeys []byte // what ends it when typed; never if empty
}

// Attach connects the caller's streams with those of a container that runs in the background, until that ends, the detach keys are
// typed ([ErrDetached]) or ctx ends. It returns the container's exit code. Any number of callers may be attached at once.
func (c *Container) Attach(ctx context.Context, o AttachOptions) (int, error) {
	w, err := c.connect()
	if errors.Is(err, errNoSupervisor) {
		return exitOurs, fmt.Errorf("container %s is not running", c.Name)
	}
	if err != nil {
		return exitOurs, err
	}
	defer w.close()
	a, err := c.attachBy(w, o)
	if err != nil {
		return exitOurs, err
	}
	defer a.close()
	first, fds, err := w.recv()
	closeAll(fds)
	switch {
	case err != nil:
		return exitOurs, fmt.Errorf("container %s has ended", c.Name)
	case first.Kind != msgStarted:
		return exitOurs, errors.New(first.Error)
	}
	return a.run(ctx)
}

// attachBy asks the supervisor at the other end of w to attach the caller, who catches signals from then on.
func (c *Container) attachBy(w *wire, o AttachOptions) (*attached, error) {
	streams := RunOptions{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr}
	streams.fill()
	a := &attached{container: c, options: o, streams: streams, wire: w, detached: make(chan struct{})}
	var theirs []int
	defer func() { closeAll(theirs) }()
	for i := range a.ours {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			closeFiles(a.ours[:i])
			return nil, err
		}
		a.ours[i] = os.NewFile(uintptr(pair[0]), "attached")
		theirs = append(theirs, pair[1])
	}
	m := message{Kind: msgAttach}
	if c.Spec.Process.Terminal {
		m.Rows, m.Columns = a.size()
	}
	// Before anybody can know that we are attached: from then on signals are the command's.
	a.signals, a.stopSignals = o.catchSignals(c.Spec.Process.Terminal)
	if err := w.send(m, theirs...); err != nil {
		a.close()
		return nil, fmt.Errorf("container %s is not running", c.Name)
	}
	return a, nil
}

// attached is the caller's side of an attachment.
type attached struct {
	container *Container
	options   AttachOptions
	streams   RunOptions
	wire      *wire
	ours      [3]*os.File
	signals   <-chan os.Signal
	detached  chan struct{}
	fromStart bool // see watcher

	stopSignals func()
}

func (a *attached) close() {
	a.stopSignals()
	closeFiles(a.ours[:])
}

func (a *attached) run(ctx context.Context) (int, error) {
	terminal := a.container.Spec.Process.Terminal
	if terminal && !a.options.NoStdin && isTerminal(a.streams.Stdin) {
		before, err := term.MakeRaw(int(a.streams.Stdin.Fd()))
		if err != nil {
			return exitOurs, fmt.Errorf("setting the terminal to raw mode: %w", err)
		}
		defer func() { _ = term.Restore(int(a.streams.Stdin.Fd()), before) }()
	}
	if terminal {
		a.resize()
	}
	go func() {
		for sig := range a.signals {
			if sig == unix.SIGWINCH && terminal {
				a.resize()
				continue
			}
			_ = a.wire.send(message{Kind: msgSignal, Signal: int(sig.(unix.Signal))})
		}
	}()
	if !a.options.NoStdin {
		go a.copyInput()
	}
	outputs := make(chan struct{}, 2)
	for i, to := range []*os.File{a.streams.Stdout, a.streams.Stderr} {
		go func() {
			_, _ = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{a.ours[i+1]})
			outputs <- struct{}{}
		}()
	}
	end := make(chan message, 1)
	go func() {
		for {
			m, fds, err := a.wire.recv()
			closeAll(fds)
			if err != nil {
				m = message{Code: exitUnknown, Error: fmt.Sprintf("the supervisor of container %s was killed", a.container.Name)}
			} else if m.Kind != msgExited {
				continue
			}
			end <- m
			return
		}
	}()
	select {
	case <-a.detached:
		return 0, ErrDetached
	case <-ctx.Done():
		return exitUnknown, ctx.Err()
	case m := <-end:
		<-outputs
		<-outputs
		if m.Error != "" {
			return m.Code, errors.New(m.Error)
		}
		return m.Code, nil
	}
}

// catchSignals takes the signals that are to be passed on, and with a terminal that of a new size in any case.
func (o AttachOptions) catchSignals(terminal bool) (signals chan os.Signal, stop func()) {
	if !o.NoSignals {
		return catchSignals()
	}
	signals = make(chan os.Signal, 1)
	if terminal {
		signal.Notify(signals, unix.SIGWINCH)
	}
	return signals, func() { signal.Stop(signals) }
}

// resize gives the container's terminal the size of the caller's, if that has one.
func (a *attached) resize() {
	if rows, columns := a.size(); rows > 0 {
		_ = a.wire.send(message{Kind: msgResize, Rows: rows, Columns: columns})
	}
}

// size is that of the caller's terminal; 0 if it has none.
func (a *attached) size() (rows, columns int) {
	for _, f := range []*os.File{a.streams.Stdin, a.streams.Stdout} {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil {
			return height, width
		}
	}
	return 0, 0
}

// copyInput passes input on, up to the detach keys.
func (a *attached) copyInput() {
	in := keyReader{in: a.streams.Stdin, keys: a.options.DetachKeys}
	if _, err := io.Copy(struct{ io.Writer }{a.ours[0]}, &in); errors.Is(err, ErrDetached) {
		close(a.detached)
		return
	}
	if a.fromStart && a.container.Spec.Process.Terminal && !isTerminal(a.streams.Stdin) {
		_, _ = a.ours[0].Write([]byte{endOfTransmission})
	}
	_ = unix.Shutdown(int(a.ours[0].Fd()), unix.SHUT_WR)
}

// keyReader reads until a sequence of keys comes, which it keeps back. A start of the sequence is kept back until it is clear that it
// isn't one.
type keyReader struct {
	in   io.Reader
	keys []byte
	kept int // how many of keys the input ends with
}

func (k *keyReader) Read(p []byte) (int, error) {
	if len(k.keys) == 0 {
		return k.in.Read(p)
	}
	buf := make([]byte, max(1, len(p)-len(k.keys)))
	n, err := k.in.Read(buf)
	var out bytes.Buffer
	for _, b := range buf[:n] {
		if b == k.keys[k.kept] {
			if k.kept++; k.kept == len(k.keys) {
				return copy(p, out.Bytes()), ErrDetached
			}
			continue
		}
		out.Write(k.keys[:k.kept])
		k.kept = 0
		if b == k.keys[0] {
			k.kept = 1
			if len(k.keys) == 1 {
				return copy(p, out.Bytes()), ErrDetached
			}
			continue
		}
		out.WriteByte(b)
	}
	if err != nil {
		out.Write(k.keys[:k.kept])
		k.kept = 0
	}
	return copy(p, out.Bytes()), err
}
