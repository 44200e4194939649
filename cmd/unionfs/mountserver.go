package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/fs"
)

// A mount in the background is served by other processes of this program, in a session of their own, with the same
// arguments and readyFlag before them. The first of them, the holder, reports to the one that the user started over a pipe:
// readyWord when the mount answers, or else one line that says why it doesn't.

const (
	readyFlag = "ready-fd"
	readyWord = "ready\n"
)

// startMountServer starts the server and waits for its report.
func startMountServer() error {
	args := append([]string{}, os.Args[1:]...)
	for i, arg := range args {
		if arg == "mount" { // what stands before it are global flags, none of whose values is "mount" but by malice
			args = append(args[:i+1:i+1], append([]string{"--" + readyFlag, "3"}, args[i+1:]...)...)
			break
		}
	}
	// What we inherited, a pipe that somebody waits on perhaps, is not for a process that stays.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("starting the server of the mount: close_range: %w", err)
	}
	return startServer(args)
}

// startServer starts this program again, in a session of its own, as the server of a mount, and waits for its report, which it
// writes to descriptor 3.
func startServer(args []string) error {
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	server := exec.Command("/proc/self/exe", args...)
	server.Args[0] = "unionfs"
	server.ExtraFiles = []*os.File{writer}
	server.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := server.Start(); err != nil {
		writer.Close()
		return fmt.Errorf("starting the server of the mount: %w", err)
	}
	writer.Close()
	report, err := io.ReadAll(reader)
	if err != nil {
		return err
	}
	if string(report) == readyWord {
		return nil
	}
	if err := server.Wait(); len(report) == 0 {
		return fmt.Errorf("the server of the mount ended before it reported (%v)", err)
	}
	return &exitError{server.ProcessState.ExitCode(), errors.New(strings.TrimSuffix(string(report), "\n"))}
}

// serveInBackground is the server's side of startMountServer: that of its holder, and that of the server itself.
func serveInBackground(c *cli.Context, r mountRequest, readyFD int) error {
	link, held, err := linkOrHold(os.Args[1:], r.target, readyFD)
	if held || err != nil {
		return err
	}
	err = serveMount(c, r, link)
	if err == nil {
		return nil
	}
	link.Failed(err)
	return &exitError{code: exitCode(err)}
}

// detachStreams replaces the standard streams by /dev/null: whoever waits for their end must not wait for the mount's.
func detachStreams() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return nil
}

func newLogger(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}

// A server listens on an abstract socket that is named for its mount's device number, which no other mount has while it
// lasts. "umount" connects to it before it unmounts, and reads until the server's end closes the connection: then the
// upper branch is complete and free. The socket needs no file and ends with the process.

// serverSocket returns the name of the socket of the mount at the target. It asks the list of mounts, not the mount: a server
// that is killed while it waits for its own answer doesn't end, and so can't be replaced.
func serverSocket(target string) (string, error) {
	major, minor, err := fs.DeviceNumber(target)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("@unionfs/mount/%d:%d", major, minor), nil
}

// announceServer listens on the socket until the returned function is called. A failure only means that nobody can wait
// for the server's end.
func announceServer(target string) (end func()) {
	name, err := serverSocket(target)
	if err != nil {
		return func() {}
	}
	listener, err := net.Listen("unix", name)
	if err != nil {
		return func() {}
	}
	go func() {
		for {
			// Connections stay open until the process ends.
			if _, err := listener.Accept(); err != nil {
				return
			}
		}
	}()
	return func() { listener.Close() }
}

// watchServer returns a function that waits for the end of the server of the mount at the target, for at most limit.
func watchServer(target string) (wait func(limit time.Duration)) {
	nothing := func(time.Duration) {}
	name, err := serverSocket(target)
	if err != nil {
		return nothing
	}
	connection, err := net.Dial("unix", name)
	if err != nil {
		return nothing
	}
	return func(limit time.Duration) {
		defer connection.Close()
		connection.SetReadDeadline(time.Now().Add(limit))
		io.Copy(io.Discard, connection)
	}
}

func umountCommand() *cli.Command {
	return &cli.Command{
		Name:      "umount",
		Aliases:   []string{"unmount"},
		Usage:     "unmount what \"mount\" mounted",
		ArgsUsage: "TARGET...",
		Description: `Unmounts each TARGET and waits until its server has ended, so that the upper directory is complete. A mount that is in
use stays, unless --lazy: then it disappears at once, and ends when its last user does.

Example:
   unionfs umount /mnt`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "lazy", Aliases: []string{"l"}, Usage: "detach it now, also if it is in use"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "TARGET..."); err != nil {
				return err
			}
			var failed []error
			for _, target := range c.Args().Slice() {
				if err := umount(target, c.Bool("lazy")); err != nil {
					failed = append(failed, err)
				}
			}
			return errors.Join(failed...)
		},
	}
}

// How long "umount" waits for a server to finish with its upper branch.
const serverEndLimit = 60 * time.Second

func umount(target string, lazy bool) error {
	wait := watchServer(target)
	if err := fs.Unmount(target, lazy); err != nil {
		return err
	}
	if !lazy {
		wait(serverEndLimit)
	}
	return nil
}
