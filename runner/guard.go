package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The kernel ends all of a container's processes with the first one of its PID namespace. A container in the host's PID namespace,
// or in another container's, has a guard in that one's place: a cgroup that its processes begin in and can't leave, and that is
// killed whole. P2 does that when the command has ended and when P1 is gone, P1 when P2 is gone, and whoever looks next when both are.

// guarded reports whether a container needs a guard.
func guarded(spec *specs.Spec) bool { return !hasNewNamespace(spec, specs.PIDNamespace) }

// placeGuard finds a hierarchy for the guard: the unified one, where a cgroup can be killed at once (cgroup-v2.rst, cgroup.kill), or
// else the freezer of version 1, which at least holds what forks while it is killed.
func (g *cgroups) placeGuard(all []hierarchy) error {
	at := slices.IndexFunc(all, func(h hierarchy) bool { return h.unified })
	if at < 0 {
		at = slices.IndexFunc(all, func(h hierarchy) bool { return slices.Contains(h.controllers, "freezer") })
	}
	if at < 0 {
		return guardError(errors.New("neither cgroup v2 nor the freezer of v1 is mounted below /sys/fs/cgroup"))
	}
	for _, l := range g.leaves {
		if l.top == all[at].top {
			g.guard = l.dir // it has limits there
			return nil
		}
	}
	g.guard = filepath.Join(all[at].own, g.container.cgroupName())
	g.leaves = append(g.leaves, leaf{hierarchy: all[at], dir: g.guard})
	return nil
}

// guardError says why there can be no guard, and how to get one.
func guardError(err error) error {
	const why = "ending all processes of a container that has no PID namespace of its own (--pid) takes a cgroup of its own"
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) {
		return fmt.Errorf("%s, and you may not make one here: start unionfs in a cgroup that is yours, with systemd by \"systemd-run --user --scope -p Delegate=yes\", or run it as root (%w)", why, err)
	}
	return fmt.Errorf("%s: %w", why, err)
}

// openGuard opens what P2 ends the container by: the file that kills the cgroup, or where the kernel has none (before Linux 5.14, and
// with version 1) its directory.
func openGuard(dir string) (*os.File, error) {
	file, err := os.OpenFile(filepath.Join(dir, "cgroup.kill"), os.O_WRONLY, 0)
	if errors.Is(err, os.ErrNotExist) {
		file, err = os.Open(dir)
	}
	if err != nil {
		return nil, guardError(err)
	}
	return file, nil
}

// guardArgument tells P2 the descriptor of what openGuard opened.
const guardArgument = "--guard="

// inheritGuard takes over the guard that P2 was started with; nil if there is none.
func inheritGuard(args []string) *os.File {
	for _, arg := range args {
		if number, ok := strings.CutPrefix(arg, guardArgument); ok {
			if fd, err := strconv.Atoi(number); err == nil {
				return os.NewFile(uintptr(fd), "guard")
			}
		}
	}
	return nil
}

// endGuarded ends the processes that a guard stands for. With cgroup.kill this one, P2, is among them; else it returns when it is
// the only one left.
func endGuarded(guard *os.File) {
	if st, err := guard.Stat(); err != nil || !st.IsDir() {
		_, _ = guard.WriteString("1")
		return
	}
	for {
		others, err := killOthers(guard)
		if err != nil || others == 0 {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// killOthers kills all processes in a cgroup and those below it but the calling one, and says how many there were.
func killOthers(dir *os.File) (others int, err error) {
	pids, err := cgroupProcesses(dir)
	if err != nil {
		return 0, err
	}
	for _, pid := range pids {
		if pid != os.Getpid() {
			others++
			_ = unix.Kill(pid, unix.SIGKILL) // it may have ended
		}
	}
	return others, nil
}

// cgroupProcesses lists the processes in a cgroup and those below it. One that has no number in this PID namespace is left out.
func cgroupProcesses(dir *os.File) (pids []int, err error) {
	fd, err := unix.Openat(int(dir.Fd()), "cgroup.procs", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	procs := os.NewFile(uintptr(fd), "cgroup.procs")
	defer procs.Close()
	data, err := io.ReadAll(procs)
	if err != nil && !errors.Is(err, unix.ENODEV) { // it is being removed
		return nil, err
	}
	for _, field := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	below, err := cgroupsBelow(dir)
	if err != nil {
		return nil, err
	}
	for _, name := range below {
		fd, err := unix.Openat(int(dir.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue
		}
		if err != nil {
			return nil, err
		}
		sub := os.NewFile(uintptr(fd), name)
		more, err := cgroupProcesses(sub)
		sub.Close()
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return nil, err
		}
		pids = append(pids, more...)
	}
	return pids, nil
}

// cgroupsBelow lists the directories in a cgroup's: what is run with --privileged may have made some.
func cgroupsBelow(dir *os.File) (names []string, err error) {
	if _, err := dir.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	entries, err := dir.ReadDir(-1)
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, nil
}

// killCgroup kills all processes in a cgroup and those below it, and reports whether there are none. It doesn't wait for their end,
// and leaves alone a cgroup that the calling process is in.
func killCgroup(dir string) (empty bool, err error) {
	file, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	pids, err := cgroupProcesses(file)
	if err != nil || len(pids) == 0 {
		return len(pids) == 0 && err == nil, err
	}
	if slices.Contains(pids, os.Getpid()) {
		return false, fmt.Errorf("this process is in the cgroup %s", dir)
	}
	if err := writeCgroupFile(filepath.Join(dir, "cgroup.kill"), "1"); !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	// What is being frozen starts nothing more. What is frozen by version 1 dies when it is thawed.
	_ = freezeCgroup(dir)
	_, err = killOthers(file)
	_ = thawCgroup(dir)
	return false, err
}

// endCgroup kills all processes in a cgroup, and waits until none is left: a container's root is unmounted after that.
func endCgroup(dir string) error {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		empty, err := killCgroup(dir)
		if empty || err != nil {
			return err
		}
		time.Sleep(wait)
	}
}

// removeCgroupTree removes a cgroup and those below it, in none of which may be a process.
func removeCgroupTree(dir string) error {
	err := unix.Rmdir(dir)
	if !errors.Is(err, unix.EBUSY) {
		return err
	}
	file, oerr := os.Open(dir)
	if oerr != nil {
		return err
	}
	defer file.Close()
	below, berr := cgroupsBelow(file)
	if berr != nil || len(below) == 0 {
		return err
	}
	for _, name := range below {
		if err := removeCgroupTree(filepath.Join(dir, name)); err != nil && !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return unix.Rmdir(dir)
}
