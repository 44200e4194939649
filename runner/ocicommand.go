package runner

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ociCommand is a command that is ready to be executed in this very process.
type ociCommand struct {
	init  *ociInit
	file  string
	env   []string
	masks capabilityMasks
}

// prepareCommand does what can fail before the container counts as created: the root has been changed, and paths are the
// container's. Afterwards only execute is left.
func (p *ociInit) prepareCommand(root int) (*ociCommand, error) {
	process := p.cfg.Process
	c := &ociCommand{init: p}
	var err error
	if c.masks, err = capabilityMask(process.Capabilities); err != nil {
		return nil, err
	}
	if p.slave != nil {
		if err := p.handOverTerminal(); err != nil {
			return nil, err
		}
	}
	if !p.cfg.NoKeyring {
		if err := p.joinKeyring(); err != nil {
			return nil, err
		}
	}
	if err := setProcessAttributes(process); err != nil {
		return nil, err
	}
	if p.cfg.OpenFiles > 0 && !slices.ContainsFunc(process.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == "RLIMIT_NOFILE" }) {
		var now unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &now); err == nil {
			now.Cur = min(p.cfg.OpenFiles, now.Max)
			_ = unix.Setrlimit(unix.RLIMIT_NOFILE, &now)
		}
	}
	c.env = slices.Clone(process.Env)
	if !slices.ContainsFunc(c.env, func(e string) bool { return strings.HasPrefix(e, "HOME=") }) {
		who, err := lookupUser(root, "", process.User)
		if err != nil {
			who = &account{home: "/"} // it need not be understood
		}
		c.env = append(c.env, "HOME="+who.home)
	}
	if p.cfg.Other {
		err = enterExisting(root, process.Cwd)
	} else {
		err = enterDirectory(root, process.Cwd)
	}
	if err != nil {
		return nil, fmt.Errorf("entering the working directory process.cwd %s: %w", process.Cwd, err)
	}
	if c.file, err = findCommand(process.Args[0], c.env); err != nil {
		return nil, ociStartError(process.Args[0], err)
	}
	umask := 0o022
	if process.User.Umask != nil {
		umask = int(*process.User.Umask)
	}
	unix.Umask(umask)
	giveStreams([]*os.File{os.Stdin, os.Stdout, os.Stderr}, &account{User: process.User})
	return c, nil
}

// ociStartError says why a command can't be found in the words that the callers of OCI runtimes look for, to tell the exit
// codes 126 and 127 from others.
func ociStartError(name string, err error) error {
	code := startCode(err)
	switch code {
	case exitNotFound:
		if strings.Contains(name, "/") {
			return startErrorf(code, "exec: %q: stat %s: no such file or directory", name, name)
		}
		return startErrorf(code, "exec: %q: executable file not found in $PATH", name)
	case exitNotExecutable:
		return startErrorf(code, "exec: %q: permission denied", name)
	}
	return err
}

// handOverTerminal makes the terminal's slave the standard streams and the controlling terminal, and sends the master to
// whoever waits for it (runc's docs/terminals.md).
func (p *ociInit) handOverTerminal() error {
	process := p.cfg.Process
	console, ok := p.files[fdConsole]
	if !ok {
		return errors.New("process.terminal needs --console-socket")
	}
	if size := process.ConsoleSize; size != nil {
		ws := unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)}
		if err := unix.IoctlSetWinsize(int(p.master.Fd()), unix.TIOCSWINSZ, &ws); err != nil {
			return fmt.Errorf("setting the terminal's size: %w", err)
		}
	}
	if err := p.slave.Chown(int(process.User.UID), -1); err != nil {
		return fmt.Errorf("giving the terminal to user %d: %w", process.User.UID, err)
	}
	if err := unix.Sendmsg(console, []byte("/dev/ptmx"), unix.UnixRights(int(p.master.Fd())), nil, 0); err != nil {
		return fmt.Errorf("sending the terminal to --console-socket: %w", err)
	}
	unix.Close(console)
	p.master.Close()
	if _, err := unix.Setsid(); err != nil {
		return fmt.Errorf("setsid: %w", err)
	}
	for fd := range 3 {
		if err := unix.Dup3(int(p.slave.Fd()), fd, 0); err != nil {
			return err
		}
	}
	p.slave.Close()
	if err := unix.IoctlSetInt(0, unix.TIOCSCTTY, 0); err != nil {
		return fmt.Errorf("making it the controlling terminal: %w", err)
	}
	return nil
}

// joinKeyring takes a session keyring of the container's name. Another command finds the one of the first by the name
// only in the same user namespace and by the same user, and otherwise gets its own.
func (p *ociInit) joinKeyring() error {
	_, err := unix.KeyctlJoinSessionKeyring("_ses." + p.cfg.ID)
	if err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.EACCES) {
		return fmt.Errorf("making a session keyring: %w", err)
	}
	return nil
}

// setProcessAttributes sets what belongs to the whole process and to threads alike: limits, personality, priorities.
func setProcessAttributes(process *specs.Process) error {
	seen := map[string]bool{}
	for _, l := range process.Rlimits {
		n, ok := limitNumber(l.Type)
		if !ok {
			return fmt.Errorf("process.rlimits: there is no resource limit %q", l.Type)
		}
		if seen[l.Type] {
			return fmt.Errorf("process.rlimits: %s is there twice", l.Type)
		}
		seen[l.Type] = true
		if err := unix.Setrlimit(n, &unix.Rlimit{Cur: l.Soft, Max: l.Hard}); err != nil {
			return fmt.Errorf("process.rlimits: setting %s to %d:%d: %w", l.Type, l.Soft, l.Hard, err)
		}
	}
	if io := process.IOPriority; io != nil {
		class, ok := map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}[io.Class]
		if !ok {
			return fmt.Errorf("process.ioPriority: unknown class %q", io.Class)
		}
		const whoProcess = 1 // IOPRIO_WHO_PROCESS: the calling thread
		if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, 0, uintptr(class<<13|io.Priority)); errno != 0 {
			return fmt.Errorf("setting process.ioPriority: %w", errno)
		}
	}
	if process.Scheduler != nil {
		attr, err := schedulerAttributes(process.Scheduler)
		if err != nil {
			return err
		}
		if err := unix.SchedSetAttr(0, attr, 0); err != nil {
			return fmt.Errorf("setting process.scheduler: %w", err)
		}
	}
	return nil
}

func schedulerAttributes(s *specs.Scheduler) (*unix.SchedAttr, error) {
	policy, ok := map[specs.LinuxSchedulerPolicy]uint32{
		specs.SchedOther: unix.SCHED_NORMAL, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR, specs.SchedBatch: unix.SCHED_BATCH,
		"SCHED_ISO": 4, specs.SchedIdle: unix.SCHED_IDLE, specs.SchedDeadline: unix.SCHED_DEADLINE,
	}[s.Policy]
	if !ok {
		return nil, fmt.Errorf("process.scheduler: unknown policy %q", s.Policy)
	}
	attr := &unix.SchedAttr{
		Size: unix.SizeofSchedAttr, Policy: policy, Nice: s.Nice, Priority: uint32(s.Priority),
		Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period,
	}
	for _, flag := range s.Flags {
		bit, ok := map[specs.LinuxSchedulerFlag]uint64{
			specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK, specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM, specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN,
			specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY, specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS,
			specs.SchedFlagUtilClampMin: unix.SCHED_FLAG_UTIL_CLAMP_MIN, specs.SchedFlagUtilClampMax: unix.SCHED_FLAG_UTIL_CLAMP_MAX,
		}[flag]
		if !ok {
			return nil, fmt.Errorf("process.scheduler: unknown flag %q", flag)
		}
		attr.Flags |= bit
	}
	return attr, nil
}

// execute becomes the command. It returns only if that fails. The filter comes as late as it can: where no_new_privs is
// set, nothing but execve(2) is left to do under it.
func (c *ociCommand) execute() error {
	p := c.init
	process := p.cfg.Process
	if p.slave == nil {
		// Already the leader of one where the runtime's caller has seen to it.
		_, _ = unix.Setsid()
	}
	if process.SelinuxLabel != "" || process.ApparmorProfile != "" {
		if err := setSecurityLabel(process); err != nil {
			return err
		}
	}
	if p.cfg.Spec != nil && p.cfg.Spec.Linux != nil && p.cfg.Spec.Linux.Personality != nil && !p.cfg.Other {
		if err := setPersonality(p.cfg.Spec.Linux.Personality); err != nil {
			return err
		}
	}
	if p.cfg.Seccomp != nil && !process.NoNewPrivileges {
		if err := p.cfg.Seccomp.install(); err != nil {
			return err
		}
	}
	if err := takeIdentity(process.User, c.masks); err != nil {
		return err
	}
	if process.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("setting no_new_privs: %w", err)
		}
		if p.cfg.Seccomp != nil {
			if err := p.cfg.Seccomp.install(); err != nil {
				return err
			}
		}
	}
	err := unix.Exec(c.file, process.Args, c.env)
	return fmt.Errorf("exec %s: %w", process.Args[0], err)
}

// takeIdentity gives the calling thread the command's user, groups and capabilities.
func takeIdentity(who specs.User, masks capabilityMasks) error {
	for n := range uintptr(64) {
		if masks.bounding&(1<<n) != 0 {
			continue
		}
		if has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, n, 0, 0, 0); err != nil {
			break // the kernel has no more
		} else if has == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, n, 0, 0, 0); err != nil {
			return fmt.Errorf("dropping capabilities from the bounding set: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return err
	}
	// By bare system calls: the C library's, and Go's, would change all threads.
	groups := append([]uint32{}, who.AdditionalGids...)
	var first unsafe.Pointer
	if len(groups) > 0 {
		first = unsafe.Pointer(&groups[0])
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(first), 0); errno != 0 {
		// Where the kernel denies it, there is one group only.
		if errno != unix.EPERM || len(groups) > 0 {
			return fmt.Errorf("setting the groups of process.user: %w", errno)
		}
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESGID, uintptr(who.GID), uintptr(who.GID), uintptr(who.GID)); errno != 0 {
		return fmt.Errorf("becoming group %d of process.user: %w", who.GID, errno)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, uintptr(who.UID), uintptr(who.UID), uintptr(who.UID)); errno != 0 {
		return fmt.Errorf("becoming user %d of process.user: %w", who.UID, errno)
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 0, 0, 0, 0); err != nil {
		return err
	}
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return fmt.Errorf("reading the capabilities: %w", err)
	}
	// What we don't have ourselves can't be given: a nested runtime's callers ask for more than there is.
	possible := uint64(have[0].Permitted) | uint64(have[1].Permitted)<<32
	permitted := masks.permitted & possible
	effective := masks.effective & permitted
	inheritable := masks.inheritable & possible
	data := [2]unix.CapUserData{
		{Effective: uint32(effective), Permitted: uint32(permitted), Inheritable: uint32(inheritable)},
		{Effective: uint32(effective >> 32), Permitted: uint32(permitted >> 32), Inheritable: uint32(inheritable >> 32)},
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		return fmt.Errorf("setting the capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil {
		return fmt.Errorf("clearing the ambient capabilities: %w", err)
	}
	for _, n := range capabilityList(masks.ambient & permitted & inheritable) {
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, n, 0, 0); err != nil {
			return fmt.Errorf("raising an ambient capability: %w", err)
		}
	}
	return nil
}

func setPersonality(personality *specs.LinuxPersonality) error {
	value, ok := map[specs.LinuxPersonalityDomain]uintptr{specs.PerLinux: 0, specs.PerLinux32: 8}[personality.Domain]
	if !ok || len(personality.Flags) > 0 {
		return fmt.Errorf("linux.personality %q with flags %v is not supported", personality.Domain, personality.Flags)
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, value, 0, 0); errno != 0 {
		return fmt.Errorf("setting linux.personality: %w", errno)
	}
	return nil
}

// setSecurityLabel asks the kernel for the AppArmor profile or SELinux label with which to execute the command. The file
// must be the kernel's own.
func setSecurityLabel(process *specs.Process) error {
	for _, l := range []struct{ what, value, text string }{
		{"SELinux label", process.SelinuxLabel, process.SelinuxLabel},
		{"AppArmor profile", process.ApparmorProfile, "exec " + process.ApparmorProfile},
	} {
		if l.value == "" {
			continue
		}
		if err := writeSecurityLabel(l.text, l.what == "AppArmor profile"); err != nil {
			return fmt.Errorf("taking the %s %q: %w", l.what, l.value, err)
		}
	}
	return nil
}

func writeSecurityLabel(text string, apparmor bool) error {
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(proc)
	var fs unix.Statfs_t
	if err := unix.Fstatfs(proc, &fs); err != nil || fs.Type != unix.PROC_SUPER_MAGIC {
		return errors.New("it needs a mount of type proc at /proc")
	}
	names := []string{"attr/exec"}
	if apparmor {
		names = []string{"attr/apparmor/exec", "attr/exec"}
	}
	for _, name := range names {
		fd, oerr := openat2(proc, fmt.Sprintf("%d/task/%d/%s", os.Getpid(), unix.Gettid(), name), unix.O_WRONLY, unix.RESOLVE_NO_XDEV|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_BENEATH)
		if err = oerr; err != nil {
			continue
		}
		_, err = unix.Write(fd, []byte(text))
		unix.Close(fd)
		return err
	}
	return err
}
