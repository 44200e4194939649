// Command unionfs merges directories and container images into one file system through FUSE, and runs commands on the
// result. Each verb's --help has an example.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"unionfs/internal/cmdline"
	"unionfs/runner"
	"unionfs/supervisor"
)

// version is set by the linker; see the Makefile.
var version = "unknown"

func main() {
	runner.RunIfInit() // the program may have been started as a container's init; then this doesn't return
	if code, ok := supervisor.Main(os.Args); ok {
		os.Exit(code)
	}
	os.Exit(run(os.Args, os.Stdout, os.Stderr))
}

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	if code, ok := runDropIn(args, stdout, stderr); ok {
		return code
	}
	return runApp(args, stdout, stderr)
}

// runApp is run without the names that stand for other programs.
func runApp(args []string, stdout, stderr io.Writer) int {
	args = ungroup(args)
	app := appFor(args, stdout, stderr)
	args = cmdline.Arrange(app, args, endsFlags)
	cmdline.KeepNames(app.Commands)
	err := app.Run(args)
	if err == nil {
		return 0
	}
	code := exitFailure
	var coded *exitError
	if errors.As(err, &coded) {
		code = coded.code
		if coded.err == nil {
			return code
		}
	}
	fmt.Fprintf(stderr, "unionfs: %v\n", err)
	return code
}

// Exit codes. A command that "run" starts brings its own, and 126 and 127 as a shell gives them.
const (
	exitFailure   = 1
	exitUsage     = 2
	exitRunFailed = 125 // run and try: our own failure, not the command's
)

// exitError carries an exit code, and the error to print unless it is nil.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit code %d", e.code)
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// usageError is for a command line that can't be meant.
func usageError(format string, args ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, args...)}
}
