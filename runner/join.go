package runner

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// Join are namespaces that exist already, and that the supervisor of an ordinary user's container enters instead of making
// its own: who is to share another container's network or other namespaces must be over that one's user namespace too. The files are looked
// up by the caller of [Container.Run] and [Container.Start], in /proc for example.
type Join struct {
	User    string // the file of a user namespace that belongs to the caller
	Network string // that of a network namespace; may be empty
}

// argvJoined is the first argument of the stage between nsenter(1) and the supervisor; see runJoinedStage.
const argvJoined = "unionfs-joined"

// StartInUserNamespace starts cmd, which must run the own program, in a new mount namespace, and for an ordinary user in a new
// user namespace with the same IDs as the supervisors of their containers.
func StartInUserNamespace(cmd *exec.Cmd) error { return startInNamespace(cmd) }

// startSupervisor starts P1 in namespaces of its own, or in those of j. A process with threads, as Go's all are, can't enter a
// user namespace: nsenter does, and then executes us.
func startSupervisor(cmd *exec.Cmd, j *Join) error {
	program, err := supervisorProgram()
	if err != nil {
		return err
	}
	defer program.Close()
	if j == nil {
		cmd.Path = pathOf(program)
		return executable.StartRelaxed(func() error { return startInNamespace(cmd) })
	}
	nsenter, err := exec.LookPath("nsenter")
	if err != nil {
		return errors.New("to share a network or another namespace, an ordinary user's containers need the program nsenter: install the package util-linux")
	}
	cmd.ExtraFiles = append(cmd.ExtraFiles, program)
	fd := 2 + len(cmd.ExtraFiles)
	args := []string{"nsenter", "--preserve-credentials", "--user=" + j.User}
	if j.Network != "" {
		args = append(args, "--net="+j.Network)
	}
	cmd.Args = append(append(args, "--", "/proc/self/fd/"+strconv.Itoa(fd), argvJoined, strconv.Itoa(fd)), cmd.Args...)
	cmd.Path = nsenter
	return executable.StartRelaxed(cmd.Start)
}

// runJoinedStage makes the mount namespace, and goes on as the supervisor. args are the number of the descriptor that we were
// executed by, and the arguments to go on with.
func runJoinedStage(args []string) int {
	if len(args) < 2 {
		return exitOurs
	}
	if fd, err := strconv.Atoi(args[0]); err == nil {
		syscall.CloseOnExec(fd)
	}
	// The namespace is the thread's, which becomes the whole process by executing.
	runtime.LockOSThread()
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Exec(selfExe, args[1:], os.Environ())
	}
	fmt.Fprintln(os.Stderr, "unionfs: entering the namespaces of the other container:", err)
	return exitOurs
}
