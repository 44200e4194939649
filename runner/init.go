package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// containerInit is P2: PID 1 of a container, unless that shares a PID namespace. It was started with the container's namespaces, a wire to P1, and the
// description in a memory file. It sets the container up from inside, starts the command as its child, and stays to pass
// signals on and to reap. When it ends, the kernel kills all else in the container, or else it does so itself, by its guard.
type containerInit struct {
	cfg     initConfig
	config  chan *os.File // where that is to be read
	filter  chan *os.File // where its filter is, if that comes later
	mounted chan struct{} // closed when the container has its root
	wire    *wire
	ready   chan struct{}  // closed when the terminal is set up
	sealed  chan struct{}  // closed when its program is out of the container's reach
	network chan struct{}  // closed when the container has its network
	null    *os.File       // the host's /dev/null, open for reading and writing
	signals chan os.Signal // all that P2 gets, from before the command runs on
	others  *otherCommands
	owners  *ownerKeeper // nil if there is nothing to keep
	guard   *os.File     // what it ends the container by, where its own end doesn't; see openGuard
	forking *sync.Mutex  // held while a command is started, and for ever once the container is being ended
}

// runInit is the whole life of P2; it returns its exit code, which P1 uses only if P2 could not send its own word.
func runInit() int {
	// Whatever came with us by accident must not reach the command (CVE-2024-21626).
	if err := unix.CloseRange(initWireFD, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		fmt.Fprintln(os.Stderr, "unionfs: closing descriptors (close_range needs Linux 5.11):", err)
		return exitOurs
	}
	setCommandName("unionfs-init")
	settle := postponeCollection()
	p := &containerInit{
		config: make(chan *os.File, 1), filter: make(chan *os.File, 1), mounted: make(chan struct{}), wire: &wire{fd: initWireFD}, ready: make(chan struct{}), sealed: make(chan struct{}), network: make(chan struct{}),
		signals: make(chan os.Signal, 64), others: newOtherCommands(),
		guard: inheritGuard(os.Args[1:]), forking: &sync.Mutex{},
	}
	if p.guard != nil {
		// What loses its parent is ours to reap, as it is PID 1's; and so all of the container descends from us.
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
			fmt.Fprintln(os.Stderr, "unionfs: becoming a reaper:", err)
			return exitOurs
		}
	}
	go p.followSupervisor()
	command, err := p.setUp()
	if err != nil {
		_ = p.wire.send(message{Kind: msgFailed, Code: startCode(err), Error: err.Error()})
		p.endOthers()
		return startCode(err)
	}
	settle()
	code := p.reap(command)
	_ = p.wire.send(message{Kind: msgExited, Code: code})
	p.endOthers()
	return code
}

// endOthers ends all other processes of the container, where our end alone doesn't.
func (p *containerInit) endOthers() {
	if p.guard != nil {
		p.forking.Lock()
		endGuarded(p.guard)
	}
}

// followSupervisor takes P1's signals, and ends the container when P1 is gone.
func (p *containerInit) followSupervisor() {
	var once, connected, sealed, mounted sync.Once
	files := map[string]chan *os.File{msgConfig: p.config, msgFilter: p.filter} // each comes once
	for {
		m, fds, err := p.wire.recv()
		if err != nil {
			p.endOthers()
			unix.Exit(exitUnknown)
		}
		if m.Kind == msgExec {
			go p.exec(m, fds)
			continue
		}
		if to := files[m.Kind]; to != nil && len(fds) == 1 {
			delete(files, m.Kind)
			to <- os.NewFile(uintptr(fds[0]), m.Kind)
			continue
		}
		if m.Kind == msgOwned && m.Owner != nil {
			p.owners.owned(m.Owner.ID, unix.Errno(m.Code))
			continue
		}
		closeAll(fds)
		switch m.Kind {
		case msgSignal:
			select {
			case p.signals <- syscall.Signal(m.Signal):
			default: // as many wait already as the kernel would keep of them
			}
		case msgReady:
			once.Do(func() { close(p.ready) })
		case msgRoot:
			mounted.Do(func() { close(p.mounted) })
		case msgSealed:
			sealed.Do(func() { close(p.sealed) })
		case msgConnected:
			connected.Do(func() { close(p.network) })
		}
	}
}

// setUp builds the container and starts the command, whose PID it returns.
func (p *containerInit) setUp() (int, error) {
	lean := emptyLean()
	err := readMemoryFile(<-p.config, lean)
	if err != nil {
		return 0, fmt.Errorf("reading the container's description: %w", err)
	}
	p.cfg = lean.full()
	<-p.mounted
	// Go's runtime passes each of them between two threads first, for which the set-up need not wait.
	caught := make(chan struct{})
	go func() {
		signal.Notify(p.signals)
		close(caught)
	}()
	// By O_NONBLOCK or not, the mode of new mount points is ours to say.
	unix.Umask(0)
	if p.null, err = os.OpenFile("/dev/null", os.O_RDWR, 0); err != nil {
		return 0, err
	}
	r := &rootfs{cfg: &p.cfg, root: -1, proc: -1}
	defer r.close()
	if err := r.build(); err != nil {
		return 0, err
	}
	if p.cfg.Ownership != nil {
		if p.owners, err = newOwnerKeeper(r, p.wire); err != nil {
			return 0, fmt.Errorf("keeping the owners of files: %w", err)
		}
	}
	if err := changeRoot(r.root); err != nil {
		return 0, fmt.Errorf("changing the root: %w", err)
	}
	if err := p.setUpNames(); err != nil {
		return 0, err
	}
	if p.cfg.Hold {
		if err := p.wire.send(message{Kind: msgStarted, Paths: r.made}); err != nil {
			return 0, err
		}
		select {} // until the supervisor goes
	}
	if hasNewNamespace(p.cfg.Spec, specs.NetworkNamespace) {
		if err := raiseLoopback(); err != nil {
			return 0, fmt.Errorf("bringing up the loopback: %w", err)
		}
	}
	if r.master != nil {
		if err := p.wire.send(message{Kind: msgConsole}, int(r.master.Fd())); err != nil {
			return 0, fmt.Errorf("handing over the terminal: %w", err)
		}
		<-p.ready // its size, before the command asks for it
	}
	if p.cfg.AwaitNetwork {
		<-p.network
	}
	if p.cfg.AwaitFilter {
		if err := readMemoryFile(<-p.filter, &p.cfg.Seccomp); err != nil {
			return 0, fmt.Errorf("reading the container's filter: %w", err)
		}
	}
	<-caught
	<-p.sealed
	pid, err := p.startCommand(r)
	if err != nil {
		return 0, err
	}
	p.others.uids, p.others.gids = r.uids, r.gids
	close(p.others.running)
	return pid, p.wire.send(message{Kind: msgStarted, Paths: r.made})
}

// readMemoryFile reads what memoryFile wrote.
func readMemoryFile(f *os.File, into any) error {
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	data := make([]byte, st.Size())
	if _, err := f.ReadAt(data, 0); err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// changeRoot makes the mount root the root of the mount namespace and lets go of everything that was mounted before.
// root is below the old root, which after pivot_root(".", ".") lies on top of the new one until it is detached
// (pivot_root(2), Notes).
func changeRoot(root int) error {
	old, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(old)
	if err := unix.Fchdir(root); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot_root: %w", err)
	}
	if err := unix.Fchdir(old); err != nil {
		return err
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("detaching the old root: %w", err)
	}
	return unix.Chdir("/")
}

// setUpNames sets host and domain name.
func (p *containerInit) setUpNames() error {
	spec := p.cfg.Spec
	if !hasNewNamespace(spec, specs.UTSNamespace) {
		return nil
	}
	if spec.Hostname != "" {
		if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
			return fmt.Errorf("setting the host name %q: %w", spec.Hostname, err)
		}
	}
	if spec.Domainname != "" {
		if err := unix.Setdomainname([]byte(spec.Domainname)); err != nil {
			return fmt.Errorf("setting the domain name %q: %w", spec.Domainname, err)
		}
	}
	return nil
}

// raiseLoopback brings up the interface lo of the container's network namespace; the kernel gives it its addresses.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // a kernel without IP
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_LOOPBACK | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

// reap waits for every process that becomes our child, passes signals on to the command, and returns the command's exit
// code when it has ended.
func (p *containerInit) reap(command int) int {
	go func() {
		ignored := []os.Signal{
			unix.SIGCHLD, // about our own children
			unix.SIGURG,  // Go's scheduler sends it to itself
			unix.SIGPIPE,
		}
		for s := range p.signals {
			if !slices.Contains(ignored, s) {
				// The command is our child and is reaped below; if it has ended meanwhile, its PID may have gone
				// to another process of the container for a moment, whose end is near anyway.
				_ = unix.Kill(command, s.(syscall.Signal))
			}
		}
	}()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return exitUnknown // ECHILD can't be while the command is not reaped
		case pid == command:
			return exitCode(syscall.WaitStatus(ws))
		default:
			p.others.reaped(pid, syscall.WaitStatus(ws))
		}
	}
}
