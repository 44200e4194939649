package holder_test

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/holder"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "serve" {
		if err := serve(os.Args[2], os.Args[3]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// serve is a server: it writes its process ID to a file in dir, behind what the servers before it wrote, keeps a "device" of its
// own making, and does what its life says.
func serve(dir, life string) error {
	link, err := holder.Attach()
	if err != nil {
		return err
	}
	// What it stands for: a newer program that can't take over.
	if _, err := os.Stat(filepath.Join(dir, "refuse")); err == nil {
		err := errors.New("the journal is of another version")
		link.Failed(err)
		return err
	}
	if err := link.AwaitTurn(); err != nil {
		return err
	}
	if kept := link.Kept(); kept == nil {
		if life == "fail at once" {
			err := errors.New("there is no such branch")
			link.Failed(err)
			return err
		}
		device, err := os.OpenFile(filepath.Join(dir, "device"), os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		if err := link.Keep(holder.Kept{Files: []*os.File{device}, Data: []byte("settings")}); err != nil {
			return err
		}
		device.Close()
	} else if len(kept.Files) != 1 || string(kept.Data) != "settings" {
		return fmt.Errorf("%d descriptors and %q were kept", len(kept.Files), kept.Data)
	}
	starts, err := os.OpenFile(filepath.Join(dir, "starts"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(starts, os.Getpid()); err != nil {
		return err
	}
	link.Answer(func(question []byte, again bool) []byte {
		if string(question) == "die" && !again {
			_ = unix.Kill(os.Getpid(), unix.SIGKILL)
		}
		return fmt.Appendf(nil, "%s, again %t", question, again)
	})
	if err := link.Ready(func() {}); err != nil {
		return err
	}
	if life == "fail when ready" && link.Kept() != nil {
		return errors.New("a request that this server can't stand")
	}
	time.Sleep(5 * time.Minute)
	return errors.New("nobody ended this server")
}

// world is a holder under test.
type world struct {
	dir    string
	reader *os.File // as long as it is open, the mount is there
	done   chan error
}

func newWorld(t *testing.T, life string, change func(*holder.Config)) *world {
	t.Helper()
	w := &world{dir: t.TempDir(), done: make(chan error, 1)}
	if err := unix.Mkfifo(filepath.Join(w.dir, "device"), 0o600); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(filepath.Join(w.dir, "device"), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	w.reader = os.NewFile(uintptr(fd), "device")
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	c := holder.Config{
		Program: program, Args: []string{"serve", w.dir, life},
		Ready: func() error { close(ready); return nil },
		Log:   slog.New(slog.DiscardHandler),
	}
	if change != nil {
		change(&c)
	}
	cwd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	go func() { w.done <- holder.Run(c) }()
	t.Cleanup(func() {
		w.reader.Close()
		if pid := w.last(t, 1); pid != 0 {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		if err := os.Chdir(cwd); err != nil {
			t.Error(err)
		}
	})
	if life == "fail at once" {
		return w
	}
	select {
	case <-ready:
	case err := <-w.done:
		t.Fatalf("the holder ended with %v", err)
	}
	return w
}

// last waits until as many servers have started, and returns the process ID of the last.
func (w *world) last(t *testing.T, starts int) int {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(filepath.Join(w.dir, "starts"))
		if errors.Is(err, os.ErrNotExist) && starts == 1 && len(w.done) > 0 {
			return 0
		}
		lines := strings.Fields(string(b))
		if len(lines) < starts {
			continue
		}
		pid, err := strconv.Atoi(lines[len(lines)-1])
		if err != nil {
			t.Fatal(err)
		}
		return pid
	}
	t.Fatalf("there were not %d servers", starts)
	return 0
}

// end ends the mount, and the server as a mount's end does, and returns what the holder says.
func (w *world) end(t *testing.T, pid int) error {
	t.Helper()
	w.reader.Close()
	// The holder may be about to replace it, for a reason of the test's: then that one's end is the mount's.
	for killed := 0; len(w.done) == 0; time.Sleep(5 * time.Millisecond) {
		if pid != killed {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				t.Fatal(err)
			}
			killed = pid
		}
		pid = w.last(t, 1)
	}
	return w.wait(t)
}

func (w *world) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-w.done:
		w.done <- err
		return err
	case <-time.After(2 * time.Minute):
		t.Fatal("the holder did not end")
	}
	return nil
}

func TestKilledServerIsReplaced(t *testing.T) {
	w := newWorld(t, "live", nil)
	for i := range 20 {
		if err := unix.Kill(w.last(t, i+1), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	var ended *holder.ExitError
	if err := w.end(t, w.last(t, 21)); !errors.As(err, &ended) || ended.Code != 128+int(unix.SIGKILL) {
		t.Errorf("when the mount was gone the holder said %v", err)
	}
}

// TestTimerSlack has servers whose timers may be late, also the one that a killed one is replaced by, and a holder whose may not.
func TestTimerSlack(t *testing.T) {
	slack := func(pid int) string {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/timerslack_ns", pid))
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	own := slack(os.Getpid())
	w := newWorld(t, "live", nil)
	for start := 1; start <= 2; start++ {
		pid := w.last(t, start)
		if got := slack(pid); got != "1000000" {
			t.Errorf("server %d has a slack of %s ns", start, got)
		}
		if start == 1 {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil {
				t.Fatal(err)
			}
		}
	}
	// The thread that has started the server may still be about to have its own back, and threads end.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		threads, err := filepath.Glob("/proc/self/task/*")
		if err != nil || len(threads) == 0 {
			t.Fatal(threads, err)
		}
		var others []string
		for _, thread := range threads {
			if b, err := os.ReadFile("/proc/" + filepath.Base(thread) + "/timerslack_ns"); err == nil && strings.TrimSpace(string(b)) != own {
				others = append(others, fmt.Sprintf("thread %s: %s", filepath.Base(thread), b))
			}
		}
		if len(others) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the holder has a slack of other than %s ns: %q", own, others)
		}
	}
	_ = w.end(t, w.last(t, 2)) // by SIGKILL, as it says
}

func TestHungServerIsReplaced(t *testing.T) {
	// Long enough for a server that doesn't hang, on any machine.
	w := newWorld(t, "live", func(c *holder.Config) { c.Interval, c.Patience = 20*time.Millisecond, 3*time.Second })
	first := w.last(t, 1)
	if err := unix.Kill(first, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	second := w.last(t, 2)
	if err := unix.Kill(first, 0); err != unix.ESRCH {
		t.Errorf("the server that hung is there: %v", err)
	}
	_ = w.end(t, second)
}

// TestServerThatNeverBecomesReady shows that the first server's failure is the mount's.
func TestServerThatNeverBecomesReady(t *testing.T) {
	w := newWorld(t, "fail at once", nil)
	var ended *holder.ExitError
	if err := w.wait(t); !errors.As(err, &ended) || ended.Code != 3 || ended.Reason != "there is no such branch" {
		t.Errorf("the holder says %v", err)
	}
}

func TestHolderGivesUp(t *testing.T) {
	w := newWorld(t, "fail when ready", func(c *holder.Config) { c.ShortLife = time.Hour })
	if err := unix.Kill(w.last(t, 1), unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	var ended *holder.ExitError
	if err := w.wait(t); !errors.As(err, &ended) || ended.Code != 3 {
		t.Errorf("the holder says %v", err)
	}
	b, err := os.ReadFile(filepath.Join(w.dir, "starts"))
	// The first, which was killed, and ten that failed by themselves.
	if n := len(strings.Fields(string(b))); err != nil || n != 11 {
		t.Errorf("it tried %d times, %v", n, err)
	}
}

func TestUpgrade(t *testing.T) {
	name := fmt.Sprintf("@unionfs/test/%d/%d", os.Getpid(), time.Now().UnixNano())
	w := newWorld(t, "live", func(c *holder.Config) {
		c.Upgrades = func() (*holder.Listener, error) { return holder.Listen(name) }
	})
	first := w.last(t, 1)
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	if err := holder.Upgrade(name, program); err != nil { // at once: the holder has said that it is ready
		t.Fatal(err)
	}
	second := w.last(t, 2)
	if second == first {
		t.Error("the server is the same")
	}
	if err := unix.Kill(first, 0); err != unix.ESRCH {
		t.Errorf("the former server is there: %v", err)
	}

	if err := os.WriteFile(filepath.Join(w.dir, "refuse"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err = holder.Upgrade(name, program)
	if err == nil || !strings.Contains(err.Error(), "the journal is of another version") {
		t.Errorf("a program that can't take over: %v", err)
	}
	if got := w.last(t, 2); got != second {
		t.Errorf("process %d serves, not %d as before", got, second)
	}
	if err := unix.Kill(second, 0); err != nil {
		t.Errorf("the server that was to stay: %v", err)
	}
	_ = w.end(t, second)
	if err := holder.Upgrade(name, program); err == nil {
		t.Error("a mount that has ended was upgraded")
	}
}
