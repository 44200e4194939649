package runner

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Start lets the process of a created container execute its command, and returns when it has. If that fails the container
// is stopped; the error says why.
func (c *OCIContainer) Start() error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	switch status := c.Status(); status {
	case specs.StateCreated:
	case specs.StateStopped:
		return errors.New("cannot start a container that has stopped")
	case specs.StateRunning, StatePaused:
		return errors.New("cannot start an already running container")
	default:
		return fmt.Errorf("cannot start a container in the state %s", status)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	w := &wire{fd: fd}
	defer w.close()
	address, dir, err := c.startAddress()
	if err != nil {
		return err
	}
	err = unix.Connect(fd, address)
	unix.Close(dir)
	if err != nil {
		return fmt.Errorf("starting container %s: its process doesn't listen: %w", c.ID, err)
	}
	m, fds, err := w.recv()
	closeAll(fds)
	if err == nil && m.Kind == msgFailed {
		return &startError{m.Code, errors.New(m.Error)}
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("starting container %s: %w", c.ID, err)
	}
	_ = os.Remove(filepath.Join(c.dir(), "start"))
	// The command may have ended already; the hooks are about its start.
	state := c.State()
	state.Status, state.Pid = specs.StateRunning, c.record.PID
	if err := runHooks("poststart", c.Spec.Hooks, state); err != nil {
		_ = c.signalInit(unix.SIGKILL)
		return err
	}
	return nil
}

// signalInit signals PID 1, and no other process that came to have its number.
func (c *OCIContainer) signalInit(sig unix.Signal) error {
	pidfd, err := unix.PidfdOpen(c.record.PID, 0)
	if err == nil {
		defer unix.Close(pidfd)
		if start, serr := startTime(c.record.PID); serr != nil || start != c.record.Start {
			err = unix.ESRCH
		} else {
			err = unix.PidfdSendSignal(pidfd, sig, nil, 0)
		}
	}
	if errors.Is(err, unix.ESRCH) {
		return errors.New("container not running")
	}
	return err
}

// Signal sends a signal to the container's first process, or with all to each of its processes. The error says if the
// container isn't created or running.
func (c *OCIContainer) Signal(sig unix.Signal, all bool) error {
	if all {
		if pids, err := c.PIDs(); err == nil {
			for _, pid := range pids {
				if err := unix.Kill(pid, sig); err != nil && !errors.Is(err, unix.ESRCH) {
					return err
				}
			}
			return nil
		}
	}
	if c.Status() == specs.StateStopped {
		return errors.New("container not running")
	}
	return c.signalInit(sig)
}

// Delete removes a container that is stopped or was never started, with its cgroups; with force also a running one, which is
// killed. Hooks that fail are no reason to keep it: the error is then a [HookWarning], and the container is gone.
func (c *OCIContainer) Delete(force bool) error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	switch status := c.Status(); status {
	case specs.StateStopped:
	case specs.StateCreated, specs.StateCreating:
		force = true
		fallthrough
	default:
		if !force {
			return fmt.Errorf("cannot delete container %s that is not stopped: %s", c.ID, status)
		}
		if err := c.killAndWait(); err != nil {
			return err
		}
	}
	if err := c.killCgroup(); err != nil {
		return err
	}
	if err := c.removeCgroups(); err != nil {
		return err
	}
	if err := c.removeMounts(); err != nil {
		return err
	}
	state := c.State()
	warning := runPoststop(c.Spec.Hooks, state)
	if err := os.RemoveAll(c.dir()); err != nil {
		return err
	}
	return warning
}

// removeMounts takes away the mounts of a container that has none of its own namespace, from our own.
func (c *OCIContainer) removeMounts() error {
	if separateNamespace(c.Spec, specs.MountNamespace) || len(c.Spec.Mounts) == 0 {
		return nil
	}
	root, err := filepath.EvalSymlinks(c.Rootfs())
	if err != nil {
		return nil // it is gone, and what was mounted there
	}
	infos, err := mountinfo.GetMounts(mountinfo.PrefixFilter(root))
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(infos) {
		if m.Mountpoint == root {
			continue // whoever made the bundle did that
		}
		if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", m.Mountpoint, err)
		}
	}
	return nil
}

// killAndWait kills PID 1, and with it all of its PID namespace, and waits until it has ended.
func (c *OCIContainer) killAndWait() error {
	for deadline := time.Now().Add(10 * time.Second); c.record.PID != 0 && c.alive(); time.Sleep(time.Millisecond) {
		_ = c.signalInit(unix.SIGKILL)
		if c.frozen() {
			// What is frozen in a hierarchy of version 1 doesn't die.
			if m, err := c.cgroups(); err == nil {
				_ = m.Freeze("THAWED")
			}
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("container %s is still there after it was killed", c.ID)
		}
	}
	return nil
}

// DeleteDamaged removes what is left of a container whose state can't be read.
func (r *Runtime) DeleteDamaged(id string) error {
	if err := checkOCIID(id); err != nil {
		return err
	}
	return os.RemoveAll(r.dir(id))
}
