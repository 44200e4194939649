package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// AnnotationRuntime is the path of another OCI runtime that makes the container, in the place of this package's init.
const AnnotationRuntime = "io.unionfs.runtime"

// byRuntime stands between the supervisor and a container that another OCI runtime makes. To the supervisor it is what P2 is,
// at the other end of its wire; the runtime is called as conmon calls it. The container's processes, which the runtime leaves
// behind, become children of the supervisor's.
type byRuntime struct {
	container  *Container
	program    string
	wire       *wire
	streams    [3]*os.File
	ownStreams bool // streams are copies, to be closed
	user       specs.User
	pid        atomic.Int64  // of the container's first process; 0 before there is one
	aborted    atomic.Bool   // killed before there was a process
	ready      chan struct{} // the answer to the terminal
	guard      *os.File      // whose end ends the container
}

// newByRuntime prepares the container for another runtime: the bundle that it is given, in the container's directory.
func newByRuntime(c *Container, theirs *os.File) (*byRuntime, error) {
	b := &byRuntime{
		container: c, program: c.Spec.Annotations[AnnotationRuntime], streams: [3]*os.File{os.Stdin, os.Stdout, os.Stderr},
		ready: make(chan struct{}, 1),
	}
	fd, err := unix.Dup(int(theirs.Fd()))
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(fd)
	b.wire = &wire{fd: fd}
	return b, nil
}

func (b *byRuntime) bundle() string { return filepath.Join(b.container.Dir(), "bundle") }

// command is a call of the runtime, whose own state is in the container's directory.
func (b *byRuntime) command(args ...string) *exec.Cmd {
	log := filepath.Join(b.bundle(), "log")
	cmd := exec.Command(b.program, append([]string{"--root", filepath.Join(b.bundle(), "state"), "--log", log, "--log-format", "json"}, args...)...)
	cmd.Dir = "/"
	return cmd
}

// start makes the container and lets it run; what comes of it goes over the wire. Called in the place of P2's start.
func (b *byRuntime) start() error {
	// What the runtime leaves behind is ours to wait for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := b.writeBundle(); err != nil {
		return err
	}
	if err := b.startGuard(); err != nil {
		return err
	}
	go func() {
		code, err := b.run()
		if err != nil {
			_ = b.wire.send(message{Kind: msgFailed, Code: code, Error: err.Error()})
		} else {
			_ = b.wire.send(message{Kind: msgExited, Code: code})
		}
		b.wire.shut()
	}()
	return nil
}

// startGuard starts a shell that deletes the container when we are gone, however we end: there is no parent-death signal for
// what another program starts.
func (b *byRuntime) startGuard() error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	cmd := b.command("delete", "--force", b.container.ID)
	guard := exec.Command("/bin/sh", append([]string{"-c", `read line; exec "$0" "$@" 2> /dev/null`}, cmd.Args...)...)
	guard.Stdin, guard.Dir = r, "/"
	guard.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = guard.Start()
	r.Close()
	if err != nil {
		w.Close()
		return fmt.Errorf("starting the runtime's guard: %w", err)
	}
	b.guard = w
	go func() { _ = guard.Wait() }()
	return nil
}

func (b *byRuntime) run() (code int, err error) {
	pidFile := filepath.Join(b.bundle(), "pid")
	args := []string{"create", "--bundle", b.bundle(), "--pid-file", pidFile}
	terminal := b.container.Spec.Process.Terminal
	var console *runtimeConsole
	if terminal {
		if console, err = listenForConsole(); err != nil {
			return exitOurs, err
		}
		defer console.close()
		args = append(args, "--console-socket", console.path)
	}
	create := b.command(append(args, b.container.ID)...)
	if !terminal {
		create.Stdin, create.Stdout, create.Stderr = b.streams[0], b.streams[1], b.streams[2]
	}
	err = executable.StartExact(create.Run)
	b.closeStreams()
	if err != nil {
		return b.failure("create", err)
	}
	pid, err := b.readPID(pidFile)
	if err != nil {
		return exitOurs, err
	}
	b.pid.Store(int64(pid))
	go b.follow()
	if b.aborted.Load() {
		b.kill()
	}
	if err := handOverConsole(console, b.wire, false); err != nil {
		return exitOurs, err
	}
	if terminal {
		<-b.ready
	}
	if err := b.command("start", b.container.ID).Run(); err != nil {
		return b.failure("start", err)
	}
	// Which mount points had to be made, only the runtime knows. One that is in the upper branch and empty was.
	var places []string
	for _, m := range b.container.Spec.Mounts {
		places = append(places, m.Destination)
	}
	if err := b.wire.send(message{Kind: msgStarted, Paths: places}); err != nil {
		return exitOurs, err
	}
	return exitCode(syscall.WaitStatus(waitFor(pid))), nil
}

// readPID reads the file in which the runtime leaves the number of a process that it started.
func (b *byRuntime) readPID(file string) (int, error) {
	data, err := os.ReadFile(file)
	var pid int
	if err == nil {
		pid, err = strconv.Atoi(string(bytes.TrimSpace(data)))
	}
	if err != nil {
		return 0, fmt.Errorf("%s left no number of its process: %w", filepath.Base(b.program), err)
	}
	return pid, nil
}

// failure says why the runtime failed, by the last line of its log, in one line.
func (b *byRuntime) failure(verb string, err error) (int, error) {
	data, _ := os.ReadFile(filepath.Join(b.bundle(), "log"))
	reason := err.Error()
	for line := range bytes.Lines(data) {
		var entry struct{ Level, Msg string }
		if json.Unmarshal(line, &entry) == nil && entry.Msg != "" && (entry.Level == "error" || entry.Level == "fatal") {
			reason = strings.Join(strings.Fields(entry.Msg), " ")
		}
	}
	code := exitOurs
	switch lower := strings.ToLower(reason); {
	case strings.Contains(lower, "executable file not found"), strings.Contains(lower, "no such file or directory") && strings.Contains(lower, "exec"):
		code = exitNotFound
	case strings.Contains(lower, "permission denied") && strings.Contains(lower, "exec"):
		code = exitNotExecutable
	}
	return code, fmt.Errorf("%s %s: %s", filepath.Base(b.program), verb, reason)
}

// follow does what the supervisor wants of the container.
func (b *byRuntime) follow() {
	for {
		m, fds, err := b.wire.recv()
		if err != nil {
			return
		}
		switch m.Kind {
		case msgSignal:
			_ = unix.Kill(int(b.pid.Load()), unix.Signal(m.Signal))
		case msgReady:
			select {
			case b.ready <- struct{}{}:
			default:
			}
		case msgExec:
			go b.exec(m, fds)
			fds = nil
		}
		closeAll(fds)
	}
}

// wait waits until the container's processes are gone, and has the runtime delete it. It returns as P2's end does.
func (b *byRuntime) wait() syscall.WaitStatus {
	_ = b.command("delete", "--force", b.container.ID).Run()
	b.close()
	return 0
}

func (b *byRuntime) kill() {
	b.aborted.Store(true)
	if pid := b.pid.Load(); pid > 0 {
		_ = unix.Kill(int(pid), unix.SIGKILL)
	}
}

// setStreams gives the container copies of streams, which the caller closes when start has returned.
func (b *byRuntime) setStreams(files []*os.File) error {
	for i, f := range files {
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			return err
		}
		b.streams[i] = os.NewFile(uintptr(fd), f.Name())
	}
	b.ownStreams = true
	return nil
}

// closeStreams lets go of the copies, once the container has them, so that their end is seen.
func (b *byRuntime) closeStreams() {
	if b.ownStreams {
		for _, f := range b.streams {
			f.Close()
		}
	}
}

func (b *byRuntime) close() {
	if b.guard != nil {
		b.guard.Close()
		b.guard = nil
	}
	_ = os.RemoveAll(b.bundle())
}

// writeBundle writes the specification as any runtime understands it.
func (b *byRuntime) writeBundle() error {
	if err := os.RemoveAll(b.bundle()); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(b.bundle(), "state"), 0o700); err != nil {
		return err
	}
	spec := *b.container.Spec
	linux, process := *spec.Linux, *spec.Process
	spec.Linux, spec.Process = &linux, &process
	spec.Version = "1.0.2"
	spec.Root = &specs.Root{Path: b.container.Rootfs(), Readonly: spec.Root.Readonly}
	cfg := initConfig{Spec: b.container.Spec, Rootfs: b.container.Rootfs(), User: spec.Annotations[AnnotationUser]}
	who, err := cfg.fixedUser()
	if err != nil {
		return err
	}
	b.user, process.User = who, who
	set := func(key, value string) {
		if value != "" && !slices.ContainsFunc(process.Env, func(e string) bool { return strings.HasPrefix(e, key+"=") }) {
			process.Env = append(slices.Clone(process.Env), key+"="+value)
		}
	}
	set("PATH", DefaultPath)
	set("HOSTNAME", spec.Hostname)
	linux.Namespaces = slices.DeleteFunc(slices.Clone(linux.Namespaces), func(ns specs.LinuxNamespace) bool { return ns.Type == specs.TimeNamespace })
	if len(linux.UIDMappings) == 0 {
		uids, err := user.CurrentProcessUIDMap()
		if err != nil {
			return err
		}
		gids, err := user.CurrentProcessGIDMap()
		if err != nil {
			return err
		}
		linux.UIDMappings, linux.GIDMappings = sameIDs(uids), sameIDs(gids)
	}
	spec.Mounts = slices.Clone(spec.Mounts)
	for i, m := range spec.Mounts {
		if m.Type == "proc" && guarded(b.container.Spec) {
			// A new one takes capabilities over the PID namespace, which is not the container's own.
			m = specs.Mount{Destination: m.Destination, Type: "bind", Source: "/proc", Options: append([]string{"rbind"}, m.Options...)}
			spec.Mounts[i] = m
		}
		if isBind(m) && !slices.Contains(m.Options, "dev") {
			spec.Mounts[i].Options = append(slices.Clone(m.Options), "nodev")
		}
	}
	data, err := json.Marshal(&spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(b.bundle(), "config.json"), data, 0o600)
}

func sameIDs(own []user.IDMap) (out []specs.LinuxIDMapping) {
	for _, m := range own {
		out = append(out, specs.LinuxIDMapping{ContainerID: uint32(m.ID), HostID: uint32(m.ID), Size: uint32(m.Count)})
	}
	return out
}

// runtimeConsole is the socket on which a runtime hands over a terminal.
type runtimeConsole struct {
	fd   int
	path string
}

func listenForConsole() (*runtimeConsole, error) {
	// An address is at most 108 bytes long, and the runtime must find it too: a directory of its own in /tmp.
	dir, err := os.MkdirTemp("", "unionfs-console-")
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, "console")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
			err = unix.Listen(fd, 1)
		}
	}
	if err != nil {
		os.RemoveAll(dir)
		return nil, fmt.Errorf("listening for the terminal: %w", err)
	}
	return &runtimeConsole{fd, path}, nil
}

// receive takes the terminal's master. The runtime has connected by now, or never will.
func (c *runtimeConsole) receive() (*os.File, error) {
	poll := []unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}
	if n, err := unix.Poll(poll, int((5 * time.Second).Milliseconds())); n != 1 {
		return nil, fmt.Errorf("the runtime handed over no terminal: %w", errors.Join(err, io.EOF))
	}
	fd, _, err := unix.Accept4(c.fd, unix.SOCK_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	return receiveTerminal(fd)
}

func (c *runtimeConsole) close() {
	unix.Close(c.fd)
	os.RemoveAll(filepath.Dir(c.path))
}
