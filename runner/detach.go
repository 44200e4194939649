package runner

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// detach makes a container that runs in front of somebody, with a terminal, one in the background: its caller has typed the detach
// keys, and hands the terminal's master back. From then on what the command writes goes to the log. The caller goes when it is
// answered, and whoever looks then finds a container that runs.
func (s *supervisor) detach(fds []int) {
	defer closeAll(fds)
	s.mu.Lock()
	dead := s.dead
	s.mu.Unlock()
	select {
	case <-s.recorded:
	case <-dead:
	}
	_ = s.caller.send(message{Kind: msgDetached, Error: errorText(s.takeTerminal(fds))})
}

// takeTerminal makes the terminal with that master the container's own.
func (s *supervisor) takeTerminal(fds []int) error {
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
	s.speakToLog()
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

// speakToLog lets go of the caller's standard error: what we have to say goes to a file from here on.
func (s *supervisor) speakToLog() {
	if own, err := os.OpenFile(s.container.supervisorLogPath(), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600); err == nil {
		_ = unix.Dup3(int(own.Fd()), 2, 0)
		own.Close()
	}
}

// goOnAlone makes a container that ran in front of somebody, and is to be started again, one in the background. As with Docker, its
// caller has seen one run, and hears of that one's end.
func (s *supervisor) goOnAlone(end outcome) {
	s.mu.Lock()
	alone := s.mode == modeBackground || s.detached
	s.detached = true
	s.mu.Unlock()
	if alone || s.caller == nil {
		return
	}
	s.speakToLog()
	if null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0); err == nil {
		// Who reads what the command writes waits for the end of it.
		_ = unix.Dup3(int(null.Fd()), 0, 0)
		_ = unix.Dup3(int(null.Fd()), 1, 0)
		null.Close()
	}
	m := end.message()
	m.Lingers = true
	_ = s.caller.send(m)
}

// closeDetached ends the streams of a container that was detached from.
func (s *supervisor) closeDetached() {
	s.mu.Lock()
	streams, detached := s.streams, s.detached
	s.mu.Unlock()
	if detached {
		streams.close()
		streams.audience.end()
	}
}

// detach asks the supervisor to go on without us.
func (r *run) detach(master *os.File) {
	_ = r.wire.send(message{Kind: msgDetach}, int(master.Fd()))
}
