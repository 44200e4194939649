package main

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/fs"
	"unionfs/holder"
	"unionfs/internal/mountpoint"
)

// readyFlag stands before the arguments of the processes of a mount in the background, which are in a session of their own. Its value
// is the descriptor that their report goes to.
const readyFlag = "ready-fd"

// startMountServer starts the server of the mount on target and waits for its report.
func startMountServer(target string) error {
	args := append([]string{}, os.Args[1:]...)
	for i, arg := range args {
		if arg == "mount" { // what stands before it are global flags, none of whose values is "mount" but by malice
			args = append(args[:i+1:i+1], append([]string{"--" + readyFlag, strconv.Itoa(holder.ReportFD)}, args[i+1:]...)...)
			break
		}
	}
	// What we inherited, a pipe that somebody waits on perhaps, is not for a process that stays.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return fmt.Errorf("starting the server of the mount: close_range: %w", err)
	}
	return startServer(args, target)
}

// startServer starts the holder of the mount on target, which starts its server, and waits for its report.
func startServer(args []string, target string) error {
	err := holder.Start(args, target)
	if ended := (*holder.ExitError)(nil); errors.As(err, &ended) {
		return &exitError{ended.Code, ended}
	}
	return err
}

// serveInBackground is the server's side of startMountServer: that of its holder, and that of the server itself.
func serveInBackground(c *cli.Context, r mountRequest) error {
	link, held, err := linkOrHold(os.Args[1:], r.target)
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

// linkOrHold is the beginning of a process of a mount in the background. That is two processes with the same arguments: the holder, which
// keeps the mount alive, and the server, which the holder starts, again whenever it is killed (see package holder). The server goes on with a link; the holder does all that it
// has to do in it, and held is then true.
func linkOrHold(args []string, target string) (link *holder.Link, held bool, err error) {
	link, err = holder.Attach()
	if err != nil || link != nil {
		return link, false, err
	}
	mount, err := holder.Held(args, target)
	if err != nil {
		return nil, true, err
	}
	if err := mount.Hold(); err != nil {
		return nil, true, &exitError{code: holder.ExitCode(err)}
	}
	return nil, true, nil
}

// A server listens on an abstract socket that is named for its mount's device number, which no other mount has while it
// lasts. "umount" connects to it before it unmounts, and reads until the server's end closes the connection: then the
// upper branch is complete and free. The socket needs no file and ends with the process.

// serverSocket returns the name of the socket of the mount at the target. It asks the list of mounts, not the mount: a server
// that is killed while it waits for its own answer doesn't end, and so can't be replaced.
func serverSocket(target string) (string, error) {
	major, minor, err := mountpoint.DeviceNumber(target)
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
