package runner

import (
	"errors"
	"fmt"
	"syscall"
)

// Exit codes, as Docker's.
const (
	exitOurs          = 125 // unionfs itself failed
	exitNotExecutable = 126 // the command was found but can't be executed
	exitNotFound      = 127 // the command was not found
)

// exitCode is what a shell would make of a wait status: the exit code, or 128+N for signal N.
func exitCode(ws syscall.WaitStatus) int {
	if ws.Signaled() {
		return 128 + int(ws.Signal())
	}
	return ws.ExitStatus()
}

// startError is a reason why a command did not start, with the exit code that says which kind.
type startError struct {
	code int
	err  error
}

func (e *startError) Error() string { return e.err.Error() }
func (e *startError) Unwrap() error { return e.err }

func startErrorf(code int, format string, args ...any) error {
	return &startError{code, fmt.Errorf(format, args...)}
}

// startCode is the exit code for an error that kept the command from starting.
func startCode(err error) int {
	var e *startError
	if errors.As(err, &e) {
		return e.code
	}
	return exitOurs
}
