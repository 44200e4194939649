package e2e

import (
	"bytes"
	"flag"
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

// takeoverKills is how many servers each of the tests under load kills at least.
var takeoverKills = flag.Int("takeover-kills", 60, "how often the takeover tests kill the server of a mount")

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
	for deadline := time.Now().Add(5 * time.Second); len(m.processes(t)) > 0; time.Sleep(10 * time.Millisecond) {
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

// killing kills the server again and again, every 20 to 120 ms, until stop is called, which says how often.
func (m *mounted) killing(t *testing.T, rng *rand.Rand) (kills *atomic.Int64, stop func()) {
	kills = new(atomic.Int64)
	quit, done := make(chan struct{}), make(chan struct{})
	pauses := rand.New(rand.NewPCG(rng.Uint64(), 2))
	go func() {
		defer close(done)
		last := 0
		for {
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

// TestServerKilledUnderModel does random operations to a mount, on files too that are open and have no name any more, and to a
// plain directory; both must say the same all the time, though the mount's server is killed all the time.
func TestServerKilledUnderModel(t *testing.T) {
	rng := modeltest.NewRand(t)
	m := newMounted(t, rng)
	kills, stop := m.killing(t, rng)
	stopped := false
	defer func() {
		if !stopped {
			stop()
		}
	}()
	a, b := modeltest.NewPlayer(m.mnt), modeltest.NewPlayer(m.plain)
	defer a.Close()
	defer b.Close()
	var history []string
	for i := 0; int(kills.Load()) < *takeoverKills || i < 1000; i++ {
		op := modeltest.Random(rng)
		got, gotErr := a.Do(op)
		want, wantErr := b.Do(op)
		history = append(history, fmt.Sprintf("%d (%d kills) %s: %s %v", i, kills.Load(), op.What, got, gotErr))
		history = history[max(0, len(history)-100):]
		if got != want || gotErr != wantErr {
			t.Fatalf("%s\nthe plain directory: %s %v", strings.Join(history, "\n"), want, wantErr)
		}
		if i%50 == 49 {
			m.compare(t, strings.Join(history, "\n"))
		}
		if i%5 == 0 {
			time.Sleep(time.Millisecond) // so that kills find the mount at rest, too
		}
	}
	stop()
	stopped = true
	t.Logf("%d servers were killed", kills.Load())
	m.compare(t, "the last kill")
	a.Close()
	m.unmount(t)
	m.mount(t)
	m.compare(t, "mounting again")
}
