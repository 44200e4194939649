package runner

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ExecOptions is another command for a container that runs, and how it is connected to its caller.
type ExecOptions struct {
	Args []string
	Env  []string // K=V, beside and before those of the container's first command
	Cwd  string   // that of the first command if empty; it must be there
	User string   // USER[:GROUP], looked up inside; that of the first command if empty

	// Terminal gives the command a terminal of its own, as Spec.Process.Terminal does for [Container.Run].
	Terminal bool

	// DetachKeys, typed at a terminal, leave the command running: Exec returns [ErrDetached]. None if empty.
	DetachKeys []byte

	// Privileged gives the command all capabilities that the container's user namespace has, and no seccomp filter.
	Privileged bool

	// Detach returns when the command runs, which then has no input and whose output is lost.
	Detach bool

	// Stdin, Stdout, Stderr and Interactive are as in [RunOptions].
	Stdin, Stdout, Stderr *os.File
	Interactive           bool
}

// execRequest is what the init is told of another command.
type execRequest struct {
	Args       []string `json:"args"`
	Env        []string `json:"env,omitempty"`
	Cwd        string   `json:"cwd,omitempty"`
	User       string   `json:"user,omitempty"`
	Terminal   bool     `json:"terminal,omitempty"`
	Detach     bool     `json:"detach,omitempty"`
	Privileged bool     `json:"privileged,omitempty"`
}

// process is that of the other command: the container's first one, but for what is asked for.
func (r *execRequest) process(first *specs.Process) *specs.Process {
	process := *first
	process.Args, process.Terminal, process.Env = r.Args, r.Terminal, slices.Clone(first.Env)
	for _, assignment := range r.Env {
		name, _, _ := strings.Cut(assignment, "=")
		process.Env = slices.DeleteFunc(process.Env, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		process.Env = append(process.Env, assignment)
	}
	if r.Cwd != "" {
		process.Cwd = r.Cwd
	}
	return &process
}

// Exec runs another command in a running container, with the namespaces, capabilities, limits and everything else that
// its first command was started with, and waits for its end. Signals that this process gets are passed on, and if it
// dies the command is asked to end, and killed if it doesn't.
//
// The exit code and the error are as of [Container.Run]; the code is 137 if the container ends before the command.
func (c *Container) Exec(ctx context.Context, o ExecOptions) (int, error) {
	if len(o.Args) == 0 {
		return exitOurs, errors.New("no command was given")
	}
	request := message{Kind: msgExec, Exec: &execRequest{Args: o.Args, Env: o.Env, Cwd: o.Cwd, User: o.User, Terminal: o.Terminal, Detach: o.Detach, Privileged: o.Privileged}}
	if data, err := json.Marshal(request); err != nil || len(data) > maxMessage {
		return exitOurs, fmt.Errorf("the command and its variables are too long: more than %d KiB", maxMessage>>10)
	}
	w, err := c.connect()
	if errors.Is(err, errNoSupervisor) {
		return exitOurs, fmt.Errorf("container %s is not running", c.Name)
	}
	if err != nil {
		return exitOurs, err
	}
	defer w.shut()
	r := &run{container: c, options: o.streams(), terminal: o.Terminal, wire: w, untilStarted: o.Detach}
	fds, closeNull, err := r.descriptors()
	if err != nil {
		return exitOurs, err
	}
	signals, stopSignals := catchSignals()
	defer stopSignals()
	err = w.send(request, fds...)
	closeNull()
	if err != nil {
		return exitOurs, fmt.Errorf("container %s is not running", c.Name)
	}
	c.note("exec_start: " + strings.Join(o.Args, " "))
	go r.passOn(signals)
	stop := context.AfterFunc(ctx, w.shut)
	defer stop()
	end, err := r.follow()
	if err == nil && end.Kind == msgDetached {
		r.relay.Load().restore()
		return 0, ErrDetached
	}
	r.relay.Load().finish()
	if !o.Detach {
		c.note("exec_die", "exitCode", exitCodeText(end.Code))
	}
	switch {
	case ctx.Err() != nil:
		return exitUnknown, ctx.Err()
	case err != nil:
		return exitUnknown, fmt.Errorf("container %s has ended, and the command with it", c.Name)
	case end.Error != "":
		return end.Code, errors.New(end.Error)
	}
	return end.Code, nil
}

func (o ExecOptions) streams() RunOptions {
	r := RunOptions{Stdin: o.Stdin, Stdout: o.Stdout, Stderr: o.Stderr, Interactive: o.Interactive && !o.Detach, DetachKeys: o.DetachKeys}
	r.fill()
	return r
}

// descriptors are the command's standard streams.
func (r *run) descriptors() (fds []int, done func(), err error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	files := []*os.File{null, null, null}
	if r.options.Interactive {
		files[0] = r.options.Stdin
	}
	if !r.untilStarted {
		files[1], files[2] = r.options.Stdout, r.options.Stderr
	}
	if r.terminal {
		files = []*os.File{null, null, null} // it has the terminal
	}
	for _, f := range files {
		fds = append(fds, int(f.Fd()))
	}
	return fds, func() { null.Close() }, nil
}
