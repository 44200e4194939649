package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// selfExe is the running program, also if its file was replaced or deleted since.
const selfExe = executable.Self

// argvNamespace is the argv[0] of the first stage of a user namespace with subordinate IDs; see runNamespaceStage.
const argvNamespace = "unionfs-namespace"

// NeedsUserNamespace reports whether this process is an ordinary user's, that must enter a user namespace to mount or
// to touch files of subordinate IDs. It is false for root, and false within [InUserNamespace] and [Supervise].
func NeedsUserNamespace() bool {
	// The library for capabilities would read /proc/self/status too, each time, for the sets that are not asked for here.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // the lower and the higher 32 capabilities
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return os.Geteuid() != 0
	}
	return sets[0].Effective&(1<<unix.CAP_SYS_ADMIN) == 0
}

// InUserNamespace runs the own program with args in a new user and mount namespace, in which the user is root and has
// the same IDs as in the supervisor of their containers, and returns its exit code. It has the caller's standard
// streams, environment and working directory. It is for what must read or change files that belong to subordinate IDs:
//
//	if runner.NeedsUserNamespace() {
//		code, err := runner.InUserNamespace(ctx, os.Args[1:]...)
//
// Inside, the user ID is 0: pass what depends on it (the default of --root) in args. The error says in one line why
// there can be no user namespace here; the exit code is then 125.
func InUserNamespace(ctx context.Context, args ...string) (int, error) {
	cmd := exec.CommandContext(ctx, selfExe, args...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The terminal sends its signals to both; the child decides.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGINT, unix.SIGQUIT)
	defer signal.Stop(signals)
	if err := startInNamespace(cmd); err != nil {
		return exitOurs, err
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return exitOurs, err
	}
	return exitCode(cmd.ProcessState.Sys().(syscall.WaitStatus)), nil
}

// startInNamespace starts cmd, which must run the own program, with a mount namespace of its own: as root (anyone with
// CAP_SYS_ADMIN) just so, else within a new user namespace "S" in which the caller is root. S has the caller's
// subordinate IDs if there are any, and otherwise the one ID.
func startInNamespace(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWNS
	if !NeedsUserNamespace() {
		return cmd.Start()
	}
	cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
	uids, gids, err := subordinate()
	if err != nil {
		return err
	}
	if len(uids) == 0 {
		// The kernel lets anyone map their own ID, so Go's runtime can write the maps before the program is
		// executed, which then has its capabilities at once.
		cmd.SysProcAttr.UidMappings = namespaceMap(os.Geteuid(), nil)
		cmd.SysProcAttr.GidMappings = namespaceMap(os.Getegid(), nil)
		if err := cmd.Start(); err != nil {
			return namespaceError(err)
		}
		return nil
	}
	return startMapped(cmd, namespaceMap(os.Geteuid(), uids), namespaceMap(os.Getegid(), gids))
}

// startMapped starts cmd in a user namespace whose maps need newuidmap and newgidmap. The program first runs as
// runNamespaceStage, with no ID and so no capability, waits until the maps are there, and executes itself again.
func startMapped(cmd *exec.Cmd, uids, gids []syscall.SysProcIDMap) error {
	for _, tool := range []string{"newuidmap", "newgidmap"} {
		if _, err := exec.LookPath(tool); err != nil {
			return fmt.Errorf("/etc/subuid gives you subordinate IDs, but %s is missing: install the package uidmap (Debian, Ubuntu) or shadow-utils", tool)
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer w.Close()
	cmd.ExtraFiles = append(cmd.ExtraFiles, r)
	cmd.Args = append([]string{argvNamespace, strconv.Itoa(2 + len(cmd.ExtraFiles))}, cmd.Args...)
	err = cmd.Start()
	r.Close()
	if err != nil {
		return namespaceError(err)
	}
	err = newIDMap("newuidmap", cmd.Process.Pid, uids)
	if err == nil {
		err = newIDMap("newgidmap", cmd.Process.Pid, gids)
	}
	if err == nil {
		_, err = w.Write([]byte{1})
	}
	if err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return err
	}
	return nil
}

func newIDMap(tool string, pid int, m []syscall.SysProcIDMap) error {
	cmd := exec.Command(tool, append([]string{strconv.Itoa(pid)}, mapArguments(m)...)...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("mapping subordinate IDs with %s: %w: %s", tool, err, bytes.TrimSpace(out))
	}
	return nil
}

// runNamespaceStage is the program in a user namespace that has no maps yet. args are the number of the descriptor to
// wait on, and the arguments to go on with.
func runNamespaceStage(args []string) int {
	if len(args) < 2 {
		return exitOurs
	}
	fd, err := strconv.Atoi(args[0])
	if err != nil {
		return exitOurs
	}
	var b [1]byte
	for {
		n, err := unix.Read(fd, b[:])
		if err == unix.EINTR {
			continue
		}
		if n != 1 {
			return exitOurs // the caller gave up, and has said why
		}
		break
	}
	unix.Close(fd)
	err = unix.Exec(selfExe, args[1:], os.Environ())
	fmt.Fprintln(os.Stderr, "unionfs: entering the user namespace:", err)
	return exitOurs
}

// namespaceError says why no user namespace could be made, and what to do.
func namespaceError(err error) error {
	read := func(path string) string {
		data, _ := os.ReadFile(path)
		return strings.TrimSpace(string(data))
	}
	switch {
	case read("/proc/sys/user/max_user_namespaces") == "0":
		return errors.New("user namespaces are switched off on this host: as root, run \"sysctl user.max_user_namespaces=15000\", or run unionfs as root")
	case read("/proc/sys/kernel/unprivileged_userns_clone") == "0":
		return errors.New("user namespaces are for root only on this host: as root, run \"sysctl kernel.unprivileged_userns_clone=1\", or run unionfs as root")
	case read("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1":
		return errors.New("AppArmor forbids user namespaces to this program: as root, run \"sysctl kernel.apparmor_restrict_unprivileged_userns=0\" or give it a profile that allows userns, or run unionfs as root")
	case errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS):
		return fmt.Errorf("no more user namespaces can be made: the limit in /proc/sys/user/max_user_namespaces, or a nesting of 32, is reached: %w", err)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("this process may not make user namespaces (a seccomp filter of an outer container, or a chroot, forbids it): %w", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("this kernel has no user namespaces: %w", err)
	}
	return fmt.Errorf("making a user namespace: %w", err)
}
