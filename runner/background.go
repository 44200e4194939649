package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// AnnotationInteractive is "true" for a container whose command finds its standard input open, with nothing in it, also
// when it runs in the background.
const AnnotationInteractive = "io.unionfs.interactive"

// supervisorModeVariable tells the supervisor what it is started for: supervisorMode.
const supervisorModeVariable = "_UNIONFS_SUPERVISOR_MODE"

const modeBackground = "background"

// modeAttached is modeBackground with a caller that is attached from the start.
const modeAttached = "attached"

// StartOptions is how [Container.Start] starts a container.
type StartOptions struct {
	// Supervisor are the arguments with which the own program calls [Supervise] for this container. Paths in them
	// must be absolute.
	Supervisor []string

	// Join, for an ordinary user, is where the supervisor goes instead of into namespaces of its own.
	Join *Join

	// Attach, if not nil, connects the caller from the start on, and Start returns as [Container.Attach] does.
	Attach *AttachOptions
}

// Start starts a created or exited container in the background, and returns when its command runs. The container has
// nothing of this process: neither its session nor its streams nor its directory. What the command writes is in the
// container's log ([Container.Logs]).
//
// If the command did not start, the error says why in one line and the code is 127 (no such command), 126 (can't be
// executed) or 125 (anything else), as of [Container.Run].
func (c *Container) Start(ctx context.Context, o StartOptions) (int, error) {
	mode := modeBackground
	if o.Attach != nil {
		mode = modeAttached
	}
	w, theirs, err := newWire()
	if err != nil {
		return exitOurs, err
	}
	defer w.close()
	defer theirs.Close()
	var caller *attached
	if o.Attach != nil {
		if caller, err = c.attachBy(w, *o.Attach); err != nil {
			return exitOurs, err
		}
		caller.fromStart = true
		defer caller.close()
	}
	stderr, err := os.OpenFile(c.supervisorLogPath(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return exitOurs, fmt.Errorf("starting container %s: %w", c.Name, err)
	}
	defer stderr.Close()
	cmd := supervisorCommand(o.Supervisor, theirs, mode)
	cmd.Dir = "/"
	cmd.Stderr = stderr
	if err := startSupervisor(cmd, o.Join); err != nil {
		return exitOurs, fmt.Errorf("starting the container's supervisor: %w", err)
	}
	theirs.Close()
	go func() { _ = cmd.Wait() }() // for a caller that lives on
	if caller != nil {
		return caller.run(ctx)
	}
	stop := context.AfterFunc(ctx, w.shut)
	defer stop()
	for {
		m, fds, err := w.recv()
		closeAll(fds)
		switch {
		case err != nil && ctx.Err() != nil:
			return exitOurs, ctx.Err()
		case err != nil:
			return exitOurs, fmt.Errorf("starting container %s: its supervisor was killed", c.Name)
		case m.Kind == msgStarted:
			return 0, nil
		case m.Kind == msgExited && m.Error != "":
			return m.Code, errors.New(m.Error)
		case m.Kind == msgExited:
			return exitOurs, fmt.Errorf("starting container %s: it was killed", c.Name)
		}
	}
}

// supervisorLogPath is where the supervisor of a container in the background has its standard error: what the root's
// server has to say.
func (c *Container) supervisorLogPath() string { return filepath.Join(c.Dir(), "supervisor.log") }

// supervisorCommand is the process P1, in a session of its own, with P1's end of the wire. [startSupervisor] starts it.
func supervisorCommand(args []string, theirs *os.File, mode string) *exec.Cmd {
	// Descriptors that our caller left open must not come to the supervisor, the init, or the command.
	_ = unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	return &exec.Cmd{
		Args:        append(os.Args[:1:1], args...),
		ExtraFiles:  []*os.File{theirs},
		Env:         append(os.Environ(), supervisorFDVariable+"="+strconv.Itoa(3), supervisorModeVariable+"="+mode),
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
}

// streams are the command's standard streams in the background, held by the supervisor.
type streams struct {
	log      *logFile
	audience audience
	command  []*os.File // the command's ends: standard input, output and error
	ours     []*os.File // the ends that are read
	input    *os.File   // kept open so that the command waits for input; may be nil
	copying  sync.WaitGroup

	mu     sync.Mutex
	master *os.File      // of the command's terminal, if it has one
	size   *unix.Winsize // that a terminal gets which is still to come; nil if nobody said one
}

// newStreams opens the container's log and makes pipes to it. With a terminal there are none: see takeTerminal.
func newStreams(c *Container) (*streams, error) {
	log, err := c.openLog()
	if err != nil {
		return nil, fmt.Errorf("opening the log of container %s: %w", c.Name, err)
	}
	s := &streams{log: log}
	if c.Spec.Process.Terminal {
		return s, nil
	}
	if err := s.pipes(c.Spec.Annotations[AnnotationInteractive] == "true"); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

func (s *streams) pipes(input bool) error {
	s.command = []*os.File{os.Stdin, nil, nil}
	if input {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.command[0], s.input = r, w
	}
	for i := 1; i <= 2; i++ {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		s.command[i], s.ours = w, append(s.ours, r)
	}
	return nil
}

// started lets go of the command's ends, once the init has them, and starts to copy.
func (s *streams) started() {
	if s == nil {
		return
	}
	s.closeCommand()
	for i, r := range s.ours {
		name := []string{"stdout", "stderr"}[i]
		s.copying.Go(func() { s.log.copy(name, io.TeeReader(r, s.audience.writer(i))) })
	}
}

// takeTerminal copies what the command writes to its terminal. Who is attached types.
func (s *streams) takeTerminal(master *os.File) {
	s.mu.Lock()
	s.master = master
	if s.size != nil {
		_ = unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, s.size)
	}
	s.mu.Unlock()
	s.ours = append(s.ours, master)
	s.copying.Go(func() { s.log.copy("stdout", io.TeeReader(master, s.audience.writer(0))) })
}

func (s *streams) closeCommand() {
	for _, f := range s.command {
		if f != nil && f != os.Stdin {
			f.Close()
		}
	}
	s.command = nil
}

// logGrace is how long the end of a container waits for output that is still on its way. All of its processes are gone;
// only one that was handed a stream from inside can keep it open.
const logGrace = 2 * time.Second

// close waits for the end of the output and closes everything. The container's processes are gone.
func (s *streams) close() {
	if s == nil {
		return
	}
	s.closeCommand()
	for _, r := range s.ours {
		_ = r.SetReadDeadline(time.Now().Add(logGrace))
	}
	done := make(chan struct{})
	go func() { s.copying.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(2 * logGrace): // a terminal knows no deadline
	}
	if s.input != nil {
		s.input.Close()
	}
	if err := s.log.close(); err != nil {
		fmt.Fprintln(os.Stderr, "unionfs:", err)
	}
	for _, r := range s.ours {
		r.Close()
	}
}
