package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// peer is a way to merge branches into a file system.
type peer interface {
	// name is what users call it on the command line and what reports show.
	name() string
	// version returns what it says of itself, or an error that says what is missing and how to get it.
	version(ctx context.Context) (string, error)
	// options returns how it is mounted, in words for the report.
	options() string
	// mount mounts the stack with an empty upper branch. An *unableError says that the peer can't, and is a result.
	mount(ctx context.Context, s *stack, p site) (*mounted, error)
	// unable returns why it can't do the work at all, or "".
	unable(w *work) string
}

// unableError is the reason why a peer can't do what was asked of it.
type unableError struct{ reason string }

func (e *unableError) Error() string { return e.reason }

func unable(format string, args ...any) error {
	return &unableError{fmt.Sprintf(format, args...)}
}

// mounted is a mount that answers. close must be called exactly once.
type mounted struct {
	root    string       // where the tree is
	seconds float64      // from the start of the peer's program to the first answer
	server  *serverCmd   // nil if the kernel or nobody serves it
	unmount func() error // ends it
	giveUp  func()       // ends its processes at once, if they aren't server; may be nil
	leave   func() error // gives up where it was mounted; nil if that stays
}

func (m *mounted) close() error {
	err := m.unmount()
	if m.server != nil {
		err = errors.Join(err, m.server.end())
	}
	if m.leave != nil {
		err = errors.Join(err, m.leave())
	}
	return err
}

// abort ends the server at once, so that whoever waits for its answers gets errors instead.
func (m *mounted) abort() {
	if m.server != nil {
		m.server.command.Process.Kill()
	}
	if m.giveUp != nil {
		m.giveUp()
	}
}

// pid returns the server's process, or 0.
func (m *mounted) pid() int {
	if m.server == nil {
		return 0
	}
	return m.server.command.Process.Pid
}

// How long a server may take until its mount answers, and to end once it is unmounted.
const (
	mountLimit = 60 * time.Second
	endLimit   = 60 * time.Second
)

// serverCmd is a FUSE server that runs in the foreground.
type serverCmd struct {
	command *exec.Cmd
	output  *tailBuffer
	exited  chan struct{}
	err     error // valid once exited is closed
}

// startServer starts a FUSE server, which must stay in the foreground, and waits until its mount on target answers.
func startServer(ctx context.Context, dir, target string, program string, args ...string) (*mounted, error) {
	before, err := deviceOf(target)
	if err != nil {
		return nil, err
	}
	s := &serverCmd{command: exec.Command(program, args...), output: &tailBuffer{}, exited: make(chan struct{})}
	s.command.Dir = dir
	s.command.Stdout, s.command.Stderr = s.output, s.output
	// A session of its own keeps the terminal's Ctrl-C from it: we unmount it ourselves. Should we be killed, it is told to. Servers in
	// the background have one too, and where the kernel shares processors out among sessions (autogroup in sched(7)), a server in
	// ours would have to share with us.
	s.command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGTERM}
	start := time.Now()
	if err := s.command.Start(); err != nil {
		if errors.Is(err, syscall.E2BIG) {
			return nil, unable("its command line would be too long")
		}
		return nil, err
	}
	go func() {
		s.err = s.command.Wait()
		close(s.exited)
	}()
	for {
		now, err := deviceOf(target)
		if err == nil && now != before {
			break
		}
		select {
		case <-s.exited:
			return nil, fmt.Errorf("%s ended before it mounted anything (%v): %s", filepath.Base(program), s.err, s.output.line())
		case <-ctx.Done():
			s.command.Process.Kill()
			<-s.exited
			unix.Unmount(target, unix.MNT_DETACH)
			return nil, ctx.Err()
		default:
		}
		if time.Since(start) > mountLimit {
			s.command.Process.Kill()
			<-s.exited
			unix.Unmount(target, unix.MNT_DETACH)
			return nil, unable("it doesn't mount within %v", mountLimit)
		}
		time.Sleep(200 * time.Microsecond)
	}
	return &mounted{
		root:    target,
		seconds: time.Since(start).Seconds(),
		server:  s,
		unmount: func() error { return unmountFUSE(target) },
	}, nil
}

// deviceOf returns the device number of the root of what is mounted at path. It waits for a server that hasn't answered.
func deviceOf(path string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return st.Dev, nil
}

// end waits for the server's exit, and after endLimit ends it.
func (s *serverCmd) end() error {
	select {
	case <-s.exited:
		return nil
	case <-time.After(endLimit):
		s.command.Process.Kill()
		<-s.exited
		return fmt.Errorf("%s didn't end within %v of its unmount and was killed", filepath.Base(s.command.Path), endLimit)
	}
}

// unmountFUSE unmounts, also as an ordinary user. A mount that stays busy is detached.
func unmountFUSE(target string) error {
	for range 20 {
		var err error
		if os.Geteuid() == 0 {
			err = unix.Unmount(target, 0)
		} else if output, failed := exec.Command("fusermount3", "-u", target).CombinedOutput(); failed != nil {
			err = fmt.Errorf("fusermount3: %s", bytes.TrimSpace(output))
		}
		if err == nil || errors.Is(err, unix.EINVAL) { // EINVAL: not mounted any more
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	if os.Geteuid() == 0 {
		return unix.Unmount(target, unix.MNT_DETACH)
	}
	if output, err := exec.Command("fusermount3", "-u", "-z", target).CombinedOutput(); err != nil {
		return fmt.Errorf("unmounting %s: fusermount3: %s", target, bytes.TrimSpace(output))
	}
	return nil
}

// tailBuffer keeps the last few KiB of what a program prints.
type tailBuffer struct {
	mu   sync.Mutex
	kept []byte
}

func (b *tailBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kept = append(b.kept, p...)
	if extra := len(b.kept) - 4096; extra > 0 {
		b.kept = append(b.kept[:0], b.kept[extra:]...)
	}
	return len(p), nil
}

// line returns the last line.
func (b *tailBuffer) line() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return lastLine(string(b.kept))
}

func lastLine(text string) string {
	if text = strings.TrimSpace(text); text == "" {
		return "it printed nothing"
	}
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// programVersion runs a program and returns the first line of its output that has the word, or says how to install it.
func programVersion(ctx context.Context, debianPackage, word, program string, args ...string) (string, error) {
	path, err := exec.LookPath(program)
	if err != nil {
		return "", unable("not installed (Debian's package %s has it)", debianPackage)
	}
	output, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil && len(output) == 0 {
		return "", fmt.Errorf("%s %s: %w", program, strings.Join(args, " "), err)
	}
	for line := range strings.Lines(string(output)) {
		if strings.Contains(line, word) {
			return strings.TrimSpace(line), nil
		}
	}
	return strings.TrimSpace(string(output)), nil
}
