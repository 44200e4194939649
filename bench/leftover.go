package bench

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// How long tools may go on in a directory that is to be removed: conmon runs "podman container cleanup" after its container,
// unionfs deletes large files behind rmi, daemons flush. After the first time what still runs is killed.
const (
	patience     = 10 * time.Second
	lastPatience = 30 * time.Second
)

// discard removes directories that tools have worked in: what is mounted there is unmounted, what still runs there is waited for.
func discard(dirs ...string) error {
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		err := errors.Join(unmountBelow(dirs), removeAll(dirs))
		if err == nil {
			return nil
		}
		running := processesOf(dirs)
		switch {
		case time.Since(start) > lastPatience:
			return fmt.Errorf("%w (processes that name it: %v)", err, running)
		case time.Since(start) > patience:
			for _, pid := range running {
				unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
}

// removeAll removes directories, unless something is mounted there: it would be emptied.
func removeAll(dirs []string) error {
	mounted, err := mountsBelow(dirs)
	if err != nil {
		return err
	}
	if len(mounted) > 0 {
		return fmt.Errorf("%s is still mounted", mounted[0])
	}
	for _, dir := range dirs {
		err = errors.Join(err, os.RemoveAll(dir))
	}
	return err
}

// unmountBelow unmounts what is mounted in directories: podman's storage over itself (containers/storage, drivers/overlay:
// MakePrivate), Docker's likewise, and what a tool that failed has left.
func unmountBelow(dirs []string) error {
	mounted, err := mountsBelow(dirs)
	if err != nil {
		return err
	}
	for _, target := range slices.Backward(mounted) {
		err = errors.Join(err, unmountKernel(target))
	}
	return err
}

// mountsBelow returns the mount points in directories, in the order in which they were mounted.
func mountsBelow(dirs []string) ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var found []string
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && slices.ContainsFunc(dirs, func(dir string) bool { return fields[4] == dir || strings.HasPrefix(fields[4], dir+"/") }) {
			found = append(found, fields[4])
		}
	}
	return found, nil
}

// processesOf returns the processes whose command lines name one of the directories, which have random names: nobody but us and
// what we started does.
func processesOf(dirs []string) []int {
	var found []int
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, file := range lines {
		pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
		line, err := os.ReadFile(file)
		if err == nil && pid != os.Getpid() && slices.ContainsFunc(dirs, func(dir string) bool { return bytes.Contains(line, []byte(dir)) }) {
			found = append(found, pid)
		}
	}
	return found
}
