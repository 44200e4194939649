package runner

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ociProcess is, for the one who makes it, a process that becomes the command of an OCI container.
type ociProcess struct {
	config ociConfig
	spawn  spawn
	wire   *wire
	theirs *os.File
	files  []*os.File // for the config message, in the order of config.Descriptors but the first
	pid    int
}

// newProcess prepares the container's first process.
func (c *OCIContainer) newProcess(o OCICreateOptions) (*ociProcess, error) {
	spec := *c.Spec
	linux := *spec.Linux
	spec.Linux = &linux
	p := &ociProcess{}
	var err error
	if linux.Namespaces, err = p.joinAndMake(linux.Namespaces); err != nil {
		p.close()
		return nil, err
	}
	p.spawn.uids, p.spawn.gids, p.spawn.timeOffsets = linux.UIDMappings, linux.GIDMappings, linux.TimeOffsets
	rootfs, err := filepath.EvalSymlinks(c.Rootfs())
	if err != nil {
		p.close()
		return nil, fmt.Errorf("root.path: %w", err)
	}
	spec.Mounts = slices.Clone(spec.Mounts)
	for i, m := range spec.Mounts {
		if isBind(m) && !filepath.IsAbs(m.Source) {
			spec.Mounts[i].Source = filepath.Join(c.Bundle, m.Source)
		}
	}
	p.config = ociConfig{
		initConfig: initConfig{Spec: &spec, Rootfs: rootfs}, ID: c.ID, Bundle: c.Bundle, Process: spec.Process,
		PreserveFDs: o.PreserveFDs, NoPivot: o.NoPivot, NoKeyring: o.NoKeyring,
	}
	if err := p.prepare(o.ConsoleSocket); err != nil {
		p.close()
		return nil, err
	}
	if o.console != nil {
		o.console.give(p)
	}
	if err := p.mapMounts(&spec); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

func isBind(m specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// joinAndMake sorts namespaces into those to join and those to make. It returns them without those that are ours already.
func (p *ociProcess) joinAndMake(all []specs.LinuxNamespace) ([]specs.LinuxNamespace, error) {
	var rest []specs.LinuxNamespace
	for _, ns := range all {
		if ns.Path == "" {
			flag, _ := namespaceFlag(ns.Type)
			p.spawn.flags |= flag
			rest = append(rest, ns)
			continue
		}
		own, err := p.join(ns.Type, ns.Path)
		if err != nil {
			return nil, err
		}
		if !own {
			rest = append(rest, ns)
		}
	}
	p.sortJoins()
	return rest, nil
}

// join adds a namespace to those that the process joins, unless it is ours.
func (p *ociProcess) join(kind specs.LinuxNamespaceType, path string) (own bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fmt.Errorf("linux.namespaces: %w", err)
	}
	flag, _ := namespaceFlag(kind)
	// NS_GET_NSTYPE (ioctl_nsfs(2))
	if got, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || uintptr(got) != flag {
		f.Close()
		return false, fmt.Errorf("linux.namespaces: %s is no %s namespace", path, kind)
	}
	if sameFile(f, "/proc/self/ns/"+namespaceProcName(kind)) || isSameNamespace(f, kind) {
		f.Close()
		return true, nil
	}
	p.spawn.joins = append(p.spawn.joins, namespaceFile{kind, f})
	return false, nil
}

// isSameNamespace reports whether an open namespace is this process's own.
func isSameNamespace(f *os.File, kind specs.LinuxNamespaceType) bool {
	theirs, err := f.Stat()
	if err != nil {
		return false
	}
	own, err := os.Stat("/proc/self/ns/" + namespaceProcName(kind))
	return err == nil && os.SameFile(theirs, own)
}

// sortJoins puts the user namespace first, which gives the capabilities to join the others, and the mount namespace last,
// in which our descriptors are all that is left of ours.
func (p *ociProcess) sortJoins() {
	rank := func(n namespaceFile) int {
		switch n.kind {
		case specs.UserNamespace:
			return -1
		case specs.MountNamespace:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(p.spawn.joins, func(a, b namespaceFile) int { return rank(a) - rank(b) })
}

// prepare makes what every such process needs.
func (p *ociProcess) prepare(consoleSocket string) (err error) {
	if p.wire, p.theirs, err = newWire(); err != nil {
		return err
	}
	for fd := 3; fd < 3+p.config.PreserveFDs; fd++ {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil {
			return fmt.Errorf("--preserve-fds %d: there is no descriptor %d", p.config.PreserveFDs, fd)
		}
		p.spawn.inherit = append(p.spawn.inherit, fd)
	}
	// What we were left by accident must not come along; what shall is marked in the last moment.
	_ = unix.CloseRange(uint(3+p.config.PreserveFDs), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	p.config.Descriptors = []string{fdConfig}
	if p.config.Process.SelinuxLabel != "" {
		if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
			// A host without SELinux has no use for labels.
			process := *p.config.Process
			process.SelinuxLabel = ""
			p.config.Process = &process
		}
	}
	if err := p.config.compileSeccomp(); err != nil {
		return err
	}
	if p.config.OpenFiles, err = openFilesLimit(); err != nil {
		return err
	}
	if consoleSocket != "" {
		if err := p.connectConsole(consoleSocket); err != nil {
			return err
		}
	}
	wireFD := int(p.theirs.Fd())
	p.spawn.inherit = append(p.spawn.inherit, wireFD)
	p.spawn.args = []string{argvOCIInit, strconv.Itoa(wireFD)}
	p.spawn.env = []string{"GOMAXPROCS=1", "GODEBUG=containermaxprocs=0,updatemaxprocs=0"}
	p.spawn.mortal = true
	return nil
}

// openFilesLimit is the soft limit on open files that we were started with. Go's runtime has raised it to one less than the
// hard one before we could look; what started us has most likely the one that we were given.
func openFilesLimit() (uint64, error) {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		return 0, err
	}
	var parent unix.Rlimit
	if err := unix.Prlimit(os.Getppid(), unix.RLIMIT_NOFILE, nil, &parent); err == nil && parent.Max == now.Max && now.Cur == now.Max-1 {
		return parent.Cur, nil
	}
	return now.Cur, nil
}

func (p *ociProcess) connectConsole(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), "console socket")
	dir, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(dir)
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/%s", dir, filepath.Base(path))})
	}
	if err != nil {
		file.Close()
		return fmt.Errorf("connecting to --console-socket %s: %w", path, err)
	}
	p.add(fdConsole, file)
	return nil
}

// add gives a file to the process, which is then closed here when the process has it.
func (p *ociProcess) add(name string, file *os.File) {
	p.config.Descriptors = append(p.config.Descriptors, name)
	p.files = append(p.files, file)
}

// listen makes the socket on which the process waits, and takes the lock that it holds until then.
func (p *ociProcess) listen(c *OCIContainer) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	p.add(fdListen, os.NewFile(uintptr(fd), "start"))
	address, dir, err := c.startAddress()
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	old := unix.Umask(0o177)
	err = unix.Bind(fd, address)
	unix.Umask(old)
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		return fmt.Errorf("making the container's socket: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(c.dir(), "init"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return err
	}
	p.add(fdLock, lock)
	return unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
}

func (c *OCIContainer) startAddress() (address *unix.SockaddrUnix, dir int, err error) {
	dir, err = unix.Open(c.dir(), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, err
	}
	return &unix.SockaddrUnix{Name: fmt.Sprintf("/proc/self/fd/%d/start", dir)}, dir, nil
}

func (p *ociProcess) start() (err error) {
	if p.pid, err = p.spawn.start(); err != nil {
		return err
	}
	p.theirs.Close()
	return nil
}

// configure tells the process what it is to be.
func (p *ociProcess) configure() error {
	config, err := memoryFile(&p.config)
	if err != nil {
		return err
	}
	defer config.Close()
	fds := []int{int(config.Fd())}
	for _, f := range p.files {
		fds = append(fds, int(f.Fd()))
	}
	if err := p.wire.send(message{Kind: msgConfig}, fds...); err != nil {
		return fmt.Errorf("the container's process was killed: %w", err)
	}
	for _, f := range p.files {
		f.Close()
	}
	p.files = nil
	return nil
}

// expect waits for a message.
func (p *ociProcess) expect(kind string) error {
	m, fds, err := p.wire.recv()
	closeAll(fds)
	switch {
	case err != nil:
		return errors.New("the container's process was killed before it was set up")
	case m.Kind == msgFailed:
		return &startError{m.Code, errors.New(m.Error)}
	case m.Kind != kind:
		return fmt.Errorf("unexpected message %q of the container's process", m.Kind)
	}
	return nil
}

// kill ends the process, which is our child.
func (p *ociProcess) kill() {
	if p.pid > 0 {
		_ = unix.Kill(p.pid, unix.SIGKILL)
		waitFor(p.pid)
	}
}

func (p *ociProcess) close() {
	if p.wire != nil {
		p.wire.close()
	}
	if p.theirs != nil {
		p.theirs.Close()
	}
	for _, f := range p.files {
		f.Close()
	}
	for _, j := range p.spawn.joins {
		j.file.Close()
	}
}
