package runner

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
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
	// among them. background says that the container runs in the background, perhaps for long.
	MountRoot func(target string, background bool) (unmount func() error, err error)

	// Running, if not nil, is called when the command has started, each time.
	Running func()

	// Removed, if not nil, is called after a container with AutoRemove was removed.
	Removed func() error

	// Early is what [AwaitContainer] returned.
	Early *EarlyInit

	// Network, if there is one, connects the container.
	Network Network
	// SetOwner and MakeDevice, if both are set, are called where the container's user namespace has one ID, for what the
	// kernel can't do there but its user 0 may: to keep an owner other than that ID of a file in the root, and to make a
	// device in one of its directories. Files are given by their inode numbers; an ID of ^0 stays as it is. The calls
	// may come from several goroutines at once, while MountRoot's root is mounted.
	SetOwner   func(file uint64, uid, gid uint32) error
	MakeDevice func(dir uint64, name string, mode, rdev uint32) error
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
	s := &supervisor{container: c, hooks: h, dead: make(chan struct{}), recorded: make(chan struct{}), keepStopped: make(chan struct{}), settle: postponeCollection()}
	defer h.Early.abandon()
	if err := s.connect(); err != nil {
		return err
	}
	end := s.supervise(ctx)
	s.control.tell(end)
	s.tellAttached(end)
	s.dismissWatcher()
	if h.Network != nil {
		defer s.tidyNetwork()
	}
	if s.caller != nil {
		m := end.message()
		m.Lingers = h.Network != nil || s.remains != ""
		_ = s.caller.send(m)
		end.err = nil
	}
	if s.remains != "" {
		_ = os.RemoveAll(s.remains) // what is left is swept by the next removal
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
	status    *Status       // guarded by statusMu
	streams   *streams      // the command's, in the background; otherwise nil
	control   *control      // nil before it listens
	settle    func()        // see postponeCollection
	recorded  chan struct{} // closed once state.json says that the command has run
	watcher   *watcher      // the caller, if it is attached from the start
	remains   string        // a directory to be deleted when the caller has heard of the end

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

	dead     chan struct{} // closed when P2 is gone
	detached bool          // it runs in the background since its caller detached
	launched bool          // a command has run, now or in an earlier run

	keepStopped chan struct{} // closed when the container isn't to be started again
	stopOnce    sync.Once     // for closing it
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
	if s.mode == modeAttached {
		s.mode = modeBackground
		return s.welcomeWatcher()
	}
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

	end = s.runs()
	if s.mode == modeHold {
		return end
	}
	if err := s.record(end); err != nil && end.err == nil {
		end.err = err
	}
	if s.container.AutoRemove() {
		var err error
		s.remains, err = s.container.vanish()
		if err == nil && s.hooks.Removed != nil {
			err = s.hooks.Removed()
		}
		if err != nil && end.err == nil {
			end.err = err
		}
	}
	return end
}

// runInit mounts the root, runs the container in it, and unmounts. The init comes up while the root is mounted, if it can.
func (s *supervisor) runInit() (end outcome) {
	late := s.mode != modeHold && !mustSeeRoot(s.container)
	early := s.hooks.Early
	s.hooks.Early = nil // it is for one run
	if !late {
		early.abandon()
	}
	if !early.isThere() { // or the mounts were made ours before it
		if err := ownMounts(late); err != nil {
			return outcome{exitOurs, err}
		}
	}
	unmount := func() error { return nil }
	defer func() {
		if err := unmount(); err != nil && end.err == nil {
			end = outcome{exitOurs, fmt.Errorf("unmounting the root of container %s: %w", s.container.Name, err)}
		}
	}()
	mount := func() (err error) {
		if s.hooks.MountRoot == nil {
			return nil
		}
		done, err := s.hooks.MountRoot(s.container.Rootfs(), s.mode == modeBackground)
		if err != nil {
			return fmt.Errorf("mounting the root of container %s: %w", s.container.Name, err)
		}
		unmount = done
		return nil
	}
	if !late {
		if err := mount(); err != nil {
			return outcome{startCode(err), err}
		}
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
	p, err := newInitProcess(s.container, s.hooks, limits, false, early)
	if err != nil {
		return outcome{startCode(err), err}
	}
	defer p.close()
	if s.mode == modeBackground {
		streams, err := newStreams(s.container)
		if err != nil {
			return outcome{exitOurs, err}
		}
		s.mu.Lock()
		s.streams = streams
		s.mu.Unlock()
		s.seatWatcher(streams)
		defer func() {
			streams.close()
			streams.audience.end()
		}()
		if in := s.streams.command; in != nil {
			if err := p.setStreams(in); err != nil {
				return outcome{exitOurs, err}
			}
		}
	}
	s.mu.Lock()
	if s.aborted != 0 {
		s.mu.Unlock()
		return outcome{128 + int(s.aborted), fmt.Errorf("starting container %s: %s came first", s.container.Name, unix.SignalName(s.aborted))}
	}
	err = p.onItsThread(func() error { return limits.within(func() error { return s.inNetworkNamespace(p.start) }) })
	if err == nil {
		s.init = p
	}
	s.mu.Unlock()
	if err != nil {
		p.abandon()
		return outcome{exitOurs, fmt.Errorf("starting the init: %w", err)}
	}
	err = p.configure(s.container, s.hooks)
	if err == nil && late {
		err = mount()
	}
	if err == nil {
		err = p.rootMounted()
	}
	if err != nil {
		p.kill()
		s.wait(p)
		return outcome{startCode(err), err}
	}
	disconnect := s.startConnecting(p)
	defer func() {
		if err := disconnect(); err != nil && end.err == nil {
			end = outcome{exitOurs, fmt.Errorf("disconnecting container %s: %w", s.container.Name, err)}
		}
	}()
	if s.mode == modeBackground {
		s.streams.started()
	}
	end = s.wait(p)
	if s.mode != modeBackground {
		s.closeDetached()
	}
	return end
}

// ownMounts makes the mount namespace ours. The host's own mounts and unmounts still come through to us, so that we pin none;
// ours don't go back. With share they go to the namespaces that are made from ours.
func ownMounts(share bool) error {
	err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, "")
	if err == nil && share {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, "")
	}
	if errors.Is(err, unix.EACCES) || errors.Is(err, unix.EPERM) {
		err = namespaceError(err)
	}
	if err != nil {
		return fmt.Errorf("making the mount namespace private: %w", err)
	}
	return nil
}

// hold has the container's root and volumes mounted, and nothing running there, until the caller goes.
func (s *supervisor) hold() outcome {
	p, err := newInitProcess(s.container, Hooks{}, nil, true, nil)
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
	err = p.configure(s.container, Hooks{})
	if err == nil {
		err = p.rootMounted()
	}
	if err != nil {
		p.kill()
		s.wait(p)
		return outcome{startCode(err), err}
	}
	return s.wait(p)
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
		case msgOwner, msgDevice:
			go s.keepOwner(p.wire, m)
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

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
