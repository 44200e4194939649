package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"github.com/moby/sys/capability"
	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// argvInit is the argv[0] of P2.
const argvInit = "unionfs-init"

// The descriptors that P2 is started with.
const (
	initWireFD   = 3
	initSharedFD = 4 // and on; see initConfig.Shared
)

// initConfig is what P2 is told, in a memory file that comes with msgConfig.
type initConfig struct {
	Spec   *specs.Spec `json:"spec"`
	Rootfs string      `json:"rootfs"` // absolute, in the mount namespace that P2 starts with a copy of

	// User, if not empty, is looked up inside instead of Spec.Process.User.
	User string `json:"user,omitempty"`

	// Fixed says that the user namespace has one ID only, which the container already runs as, so that no other can
	// be taken on; and that setgroups is denied.
	Fixed bool `json:"fixed,omitempty"`

	// AwaitNetwork says that the command starts only after msgConnected.
	AwaitNetwork bool `json:"awaitNetwork,omitempty"`

	// Hold says that no command is to be started.
	Hold bool `json:"hold,omitempty"`

	// Shared are the mounts that another container shares with this one: their destinations, for descriptors from
	// initSharedFD on.
	Shared []string `json:"shared,omitempty"`

	// Seccomp is the compiled filter; Spec then has no profile.
	Seccomp *seccompFilter `json:"seccomp,omitempty"`

	// AwaitFilter says that the filter comes later, by msgFilter: its making takes as long as reading this and half of the set-up.
	AwaitFilter bool `json:"awaitFilter,omitempty"`

	// Ownership is the filter that passes on changes of owners, where P1 keeps those that the one ID can't have.
	Ownership *seccompFilter `json:"ownership,omitempty"`

	// AptConfig is, with Ownership, a file to add to apt's configuration.
	AptConfig string `json:"aptConfig,omitempty"`
}

// initProcess is P1's view of P2.
type initProcess struct {
	cmd     *exec.Cmd
	attr    *syscall.SysProcAttr // what it is started with
	wire    *wire
	theirs  *os.File      // P2's end of the wire
	config  initConfig    // what it is told by configure
	exe     *os.File      // the program, see protectedProgram
	shared  *shared       // what other containers share with this one
	other   *byRuntime    // what stands in for P2 where another runtime makes the container; cmd and exe are nil then
	ownTime bool          // it gets a time namespace
	guard   string        // the cgroup that the container is ended by, if it is not by P2's end
	ending  *os.File      // what P2 ends it by; see openGuard
	gone    chan struct{} // closed when P2 has been waited for
}

// newInitProcess prepares P2, without starting it unless it was started early. With hold, it only holds the container's root, and limits
// are nil. Only where mustSeeRoot says so need the container's root be mounted before.
func newInitProcess(c *Container, h Hooks, limits *cgroups, hold bool, early *EarlyInit) (*initProcess, error) {
	p := &initProcess{shared: &shared{}, gone: make(chan struct{})}
	if err := p.prepare(c, h, limits, hold, early); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// mustSeeRoot reports whether P2 can be prepared only when the container's root is mounted: where another runtime stands in for
// it, and where the IDs of its user namespace are those of a user who may have to be looked up.
func mustSeeRoot(c *Container) bool {
	_, numeric := numericUser(c.Spec.Annotations[AnnotationUser])
	return c.Spec.Annotations[AnnotationRuntime] != "" || c.Spec.Annotations[AnnotationUser] != "" && !numeric
}

func (p *initProcess) prepare(c *Container, h Hooks, limits *cgroups, hold bool, early *EarlyInit) (err error) {
	if c.Spec.Annotations[AnnotationRuntime] != "" && !hold {
		if p.wire, p.theirs, err = newWire(); err == nil {
			p.other, err = newByRuntime(c, p.theirs)
		}
		return err
	}
	cfg := &p.config
	*cfg = initConfig{Spec: c.Spec, Rootfs: c.Rootfs(), User: c.Spec.Annotations[AnnotationUser], AwaitNetwork: h.Network != nil}
	if hold {
		cfg.holdOnly()
	}
	if !hold {
		shared, err := openShared(c)
		if err != nil {
			return err
		}
		p.shared = shared
		cfg.Shared = p.shared.destinations
	}
	p.ownTime = hasNewNamespace(c.Spec, specs.TimeNamespace)
	if p.attr, err = cfg.attributes(); err != nil || early.adopt(p, limits) {
		return err
	}
	if err := p.makeCommand(); err != nil {
		return err
	}
	return p.addGuard(limits)
}

// makeCommand makes the process that start starts, by attr, and the wire to it.
func (p *initProcess) makeCommand() (err error) {
	if p.wire, p.theirs, err = newWire(); err != nil {
		return err
	}
	if p.exe, err = protectedProgram(); err != nil {
		return err
	}
	p.cmd = &exec.Cmd{
		// By number, since this mount of the program has no path. The child can look it up because it still has
		// our descriptors when it executes.
		Path: pathOf(p.exe),
		Args: []string{argvInit},
		// It has little to do, and each thread costs memory. Go's runtime need not look up, and keep open, the cgroup
		// files that would tell it how many processors to use.
		Env:         []string{"GOMAXPROCS=1", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"},
		Dir:         "/",
		Stdin:       os.Stdin,
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		ExtraFiles:  append([]*os.File{p.theirs}, p.shared.mounts...),
		SysProcAttr: p.attr,
	}
	return nil
}

// addGuard gives P2 what it is to end the container by, if that is not its own end.
func (p *initProcess) addGuard(limits *cgroups) (err error) {
	if limits == nil || limits.guard == "" {
		return nil
	}
	p.guard = limits.guard
	if p.ending, err = openGuard(p.guard); err != nil {
		return err
	}
	p.cmd.ExtraFiles = append(p.cmd.ExtraFiles, p.ending)
	p.cmd.Args = append(p.cmd.Args, guardArgument+strconv.Itoa(2+len(p.cmd.ExtraFiles)))
	// It must outlive us for that moment: the end of its wire tells it. The signal is for one that somebody has stopped.
	p.cmd.SysProcAttr.Pdeathsig = unix.SIGCONT
	return nil
}

// configure tells P2, which has been started, what the container is to be. It need not have a root yet.
func (p *initProcess) configure(c *Container, h Hooks) error {
	if p.other != nil {
		return nil
	}
	cfg := &p.config
	if score := c.Spec.Process.OOMScoreAdj; score != nil {
		err := writeOOMScore(p.pid(), *score)
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w: less than the caller's own takes CAP_SYS_RESOURCE on the machine", err)
		}
		if err != nil {
			return err
		}
	}
	if h.SetOwner != nil && h.MakeDevice != nil && !cfg.Hold {
		if err := cfg.compileOwnership(c, p.attr); err != nil {
			return err
		}
	}
	cfg.AwaitFilter = cfg.Spec.Linux.Seccomp != nil
	return p.tell(msgConfig, cfg.lean())
}

// rootMounted tells P2 that the container has its root, and gives it the filter.
func (p *initProcess) rootMounted() error {
	if p.other != nil {
		return nil
	}
	_ = p.wire.send(message{Kind: msgRoot})
	if !p.config.AwaitFilter {
		return nil
	}
	if err := p.config.compileSeccomp(); err != nil {
		return err
	}
	return p.tell(msgFilter, p.config.Seccomp)
}

// tell sends P2 something that may be too large for a message.
func (p *initProcess) tell(kind string, what any) error {
	file, err := memoryFile(what)
	if err != nil {
		return err
	}
	defer file.Close()
	_ = p.wire.send(message{Kind: kind}, int(file.Fd())) // if it was killed meanwhile, its end tells
	return nil
}

// holdOnly leaves out all that is for the command.
func (cfg *initConfig) holdOnly() {
	spec := *cfg.Spec
	process, linux := *spec.Process, *spec.Linux
	process.Terminal = false
	linux.Seccomp, linux.Sysctl, linux.Resources = nil, nil, nil
	if guarded(&spec) {
		linux.Namespaces = append(slices.Clone(linux.Namespaces), specs.LinuxNamespace{Type: specs.PIDNamespace})
	}
	spec.Process, spec.Linux = &process, &linux
	cfg.Spec, cfg.Hold = &spec, true
}

// attributes chooses P2's namespaces and the maps of its user namespace.
func (cfg *initConfig) attributes() (*syscall.SysProcAttr, error) {
	attr := &syscall.SysProcAttr{
		Pdeathsig:  unix.SIGKILL,
		Cloneflags: unix.CLONE_NEWUSER,
	}
	flags := map[specs.LinuxNamespaceType]uintptr{
		specs.PIDNamespace: unix.CLONE_NEWPID, specs.MountNamespace: unix.CLONE_NEWNS, specs.UTSNamespace: unix.CLONE_NEWUTS,
		specs.IPCNamespace: unix.CLONE_NEWIPC, specs.NetworkNamespace: unix.CLONE_NEWNET, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
	}
	for kind, flag := range flags {
		if hasNewNamespace(cfg.Spec, kind) {
			attr.Cloneflags |= flag
		}
	}
	uids, err := user.CurrentProcessUIDMap()
	if err != nil {
		return nil, err
	}
	gids, err := user.CurrentProcessGIDMap()
	if err != nil {
		return nil, err
	}
	attr.GidMappingsEnableSetgroups = setgroupsAllowed()
	uid, oneUID := singleID(uids)
	gid, oneGID := singleID(gids)
	switch {
	case len(cfg.Spec.Linux.UIDMappings) > 0 || len(cfg.Spec.Linux.GIDMappings) > 0:
		attr.UidMappings = specMap(cfg.Spec.Linux.UIDMappings)
		attr.GidMappings = specMap(cfg.Spec.Linux.GIDMappings)
		// Our own ID may be another than root's in there, and would lose its capabilities with the execution.
		attr.Credential = &syscall.Credential{NoSetGroups: true}
	case oneUID || oneGID:
		// One ID: it is whoever the container's user is, as podman's keep-id. All files of the root then appear to
		// belong to that user, who is the one that can change them.
		u, err := cfg.fixedUser()
		if err != nil {
			return nil, err
		}
		cfg.Fixed = true
		attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: int(u.UID), HostID: uid, Size: 1}}
		attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: int(u.GID), HostID: gid, Size: 1}}
		if u.UID != 0 {
			// Executing a program as another user than root costs the capabilities, unless they are ambient.
			attr.AmbientCaps = allCapabilities()
		}
	default:
		attr.UidMappings, attr.GidMappings = identityMap(uids), identityMap(gids)
	}
	return attr, nil
}

// fixedUser finds out who the container's user is before there is a container, since its one ID is mapped to that. A
// name is looked up by a process of its own: this one serves the root, and must not wait for itself.
func (cfg *initConfig) fixedUser() (specs.User, error) {
	if cfg.User == "" {
		return cfg.Spec.Process.User, nil
	}
	if u, ok := numericUser(cfg.User); ok {
		return u, nil
	}
	cmd := exec.Command(selfExe, cfg.Rootfs, cfg.User)
	cmd.Args[0] = argvUser
	out, err := cmd.Output()
	var u specs.User
	if jerr := json.Unmarshal(out, &u); err == nil && jerr == nil {
		return u, nil
	}
	var exit *exec.ExitError
	if errors.As(err, &exit) && len(exit.Stderr) > 0 {
		return u, errors.New(string(exit.Stderr))
	}
	return u, fmt.Errorf("looking up the user %s: %w", cfg.User, err)
}

func specMap(m []specs.LinuxIDMapping) []syscall.SysProcIDMap {
	var out []syscall.SysProcIDMap
	for _, e := range m {
		out = append(out, syscall.SysProcIDMap{ContainerID: int(e.ContainerID), HostID: int(e.HostID), Size: int(e.Size)})
	}
	return out
}

func allCapabilities() []uintptr {
	var all []uintptr
	last, err := capability.LastCap()
	if err != nil {
		return nil
	}
	for c := capability.Cap(0); c <= last; c++ {
		all = append(all, uintptr(c))
	}
	return all
}

// onItsThread calls start, which calls p.start, on this thread; or, where P2 joins another container's PID namespace, on one that is
// made for it and ends with P2. All that a thread starts is in that namespace once it has joined it, and an ordinary user may not
// come back.
func (p *initProcess) onItsThread(start func() error) error {
	if !p.shared.joins(specs.PIDNamespace) {
		return start()
	}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := start()
		started <- err
		if err == nil {
			<-p.gone
		}
	}()
	return <-started
}

// start starts P2. The calling goroutine must stay on its thread until P2 is gone.
func (p *initProcess) start() error {
	if p.other != nil {
		p.theirs.Close()
		return p.other.start()
	}
	if p.cmd.Process != nil {
		return nil // early
	}
	if p.ownTime {
		// Of the calling thread's children (time_namespaces(7)). Its clocks are the host's: it is for the container to have
		// one, and can be without on an older kernel.
		_ = unix.Unshare(unix.CLONE_NEWTIME)
	}
	if err := p.shared.within(p.fork); err != nil {
		return fmt.Errorf("making the container's namespaces: %w", err)
	}
	p.shared.close()
	// What P2 has is closed here, so that its end is the end of the wire. The mount of the program must not stay open
	// either: as long as it is, its flags can be changed through any path to it. The command waits for that.
	p.theirs.Close()
	if p.ending != nil {
		p.ending.Close()
	}
	go func() {
		p.exe.Close() // the kernel takes its time to unmount it
		_ = p.wire.send(message{Kind: msgSealed})
	}()
	return nil
}

// wait waits for P2, and so for every process of the container.
func (p *initProcess) wait() syscall.WaitStatus {
	if p.other != nil {
		return p.other.wait()
	}
	_ = p.cmd.Wait()
	close(p.gone)
	if p.guard != "" {
		if err := endCgroup(p.guard); err != nil {
			fmt.Fprintln(os.Stderr, "unionfs: ending the container's processes:", err)
		}
	}
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// abandon ends P2, if it runs, before it has done anything.
func (p *initProcess) abandon() {
	if p.other != nil {
		p.other.wait()
		return
	}
	if p.cmd != nil && p.cmd.Process != nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		close(p.gone)
	}
}

// pid is the container's first process; with another runtime, once its command runs.
func (p *initProcess) pid() int {
	if p.other != nil {
		return int(p.other.pid.Load())
	}
	return p.cmd.Process.Pid
}

// kill kills the container at once.
func (p *initProcess) kill() {
	if p.other != nil {
		p.other.kill()
		return
	}
	_ = unix.Kill(p.pid(), unix.SIGKILL)
}

// setStreams gives the command other standard streams than ours. Called before start.
func (p *initProcess) setStreams(files []*os.File) error {
	if p.other != nil {
		return p.other.setStreams(files)
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = files[0], files[1], files[2]
	return nil
}

func (p *initProcess) close() {
	if p.wire != nil {
		p.wire.shut()
	}
	p.shared.close()
	for _, f := range []*os.File{p.theirs, p.exe, p.ending} {
		if f != nil {
			f.Close()
		}
	}
}

// memoryFile returns the JSON of v in an anonymous file, to be read from its start.
func memoryFile(v any) (*os.File, error) {
	data, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("unionfs-config", unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "config")
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
