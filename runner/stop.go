package runner

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/moby/sys/signal"
	"golang.org/x/sys/unix"
)

// Annotations that say how a container is asked to end.
const (
	AnnotationStopSignal  = "org.opencontainers.image.stopSignal" // a signal's name or number; TERM if missing
	AnnotationStopTimeout = "io.unionfs.stop-timeout"             // seconds until it is killed; DefaultStopTimeout if missing
)

// DefaultStopTimeout is how long a container has to end before it is killed.
const DefaultStopTimeout = 10 * time.Second

// ParseSignal reads a signal's name, with or without SIG, or its number.
func ParseSignal(s string) (unix.Signal, error) {
	sig, err := signal.ParseSignal(s)
	if err != nil || sig <= 0 || sig > 64 {
		return 0, fmt.Errorf("%q is no signal: give a name such as TERM, or a number", s)
	}
	return sig, nil
}

// StopSignal is the signal that asks the container's command to end.
func (c *Container) StopSignal() unix.Signal {
	if sig, err := ParseSignal(c.Spec.Annotations[AnnotationStopSignal]); err == nil {
		return sig
	}
	return unix.SIGTERM
}

// StopTimeout is how long the container's command has to end when it is asked to. It is negative if there is no limit.
func (c *Container) StopTimeout() time.Duration {
	if n, err := strconv.Atoi(c.Spec.Annotations[AnnotationStopTimeout]); err == nil {
		return time.Duration(n) * time.Second
	}
	return DefaultStopTimeout
}

// Stop asks the container's command to end by sig, its [Container.StopSignal] usually, and kills the container if it has not after
// grace; with a negative one it waits for ever. It returns when the supervisor has recorded the end. It is no error if the container
// isn't running.
func (c *Container) Stop(ctx context.Context, sig unix.Signal, grace time.Duration) error {
	limit := make(<-chan time.Time)
	if grace >= 0 {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		limit = timer.C
	}
	c.askToStay()
	for asked := false; ; {
		held, err := c.lockHeld()
		if errors.Is(err, ErrNotFound) {
			return nil // it removed itself
		}
		if err != nil {
			return err
		}
		if !held {
			if asked {
				c.note("stop")
			}
			return nil
		}
		if !asked { // it may be starting and have no command yet
			asked = c.Signal(sig) == nil
		}
		select {
		case <-limit:
			return c.Kill(killLimit)
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// killLimit is how long a killed container may take to be gone: its root is unmounted, with all that was written.
const killLimit = time.Minute

// Wait waits until the container has ended, and returns its exit code. The code of one that does not run is that of its
// last run, and 0 if it never ran.
func (c *Container) Wait(ctx context.Context) (int, error) {
	w, err := c.connect()
	if errors.Is(err, errNoSupervisor) {
		return c.lastCode()
	}
	if err != nil {
		return exitOurs, err
	}
	defer w.close()
	stop := context.AfterFunc(ctx, w.shut)
	defer stop()
	err = w.send(message{Kind: msgWait})
	var m message
	if err == nil {
		var fds []int
		m, fds, err = w.recv()
		closeAll(fds)
	}
	if ctx.Err() != nil {
		return exitOurs, ctx.Err()
	}
	if err != nil {
		// The supervisor was killed, or was past its end already.
		return c.lastCode()
	}
	return m.Code, nil
}

// lastCode is the exit code of the last run, once that has ended.
func (c *Container) lastCode() (int, error) {
	for {
		held, err := c.lockHeld()
		if err != nil {
			return exitOurs, err
		}
		st, err := c.Status()
		if err != nil {
			return exitOurs, err
		}
		if !held {
			return st.ExitCode, nil
		}
		time.Sleep(5 * time.Millisecond)
	}
}
