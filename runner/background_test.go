package runner

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// background is a container whose P0 runs while the test looks at it.
type background struct {
	t         *testing.T
	w         *ward
	cmd       *exec.Cmd
	stdout    bytes.Buffer
	stderr    bytes.Buffer
	container *Container
	status    *Status // when it was first seen running
}

// start starts a request and waits until its command runs and has made the file "ready" in the root's /tmp.
func (w *ward) start(r *request) *background {
	w.t.Helper()
	b := &background{t: w.t, w: w, cmd: w.cmd(r)}
	b.cmd.Stdout, b.cmd.Stderr = &b.stdout, &b.stderr
	// The output's pipes may be held by what the test is about to find left over.
	b.cmd.WaitDelay = 2 * time.Minute
	must(w.t, b.cmd.Start())
	w.t.Cleanup(func() {
		if b.status != nil {
			_ = unix.Kill(b.status.SupervisorPID, unix.SIGKILL)
		}
		_ = b.cmd.Process.Kill()
		_ = b.cmd.Wait()
	})
	st := &State{root: w.state} // not OpenState: the world's user is to make the directories
	eventually(w.t, "the command runs", func() bool {
		all, err := st.List()
		if err != nil || len(all) == 0 {
			return false
		}
		b.container = all[0]
		b.status, err = b.container.Status()
		if err != nil || b.status.State != StateRunning {
			return false
		}
		_, err = os.Stat(filepath.Join(w.root, "tmp/ready"))
		return err == nil
	})
	return b
}

// wait waits for P0 and returns its exit code.
func (b *background) wait() int {
	b.t.Helper()
	_ = b.cmd.Wait()
	return b.cmd.ProcessState.ExitCode()
}

// inside lists the processes that are in the container's PID namespace, by their number on the host.
func (b *background) inside() []int { return processesWith(b.t, b.pidNamespace()) }

func (b *background) pidNamespace() string {
	b.t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", b.status.InitPID))
	must(b.t, err)
	return ns
}

func processesWith(t *testing.T, pidNamespace string) []int {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	must(t, err)
	var out []int
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscan(e.Name(), &pid); err != nil {
			continue
		}
		if ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid)); err == nil && ns == pidNamespace {
			out = append(out, pid)
		}
	}
	return out
}

// gone reports whether a process has ended. Who must reap an orphan is not ours to hurry. Its first thread can be a zombie while
// others still hold its files and locks (proc_pid_stat(5), fields 3 and 20).
func gone(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return true
	}
	fields := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	return fields[0] == "X" || fields[0] == "Z" && (fields[17] == "0" || fields[17] == "1")
}

// eventually waits for what must come, and fails if it hasn't after a time that is far longer than it takes.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("waited in vain: %s", what)
}

func TestSignalsReachCommand(t *testing.T) {
	const script = `for s in HUP INT QUIT TERM USR1 USR2 ALRM WINCH; do trap "echo $s; touch /tmp/$s" $s; done
		trap 'echo end; exit 7' PWR; touch /tmp/ready; while :; do sleep 0.01; done`
	inEveryWorld(t, func(t *testing.T, w *ward) {
		b := w.start(w.shell(script))
		want := ""
		for _, s := range []unix.Signal{unix.SIGHUP, unix.SIGINT, unix.SIGQUIT, unix.SIGTERM, unix.SIGUSR1, unix.SIGUSR2, unix.SIGALRM, unix.SIGWINCH} {
			want += strings.TrimPrefix(unix.SignalName(s), "SIG") + "\n"
			must(t, b.cmd.Process.Signal(s))
			// Signals that come together are told apart by nobody: one after the other.
			eventually(t, "the command got "+unix.SignalName(s), func() bool {
				_, err := os.Stat(filepath.Join(w.root, "tmp", strings.TrimPrefix(unix.SignalName(s), "SIG")))
				return err == nil
			})
		}
		must(t, b.cmd.Process.Signal(unix.SIGPWR))
		if code := b.wait(); code != 7 {
			t.Errorf("exit code %d, want 7; %s", code, b.stderr.String())
		}
		if got := b.stdout.String(); got != want+"end\n" {
			t.Errorf("the command saw %q, want %q", got, want+"end\n")
		}
	})
}

func TestSignalFromOutside(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, c := range []struct {
			name string
			send func(c *Container) error
			code int
		}{
			{"TERM", func(c *Container) error { return c.Signal(unix.SIGTERM) }, 128 + 15},
			{"KILL", func(c *Container) error { return c.Signal(unix.SIGKILL) }, 128 + 9},
			{"Kill", func(c *Container) error { return c.Kill(time.Minute) }, 128 + 9},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := w.in(t)
				os.Remove(filepath.Join(w.root, "tmp/ready"))
				b := w.start(w.shell("touch /tmp/ready; exec sleep 1000"))
				must(t, c.send(b.container))
				if code := b.wait(); code != c.code {
					t.Errorf("exit code %d, want %d; %s", code, c.code, b.stderr.String())
				}
				if st, err := b.container.Status(); err != nil || st.State != StateExited || st.ExitCode != c.code {
					t.Errorf("status is %+v, %v", st, err)
				}
				if err := b.container.Signal(unix.SIGTERM); err == nil || !strings.Contains(err.Error(), "not running") {
					t.Errorf("signal to an exited container: %v", err)
				}
			})
		}
	})
}

// TestDeaths kills each of a container's processes and looks for what is left.
func TestDeaths(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, c := range []struct {
			name   string
			victim func(b *background) int
			code   int // that P0 returns, if it isn't the victim
			status int // exit code in the status
		}{
			{"P0", func(b *background) int { return b.cmd.Process.Pid }, -1, 128 + 15},
			{"P1", func(b *background) int { return b.status.SupervisorPID }, exitUnknown, exitUnknown},
			{"P2", func(b *background) int { return b.status.InitPID }, exitUnknown, exitUnknown},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := w.in(t)
				os.Remove(filepath.Join(w.root, "tmp/ready"))
				b := w.start(w.shell("sleep 1000 & setsid sleep 1001 & touch /tmp/ready; exec sleep 1002"))
				ns := b.pidNamespace()
				if n := len(b.inside()); n < 4 {
					t.Fatalf("%d processes in the container, want at least 4", n)
				}
				must(t, unix.Kill(c.victim(b), unix.SIGKILL))
				if code := b.wait(); code != c.code {
					t.Errorf("exit code %d, want %d; %s", code, c.code, b.stderr.String())
				}
				eventually(t, "the container's processes are gone", func() bool { return len(processesWith(t, ns)) == 0 })
				eventually(t, "the supervisor is gone", func() bool { return gone(b.status.SupervisorPID) })
				if m := mountsUnder(t, filepath.Dir(w.root)); len(m) != 0 {
					t.Errorf("mounts are left: %q", m)
				}
				st, err := b.container.Status()
				if err != nil || st.State != StateExited || st.ExitCode != c.status {
					t.Errorf("status is %+v, %v; want exited with %d", st, err, c.status)
				}
				if res := finish(t, w.verb("test-remove", w.state, b.container.ID)); res.code != 0 {
					t.Errorf("removing: code %d: %s", res.code, res.stderr)
				}
				left, err := filepath.Glob(w.state + "/*/*")
				if err != nil || len(left) != 0 {
					t.Errorf("left in the state directory: %q, %v", left, err)
				}
			})
		}
	})
}

// TestOrphanThatIgnoresSignals: P0 dies, and the command ignores what it is then sent.
func TestOrphanThatIgnoresSignals(t *testing.T) {
	w := newWard(t, worlds()[0])
	b := w.start(w.shell("trap '' TERM HUP INT; touch /tmp/ready; while :; do sleep 1; done"))
	ns := b.pidNamespace()
	must(t, b.cmd.Process.Kill())
	eventually(t, "the container is killed after the grace", func() bool { return len(processesWith(t, ns)) == 0 })
}

func TestOrphansAreReaped(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		// In the end there are the init and the shell, which looks without starting anything.
		out := w.output(w.shell(`for i in 1 2 3 4 5; do (sleep 0.05 & ) ; done
			for i in $(seq 3000); do sleep 0.02; set -- /proc/[0-9]*; test $# -gt 2 || break; done
			test $# = 2 || cat /proc/[0-9]*/stat`))
		if out != "" {
			t.Errorf("what is left: %s", out)
		}
	})
}

// TestInitDescriptors looks from outside at what PID 1 has open.
func TestInitDescriptors(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		b := w.start(w.shell("touch /tmp/ready; exec sleep 1000"))
		dir := fmt.Sprintf("/proc/%d/fd", b.status.InitPID)
		// The command runs before the init has let go of what it started it with.
		var open []string
		defer func() {
			if t.Failed() {
				t.Errorf("the init has open: %q", open)
			}
		}()
		eventually(t, "the init has nothing open but what it needs", func() bool {
			entries, err := os.ReadDir(dir)
			must(t, err)
			open = nil
			for _, e := range entries {
				to, err := os.Readlink(filepath.Join(dir, e.Name()))
				if err == nil && to != "/dev/null" && !strings.HasPrefix(to, "socket:") && !strings.HasPrefix(to, "anon_inode:[event") {
					open = append(open, to)
				}
			}
			return len(open) == 0
		})
		must(t, b.container.Kill(time.Minute))
	})
}

// TestProgramIsProtected looks from outside at the init's program: no one can open it for writing, not even root.
func TestProgramIsProtected(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		b := w.start(w.shell("touch /tmp/ready; exec sleep 1000"))
		exe := fmt.Sprintf("/proc/%d/exe", b.status.InitPID)
		link, err := os.Readlink(exe)
		must(t, err)
		if strings.HasPrefix(link, "/memfd:") { // a user's, who has no path to the test binary
			f, err := os.Open(exe)
			must(t, err)
			defer f.Close()
			seals, err := unix.FcntlInt(f.Fd(), unix.F_GET_SEALS, 0)
			if want := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE; err != nil || seals != want {
				t.Errorf("seals of the copy: %#x, %v; want %#x", seals, err, want)
			}
		} else if f, err := os.OpenFile(exe, os.O_WRONLY|os.O_TRUNC, 0); !errors.Is(err, unix.EROFS) {
			// With O_TRUNC the kernel asks the mount before it sees that the file is being executed (ETXTBSY), which
			// would be no protection: an attacker waits for the end.
			f.Close()
			t.Errorf("opening %s for writing: %v, want %v", exe, err, unix.EROFS)
		}
		must(t, b.container.Kill(time.Minute))
	})
}

// TestProgramAsCommand: an image names the init's own program as its command (CVE-2019-5736).
func TestProgramAsCommand(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		before, err := os.Stat(selfExe)
		must(t, err)
		res := w.run(w.command("/proc/self/exe", "-test.run", "^$"))
		if res.code == 0 {
			t.Errorf("it ran: %s", res.stdout)
		}
		res = w.run(w.shell(`for p in /proc/1/exe /proc/self/exe; do echo x >>$p && echo written; done 2>/dev/null; true`))
		after, err := os.Stat(selfExe)
		must(t, err)
		if strings.Contains(res.stdout, "written") && after.Size() != before.Size() || !after.ModTime().Equal(before.ModTime()) {
			t.Error("the program was changed")
		}
	})
}
