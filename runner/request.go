package runner

import (
	"errors"
	"fmt"
)

// supervisorRequest is something small that a supervisor is asked to do, over its socket, by whoever may control the container.
type supervisorRequest func(s *supervisor, m message) error

// requestOf returns what a message asks for; nil if it is none of the small ones.
func requestOf(kind string) supervisorRequest {
	switch kind {
	case msgPause:
		return func(s *supervisor, _ message) error { return s.pause() }
	case msgUnpause:
		return func(s *supervisor, _ message) error { return s.unpause() }
	case msgUpdate:
		return func(s *supervisor, m message) error { return s.update(m.Update) }
	case msgStopping:
		return func(s *supervisor, _ message) error { return s.stopping(true) }
	}
	return nil
}

// ask sends the container's supervisor a message and waits until it has done what that says. The error wraps errNoSupervisor if
// there is none.
func (c *Container) ask(m message) error {
	w, err := c.connect()
	if err != nil {
		return err
	}
	defer w.close()
	if err := w.send(m); err != nil {
		return errNoSupervisor
	}
	answer, fds, err := w.recv()
	closeAll(fds)
	switch {
	case err != nil:
		return errNoSupervisor // it was past its end already
	case answer.Error != "":
		return errors.New(answer.Error)
	}
	return nil
}

// askRunning is ask for what needs a container that runs.
func (c *Container) askRunning(m message) error {
	err := c.ask(m)
	if errors.Is(err, errNoSupervisor) {
		return fmt.Errorf("container %s is not running", c.Name)
	}
	return err
}

// change changes what state.json says.
func (s *supervisor) change(do func(*Status)) error {
	s.statusMu.Lock()
	defer s.statusMu.Unlock()
	do(s.status)
	return s.container.writeStatus(s.status)
}
