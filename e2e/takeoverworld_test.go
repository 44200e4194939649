package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// mounted is a mount in the background.
type mounted struct {
	lower, upper, mnt, plain string
}

// newMounted makes branches of random files, beside a plain directory that is their merge, and mounts them.
func newMounted(t *testing.T, rng *rand.Rand, options ...string) *mounted {
	t.Helper()
	base, err := os.MkdirTemp(shared.dir, "takeover-")
	if err != nil {
		t.Fatal(err)
	}
	m := &mounted{lower: base + "/lower", upper: base + "/upper", mnt: base + "/mnt", plain: base + "/plain"}
	t.Cleanup(func() {
		if err := os.RemoveAll(base); err != nil {
			t.Error(err)
		}
	})
	for _, d := range []string{m.lower, m.upper, m.mnt, m.plain} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	layers := modeltest.Layers{Rand: rng}
	if err := layers.Fill(m.lower, m.plain, 3, false); err != nil {
		t.Fatal(err)
	}
	m.mount(t, options...)
	t.Cleanup(func() { m.unmount(t) })
	return m
}

func (m *mounted) mount(t *testing.T, options ...string) {
	t.Helper()
	args := append([]string{"mount", "--lower", m.lower, "--upper", m.upper}, options...)
	m.unionfs(t, append(args, m.mnt)...)
}

func (m *mounted) unmount(t *testing.T) {
	t.Helper()
	if on, err := mountinfo.Mounted(m.mnt); err != nil || !on {
		return
	}
	m.unionfs(t, "umount", m.mnt)
	for deadline := time.Now().Add(time.Minute); len(m.processes(t)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after umount there are still the processes %v", m.processes(t))
		}
	}
}

// unionfs runs the program, as root.
func (m *mounted) unionfs(t *testing.T, args ...string) {
	t.Helper()
	if r := run(t, exec.Command(shared.unionfs, args...)); r.code != 0 {
		t.Fatalf("unionfs %q: exit code %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
}

// processes are the holder and the server of the mount, with their parents.
func (m *mounted) processes(t *testing.T) map[int]int {
	t.Helper()
	found := map[int]int{}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		cmdline, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(cmdline, []byte("\x00"+m.mnt+"\x00")) {
			continue
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, err1 := strconv.Atoi(filepath.Base(dir))
		parent, err2 := strconv.Atoi(fields[1])
		if err1 != nil || err2 != nil || fields[0] == "Z" {
			continue
		}
		found[pid] = parent
	}
	return found
}

// server is the process that serves the mount; 0 while there is none.
func (m *mounted) server(t *testing.T) int {
	t.Helper()
	processes := m.processes(t)
	for pid, parent := range processes {
		if _, ok := processes[parent]; ok {
			return pid
		}
	}
	return 0
}

// killing kills the server again and again, every 20 to 120 ms, until stop is called, which says how often. Every other one has
// answered something before: on a slow machine none would live long enough otherwise, and the holder give up.
func (m *mounted) killing(t *testing.T, rng *rand.Rand) (kills *atomic.Int64, stop func()) {
	kills = new(atomic.Int64)
	quit, done := make(chan struct{}), make(chan struct{})
	pauses := rand.New(rand.NewPCG(rng.Uint64(), 2))
	go func() {
		defer close(done)
		last := 0
		var st unix.Statfs_t
		for turn := 0; ; turn++ {
			if turn%2 == 0 {
				_ = unix.Statfs(m.mnt, &st) // the kernel keeps no answer to this; an error is the test's to meet
			}
			select {
			case <-quit:
				return
			case <-time.After(time.Duration(20+pauses.IntN(100)) * time.Millisecond):
			}
			if pid := m.server(t); pid != 0 && pid != last {
				last = pid
				if unix.Kill(pid, unix.SIGKILL) == nil {
					kills.Add(1)
				}
			}
		}
	}()
	return kills, func() {
		close(quit)
		<-done
	}
}

// compare fails if the mount and the plain directory are not the same.
func (m *mounted) compare(t *testing.T, after string) {
	t.Helper()
	got, err := modeltest.Dump(m.mnt, false)
	if err != nil {
		t.Fatalf("after %s: %v", after, err)
	}
	want, err := modeltest.Dump(m.plain, false)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("after %s\nthe mount has, the plain directory not:\n%s\nthe plain directory has, the mount not:\n%s",
			after, modeltest.Missing(got, want), modeltest.Missing(want, got))
	}
}

// interrupted does something, for which the server makes a system call, and kills the server when it has made that and before it
// has answered. With no call, it is killed when it is about to give its first answer.
func (m *mounted) interrupted(t *testing.T, server int, call string, do func() error) error {
	t.Helper()
	file := filepath.Join(t.TempDir(), "trace")
	inject := "inject=writev:signal=SIGKILL:when=1"
	if call != "" {
		inject = "inject=" + call + ":delay_exit=120000000" // µs; it is ended before
	}
	trace := exec.Command("strace", "-f", "-q", "-o", file, "-e", "trace="+call+",writev", "-e", inject, "-p", strconv.Itoa(server))
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		trace.Process.Kill()
		_ = trace.Wait() // its exit code is the server's
	}()
	awaitTracer(t, server)
	result := make(chan error, 1)
	go func() { result <- do() }()
	if call != "" {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			if calls, err := os.ReadFile(file); err == nil && bytes.Contains(calls, []byte(" "+call+"(")) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("the server did not call %s", call)
			}
		}
		if err := unix.Kill(server, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		trace.Process.Kill() // it would keep the dead server from its parent until the delay is over
	}
	select {
	case err := <-result:
		return err
	case <-time.After(2 * time.Minute):
		t.Fatal("no other server did it")
		return nil
	}
}

// awaitTracer waits until all threads of a process are traced.
func awaitTracer(t *testing.T, pid int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
		traced := err == nil && len(tasks) > 0
		for _, task := range tasks {
			status, err := os.ReadFile(task)
			if err != nil || bytes.Contains(status, []byte("\nTracerPid:\t0\n")) {
				traced = false
			}
		}
		if traced {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("strace did not attach to process %d", pid)
		}
	}
}
