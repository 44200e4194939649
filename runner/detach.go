package runner

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// detach makes a container that runs in front of somebody, with a terminal, one in the background: its caller has typed the detach
// keys, and hands the terminal's master back. From then on what the command writes goes to the log.
func (s *supervisor) detach(fds []int) error {
	if len(fds) != 1 {
		return errors.New("want the terminal's master")
	}
	again, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	master := os.NewFile(uintptr(again), "terminal")
	streams, err := newStreams(s.container)
	if err != nil {
		master.Close()
		return err
	}
	// Our own words no longer go to the caller's terminal.
	if own, err := os.OpenFile(s.container.supervisorLogPath(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600); err == nil {
		_ = unix.Dup3(int(own.Fd()), 2, 0)
		own.Close()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.started || s.finished || s.streams != nil {
		master.Close()
		streams.close()
		return fmt.Errorf("container %s is not running in front of anybody", s.container.Name)
	}
	streams.takeTerminal(master)
	s.streams, s.detached = streams, true
	return nil
}

// closeDetached ends the streams of a container that was detached from.
func (s *supervisor) closeDetached(end outcome) {
	s.mu.Lock()
	streams, detached := s.streams, s.detached
	s.mu.Unlock()
	if detached {
		streams.close()
		streams.audience.end(end)
	}
}

// detach asks the supervisor to go on without us.
func (r *run) detach(master *os.File) {
	_ = r.wire.send(message{Kind: msgDetach}, int(master.Fd()))
}
