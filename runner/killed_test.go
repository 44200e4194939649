package runner

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestKilledWhileStarting kills P0 and P1 at different instants of a start. No process, mount or lock may be left, and what
// there is of the container can be removed.
func TestKilledWhileStarting(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for i := range 16 {
			r := w.shell("sleep 1000 & sleep 1000")
			r.Ahead = i%4 < 2
			cmd := w.cmd(r)
			cmd.WaitDelay = 2 * time.Minute
			must(t, cmd.Start())
			time.Sleep(time.Duration(i) * 5 * time.Millisecond)
			if i%2 == 0 {
				must(t, cmd.Process.Kill())
			} else {
				killSupervisor(t, w, cmd)
			}
			_ = cmd.Wait()
			eventually(t, "all processes are gone", func() bool { return len(concerned(t, w)) == 0 })
		}
		if m := mountsUnder(t, filepath.Dir(w.root)); len(m) != 0 {
			t.Errorf("mounts are left: %q", m)
		}
		all, err := (&State{root: w.state}).List()
		must(t, err)
		for _, c := range all {
			eventually(t, "the state says that it has ended", func() bool {
				held, err := c.lockHeld()
				must(t, err)
				st, err := c.Status()
				must(t, err)
				return !held && st.State != StateRunning
			})
			if res := finish(t, w.verb("test-remove", w.state, c.ID)); res.code != 0 {
				t.Errorf("removing: code %d: %s", res.code, res.stderr)
			}
		}
	})
}

// TestAhead: a supervisor that was started before its container does all that one does which was started after, and is gone if
// there is no container after all.
func TestAhead(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell("echo out; echo err >&2; read line; exit 7")
		r.Ahead, r.Options.Name = true, "ahead"
		if res := w.run(r); res.code != 7 || res.stdout != "out\n" || res.stderr != "err\n" {
			t.Errorf("code %d, %q, %q", res.code, res.stdout, res.stderr)
		}
		r.Options.ID = "" // the name is taken now
		if res := w.run(r); res.code != exitOurs || !strings.Contains(res.stderr, "name is in use") {
			t.Errorf("code %d, %q", res.code, res.stderr)
		}
		// At the latest with the one who started it: its streams are closed, or run would not have returned.
		eventually(t, "all processes are gone", func() bool { return len(concerned(t, w)) == 0 })
	})
}

// killSupervisor kills P1 as soon as there is one, until P0 is gone: the first one found may be an earlier start's, which could not
// be seen while it was executing itself.
func killSupervisor(t *testing.T, w *ward, p0 *exec.Cmd) {
	t.Helper()
	eventually(t, "there is a supervisor, and it takes its caller along", func() bool {
		for _, pid := range concerned(t, w) {
			cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			if bytes.Contains(cmdline, []byte("\x00test-supervise\x00")) {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
		return gone(p0.Process.Pid)
	})
}

// concerned lists the processes that have to do with a ward: they name its directory in their arguments, or have something
// of it mounted. One that is just executing this program has no arguments yet, and counts.
func concerned(t *testing.T, w *ward) []int {
	t.Helper()
	dir := filepath.Dir(w.root)
	entries, err := os.ReadDir("/proc")
	must(t, err)
	own, err := os.Stat(selfExe)
	must(t, err)
	executing := func(pid int) bool {
		exe := fmt.Sprintf("/proc/%d/exe", pid)
		program, err := os.Stat(exe)
		link, _ := os.Readlink(exe)
		return err == nil && os.SameFile(program, own) || strings.HasPrefix(link, "/memfd:")
	}
	var out []int
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil || pid == os.Getpid() {
			continue
		}
		cmdline, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		mounts, _ := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
		if len(cmdline) == 0 && executing(pid) || bytes.Contains(cmdline, []byte(dir)) || strings.Contains(string(mounts), dir) {
			out = append(out, pid)
		}
	}
	return out
}
