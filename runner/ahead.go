package runner

import (
	"fmt"
	"os"
	"os/exec"
	"strconv"

	"golang.org/x/sys/unix"
)

// modeAhead is that of a supervisor which waits for its container to be made.
const modeAhead = "ahead"

// Supervisor is a container's supervisor that was started before there is the container. A program of Go takes about as long
// to come up as a container takes to be made, so the two are done at the same time.
type Supervisor struct {
	wire *wire
	cmd  *exec.Cmd
	err  error // why it could not be started
}

// StartAhead starts the supervisor of a container that is about to be made, and that [Container.Run] is then to be called for
// with the same options and Ahead. terminal is what the container's Spec.Process.Terminal will be. If there is to be no
// container after all, call [Supervisor.Abandon]. Run returns the error, if there is one.
func StartAhead(o RunOptions, terminal bool) *Supervisor {
	o.fill()
	s := &Supervisor{}
	s.wire, s.cmd, s.err = startForRun(o, terminal, modeAhead)
	return s
}

// Abandon ends a supervisor that Run wasn't called with. It may be nil.
func (s *Supervisor) Abandon() {
	if s == nil || s.err != nil {
		return
	}
	s.wire.close()
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait()
}

// takeOver tells the supervisor that its container is there.
func (s *Supervisor) takeOver(c *Container) (*wire, *exec.Cmd, error) {
	if s.err != nil {
		return nil, nil, s.err
	}
	_ = s.wire.send(message{Kind: msgMade, Usual: isUsual(c.Spec)}) // if it was killed meanwhile, following it says so
	return s.wire, s.cmd, nil
}

// startForRun starts the supervisor of a container that runs in front, in a session of its own.
func startForRun(o RunOptions, terminal bool, mode string) (*wire, *exec.Cmd, error) {
	w, theirs, err := newWire()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	cmd := supervisorCommand(o.Supervisor, theirs, mode)
	// With a nil Stdin, os/exec opens /dev/null.
	if o.Interactive && !terminal {
		cmd.Stdin = o.Stdin
	}
	if !terminal {
		cmd.Stdout = o.Stdout
	}
	cmd.Stderr = o.Stderr
	if err := startSupervisor(cmd, o.Join); err != nil {
		w.close()
		return nil, nil, fmt.Errorf("starting the container's supervisor: %w", err)
	}
	return w, cmd, nil
}

// AwaitContainer is called in a supervisor's process before it looks for its container, which may not be there yet. It calls made once it
// is: what is read then, by another goroutine, is read while the container's init is started. It returns false if there won't be one, and the
// process is of no use then. What else it returns is for [Hooks], and the goroutine that called it has to call [Supervise].
func AwaitContainer(made func()) (*EarlyInit, bool) {
	if os.Getenv(supervisorModeVariable) != modeAhead {
		made()
		return nil, true
	}
	os.Unsetenv(supervisorModeVariable)
	fd, err := strconv.Atoi(os.Getenv(supervisorFDVariable))
	if err != nil {
		return nil, false
	}
	m, fds, err := (&wire{fd: fd}).recv()
	closeAll(fds)
	if err != nil || m.Kind != msgMade {
		return nil, false
	}
	made()
	if !m.Usual {
		return nil, true
	}
	unix.CloseOnExec(fd)
	return startEarly(), true
}
