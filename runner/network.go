package runner

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Network connects a container's network namespace. Its methods are called in the supervisor, one at a time for one container,
// except for Update.
type Network interface {
	// Namespace returns the network namespace that the container shares with another one, which its specification must
	// then not ask a new one for; nil if there is none. The supervisor closes it.
	Namespace() (*os.File, error)

	// Connect connects the network namespace of the process pid, the container's init, while that builds the
	// container's mounts. The command starts when it has returned. An error calls the start off.
	Connect(pid int) error

	// Update does what was changed since, on [Container.UpdateNetwork].
	Update() error

	// Disconnect is called after each successful Connect, when the last of the container's processes is gone.
	Disconnect() error

	// Tidy is called after the container's end was recorded and told, and may take its time.
	Tidy()
}

// startConnecting connects the container of the init p, which waits for it, and returns a function that waits until that has
// been tried and, if it went well, disconnects it.
func (s *supervisor) startConnecting(p *initProcess) (disconnect func() error) {
	if s.hooks.Network == nil || p.other != nil {
		return func() error { return nil }
	}
	done := make(chan error, 1)
	go func() {
		err := s.hooks.Network.Connect(p.pid())
		if err != nil {
			s.mu.Lock()
			s.networkFailure = err
			s.mu.Unlock()
			p.wire.shut() // the init ends with its wire
		} else {
			_ = p.wire.send(message{Kind: msgConnected})
		}
		done <- err
	}()
	return func() error {
		if <-done != nil {
			return nil
		}
		return s.hooks.Network.Disconnect()
	}
}

// inNetworkNamespace calls start on this thread, in the network namespace that the container shares with another, if any.
func (s *supervisor) inNetworkNamespace(start func() error) error {
	if s.hooks.Network == nil {
		return start()
	}
	theirs, err := s.hooks.Network.Namespace()
	if err != nil {
		return err
	}
	if theirs == nil {
		return start()
	}
	defer theirs.Close()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer own.Close()
	if err := unix.Setns(int(theirs.Fd()), unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("entering the network namespace of the other container: %w", err)
	}
	err = start()
	// An ordinary user may not go back to the host's. This thread then stays: it is locked, has nothing to do with networks,
	// and Go makes no threads from it that would.
	if back := unix.Setns(int(own.Fd()), unix.CLONE_NEWNET); back != nil && !errors.Is(back, unix.EPERM) {
		return errors.Join(err, fmt.Errorf("leaving the network namespace of the other container: %w", back))
	}
	return err
}

// tidyNetwork is the last that the supervisor does. Who waits for the end of the streams that it was given need not wait for it.
func (s *supervisor) tidyNetwork() {
	if null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0); err == nil {
		for fd := range 3 {
			_ = unix.Dup3(null, fd, 0)
		}
	}
	s.hooks.Network.Tidy()
}

// updateNetwork is what [Container.UpdateNetwork] asks for.
func (s *supervisor) updateNetwork() error {
	s.mu.Lock()
	running := s.started && !s.finished
	s.mu.Unlock()
	if s.hooks.Network == nil || !running {
		return nil
	}
	return s.hooks.Network.Update()
}

// UpdateNetwork tells the supervisor of a running container to look again at what the container wants of networks. It is no
// error if the container isn't running.
func (c *Container) UpdateNetwork(ctx context.Context) error {
	w, err := c.connect()
	if errors.Is(err, errNoSupervisor) {
		return nil
	}
	if err != nil {
		return err
	}
	defer w.close()
	stop := context.AfterFunc(ctx, w.shut)
	defer stop()
	if err := w.send(message{Kind: msgNetwork}); err != nil {
		return nil // it is ending
	}
	m, fds, err := w.recv()
	closeAll(fds)
	if err != nil {
		return ctx.Err()
	}
	if m.Error != "" {
		return errors.New(m.Error)
	}
	return nil
}
