package runner

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Signal sends sig to the container's command, through its init. SIGKILL kills the whole container at once. Like kill(2)
// it doesn't wait. The error says if the container isn't running.
func (c *Container) Signal(sig unix.Signal) error {
	if c.endsIt(sig) {
		c.askToStay()
	}
	return c.signal(sig, func() { c.note("kill", "signal", strconv.Itoa(int(sig))) })
}

// signal calls sending before it sends the signal.
func (c *Container) signal(sig unix.Signal, sending func()) error {
	st, err := c.Status()
	if err != nil {
		return err
	}
	if st.State != StateRunning {
		return fmt.Errorf("container %s is not running", c.Name)
	}
	// The descriptor names one process for good; the start time tells that it is the init and not a later process
	// with its number.
	pidfd, err := unix.PidfdOpen(st.InitPID, 0)
	if err == nil {
		defer unix.Close(pidfd)
		start, serr := startTime(st.InitPID)
		if serr == nil && start == st.InitStart {
			sending()
			err = unix.PidfdSendSignal(pidfd, sig, nil, 0)
		} else {
			err = unix.ESRCH
		}
	}
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("container %s is not running", c.Name)
	}
	if err != nil {
		return fmt.Errorf("sending %s to container %s: %w", unix.SignalName(sig), c.Name, err)
	}
	if st.Paused && (sig == unix.SIGKILL || sig == c.StopSignal()) {
		_ = c.Unpause() // or it would not hear of it
	}
	return nil
}

// Kill kills a running container at once and waits until its supervisor has unmounted its root and recorded the end. It
// is no error if the container isn't running.
func (c *Container) Kill(timeout time.Duration) error {
	deadline := time.Now().Add(timeout)
	c.askToStay()
	for noted := false; ; {
		held, err := c.lockHeld()
		if errors.Is(err, ErrNotFound) {
			return nil // it removed itself
		}
		if err != nil {
			return err
		}
		if !held {
			return nil
		}
		// It may be starting and have no init yet, or be past it: try again.
		_ = c.signal(unix.SIGKILL, func() {
			if !noted {
				c.note("kill", "signal", strconv.Itoa(int(unix.SIGKILL)))
				noted = true
			}
		})
		if time.Now().After(deadline) {
			return fmt.Errorf("container %s is still there %s after it was killed", c.Name, timeout)
		}
		time.Sleep(5 * time.Millisecond)
	}
}
