package fs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountByHelper lets the setuid program fusermount3 open the device and mount it, and receives the descriptor from it
// over a socket (man 1 fusermount3; the environment variable is the protocol).
func mountByHelper(target string, o *Options, readOnly bool) (int, error) {
	// The helper opens the device with the caller's rights, but its message doesn't say what to do.
	if err := unix.Access(devFuse, unix.R_OK|unix.W_OK); err != nil {
		return -1, deviceError(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socketpair: %w", err)
	}
	defer unix.Close(pair[0])
	theirs := os.NewFile(uintptr(pair[1]), "fusermount")
	defer theirs.Close()

	cmd, err := helperCommand("-o", strings.Join(helperOptions(o, readOnly), ","), "--", target)
	if err != nil {
		return -1, err
	}
	cmd.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	cmd.ExtraFiles = []*os.File{theirs}
	if err := runHelper(cmd); err != nil {
		return -1, err
	}
	fd, err := receiveFD(pair[0])
	if err != nil {
		return -1, fmt.Errorf("%s sent no descriptor: %w", filepath.Base(cmd.Path), err)
	}
	return fd, nil
}

func helperOptions(o *Options, readOnly bool) []string {
	escape := strings.NewReplacer(`\`, `\\`, `,`, `\,`)
	opts := append(fuseOptions(o), "fsname="+escape.Replace(o.FsName), "subtype="+subtype)
	for _, f := range []struct {
		on   bool
		name string
	}{
		{readOnly, "ro"},
		{o.NoSuid, "nosuid"},
		{o.NoDev, "nodev"},
		{o.NoExec, "noexec"},
		{o.NoAtime, "noatime"},
	} {
		if f.on {
			opts = append(opts, f.name)
		}
	}
	return opts
}

// helperCommand finds fusermount3, or its forerunner, also where PATH leaves it out.
func helperCommand(args ...string) (*exec.Cmd, error) {
	for _, name := range []string{"fusermount3", "/usr/bin/fusermount3", "/bin/fusermount3", "fusermount"} {
		if path, err := exec.LookPath(name); err == nil {
			return exec.Command(path, args...), nil
		}
	}
	return nil, errors.New("there is no fusermount3, which mounts for those who are not root; " +
		"install the package fuse3 (\"apt install fuse3\")")
}

// runHelper returns what the helper complained of as the error.
func runHelper(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	err := cmd.Run()
	if err == nil {
		return nil
	}
	name := filepath.Base(cmd.Path)
	msg := strings.TrimSpace(stderr.String())
	if msg == "" {
		return fmt.Errorf("%s: %w", name, err)
	}
	var lines []string
	for line := range strings.SplitSeq(msg, "\n") {
		lines = append(lines, strings.TrimPrefix(strings.TrimPrefix(line, cmd.Path+": "), name+": "))
	}
	return &helperError{name: name, msg: strings.Join(lines, "; ")}
}

// helperError is what fusermount3 said. It tells errno only by its text.
type helperError struct{ name, msg string }

func (e *helperError) Error() string { return e.name + ": " + e.msg }

func (e *helperError) Is(target error) bool {
	return target == unix.EBUSY && strings.Contains(e.msg, "busy")
}

func receiveFD(sock int) (int, error) {
	var b [1]byte
	oob := make([]byte, unix.CmsgSpace(4))
	for {
		_, oobn, _, _, err := unix.Recvmsg(sock, b[:], oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return -1, err
		}
		oob = oob[:oobn]
		break
	}
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return -1, err
	}
	for i := range msgs {
		if fds, err := unix.ParseUnixRights(&msgs[i]); err == nil && len(fds) == 1 {
			return fds[0], nil
		}
	}
	return -1, errors.New("the message has none")
}
