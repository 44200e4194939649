package fs_test

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/internal/modeltest"
)

// roles are what the test binary does instead of testing when it is started by a test as another process.
var roles = map[string]func(args []string) error{}

const roleVar = "UNIONFS_TEST_ROLE"

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVar); role != "" {
		if err := roles[role](os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if publicBinary != "" {
		os.RemoveAll(filepath.Dir(publicBinary))
	}
	os.Exit(code)
}

var publicBinary string // a copy of the test binary that every user may execute, once there is one

// roleCommand is this test binary in a role.
func roleCommand(t *testing.T, role string, args ...string) *exec.Cmd {
	t.Helper()
	if publicBinary == "" {
		dir, err := os.MkdirTemp("/tmp", "unionfs-fs-bin-")
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		publicBinary = filepath.Join(dir, "fs.test")
		copyFile(t, "/proc/self/exe", publicBinary, 0o755)
	}
	cmd := exec.Command(publicBinary, args...)
	// The race detector otherwise sleeps for a second before the process ends.
	cmd.Env = append(os.Environ(), roleVar+"="+role, "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, b, mode)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// publicDir is a temporary directory that other users can enter; t.TempDir is not.
func publicDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "unionfs-fs-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// branches are the directories of a union under test.
type branches struct {
	lower, upper, work, mnt string
}

func newBranches(t *testing.T) *branches {
	t.Helper()
	return branchesIn(t, publicDir(t))
}

// branchesInMemory is for tests with so many files that they would measure the disk.
func branchesInMemory(t *testing.T) *branches {
	t.Helper()
	base := publicDir(t)
	if err := unix.Mount("none", base, "tmpfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modeltest.Unmount(t, base) })
	return branchesIn(t, base)
}

func branchesIn(t *testing.T, base string) *branches {
	t.Helper()
	b := &branches{}
	for _, d := range []struct {
		name string
		dir  *string
	}{{"lower", &b.lower}, {"upper", &b.upper}, {"work", &b.work}, {"mnt", &b.mnt}} {
		*d.dir = filepath.Join(base, d.name)
		if err := os.Mkdir(*d.dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// inLower makes a file in the lower branch.
func (b *branches) inLower(t *testing.T, name, content string) {
	t.Helper()
	write(t, filepath.Join(b.lower, name), content)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (b *branches) union(writable bool) (*cow.Union, error) {
	lower, err := cow.OpenDirBranch(b.lower, cow.DirOptions{})
	if err != nil {
		return nil, err
	}
	o := cow.Options{Lower: []cow.Branch{lower}}
	if writable {
		o.Upper, o.Work = b.upper, b.work
	}
	return cow.New(o)
}

// mount mounts the union, writable, and takes it away at the end of the test.
func (b *branches) mount(t *testing.T, o fs.Options) *fs.Server {
	t.Helper()
	return b.mountUnion(t, true, o)
}

func (b *branches) mountReadOnly(t *testing.T, o fs.Options) *fs.Server {
	t.Helper()
	return b.mountUnion(t, false, o)
}

func (b *branches) mountUnion(t *testing.T, writable bool, o fs.Options) *fs.Server {
	t.Helper()
	u, err := b.union(writable)
	if err != nil {
		t.Fatal(err)
	}
	if o.Logger == nil {
		o.Logger = slog.New(failOnLog{t})
	}
	s, err := fs.Mount(u, b.mnt, o)
	if err != nil {
		u.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Unmount(); err != nil {
			t.Errorf("%v", err)
			if err := fs.Unmount(b.mnt, true); err != nil {
				t.Errorf("%v", err)
			}
		}
		s.Wait()
		if err := u.Close(); err != nil {
			t.Errorf("closing the union: %v", err)
		}
	})
	forbidPoll(t, b.mnt, b.lower, b.upper)
	return s
}

// forbidPoll has the kernel learn that there is no POLL, in a system call during which Go's scheduler goes on. Otherwise
// os.Open in this process, which serves the mount too, can wait in epoll_ctl for an answer that nobody is free to give. It takes a
// file that one of the directories below the mount has; a mount without one gets one for a moment.
func forbidPoll(t *testing.T, mnt string, dirs ...string) {
	t.Helper()
	for _, dir := range dirs {
		found := false
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			rel, _ := filepath.Rel(dir, path)
			if err == nil && d.Type().IsRegular() && pollOnce(filepath.Join(mnt, rel), unix.O_RDONLY) == nil {
				found = true
				return filepath.SkipAll
			}
			return nil
		})
		if found {
			return
		}
	}
	name := mnt + "/.poll"
	if err := pollOnce(name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL); err == nil {
		err = unix.Unlink(name)
		if err != nil {
			t.Error(err)
		}
	}
}

func pollOnce(name string, flags int) error {
	fd, err := unix.Open(name, flags|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err
}

// failOnLog fails the test at whatever the server logs: there is nothing to log in these tests.
type failOnLog struct{ t *testing.T }

func (failOnLog) Enabled(_ context.Context, l slog.Level) bool { return l > slog.LevelDebug }

func (h failOnLog) Handle(_ context.Context, r slog.Record) error {
	msg := r.Message
	r.Attrs(func(a slog.Attr) bool { msg += " " + a.String(); return true })
	h.t.Errorf("the server logged: %s", msg)
	return nil
}

func (h failOnLog) WithAttrs([]slog.Attr) slog.Handler { return h }
func (h failOnLog) WithGroup(string) slog.Handler      { return h }

// requests counts the requests of a mount by the debug log.
type requests struct {
	mu sync.Mutex
	n  map[string]int // by name of the operation
}

func (q *requests) options() fs.Options {
	q.n = map[string]int{}
	return fs.Options{Debug: true, Logger: slog.New(q)}
}

// take returns what was counted since the last call.
func (q *requests) take() map[string]int {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := maps.Clone(q.n)
	clear(q.n)
	return n
}

func (q *requests) Enabled(context.Context, slog.Level) bool { return true }

func (q *requests) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "request" {
			q.mu.Lock()
			q.n[a.Value.String()]++
			q.mu.Unlock()
		}
		return true
	})
	return nil
}

func (q *requests) WithAttrs([]slog.Attr) slog.Handler { return q }
func (q *requests) WithGroup(string) slog.Handler      { return q }
