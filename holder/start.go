package holder

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// The holder of a mount in the background is a process in a session of its own. It reports to the one that started it over a pipe.
// It runs unionfs-holder if that may be (see executable.Companion): a program with little more in it than this package, which is
// there sooner and takes less memory than one that can serve as well. That gets the program of the servers as an open file, since
// another may lie where the path leads by the time that a server is started.

const (
	holderProgram = "unionfs-holder"

	// holdVariable tells unionfs-holder the descriptor of the program of the servers and, behind a colon, the target.
	holdVariable = "_UNIONFS_HOLD"

	// ReportFD is where the holder finds the pipe to report on.
	ReportFD = 3

	// firstFreeFD is behind the descriptors that a holder gives its servers, or gets itself, by their numbers.
	firstFreeFD = 10
)

// Start starts the holder of the mount on target, whose servers run this program with args, and waits for its report: an
// [ExitError] if there is no mount. Where unionfs-holder can't be had, this program is started with args, and is to call [Held].
func Start(args []string, target string) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	cmd, err := startHolder(args, target, writer)
	writer.Close()
	if err != nil {
		return fmt.Errorf("starting the server of the mount: %w", err)
	}
	report, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	if string(report) == readyWord {
		return nil
	}
	if err := cmd.Wait(); len(report) == 0 {
		return fmt.Errorf("the server of the mount ended before it reported (%v)", err)
	}
	return &ExitError{Code: cmd.ProcessState.ExitCode(), Reason: strings.TrimSuffix(string(report), "\n")}
}

func startHolder(args []string, target string, report *os.File) (*exec.Cmd, error) {
	if small := openHolder(); small != nil {
		defer small.Close()
		if cmd := startSmall(small, args, target, report); cmd != nil {
			return cmd, nil
		}
	}
	cmd := holderCommand(executable.Self, args, report)
	return cmd, cmd.Start()
}

func holderCommand(program string, args []string, report *os.File) *exec.Cmd {
	return &exec.Cmd{
		Path:        program,
		Args:        append([]string{"unionfs"}, args...),
		ExtraFiles:  []*os.File{report},
		SysProcAttr: &syscall.SysProcAttr{Setsid: true},
	}
}

// startSmall starts unionfs-holder, which is open; nil if that can't be.
func startSmall(small *os.File, args []string, target string, report *os.File) *exec.Cmd {
	program, err := inheritedProgram()
	if err != nil {
		return nil
	}
	defer unix.Close(program) // before anything else is started
	cmd := holderCommand(fmt.Sprintf("/proc/self/fd/%d", small.Fd()), args, report)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%d:%s", holdVariable, program, target))
	if cmd.Start() != nil {
		return nil
	}
	return cmd
}

// openHolder opens unionfs-holder; nil if there is none that may be used.
func openHolder() *os.File {
	running, err := os.Readlink(executable.Self)
	if err != nil {
		return nil
	}
	return executable.Companion(running, holderProgram, func(dir int, name string) (int, error) {
		return openFree(dir, name, unix.O_PATH|unix.O_NOFOLLOW, unix.F_DUPFD_CLOEXEC)
	})
}

// inheritedProgram opens the running program on a descriptor that children inherit.
func inheritedProgram() (int, error) {
	return openFree(unix.AT_FDCWD, executable.Self, unix.O_RDONLY, unix.F_DUPFD)
}

// openFree opens a file on a descriptor from firstFreeFD up, which dup, a command of fcntl(2), makes.
func openFree(dir int, name string, flags, dup int) (int, error) {
	fd, err := unix.Openat(dir, name, flags|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	return unix.FcntlInt(uintptr(fd), dup, firstFreeFD)
}

// Held is what a process of the program that serves holds, if that was started as the holder of the mount on target because there
// is no unionfs-holder. It is called by what is not a server ([Attach]).
func Held(args []string, target string) (*Mount, error) {
	program, err := os.Open(executable.Self)
	if err != nil {
		return nil, err
	}
	return &Mount{Program: program, Args: args, Target: target, Report: reportPipe()}, nil
}

// Started is what the process of unionfs-holder holds.
func Started() (*Mount, error) {
	number, target, ok := strings.Cut(os.Getenv(holdVariable), ":")
	program, err := strconv.Atoi(number)
	if !ok || err != nil {
		return nil, errors.New("this is started by unionfs, to keep a mount alive")
	}
	os.Unsetenv(holdVariable) // servers have no use for it
	unix.CloseOnExec(program)
	return &Mount{Program: os.NewFile(uintptr(program), "program"), Args: os.Args[1:], Target: target, Report: reportPipe()}, nil
}

// reportPipe is nobody's but the holder's, lest somebody else hold it open.
func reportPipe() *os.File {
	unix.CloseOnExec(ReportFD)
	return os.NewFile(ReportFD, "ready pipe")
}
