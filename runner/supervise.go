package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Hooks are what [Supervise] lets its caller do.
type Hooks struct {
	// MountRoot mounts the container's root file system at target, an existing empty directory, in the supervisor's
	// private mount namespace, and serves it until unmount is called. It is called before the container starts;
	// unmount is called after the last of its processes is gone, and returns when everything is written. A nil
	// MountRoot means that target is the root as it is.
	//
	// Only IDs that are mapped in the current user namespace exist for the container: the files' owners must be
	// among them.
	MountRoot func(target string) (unmount func() error, err error)

	// Removed, if not nil, is called after a container with AutoRemove was removed.
	Removed func() error

	// Network, if there is one, connects the container.
	Network Network
}

// orphanGrace is the time between the polite and the deadly signal for a container whose caller is gone.
const orphanGrace = 5 * time.Second

// Supervise is the supervisor, P1, of the container, from its start to its end. It is called in the process that
// [Container.Run] starts, by the arguments in RunOptions.Supervisor. It takes the container's lock, mounts the root, runs
// the init, waits, unmounts and records the end. The caller of Run hears how it went, so the error is nil unless there is
// no such caller. The process should end when Supervise returns.
//
// The working directory becomes /, and the umask 0.
func Supervise(ctx context.Context, c *Container, h Hooks) error {
	s := &supervisor{container: c, hooks: h, dead: make(chan struct{})}
	if err := s.connect(); err != nil {
		return err
	}
	end := s.supervise(ctx)
	s.control.tell(end)
	if h.Network != nil {
		defer s.tidyNetwork()
	}
	if s.caller != nil {
		m := end.message()
		m.Lingers = h.Network != nil
		_ = s.caller.send(m)
		return nil
	}
	return end.err
}

// outcome is how a run of a container ended.
type outcome struct {
	code int
	err  error // why the command did not start, or could not be ended properly
}

func (o outcome) message() message {
	return message{Kind: msgExited, Code: o.code, Error: errorText(o.err)}
}

// supervisor is one call of Supervise.
type supervisor struct {
	container *Container
	hooks     Hooks
	caller    *wire  // to P0; nil if there is none
	mode      string // what this is started for, see supervisorModeVariable
	statusMu  sync.Mutex
	status    *Status  // guarded by statusMu
	streams   *streams // the command's, in the background; otherwise nil
	control   *control // nil before it listens

	// pauseMu guards the following, and is taken before mu and statusMu.
	pauseMu  sync.Mutex
	paused   bool
	frozenBy freezer // nil before the first pause

	// mu guards what signals need while the container comes up and goes.
	mu       sync.Mutex
	init     *initProcess         // nil before P2 is started
	started  bool                 // the command runs
	aborted  unix.Signal          // a signal that came before the command ran, and called the start off
	helpers  map[*os.Process]bool // those that copy files
	finished bool                 // P2 has been waited for: its PID means nothing any more

	networkFailure error // why the network could not be connected, which called the start off

	dead chan struct{} // closed when P2 is gone
}

// connect takes over the wire to P0, if there is one.
func (s *supervisor) connect() error {
	v, ok := os.LookupEnv(supervisorFDVariable)
	if !ok {
		return nil
	}
	os.Unsetenv(supervisorFDVariable)
	s.mode = os.Getenv(supervisorModeVariable)
	os.Unsetenv(supervisorModeVariable)
	fd, err := strconv.Atoi(v)
	if err != nil {
		return fmt.Errorf("%s is %q, not a descriptor", supervisorFDVariable, v)
	}
	unix.CloseOnExec(fd)
	s.caller = &wire{fd: fd}
	return nil
}

func (s *supervisor) supervise(ctx context.Context) (end outcome) {
	// The init's parent-death signal comes when the thread that started it ends, not the process (prctl(2),
	// PR_SET_PDEATHSIG): this goroutine starts it, and keeps its thread until it has waited.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	ours := func(err error) outcome { return outcome{startCode(err), err} }
	if err := os.Chdir("/"); err != nil {
		return ours(err)
	}
	unix.Umask(0)
	setCommandName("unionfs")
	lock, err := s.container.tryLock()
	if err != nil {
		return ours(fmt.Errorf("starting container %s: %w", s.container.Name, err))
	}
	defer lock.Close()
	if s.status, err = s.container.readStatus(); err != nil {
		return ours(err)
	}
	stopSignals := s.followSignals(ctx)
	defer stopSignals()
	if s.control, err = s.listen(); err != nil {
		return ours(fmt.Errorf("listening for other commands: %w", err))
	}
	defer s.control.leave()

	end = s.runInit()
	if s.mode == modeHold {
		return end
	}
	if err := s.record(end); err != nil && end.err == nil {
		end.err = err
	}
	if s.container.AutoRemove() {
		err := s.container.removeLocked()
		if err == nil && s.hooks.Removed != nil {
			err = s.hooks.Removed()
		}
		if err != nil && end.err == nil {
			end.err = err
		}
	}
	return end
}

// record writes the end to state.json.
func (s *supervisor) record(end outcome) error {
	now := time.Now().UTC()
	s.container.note("die", "exitCode", exitCodeText(end.code))
	return s.change(func(st *Status) {
		st.State, st.Paused = StateExited, false
		st.Finished = &now
		st.ExitCode, st.Error = end.code, errorText(end.err)
		st.SupervisorPID, st.InitPID, st.InitStart = 0, 0, 0
	})
}

// runInit mounts the root, runs the container in it, and unmounts.
func (s *supervisor) runInit() (end outcome) {
	// The host's own mounts and unmounts still come through to us, so that we pin none; ours don't go back.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
			err = namespaceError(err)
		}
		return outcome{exitOurs, fmt.Errorf("making the mount namespace private: %w", err)}
	}
	if s.hooks.MountRoot != nil {
		unmount, err := s.hooks.MountRoot(s.container.Rootfs())
		if err != nil {
			return outcome{startCode(err), fmt.Errorf("mounting the root of container %s: %w", s.container.Name, err)}
		}
		defer func() {
			if err := unmount(); err != nil && end.err == nil {
				end = outcome{exitOurs, fmt.Errorf("unmounting the root of container %s: %w", s.container.Name, err)}
			}
		}()
	}
	if s.mode == modeHold {
		return s.hold()
	}
	limits, err := newCgroups(s.container)
	if err != nil {
		return outcome{exitOurs, fmt.Errorf("starting container %s: %w", s.container.Name, err)}
	}
	defer func() {
		s.noteOutOfMemory(limits)
		if err := s.container.removeCgroups(); err != nil && end.err == nil {
			end = outcome{exitOurs, err}
		}
	}()
	p, err := newInitProcess(s.container, s.hooks, false)
	if err != nil {
		return outcome{startCode(err), err}
	}
	defer p.close()
	if s.mode == modeBackground {
		if s.streams, err = newStreams(s.container); err != nil {
			return outcome{exitOurs, err}
		}
		defer s.streams.close()
		if in := s.streams.command; in != nil {
			p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = in[0], in[1], in[2]
		}
	}
	s.mu.Lock()
	if s.aborted != 0 {
		s.mu.Unlock()
		return outcome{128 + int(s.aborted), fmt.Errorf("starting container %s: %s came first", s.container.Name, unix.SignalName(s.aborted))}
	}
	err = limits.within(func() error { return s.inNetworkNamespace(p.start) })
	if err == nil {
		s.init = p
	}
	s.mu.Unlock()
	if err != nil {
		p.abandon()
		return outcome{exitOurs, fmt.Errorf("starting the init: %w", err)}
	}
	disconnect := s.startConnecting(p)
	defer func() {
		if err := disconnect(); err != nil && end.err == nil {
			end = outcome{exitOurs, fmt.Errorf("disconnecting container %s: %w", s.container.Name, err)}
		}
	}()
	s.streams.started()
	return s.wait(p)
}

// hold has the container's root and volumes mounted, and nothing running there, until the caller goes.
func (s *supervisor) hold() outcome {
	p, err := newInitProcess(s.container, Hooks{}, true)
	if err != nil {
		return outcome{startCode(err), err}
	}
	defer p.close()
	s.mu.Lock()
	if s.aborted == 0 {
		if err = p.start(); err == nil {
			s.init = p
		}
	}
	s.mu.Unlock()
	if err != nil || s.init == nil {
		p.abandon()
		return outcome{exitOurs, fmt.Errorf("starting the init: %w", cmp.Or(err, errors.New("it was called off")))}
	}
	return s.wait(p)
}

// noteOutOfMemory records whether the kernel killed something for want of memory.
func (s *supervisor) noteOutOfMemory(limits *cgroups) {
	oom := limits.outOfMemory()
	if oom {
		s.container.note("oom")
	}
	s.statusMu.Lock()
	s.status.OutOfMemory = oom
	s.statusMu.Unlock()
}

// wait follows the init to its end.
func (s *supervisor) wait(p *initProcess) outcome {
	var end *outcome
	for end == nil {
		m, fds, err := p.wire.recv()
		if err != nil {
			closeAll(fds)
			break
		}
		switch m.Kind {
		case msgConsole:
			if s.streams != nil && len(fds) == 1 {
				s.streams.takeTerminal(os.NewFile(uintptr(fds[0]), "terminal"))
				fds = nil
			}
			if s.caller == nil || s.mode == modeBackground {
				_ = p.wire.send(message{Kind: msgReady})
			} else if len(fds) == 1 {
				_ = s.caller.send(m, fds...)
			}
		case msgStarted:
			s.commandStarted(p, m.Paths)
		case msgFailed:
			end = &outcome{m.Code, errors.New(m.Error)}
		case msgExited:
			end = &outcome{code: m.Code}
		}
		closeAll(fds)
	}
	ws := p.wait()
	s.mu.Lock()
	s.finished = true
	aborted, networkFailure := s.aborted, s.networkFailure
	s.mu.Unlock()
	close(s.dead)
	s.killHelpers()
	if networkFailure != nil {
		return outcome{exitOurs, networkFailure}
	}
	if end != nil {
		return *end
	}
	// The init was killed, by us or from outside, or has failed badly.
	if aborted != 0 {
		return outcome{128 + int(aborted), nil}
	}
	if ws.Signaled() {
		return outcome{exitCode(ws), nil}
	}
	return outcome{exitOurs, fmt.Errorf("the container's init ended without a word (exit code %d)", ws.ExitStatus())}
}

// commandStarted records that the command runs.
func (s *supervisor) commandStarted(p *initProcess, placeholders []string) {
	s.mu.Lock()
	s.started = true
	s.mu.Unlock()
	now := time.Now().UTC()
	if s.mode == modeHold {
		s.heldStarted(placeholders)
		return
	}
	err := s.change(func(st *Status) {
		st.State, st.Paused = StateRunning, false
		st.Started, st.Finished = &now, nil
		st.ExitCode, st.Error = 0, ""
		st.SupervisorPID, st.InitPID = os.Getpid(), p.pid()
		st.InitStart, _ = startTime(p.pid())
		st.Placeholders = mergePaths(st.Placeholders, placeholders)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "unionfs:", err)
	}
	s.container.note("start")
	if s.caller != nil {
		_ = s.caller.send(message{Kind: msgStarted})
	}
}

// heldStarted is commandStarted where there is no command.
func (s *supervisor) heldStarted(placeholders []string) {
	if err := s.change(func(st *Status) { st.Placeholders = mergePaths(st.Placeholders, placeholders) }); err != nil {
		fmt.Fprintln(os.Stderr, "unionfs:", err)
	}
	_ = s.caller.send(message{Kind: msgStarted})
}

// followSignals passes on what comes from P0 and from outside, and ends the container when P0 or ctx do.
func (s *supervisor) followSignals(ctx context.Context) (stop func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	// A word on a standard error that nobody reads any more must not kill us: with someone listening, Go doesn't.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	go func() {
		for sig := range signals {
			s.signal(sig.(syscall.Signal))
		}
	}()
	stopContext := context.AfterFunc(ctx, func() { s.end() })
	if s.caller != nil {
		go func() {
			for {
				m, fds, err := s.caller.recv()
				closeAll(fds)
				if err != nil {
					s.callerGone()
					return
				}
				switch m.Kind {
				case msgSignal:
					s.signal(unix.Signal(m.Signal))
				case msgReady:
					s.ready()
				}
			}
		}()
	}
	return func() {
		stopContext()
		signal.Stop(signals)
	}
}

// signal passes sig on to the command. One that asks to end and comes before the command runs calls the start off.
func (s *supervisor) signal(sig unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.finished:
	case s.started:
		_ = s.init.wire.send(message{Kind: msgSignal, Signal: int(sig)})
	case sig == unix.SIGHUP || sig == unix.SIGINT || sig == unix.SIGTERM || sig == unix.SIGQUIT || sig == unix.SIGKILL:
		s.aborted = sig
		if s.init != nil {
			_ = unix.Kill(s.init.pid(), unix.SIGKILL)
		}
	}
}

// callerGone ends the container, unless it runs in the background.
func (s *supervisor) callerGone() {
	s.mu.Lock()
	stays := s.mode == modeBackground && s.started
	if s.mode == modeHold && s.init != nil && !s.finished {
		_ = unix.Kill(s.init.pid(), unix.SIGKILL)
	}
	s.mu.Unlock()
	if !stays {
		s.end()
	}
}

// ready tells the init that the terminal that it handed over is set up.
func (s *supervisor) ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.init != nil && !s.finished {
		_ = s.init.wire.send(message{Kind: msgReady})
	}
}

// end asks the command to end, as a terminal that hangs up or a service manager does, and kills the container if it has
// not after the grace.
func (s *supervisor) end() {
	sig := unix.SIGTERM
	if s.container.Spec.Process.Terminal {
		sig = unix.SIGHUP
	}
	s.signal(sig)
	go func() {
		select {
		case <-s.dead:
		case <-time.After(orphanGrace):
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.init != nil && !s.finished {
				_ = unix.Kill(s.init.pid(), unix.SIGKILL)
			}
		}
	}()
	s.thawForEnd()
}

// startTime returns when a process started, in clock ticks after boot (proc_pid_stat(5), field 22).
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name, field 2, may hold anything; it ends at the last parenthesis.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// mergePaths appends those of more that old lacks.
func mergePaths(old, more []string) []string {
	have := map[string]bool{}
	for _, p := range old {
		have[p] = true
	}
	for _, p := range more {
		if !have[p] {
			have[p] = true
			old = append(old, p)
		}
	}
	return old
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
