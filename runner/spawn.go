package runner

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// spawn starts the own program in namespaces that exist, in new ones, or in both. Go's os/exec makes new ones only, and a
// Go program can't join an existing user or time namespace itself, since it always has several threads (setns(2)). So two
// processes are made by bare fork, in which nothing runs but the system calls below:
//
//	stage 1  joins the existing namespaces, makes the new user and time namespaces, waits each time until we have written
//	         their maps and offsets, forks stage 2 as a child of ours, tells its PID, and ends
//	stage 2  executes the program
type spawn struct {
	args []string
	env  []string

	joins []namespaceFile // existing namespaces; a user namespace first, a mount namespace last
	flags uintptr         // CLONE_NEW… for new ones

	uids, gids  []specs.LinuxIDMapping           // of a new user namespace
	timeOffsets map[string]specs.LinuxTimeOffset // of a new time namespace
	inherit     []int                            // descriptors for the program, by the numbers that they have; beside 0 to 2
	beforeFork  func(pid int) error              // called when stage 1, whose cgroups stage 2 inherits, is in its namespaces
	mortal      bool                             // the program dies with the calling thread, until it says otherwise
}

// namespaceFile is an existing namespace to join.
type namespaceFile struct {
	kind specs.LinuxNamespaceType
	file *os.File
}

// namespaceFlag is the CLONE_NEW… of a kind of namespace.
func namespaceFlag(kind specs.LinuxNamespaceType) (uintptr, bool) {
	flag, ok := map[specs.LinuxNamespaceType]uintptr{
		specs.UserNamespace: unix.CLONE_NEWUSER, specs.TimeNamespace: unix.CLONE_NEWTIME, specs.CgroupNamespace: unix.CLONE_NEWCGROUP,
		specs.IPCNamespace: unix.CLONE_NEWIPC, specs.UTSNamespace: unix.CLONE_NEWUTS, specs.NetworkNamespace: unix.CLONE_NEWNET,
		specs.PIDNamespace: unix.CLONE_NEWPID, specs.MountNamespace: unix.CLONE_NEWNS,
	}[kind]
	return flag, ok
}

// namespaceProcName is the namespace's name in /proc/PID/ns.
func namespaceProcName(kind specs.LinuxNamespaceType) string {
	switch kind {
	case specs.NetworkNamespace:
		return "net"
	case specs.MountNamespace:
		return "mnt"
	}
	return string(kind)
}

// What the stages report, as pairs of 32-bit numbers: which step, and a PID or, with stepFailed, an errno.
const (
	stepUser   = iota + 1 // in the new user namespace, waiting for its maps
	stepTime              // in the new time namespace, waiting for its offsets
	stepReady             // in all other namespaces, waiting to fork
	stepForked            // the number is the PID

	stepJoin // of these, only failures are reported
	stepIDs
	stepSignals
	stepExec

	stepFailed = 1 << 16 // added to the step at which it happened
)

// maxJoins bounds the existing namespaces: there are eight kinds.
const maxJoins = 8

// stages is what the two processes work with. They must not allocate memory, grow their stack or wait for another thread,
// of which they have none.
type stages struct {
	program      uintptr // a descriptor
	argv, envv   uintptr
	empty        uintptr // ""
	sync         uintptr // the stages' end of a socket pair
	ours         uintptr // the other end
	joins        [maxJoins]struct{ fd, flag uintptr }
	joinCount    int
	newUser      uintptr // CLONE_NEWUSER or 0
	newTime      uintptr
	flags        uintptr // the rest
	becomeRoot   bool
	mayGroups    bool
	inherit      [16]uintptr
	inheritCount int
	mortal       bool
	report       [2]uint32
	answer       [8]byte
	signals      uint64
	action       [4]uint64 // struct sigaction of the kernel: SIG_DFL, no flags
}

// start runs both stages and returns the program's process, a child of the calling thread's process. With mortal, the
// calling goroutine must be locked to its thread for as long as the program shall live.
func (s *spawn) start() (pid int, err error) {
	if len(s.joins) > maxJoins || len(s.inherit) > 16 {
		return 0, errors.New("too many namespaces or descriptors")
	}
	program, err := protectedProgram()
	if err != nil {
		return 0, err
	}
	defer program.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	ours := pair[0]
	defer unix.Close(ours)
	argv, err := syscall.SlicePtrFromStrings(s.args)
	if err != nil {
		unix.Close(pair[1])
		return 0, err
	}
	envv, err := syscall.SlicePtrFromStrings(s.env)
	if err != nil {
		unix.Close(pair[1])
		return 0, err
	}
	var empty [1]byte
	st := &stages{
		program: program.Fd(), argv: uintptr(unsafe.Pointer(&argv[0])), envv: uintptr(unsafe.Pointer(&envv[0])),
		empty: uintptr(unsafe.Pointer(&empty[0])), sync: uintptr(pair[1]), ours: uintptr(ours), mortal: s.mortal,
		newUser: s.flags & unix.CLONE_NEWUSER, newTime: s.flags & unix.CLONE_NEWTIME,
		flags: s.flags &^ (unix.CLONE_NEWUSER | unix.CLONE_NEWTIME),
	}
	st.becomeRoot = st.newUser != 0
	st.mayGroups = setgroupsAllowed()
	for i, j := range s.joins {
		flag, _ := namespaceFlag(j.kind)
		st.joins[i].fd, st.joins[i].flag = j.file.Fd(), flag
		st.becomeRoot = st.becomeRoot || j.kind == specs.UserNamespace
	}
	st.joinCount = len(s.joins)
	for i, fd := range s.inherit {
		st.inherit[i] = uintptr(fd)
	}
	st.inheritCount = len(s.inherit)

	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	first, errno := forkStages(st)
	runtime.KeepAlive(argv)
	runtime.KeepAlive(envv)
	unix.Close(pair[1])
	if errno != 0 {
		return 0, fmt.Errorf("forking: %w", errno)
	}
	pid, err = s.follow(ours, first)
	if err != nil {
		_ = unix.Kill(first, unix.SIGKILL)
		if pid > 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
			_ = waitFor(pid)
			pid = 0
		}
	}
	_ = waitFor(first)
	return pid, err
}

// waitFor reaps a child.
func waitFor(pid int) unix.WaitStatus {
	var ws unix.WaitStatus
	for {
		if _, err := unix.Wait4(pid, &ws, 0, nil); err != unix.EINTR {
			return ws
		}
	}
}

// follow does our part of what the stages do.
func (s *spawn) follow(sync, first int) (pid int, err error) {
	for {
		var report [8]byte
		n, err := unix.Read(sync, report[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return pid, err
		}
		if n == 0 {
			// Both ends are closed: stage 1 by its end, stage 2 by executing the program.
			if pid == 0 {
				return 0, errors.New("it was killed while its namespaces were made")
			}
			return pid, nil
		}
		step, number := binary.NativeEndian.Uint32(report[:4]), binary.NativeEndian.Uint32(report[4:])
		if step >= stepFailed {
			return pid, s.stepError(step-stepFailed, syscall.Errno(number))
		}
		switch step {
		case stepForked:
			pid = int(number)
			continue
		case stepUser:
			err = writeIDMaps(first, &syscall.SysProcAttr{UidMappings: specMap(s.uids), GidMappings: specMap(s.gids), GidMappingsEnableSetgroups: true})
		case stepTime:
			err = s.writeOffsets(first)
		case stepReady:
			if s.beforeFork != nil {
				err = s.beforeFork(first)
			}
		}
		if err != nil {
			return pid, err
		}
		if _, err := unix.Write(sync, []byte{1}); err != nil {
			return pid, err
		}
	}
}

func (s *spawn) stepError(step uint32, errno syscall.Errno) error {
	switch {
	case step >= stepJoin+100:
		kind := s.joins[step-stepJoin-100].kind
		return fmt.Errorf("joining the %s namespace %s: %w", kind, s.joins[step-stepJoin-100].file.Name(), errno)
	case step == stepUser:
		return namespaceError(errno)
	case step == stepTime:
		return fmt.Errorf("making a time namespace: %w", errno)
	case step == stepForked:
		return fmt.Errorf("making the container's namespaces: %w", errno)
	case step == stepIDs:
		return fmt.Errorf("becoming root of the user namespace, which must have the IDs 0: %w", errno)
	case step == stepExec:
		return fmt.Errorf("executing the program in the container's namespaces: %w", errno)
	}
	return fmt.Errorf("starting in the container's namespaces (step %d): %w", step, errno)
}

// writeOffsets sets the clocks of the new time namespace (time_namespaces(7)).
func (s *spawn) writeOffsets(pid int) error {
	var lines []string
	for clock, offset := range s.timeOffsets {
		lines = append(lines, fmt.Sprintf("%s %d %d\n", clock, offset.Secs, offset.Nanosecs))
	}
	if len(lines) == 0 {
		return nil
	}
	slices.Sort(lines)
	if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/timens_offsets", []byte(strings.Join(lines, "")), 0); err != nil {
		return fmt.Errorf("setting the clocks of the time namespace: %w", err)
	}
	return nil
}

// forkStages forks stage 1 with all signals blocked, so that no handler of Go's runtime runs in it.
//
//go:norace
//go:nosplit
func forkStages(s *stages) (pid int, errno syscall.Errno) {
	all, old := ^uint64(0), uint64(0)
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&all)), uintptr(unsafe.Pointer(&old)), 8, 0, 0)
	r, _, e := syscall.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e == 0 && r == 0 {
		s.first()
	}
	syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&old)), 0, 8, 0, 0)
	return int(r), e
}

// first is stage 1. It doesn't return.
//
//go:norace
//go:nosplit
func (s *stages) first() {
	// Or else the end of the one who forked us would never be the end of the stream.
	syscall.RawSyscall(unix.SYS_CLOSE, s.ours, 0, 0)
	for i := 0; i < s.joinCount; i++ {
		if _, _, e := syscall.RawSyscall(unix.SYS_SETNS, s.joins[i].fd, s.joins[i].flag, 0); e != 0 {
			s.fail(uint32(stepJoin+100+i), e)
		}
	}
	if s.newUser != 0 {
		if _, _, e := syscall.RawSyscall(unix.SYS_UNSHARE, s.newUser, 0, 0); e != 0 {
			s.fail(stepUser, e)
		}
		s.tell(stepUser, 0)
		s.wait()
	}
	if s.becomeRoot {
		if _, _, e := syscall.RawSyscall(unix.SYS_SETRESGID, 0, 0, 0); e != 0 {
			s.fail(stepIDs, e)
		}
		if s.mayGroups {
			// Denied in a user namespace that was made by someone without privileges.
			syscall.RawSyscall(unix.SYS_SETGROUPS, 0, 0, 0)
		}
		if _, _, e := syscall.RawSyscall(unix.SYS_SETRESUID, 0, 0, 0); e != 0 {
			s.fail(stepIDs, e)
		}
	}
	if s.newTime != 0 {
		if _, _, e := syscall.RawSyscall(unix.SYS_UNSHARE, s.newTime, 0, 0); e != 0 {
			s.fail(stepTime, e)
		}
		s.tell(stepTime, 0)
		s.wait()
	}
	s.tell(stepReady, 0)
	s.wait()
	r, _, e := syscall.RawSyscall6(unix.SYS_CLONE, s.flags|unix.CLONE_PARENT|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if e != 0 {
		s.fail(stepForked, e)
	}
	if r == 0 {
		s.second()
	}
	s.tell(stepForked, uint32(r))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
}

// second is stage 2. It doesn't return.
//
//go:norace
//go:nosplit
func (s *stages) second() {
	if s.mortal {
		syscall.RawSyscall6(unix.SYS_PRCTL, unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0, 0)
	}
	for i := 0; i < s.inheritCount; i++ {
		syscall.RawSyscall(unix.SYS_FCNTL, s.inherit[i], unix.F_SETFD, 0)
	}
	// Handlers end with the program that has them, but what is pending must not meet one before.
	for sig := uintptr(1); sig <= 64; sig++ {
		if sig != uintptr(unix.SIGKILL) && sig != uintptr(unix.SIGSTOP) {
			syscall.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&s.action)), 0, 8, 0, 0)
		}
	}
	s.signals = 0
	if _, _, e := syscall.RawSyscall6(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&s.signals)), 0, 8, 0, 0); e != 0 {
		s.fail(stepSignals, e)
	}
	_, _, e := syscall.RawSyscall6(unix.SYS_EXECVEAT, s.program, s.empty, s.argv, s.envv, unix.AT_EMPTY_PATH, 0)
	s.fail(stepExec, e)
}

//go:norace
//go:nosplit
func (s *stages) tell(step, number uint32) {
	s.report[0], s.report[1] = step, number
	syscall.RawSyscall6(unix.SYS_SENDTO, s.sync, uintptr(unsafe.Pointer(&s.report)), 8, unix.MSG_NOSIGNAL, 0, 0)
}

//go:norace
//go:nosplit
func (s *stages) fail(step uint32, errno syscall.Errno) {
	s.tell(step+stepFailed, uint32(errno))
	for {
		syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
	}
}

// wait waits for our answer, and ends if there is none: the one who forked us is gone, or has given up.
//
//go:norace
//go:nosplit
func (s *stages) wait() {
	for {
		r, _, e := syscall.RawSyscall(unix.SYS_READ, s.sync, uintptr(unsafe.Pointer(&s.answer)), 1)
		if e == 0 && r == 1 {
			return
		}
		if e != unix.EINTR {
			for {
				syscall.RawSyscall(unix.SYS_EXIT_GROUP, 1, 0, 0)
			}
		}
	}
}
