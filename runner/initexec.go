package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// otherCommands are the commands beside the first that the init has started.
type otherCommands struct {
	running    chan struct{} // closed when the first command runs
	uids, gids []user.IDMap  // what the container's user namespace maps; set before running

	// mu is held while a command is forked, and so keeps the one that reaps from missing its end. It also guards the
	// init's working directory, which the command inherits.
	mu       sync.Mutex
	children map[int]chan<- syscall.WaitStatus // by PID, those that were not reaped
}

func newOtherCommands() *otherCommands {
	return &otherCommands{running: make(chan struct{}), children: map[int]chan<- syscall.WaitStatus{}}
}

// reaped takes the end of a process.
func (o *otherCommands) reaped(pid int, ws syscall.WaitStatus) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if ended, ok := o.children[pid]; ok {
		delete(o.children, pid)
		ended <- ws
	}
}

// kill signals a command unless it has ended, and with group also what it has started in its process group.
func (o *otherCommands) kill(pid int, sig unix.Signal, group bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, ok := o.children[pid]; !ok {
		return
	}
	if group {
		_ = unix.Kill(-pid, sig)
	}
	_ = unix.Kill(pid, sig)
}

// exec runs another command for the process at the other end of the last of fds; the first three are its streams.
func (p *containerInit) exec(m message, fds []int) {
	if len(fds) != 4 || m.Exec == nil || len(m.Exec.Args) == 0 {
		closeAll(fds)
		return
	}
	w := &wire{fd: fds[3]}
	defer w.close()
	<-p.others.running
	e := &execution{init: p, request: m.Exec, wire: w}
	for i, fd := range fds[:3] {
		e.stdio = append(e.stdio, os.NewFile(uintptr(fd), fmt.Sprint("stream ", i)))
	}
	code, err := e.run()
	if code != codeDetached {
		_ = w.send(message{Kind: msgExited, Code: code, Error: errorText(err)})
	}
	w.shut() // the one that listens ends, before the descriptor is closed
	if e.listening != nil {
		<-e.listening
	}
}

// codeDetached stands for the exit code that nobody waits for.
const codeDetached = -1

// execution is one other command.
type execution struct {
	init      *containerInit
	request   *execRequest
	wire      *wire // to the one who wants it
	stdio     []*os.File
	master    *os.File      // of its terminal, if it has one
	ended     chan struct{} // closed when it has been reaped: its PID means nothing any more
	listening chan struct{} // closed when nobody listens to the wire any more
	pid       int
	early     []int // the terminal's master, where the caller detached before the command ran
}

func (e *execution) run() (int, error) {
	ended, err := e.start()
	e.closeStreams()
	if err != nil {
		if e.master != nil {
			e.master.Close()
		}
		closeAll(e.early)
		return startCode(err), err
	}
	_ = e.wire.send(message{Kind: msgStarted})
	if e.request.Detach {
		if e.master != nil {
			go discard(e.master)
		}
		return codeDetached, nil
	}
	if e.master != nil {
		e.master.Close()
	}
	e.ended = make(chan struct{})
	e.listen()
	ws := <-ended
	close(e.ended)
	return exitCode(ws), nil
}

// discard reads what nobody wants of a terminal, so that its command can write.
func discard(master *os.File) {
	_, _ = io.Copy(io.Discard, master)
	master.Close()
}

// detachFrom leaves a command running for a caller that goes, and hands the terminal's master back. It reports whether that is so, and
// takes the descriptors.
func detachFrom(w *wire, fds []int) bool {
	if len(fds) != 1 {
		closeAll(fds)
		_ = w.send(message{Kind: msgDetached, Error: "want the terminal's master"})
		return false
	}
	go discard(os.NewFile(uintptr(fds[0]), "terminal"))
	_ = w.send(message{Kind: msgDetached})
	return true
}

func (e *execution) closeStreams() {
	for _, f := range e.stdio {
		f.Close()
	}
	e.stdio = nil
}

// listen listens to who wanted the command, until it has ended or he has detached.
func (e *execution) listen() {
	e.listening = make(chan struct{})
	go func() {
		defer close(e.listening)
		listenForCommand(e.wire, e.request.Terminal, e.early, e.ended, func(sig unix.Signal, group bool) { e.init.others.kill(e.pid, sig, group) })
	}()
}

// listenForCommand passes signals on to another command, and ends it when the one who wanted it is gone without having detached. early is
// the master that he has handed back already, if he has. With group, what the command has started in its process group is meant too.
func listenForCommand(w *wire, terminal bool, early []int, ended <-chan struct{}, kill func(sig unix.Signal, group bool)) {
	if early != nil && detachFrom(w, early) {
		return
	}
	for {
		m, fds, err := w.recv()
		if err != nil {
			closeAll(fds)
			break
		}
		switch m.Kind {
		case msgSignal:
			kill(unix.Signal(m.Signal), false)
		case msgDetach:
			if detachFrom(w, fds) {
				return
			}
			continue
		}
		closeAll(fds)
	}
	select {
	case <-ended:
		return
	default:
	}
	sig := unix.SIGTERM
	if terminal {
		sig = unix.SIGHUP
	}
	kill(sig, false)
	select {
	case <-ended:
	case <-time.After(orphanGrace):
		kill(unix.SIGKILL, true)
	}
}

// start forks the command, from the init as it was when it forked the first one.
func (e *execution) start() (<-chan syscall.WaitStatus, error) {
	p := e.init
	// A copy of the init that knows the other command as its first.
	q := *p
	spec := *p.cfg.Spec
	process := e.request.process(spec.Process)
	spec.Process, q.cfg.Spec = process, &spec
	if e.request.User != "" {
		q.cfg.User = e.request.User
	}
	if e.request.Privileged {
		if err := q.unrestrict(process); err != nil {
			return nil, err
		}
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(root)
	r := &rootfs{cfg: &q.cfg, root: root, proc: -1, uids: p.others.uids, gids: p.others.gids}
	who, err := lookupUser(root, q.cfg.User, process.User)
	if err != nil {
		return nil, err
	}
	if err := q.addGroups(root, who); err != nil {
		return nil, err
	}
	if err := q.checkMapped(r, who); err != nil {
		return nil, err
	}
	if e.request.Terminal {
		if err := e.openTerminal(root, who); err != nil {
			return nil, err
		}
	}
	giveStreams(e.stdio, who)

	p.others.mu.Lock()
	defer p.others.mu.Unlock()
	if err := enterExisting(root, process.Cwd); err != nil {
		return nil, fmt.Errorf("entering the working directory %s: %w", process.Cwd, err)
	}
	defer unix.Chdir("/")
	env := q.environment(who)
	file, err := findCommand(process.Args[0], env)
	if err != nil {
		return nil, err
	}
	pid, err := q.fork(file, env, e.stdio, who)
	if err != nil {
		return nil, err
	}
	e.pid = pid
	ended := make(chan syscall.WaitStatus, 1)
	p.others.children[pid] = ended
	return ended, nil
}

// unrestrict gives a command all that the init has.
func (p *containerInit) unrestrict(process *specs.Process) error {
	all, err := SupportedCapabilities()
	if err != nil {
		return err
	}
	process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
	process.NoNewPrivileges = false
	p.cfg.Seccomp = nil
	return nil
}

// openTerminal makes a terminal in the container's own devpts, and hands its master over.
func (e *execution) openTerminal(root int, who *account) error {
	pts, err := openPlain(root, "dev/pts", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("a terminal needs a mount of type devpts at /dev/pts: %w", err)
	}
	defer unix.Close(pts)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(pts, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return errors.New("a terminal needs a mount of type devpts at /dev/pts")
	}
	master, slave, err := newTerminal(pts)
	if err != nil {
		return err
	}
	e.closeStreams()
	e.master, e.stdio = master, []*os.File{slave, slave, slave}
	if err := slave.Chown(int(who.UID), -1); err != nil {
		return fmt.Errorf("giving the terminal to user %d: %w", who.UID, err)
	}
	if e.request.Detach {
		return nil
	}
	if err := e.wire.send(message{Kind: msgConsole}, int(master.Fd())); err != nil {
		return fmt.Errorf("handing over the terminal: %w", err)
	}
	for {
		m, fds, err := e.wire.recv()
		if err == nil && m.Kind == msgDetach && e.early == nil {
			e.early = fds
			continue
		}
		closeAll(fds)
		if err != nil || m.Kind == msgReady { // else a signal for a command that doesn't run yet
			return err
		}
	}
}
