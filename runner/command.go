package runner

import (
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// startCommand starts the container's command as a child of PID 1, in a session of its own. The root has been changed to
// the container's: paths are the container's from here on.
func (p *containerInit) startCommand(r *rootfs) (int, error) {
	spec := p.cfg.Spec
	who, err := lookupUser(r.root, p.cfg.User, spec.Process.User)
	if err != nil {
		return 0, err
	}
	if err := p.addGroups(r.root, who); err != nil {
		return 0, err
	}
	if err := p.checkMapped(r, who); err != nil {
		return 0, err
	}
	if err := enterDirectory(r.root, spec.Process.Cwd); err != nil {
		return 0, fmt.Errorf("entering the working directory %s: %w", spec.Process.Cwd, err)
	}
	env := p.environment(who)
	file, err := findCommand(spec.Process.Args[0], env)
	if err != nil {
		return 0, err
	}
	if err := setLimits(spec.Process.Rlimits); err != nil {
		return 0, err
	}
	stdio := []*os.File{os.Stdin, os.Stdout, os.Stderr}
	if r.slave != nil {
		stdio = []*os.File{r.slave, r.slave, r.slave}
		if err := r.slave.Chown(int(who.UID), -1); err != nil {
			return 0, fmt.Errorf("giving the terminal to user %d: %w", who.UID, err)
		}
	}
	giveStreams(stdio, who)
	umask := 0o022
	if who.Umask != nil {
		umask = int(*who.Umask)
	}
	unix.Umask(umask)
	// From here on the command's root user can't look into PID 1 (/proc/1/exe, fd, root, mem) unless it may trace
	// any process (CVE-2016-9962).
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return 0, err
	}
	pid, err := p.fork(file, env, stdio, who)
	if err != nil {
		return 0, err
	}
	// Our copies must not keep a pipe or a terminal open that the command closes.
	for fd := range 3 {
		if err := unix.Dup3(int(p.null.Fd()), fd, 0); err != nil {
			return 0, err
		}
	}
	return pid, unix.Chdir("/")
}

// giveStreams makes the command's user the owner of those of its streams that are pipes, so that they can open
// /dev/stdout. A file or a terminal of the host keeps its owner. That it may fail doesn't matter.
func giveStreams(stdio []*os.File, who *account) {
	for _, f := range stdio {
		var fs unix.Statfs_t
		if err := unix.Fstatfs(int(f.Fd()), &fs); err == nil && fs.Type == unix.PIPEFS_MAGIC {
			_ = f.Chown(int(who.UID), -1)
		}
	}
}

// fork executes the command in a child of a thread that is made for it: what the thread gives up, the child has not,
// while PID 1 keeps it.
func (p *containerInit) fork(file string, env []string, stdio []*os.File, who *account) (pid int, err error) {
	process := p.cfg.Spec.Process
	masks, err := capabilityMask(process.Capabilities)
	if err != nil {
		return 0, err
	}
	sys := &syscall.SysProcAttr{
		Setsid:      true,
		Setctty:     process.Terminal,
		Ctty:        0,
		AmbientCaps: capabilityList(masks.ambient),
	}
	if !p.cfg.Fixed {
		sys.Credential = &syscall.Credential{
			Uid: who.UID, Gid: who.GID, Groups: who.AdditionalGids,
			NoSetGroups: p.cfg.Spec.Annotations[AnnotationGroups] == KeepGroups,
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Never unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		executable.ExactThread()
		if pid, err = p.restrict(masks); err != nil {
			return
		}
		files := make([]uintptr, len(stdio))
		for i, f := range stdio {
			files[i] = f.Fd()
		}
		p.forking.Lock()
		defer p.forking.Unlock()
		pid, err = syscall.ForkExec(file, process.Args, &syscall.ProcAttr{Env: env, Files: files, Sys: sys})
		err = execError(process.Args[0], err)
	}()
	<-done
	return pid, err
}

// restrict gives up, on the calling thread, what the command must not have. The seccomp filter comes last: what is left to
// do under it is to fork, change the user, and execute.
func (p *containerInit) restrict(masks capabilityMasks) (int, error) {
	// A new one without a name: the caller's keys, and those of other containers, must not be found.
	if _, err := unix.KeyctlInt(unix.KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0); err != nil && !errors.Is(err, unix.ENOSYS) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EDQUOT) {
		return 0, fmt.Errorf("making a session keyring: %w", err)
	}
	if err := restrictThread(masks); err != nil {
		return 0, err
	}
	if p.cfg.Spec.Process.NoNewPrivileges {
		if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
			return 0, fmt.Errorf("setting no_new_privs: %w", err)
		}
	}
	if p.owners != nil {
		if err := p.owners.watch(p.cfg.Ownership); err != nil {
			return 0, fmt.Errorf("keeping the owners of files: %w", err)
		}
	}
	if p.cfg.Seccomp != nil {
		return 0, p.cfg.Seccomp.install()
	}
	return 0, nil
}

// execError says what kept a command from being executed, with Docker's exit code for it.
func execError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		// It was found: what is missing is its interpreter.
		return startErrorf(exitNotFound, "%s: its interpreter (the #! line, or the dynamic loader) is not in the container: %w", name, err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOEXEC), errors.Is(err, unix.EISDIR), errors.Is(err, unix.ELIBBAD), errors.Is(err, unix.ETXTBSY):
		return startErrorf(exitNotExecutable, "%s: can't be executed: %w", name, err)
	}
	return startErrorf(exitOurs, "starting %s: %w", name, err)
}

// findCommand finds the file of a command as a shell would: by its path, or in the directories of PATH. The working
// directory has been entered.
func findCommand(name string, env []string) (string, error) {
	if name == "" {
		return "", startErrorf(exitNotFound, "the command is empty")
	}
	if strings.Contains(name, "/") {
		return name, checkCommand(name, name)
	}
	search := DefaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			search = v
		}
	}
	var denied error
	for dir := range strings.SplitSeq(search, ":") {
		file := path.Join(dir, name)
		if !strings.Contains(file, "/") {
			file = "./" + file
		}
		err := checkCommand(file, name)
		if err == nil {
			return file, nil
		}
		if startCode(err) == exitNotExecutable && denied == nil {
			denied = err
		}
	}
	if denied != nil {
		return "", denied
	}
	return "", startErrorf(exitNotFound, "%s: no such command in the container (PATH is %s)", name, search)
}

// checkCommand reports what keeps a file from being executed, as far as can be told without trying.
func checkCommand(file, name string) error {
	var st unix.Stat_t
	err := unix.Stat(file, &st)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return startErrorf(exitNotFound, "%s: no such file in the container", name)
	case err != nil:
		return startErrorf(exitNotExecutable, "%s: %w", name, err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return startErrorf(exitNotExecutable, "%s: is a directory", name)
	case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0:
		return startErrorf(exitNotExecutable, "%s: is not an executable file", name)
	}
	return nil
}

// checkMapped says early and clearly that an ID doesn't exist in the container's user namespace, where the kernel would
// only say "invalid argument".
func (p *containerInit) checkMapped(r *rootfs, who *account) error {
	if p.cfg.Fixed {
		if int(who.UID) != os.Getuid() || int(who.GID) != os.Getgid() {
			return fmt.Errorf("user %d:%d: this container has the one ID %d:%d; subordinate IDs in /etc/subuid and /etc/subgid, and the package uidmap, give it others", who.UID, who.GID, os.Getuid(), os.Getgid())
		}
		return nil
	}
	if !r.mapped("uid", who.UID) {
		return fmt.Errorf("user %d is not among the container's user IDs: give the host's user a larger range in /etc/subuid", who.UID)
	}
	for _, g := range append([]uint32{who.GID}, who.AdditionalGids...) {
		if !r.mapped("gid", g) {
			return fmt.Errorf("group %d is not among the container's group IDs: give the host's user a larger range in /etc/subgid", g)
		}
	}
	return nil
}

// environment is the command's: the specification's, and what every program may count on.
func (p *containerInit) environment(who *account) []string {
	spec := p.cfg.Spec
	env := slices.Clone(spec.Process.Env)
	set := func(key, value string) {
		if !slices.ContainsFunc(env, func(e string) bool { return strings.HasPrefix(e, key+"=") }) {
			env = append(env, key+"="+value)
		}
	}
	set("PATH", DefaultPath)
	if hasNewNamespace(spec, specs.UTSNamespace) && spec.Hostname != "" {
		set("HOSTNAME", spec.Hostname)
	}
	if spec.Process.Terminal {
		set("TERM", "xterm")
	}
	set("HOME", who.home)
	return env
}

// enterDirectory changes to a directory of the root, and makes it if it is missing, as Docker does. It makes sure that it
// is there: a directory outside the root has no path (CVE-2024-21626).
func enterDirectory(root int, dir string) error {
	fd, _, err := targetInRoot(root, dir, true)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return enterChecked(fd)
}

// enterExisting is enterDirectory for a directory that must be there.
func enterExisting(root int, dir string) error {
	fd, err := openInRoot(root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return enterChecked(fd)
}

func enterChecked(fd int) error {
	if err := unix.Fchdir(fd); err != nil {
		return err
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Getcwd(buf)
	if err != nil {
		return err
	}
	if n < 1 || buf[0] != '/' {
		return errors.New("it is outside the container's root")
	}
	return nil
}

// setLimits sets the resource limits that the command starts with. One that is higher than this process may set becomes
// as high as it may.
func setLimits(limits []specs.POSIXRlimit) error {
	for _, l := range limits {
		n, ok := limitNumber(l.Type)
		if !ok {
			return fmt.Errorf("there is no resource limit %q", l.Type)
		}
		var old unix.Rlimit
		if err := unix.Getrlimit(n, &old); err != nil {
			return err
		}
		lim := unix.Rlimit{Cur: min(l.Soft, l.Hard), Max: l.Hard}
		err := unix.Setrlimit(n, &lim)
		if errors.Is(err, unix.EPERM) {
			lim.Max = min(lim.Max, old.Max)
			lim.Cur = min(lim.Cur, lim.Max)
			err = unix.Setrlimit(n, &lim)
		}
		if err != nil {
			return fmt.Errorf("setting %s: %w", l.Type, err)
		}
	}
	return nil
}

func limitNumber(name string) (int, bool) {
	n, ok := map[string]int{
		"RLIMIT_AS": unix.RLIMIT_AS, "RLIMIT_CORE": unix.RLIMIT_CORE, "RLIMIT_CPU": unix.RLIMIT_CPU, "RLIMIT_DATA": unix.RLIMIT_DATA,
		"RLIMIT_FSIZE": unix.RLIMIT_FSIZE, "RLIMIT_LOCKS": unix.RLIMIT_LOCKS, "RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK,
		"RLIMIT_MSGQUEUE": unix.RLIMIT_MSGQUEUE, "RLIMIT_NICE": unix.RLIMIT_NICE, "RLIMIT_NOFILE": unix.RLIMIT_NOFILE,
		"RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_RSS": unix.RLIMIT_RSS, "RLIMIT_RTPRIO": unix.RLIMIT_RTPRIO,
		"RLIMIT_RTTIME": unix.RLIMIT_RTTIME, "RLIMIT_SIGPENDING": unix.RLIMIT_SIGPENDING, "RLIMIT_STACK": unix.RLIMIT_STACK,
	}[name]
	return n, ok
}
