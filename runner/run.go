package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// supervisorFDVariable tells the supervisor which descriptor leads to P0.
const supervisorFDVariable = "_UNIONFS_SUPERVISOR_FD"

// RunOptions is how [Container.Run] connects a container to its caller.
type RunOptions struct {
	// Supervisor are the arguments with which the own program calls [Supervise] for this container. Paths in them
	// must be absolute.
	Supervisor []string

	// Stdin, Stdout and Stderr are os.Stdin, os.Stdout and os.Stderr if nil. With Spec.Process.Terminal the command
	// has a terminal of its own, from which its output is copied to Stdout and to which input is copied from Stdin;
	// if Stdin is a terminal it is in raw mode meanwhile. Without, the command gets the descriptors themselves.
	Stdin, Stdout, Stderr *os.File

	// Ahead is the container's supervisor if it was started before the container was made: see [StartAhead].
	Ahead *Supervisor

	// Join, for an ordinary user, is where the supervisor goes instead of into namespaces of its own.
	Join *Join

	// Interactive passes Stdin on. Without it the command reads an empty input.
	Interactive bool

	// DetachKeys, typed at a terminal, let the container go on in the background: Run returns [ErrDetached]. None if empty.
	DetachKeys []byte
}

// Run runs a created or exited container in the foreground and waits for its end. Signals that this process gets are
// passed on to the command, unless they are a terminal's and the command has its own.
//
// It returns the command's exit code, 128+N if signal N ended it. If the command did not start, the error says why in
// one line and the code is 127 (no such command), 126 (can't be executed) or 125 (anything else). Whatever happens to this
// process, the container does not outlive it.
func (c *Container) Run(ctx context.Context, o RunOptions) (int, error) {
	o.fill()
	postponeCollection()() // it will wait, mostly
	r := &run{container: c, options: o, terminal: c.Spec.Process.Terminal}
	code, err := r.run(ctx)
	if err != nil && code == 0 {
		code = exitOurs
	}
	return code, err
}

// fill puts this process's own streams in the place of those that are nil.
func (o *RunOptions) fill() {
	if o.Stdin == nil {
		o.Stdin = os.Stdin
	}
	if o.Stdout == nil {
		o.Stdout = os.Stdout
	}
	if o.Stderr == nil {
		o.Stderr = os.Stderr
	}
}

// run is P0's side of one run of a container, or of another command in it.
type run struct {
	container *Container
	options   RunOptions
	terminal  bool
	wire      *wire
	relay     atomic.Pointer[relay] // nil until the console arrives, and without terminal

	untilStarted bool // don't wait for the command's end
}

func (r *run) run(ctx context.Context) (int, error) {
	signals, stopSignals := catchSignals()
	defer stopSignals()
	supervisor, err := r.start()
	if err != nil {
		return exitOurs, err
	}
	defer r.wire.shut()
	go r.passOn(signals)
	stop := context.AfterFunc(ctx, r.wire.shut) // the supervisor ends the container when its wire does
	defer stop()

	end, err := r.follow()
	if err == nil && end.Kind == msgDetached {
		r.relay.Load().restore()
		return 0, ErrDetached
	}
	r.relay.Load().finish()
	if err == nil && end.Lingers {
		return end.Code, endError(end)
	}
	werr := supervisor.Wait()
	switch {
	case err == nil:
		return end.Code, endError(end)
	case ctx.Err() != nil:
		return exitUnknown, ctx.Err()
	case werr != nil:
		return exitUnknown, fmt.Errorf("the container's supervisor was killed (%w)", werr)
	default:
		return exitUnknown, errors.New("the container's supervisor ended without a word")
	}
}

// endError is the error that a message tells of.
func endError(m message) error {
	if m.Error == "" {
		return nil
	}
	return errors.New(m.Error)
}

// catchSignals takes the signals that are the command's business.
func catchSignals() (signals chan os.Signal, stop func()) {
	signals = make(chan os.Signal, 32)
	for _, s := range forwardedSignals() {
		if !signal.Ignored(s) { // nohup(1)
			signal.Notify(signals, s)
		}
	}
	return signals, func() { signal.Stop(signals) }
}

// passOn passes signals on to the command.
func (r *run) passOn(signals <-chan os.Signal) {
	for s := range signals {
		if s == unix.SIGWINCH && r.terminal {
			r.relay.Load().resize()
			continue
		}
		_ = r.wire.send(message{Kind: msgSignal, Signal: int(s.(syscall.Signal))})
	}
}

// start starts the supervisor, unless it was started ahead.
func (r *run) start() (cmd *exec.Cmd, err error) {
	if r.options.Ahead != nil {
		r.wire, cmd, err = r.options.Ahead.takeOver(r.container)
	} else {
		r.wire, cmd, err = startForRun(r.options, r.terminal, "")
	}
	return cmd, err
}

// follow reads what the supervisor says until the end, which it returns. The error is io.EOF if the supervisor dies
// before.
func (r *run) follow() (message, error) {
	for {
		m, fds, err := r.wire.recv()
		if err != nil {
			closeAll(fds)
			return m, err
		}
		switch {
		case m.Kind == msgConsole && len(fds) == 1 && r.relay.Load() == nil:
			relay, err := startRelay(os.NewFile(uintptr(fds[0]), "terminal"), r.options, r.detach)
			if err != nil {
				r.wire.shut()
				return m, err
			}
			r.relay.Store(relay)
			_ = r.wire.send(message{Kind: msgReady})
		case m.Kind == msgExited, m.Kind == msgStarted && r.untilStarted, m.Kind == msgDetached && m.Error == "":
			closeAll(fds)
			return m, nil
		default:
			closeAll(fds)
		}
	}
}

// forwardedSignals are the signals that are the command's business rather than this process's. Job control stays with
// the caller's shell, and the rest (SIGCHLD, SIGPIPE, SIGURG) are about this process.
func forwardedSignals() []os.Signal {
	return []os.Signal{
		unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH,
		unix.SIGIO, unix.SIGPWR,
	}
}
