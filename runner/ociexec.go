package runner

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// OCIExecOptions are how another command is run in an OCI container.
type OCIExecOptions struct {
	Process       *specs.Process
	ConsoleSocket string // as of [OCICreateOptions]; with Detach
	PIDFile       string
	PreserveFDs   int
	Detach        bool // return when the command has been executed, and leave it to whoever adopts it
	Cgroup        string
	IgnorePaused  bool

	// Streams are the standard streams; those of a command with a terminal and without ConsoleSocket are connected to it.
	Streams RunOptions
}

// Exec runs another command in a running container. It returns the command's exit code, or 0 with Detach.
func (c *OCIContainer) Exec(ctx context.Context, o OCIExecOptions) (code int, err error) {
	if err := checkOCIProcess(o.Process); err != nil {
		return exitOurs, err
	}
	switch status := c.Status(); {
	case status == specs.StateStopped:
		return exitOurs, fmt.Errorf("cannot exec in a stopped container")
	case status == StatePaused && !o.IgnorePaused:
		return exitOurs, fmt.Errorf("cannot exec in a paused container (use --ignore-paused to override)")
	case status != specs.StateRunning && status != specs.StateCreated && status != StatePaused:
		return exitOurs, fmt.Errorf("cannot exec in a container that is %s", status)
	}
	if o.Detach && o.Process.Terminal && o.ConsoleSocket == "" {
		return exitOurs, errors.New("cannot allocate a terminal for a detached command without --console-socket")
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := c.otherProcess(o)
	if err != nil {
		return exitOurs, err
	}
	defer p.close()
	console, err := p.ownConsole(o)
	if err != nil {
		return exitOurs, err
	}
	defer console.close()
	if err := p.prepare(o.ConsoleSocket); err != nil {
		return exitOurs, err
	}
	console.give(p)
	signals, stopSignals := catchSignals()
	defer stopSignals()
	ended := false
	defer func() {
		if err != nil && !ended {
			p.kill()
		}
	}()
	if err := p.start(); err != nil {
		return exitOurs, fmt.Errorf("joining container %s: %w", c.ID, err)
	}
	if err := setOOMScore(p.pid, o.Process.OOMScoreAdj); err != nil {
		return exitOurs, err
	}
	if err := p.configure(); err != nil {
		return exitOurs, err
	}
	if err := p.expect(msgCreated); err != nil {
		return startCode(err), err
	}
	if err := console.receive(o.Streams); err != nil {
		return exitOurs, err
	}
	if err := writePIDFile(o.PIDFile, p.pid); err != nil {
		return exitOurs, err
	}
	if err := p.wire.send(message{Kind: msgReady}); err != nil {
		return exitOurs, err
	}
	// The end of the wire, with the execution, is the sign that all went well.
	if m, fds, werr := p.wire.recv(); werr == nil {
		closeAll(fds)
		ended = true
		waitFor(p.pid)
		return m.Code, errors.New(m.Error)
	}
	if o.Detach {
		return 0, nil
	}
	return followChild(ctx, p.pid, signals, console.relay), nil
}

// followChild waits for a child, to which it passes signals on, and returns its exit code.
func followChild(ctx context.Context, pid int, signals <-chan os.Signal, terminal *relay) int {
	ended := make(chan struct{})
	go func() {
		for {
			select {
			case s := <-signals:
				if s == unix.SIGWINCH && terminal != nil {
					terminal.resize()
					continue
				}
				_ = unix.Kill(pid, s.(syscall.Signal))
			case <-ctx.Done():
				_ = unix.Kill(pid, unix.SIGKILL)
				return
			case <-ended:
				return
			}
		}
	}()
	// It is reaped only when nobody signals it any more.
	_ = unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
	close(ended)
	terminal.finish()
	return exitCode(syscall.WaitStatus(waitFor(pid)))
}

// otherProcess prepares a process that joins what the container's first one is in.
func (c *OCIContainer) otherProcess(o OCIExecOptions) (*ociProcess, error) {
	spec := *c.Spec
	linux := *spec.Linux
	spec.Linux, spec.Mounts, spec.Hooks = &linux, nil, nil
	p := &ociProcess{config: ociConfig{
		initConfig: initConfig{Spec: &spec}, ID: c.ID, Bundle: c.Bundle, Process: o.Process, PreserveFDs: o.PreserveFDs, Other: true,
	}}
	proc := fmt.Sprintf("/proc/%d/ns", c.record.PID)
	for _, kind := range []specs.LinuxNamespaceType{
		specs.UserNamespace, specs.CgroupNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.NetworkNamespace, specs.PIDNamespace,
		specs.TimeNamespace, specs.MountNamespace,
	} {
		name := filepath.Join(proc, namespaceProcName(kind))
		if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) && kind == specs.TimeNamespace {
			continue // a kernel without
		}
		if _, err := p.join(kind, name); err != nil {
			p.close()
			return nil, fmt.Errorf("container %s: %w", c.ID, err)
		}
	}
	// It may have ended, and another process have taken its number, before all were open.
	if start, err := startTime(c.record.PID); err != nil || start != c.record.Start {
		p.close()
		return nil, errors.New("cannot exec in a stopped container")
	}
	p.sortJoins()
	if len(c.record.Cgroups) > 0 {
		manager, err := c.cgroups()
		if err != nil {
			p.close()
			return nil, err
		}
		p.spawn.beforeFork = func(pid int) error {
			if err := manager.AddPid(o.Cgroup, pid); err != nil && !inUserNamespace() {
				return fmt.Errorf("joining the container's cgroups: %w", err)
			}
			return nil
		}
	}
	return p, nil
}

// ociConsole is our end of the socket by which a process hands over its terminal, where nobody else's was given.
type ociConsole struct {
	ours   int
	theirs *os.File
	relay  *relay
}

// ownConsole makes the socket, if the command has a terminal that is to be ours.
func (p *ociProcess) ownConsole(o OCIExecOptions) (*ociConsole, error) {
	c := &ociConsole{ours: -1}
	if !p.config.Process.Terminal || o.ConsoleSocket != "" {
		return c, nil
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	c.ours, c.theirs = pair[0], os.NewFile(uintptr(pair[1]), "console socket")
	return c, nil
}

// give gives the other end to the process.
func (c *ociConsole) give(p *ociProcess) {
	if c.theirs != nil {
		p.add(fdConsole, c.theirs)
		c.theirs = nil
	}
}

// receive takes the terminal's master, which has been sent, and connects it.
func (c *ociConsole) receive(o RunOptions) error {
	if c.ours < 0 {
		return nil
	}
	master, err := receiveTerminal(c.ours)
	if err != nil {
		return err
	}
	o.fill()
	c.relay, err = startRelay(master, o, nil)
	return err
}

// receiveTerminal takes a terminal's master from a connection that a runtime made to hand it over.
func receiveTerminal(fd int) (*os.File, error) {
	buf, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := unix.Recvmsg(fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("receiving the terminal: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, errors.New("the terminal did not come")
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, errors.New("the terminal did not come")
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

func (c *ociConsole) close() {
	if c.ours >= 0 {
		unix.Close(c.ours)
	}
	if c.theirs != nil {
		c.theirs.Close()
	}
}

// Run creates a container, starts it, waits for its end and deletes it. With keep it isn't deleted. It returns the
// command's exit code.
func (r *Runtime) Run(ctx context.Context, id, bundle string, o OCICreateOptions, keep bool, streams RunOptions) (int, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	signals, stopSignals := catchSignals()
	defer stopSignals()
	console := &ociConsole{ours: -1}
	spec, err := ReadBundle(bundle)
	if err != nil {
		return exitOurs, err
	}
	if spec.Process.Terminal && o.ConsoleSocket == "" {
		p := &ociProcess{config: ociConfig{Process: spec.Process}}
		if console, err = p.ownConsole(OCIExecOptions{}); err != nil {
			return exitOurs, err
		}
		o.console = console
	}
	defer console.close()
	c, err := r.Create(id, bundle, o)
	if err != nil {
		return exitOurs, err
	}
	if err = console.receive(streams); err == nil {
		err = c.Start()
	}
	if err != nil {
		_ = c.Delete(true)
		waitFor(c.record.PID)
		return exitOurs, err
	}
	code := followChild(ctx, c.record.PID, signals, console.relay)
	if !keep {
		if err := c.Delete(true); err != nil {
			return code, err
		}
	}
	return code, nil
}
