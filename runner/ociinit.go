package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// argvOCIInit is the argv[0] of the process that becomes the command of an OCI container: PID 1, or another command. Its
// only argument is the number of the descriptor of its wire.
const argvOCIInit = "unionfs-oci-init"

// The messages between the one who creates an OCI container, or another command in it, and the process that becomes the
// command (wire.go):
//
//	→ oci-init  config      + the memory file of an ociConfig, and the descriptors that it counts
//	oci-init →  mounted     the mounts are made, the root is not changed: time for the hooks of the runtime's side
//	→ oci-init  ready       the answer
//	oci-init →  created     it waits on its socket to be started; the last message
//	oci-init →  failed      Error
const (
	msgConfig  = "config"
	msgMounted = "mounted"
	msgCreated = "created"
)

// ociConfig is what the process is told.
type ociConfig struct {
	initConfig
	ID          string         `json:"id"`
	Bundle      string         `json:"bundle"`
	Process     *specs.Process `json:"process"`
	PreserveFDs int            `json:"preserveFds,omitempty"` // of the command, from 3 on
	NoPivot     bool           `json:"noPivot,omitempty"`
	NoKeyring   bool           `json:"noKeyring,omitempty"`
	Other       bool           `json:"other,omitempty"` // another command: the container is there already
	Descriptors []string       `json:"descriptors"`     // what those are that came along
	OpenFiles   uint64         `json:"openFiles,omitempty"`
}

// What can come along with the config message, by name. An idmapped mount is its destination's place in the list of
// mounts.
const (
	fdConfig  = "config"
	fdListen  = "listen"  // the socket to wait on
	fdLock    = "lock"    // held by having it open
	fdConsole = "console" // the socket that wants the terminal's master
	fdMount   = "mount "
)

// ociInit is that process.
type ociInit struct {
	cfg    ociConfig
	wire   *wire
	files  map[string]int // what came along
	master *os.File       // of the terminal
	slave  *os.File
}

// runOCIInit is the whole life of the process, up to the command.
func runOCIInit(args []string) int {
	// Everything that is a thread's own, such as capabilities and the system call filter, must be that of the thread that
	// executes the command.
	runtime.LockOSThread()
	_ = unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0)
	if len(args) != 1 {
		return exitOurs
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return exitOurs
	}
	p := &ociInit{wire: &wire{fd: fd}, files: map[string]int{}}
	unix.CloseOnExec(fd)
	if err := p.run(); err != nil {
		_ = p.wire.send(message{Kind: msgFailed, Code: startCode(err), Error: err.Error()})
		return startCode(err)
	}
	return 0
}

func (p *ociInit) run() error {
	if err := p.receive(); err != nil {
		return err
	}
	// Whatever came with us by accident must not reach the command (CVE-2024-21626).
	if err := unix.CloseRange(uint(3+p.cfg.PreserveFDs), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("closing descriptors (close_range needs Linux 5.11): %w", err)
	}
	if p.cfg.Other {
		return p.runOther()
	}
	setCommandName("unionfs-oci")
	unix.Umask(0)
	r := &rootfs{cfg: &p.cfg.initConfig, root: -1, proc: -1, devices: map[string]int{}}
	if err := r.buildOCI(p); err != nil {
		return err
	}
	if err := p.ask(msgMounted); err != nil {
		return err
	}
	if err := runHooks("createContainer", p.cfg.Spec.Hooks, p.state(specs.StateCreating)); err != nil {
		return err
	}
	if err := p.changeRoot(r); err != nil {
		return err
	}
	names := containerInit{cfg: p.cfg.initConfig}
	if err := names.setUpNames(); err != nil {
		return err
	}
	if hasNewNamespace(p.cfg.Spec, specs.NetworkNamespace) {
		if err := raiseLoopback(); err != nil {
			return fmt.Errorf("bringing up the loopback: %w", err)
		}
	}
	p.master, p.slave = r.master, r.slave
	r.master, r.slave = nil, nil
	command, err := p.prepareCommand(r.root)
	if err != nil {
		return err
	}
	r.close()
	listener, ok := p.files[fdListen]
	if !ok {
		return errors.New("there is no socket to wait on")
	}
	// From here on we outlive the one who creates us.
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return err
	}
	if err := p.wire.send(message{Kind: msgCreated}); err != nil {
		return err
	}
	p.wire.close()
	return p.waitForStart(listener, command)
}

// receive takes the configuration and what comes with it.
func (p *ociInit) receive() error {
	m, fds, err := p.wire.recv()
	if err != nil || m.Kind != msgConfig || len(fds) == 0 {
		closeAll(fds)
		unix.Exit(exitOurs) // whoever made us is gone
	}
	file := os.NewFile(uintptr(fds[0]), "config")
	data, err := io.ReadAll(io.NewSectionReader(file, 0, math.MaxInt32))
	file.Close()
	if err == nil {
		err = json.Unmarshal(data, &p.cfg)
	}
	if err != nil {
		return fmt.Errorf("reading the container's description: %w", err)
	}
	if len(p.cfg.Descriptors) != len(fds) {
		return errors.New("not all descriptors came along")
	}
	for i, name := range p.cfg.Descriptors {
		if i > 0 {
			p.files[name] = fds[i]
		}
	}
	return nil
}

// ask says how far we are, and waits for the answer.
func (p *ociInit) ask(kind string) error {
	if err := p.wire.send(message{Kind: kind}); err != nil {
		return err
	}
	m, fds, err := p.wire.recv()
	closeAll(fds)
	if err == nil && m.Kind != msgReady {
		err = fmt.Errorf("unexpected answer %q", m.Kind)
	}
	if err != nil {
		unix.Exit(exitOurs) // there is nobody to tell
	}
	return nil
}

// state is the container's state as hooks on the container's side are told.
func (p *ociInit) state(status specs.ContainerState) specs.State {
	return specs.State{
		Version: specs.Version, ID: p.cfg.ID, Status: status, Pid: os.Getpid(), Bundle: p.cfg.Bundle, Annotations: p.cfg.Spec.Annotations,
	}
}

// changeRoot makes the mount root the root.
func (p *ociInit) changeRoot(r *rootfs) error {
	switch {
	case !hasNewNamespace(p.cfg.Spec, specs.MountNamespace):
		if err := unix.Fchdir(r.root); err != nil {
			return err
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("changing the root: %w", err)
		}
		return nil
	case p.cfg.NoPivot:
		// For a root in the kernel's initramfs, which pivot_root(2) refuses to put away.
		if err := unix.Fchdir(r.root); err != nil {
			return err
		}
		if err := unix.Mount(".", "/", "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("moving the root: %w", err)
		}
		if err := unix.Chroot("."); err != nil {
			return fmt.Errorf("changing the root: %w", err)
		}
		return unix.Chdir("/")
	}
	if err := changeRoot(r.root); err != nil {
		return fmt.Errorf("changing the root: %w", err)
	}
	flag, ok := map[string]uintptr{
		"shared": unix.MS_SHARED, "slave": unix.MS_SLAVE, "private": unix.MS_PRIVATE, "unbindable": unix.MS_UNBINDABLE,
		"rshared": unix.MS_SHARED | unix.MS_REC, "rslave": unix.MS_SLAVE | unix.MS_REC, "rprivate": unix.MS_PRIVATE | unix.MS_REC,
		"runbindable": unix.MS_UNBINDABLE | unix.MS_REC,
	}[p.cfg.Spec.Linux.RootfsPropagation]
	if !ok {
		return nil
	}
	if err := unix.Mount("", "/", "", flag, ""); err != nil {
		return fmt.Errorf("setting linux.rootfsPropagation: %w", err)
	}
	return nil
}

// waitForStart waits until someone connects to the socket, runs the hooks that are due then, and executes the command.
// Whoever connected hears of a failure; the end of the connection, with the execution, is the sign that all went well.
func (p *ociInit) waitForStart(listener int, command *ociCommand) error {
	fd := -1
	for {
		var err error
		fd, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC)
		if err == nil {
			break
		}
		if err != unix.EINTR && err != unix.ECONNABORTED {
			unix.Exit(exitOurs)
		}
	}
	w := &wire{fd: fd}
	err := runHooks("startContainer", p.cfg.Spec.Hooks, p.state(specs.StateCreated))
	if err == nil {
		err = command.execute()
	}
	_ = w.send(message{Kind: msgFailed, Code: startCode(err), Error: err.Error()})
	unix.Exit(startCode(err))
	return nil
}

// runOther becomes another command in a container.
func (p *ociInit) runOther() error {
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	if p.cfg.Process.Terminal {
		if p.master, p.slave, err = containerTerminal(root); err != nil {
			return err
		}
	}
	command, err := p.prepareCommand(root)
	if err != nil {
		return err
	}
	if err := p.ask(msgCreated); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, 0, 0, 0, 0); err != nil {
		return err
	}
	return command.execute()
}

// containerTerminal opens a new terminal of a container that is there.
func containerTerminal(root int) (master, slave *os.File, err error) {
	pts, err := openPlain(root, "dev/pts", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil, nil, fmt.Errorf("a terminal needs a mount of type devpts at /dev/pts: %w", err)
	}
	defer unix.Close(pts)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(pts, &fs); err != nil || fs.Type != unix.DEVPTS_SUPER_MAGIC {
		return nil, nil, errors.New("a terminal needs a mount of type devpts at /dev/pts")
	}
	return newTerminal(pts)
}
