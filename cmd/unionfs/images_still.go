package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/runner"
)

// stilledVariable tells a process in the caller's user namespace that the container of that ID is still, as far as it was asked
// for, and its files are written.
const stilledVariable = "UNIONFS_STILLED"

// settleLimit is how long a running container's union may take to complete the files that it copies in the background.
const settleLimit = 2 * time.Minute

// stilled calls do while a running container's upper branch is whole and, with pause, its processes are stopped.
func stilled(container *runner.Container, pause bool, do func() error) (err error) {
	if os.Getenv(stilledVariable) == container.ID {
		return do()
	}
	if pause {
		stopped, serr := stopProcesses(container)
		// Those whose parents wait for them first.
		defer func() {
			for _, pid := range slices.Backward(stopped) {
				unix.Kill(pid, unix.SIGCONT)
			}
		}()
		if serr != nil {
			return fmt.Errorf("stopping container %s for the time: %w", container.Name, serr)
		}
	}
	if err := settle(container); err != nil {
		return err
	}
	if err := os.Setenv(stilledVariable, container.ID); err != nil {
		return err
	}
	defer os.Unsetenv(stilledVariable)
	return do()
}

// stopProcesses stops all processes of a container that weren't stopped before, and returns them, parents mostly before their
// children.
func stopProcesses(container *runner.Container) (stopped []int, err error) {
	// Until a pass finds none that runs: while one was stopped, another may have started more.
	const passes = 100
	for range passes {
		processes, err := container.Processes()
		if err != nil {
			return stopped, err
		}
		running := 0
		for _, p := range processes {
			if p.State == "T" || p.State == "Z" || p.State == "X" {
				continue
			}
			running++
			if slices.Contains(stopped, p.PID) {
				continue // it is on its way
			}
			if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
				return stopped, err
			}
			stopped = append(stopped, p.PID)
		}
		if running == 0 {
			return stopped, nil
		}
		time.Sleep(10 * time.Millisecond)
	}
	return stopped, errors.New("its processes don't stop; --pause=false commits it as it is")
}

// settle has the kernel write what a running container has written, waits until no file is half copied up, and makes sure
// that the upper branch says all by itself.
func settle(container *runner.Container) error {
	if err := container.SyncRoot(); err != nil {
		return fmt.Errorf("writing what container %s has written: %w", container.Name, err)
	}
	for deadline := time.Now().Add(settleLimit); ; time.Sleep(20 * time.Millisecond) {
		half, err := filepath.Glob(filepath.Join(container.Work(), "partial", "*.map"))
		if err != nil {
			return err
		}
		if len(half) == 0 {
			break
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("container %s is copying large files up all the time: end it first", container.Name)
		}
	}
	// The union makes their other names when it ends.
	linked, err := filepath.Glob(filepath.Join(container.Work(), "index", "*"))
	if err == nil && len(linked) > 0 {
		err = fmt.Errorf("container %s has changed files that have several names in its image, which are complete only when it has ended: end it first", container.Name)
	}
	return err
}
