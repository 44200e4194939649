package runner

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// other is another command in the container, not yet started; see exec.Cmd.
func (d *detached) other(o ExecOptions) []string {
	data, err := json.Marshal(o)
	must(d.t, err)
	return []string{"test-other", d.state, d.container.ID, string(data)}
}

func (d *detached) exec(script string, change ...func(*ExecOptions)) result {
	d.t.Helper()
	o := ExecOptions{Args: []string{"sh", "-c", script}}
	for _, f := range change {
		f(&o)
	}
	cmd := d.verb(d.other(o)...)
	cmd.Stdin = strings.NewReader("some input")
	return finish(d.t, cmd)
}

func (w *ward) idle() *detached {
	w.t.Helper()
	r := w.shell("sleep 1000; true")
	r.Spec.Process.Env = append(r.Spec.Process.Env, "FROM=first", "BOTH=first")
	r.Spec.Process.Cwd = "/home"
	return w.detach(r)
}

// TestExec: another command has all that the first has, and its own streams, user, directory and exit code.
func TestExec(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		d := w.idle()
		for _, c := range []struct {
			name, script string
			change       func(*ExecOptions)
			code         int
			out, err     string
		}{
			{"streams", "echo out; echo err >&2; exit 7", nil, 7, "out\n", "err\n"},
			{"no input", "cat", nil, 0, "", ""},
			{"input", "cat", func(o *ExecOptions) { o.Interactive = true }, 0, "some input", ""},
			{"environment", "echo $FROM $BOTH $NEW; pwd", func(o *ExecOptions) { o.Env = []string{"BOTH=a=b", "NEW=x"} }, 0, "first a=b x\n/home\n", ""},
			{"directory", "pwd", func(o *ExecOptions) { o.Cwd = "/tmp" }, 0, "/tmp\n", ""},
			{"signal", "kill -KILL $$", nil, 137, "", ""},
			{"no such directory", "pwd", func(o *ExecOptions) { o.Cwd = "/nowhere" }, 125, "", "unionfs: entering the working directory /nowhere: no such file or directory\n"},
			{"no such user", "id", func(o *ExecOptions) { o.User = "nobodyhere" }, 125, "", "unionfs: looking up the user \"nobodyhere\" in the container's /etc/passwd and /etc/group: unable to find user nobodyhere: no matching entries in passwd file\n"},
			{"no such command", "", func(o *ExecOptions) { o.Args = []string{"/nowhere"} }, 127, "", "unionfs: /nowhere: no such file in the container\n"},
			{"not executable", "", func(o *ExecOptions) { o.Args = []string{"/bin/notexec"} }, 126, "", "unionfs: /bin/notexec: is not an executable file\n"},
			{"descriptors", "ls /proc/self/fd | wc -l", nil, 0, "4\n", ""},
			{"session", "read a b c d e f g </proc/self/stat; [ $f = $$ ] && echo own", nil, 0, "own\n", ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				change := c.change
				if change == nil {
					change = func(*ExecOptions) {}
				}
				sub := *d
				sub.ward = d.in(t)
				if res := sub.exec(c.script, change); res.code != c.code || res.stdout != c.out || res.stderr != c.err {
					t.Errorf("%+v; want %d, %q, %q", res, c.code, c.out, c.err)
				}
			})
		}
		if w.name != "single" {
			if res := d.exec("id -u; id -g; echo $HOME", func(o *ExecOptions) { o.User = "alice" }); res.stdout != "1000\n1000\n/home/alice\n" {
				t.Errorf("as a user: %+v", res)
			}
		}
		// Everything that confines the first command confines the other.
		const confined = `for n in user pid mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done
			grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups|Uid|Gid)' /proc/self/status; cat /proc/self/limits; umask; readlink /proc/1/exe || echo hidden`
		r := w.shell(confined + "; touch /tmp/done; sleep 1000")
		first := w.detach(r)
		eventually(t, "the first has said all", func() bool { _, err := os.Stat(filepath.Join(w.root, "tmp/done")); return err == nil })
		var want string
		eventually(t, "it is logged", func() bool {
			want = strings.ReplaceAll(strings.ReplaceAll(first.log(), "out:", ""), "err:", "")
			return strings.Contains(want, "hidden\n")
		})
		if res := first.exec(confined); res.stdout != want {
			t.Errorf("the other command has\n%s\nthe first\n%s", res.stdout, want)
		}
		eventually(t, "there are 3 processes in the container", func() bool { return d.inner() == 3 })
	})
}

// inner counts the container's processes.
func (d *detached) inner() int {
	b := &background{t: d.t, w: d.ward, status: d.status}
	return len(b.inside())
}

// TestExecEnds: signals reach the command; it ends with its caller, and with the container.
func TestExecEnds(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		d := w.idle()
		start := func(script string) (*bytes.Buffer, func() int, func(unix.Signal)) {
			cmd := d.verb(d.other(ExecOptions{Args: []string{"sh", "-c", script}})...)
			var out bytes.Buffer
			cmd.Stdout = &out
			cmd.WaitDelay = 2 * time.Minute
			_ = os.Remove(filepath.Join(w.root, "tmp/up"))
			must(t, cmd.Start())
			t.Cleanup(func() { _ = cmd.Process.Kill() })
			eventually(t, "it runs", func() bool { _, err := os.Stat(filepath.Join(w.root, "tmp/up")); return err == nil })
			return &out, func() int { _ = cmd.Wait(); return cmd.ProcessState.ExitCode() }, func(s unix.Signal) { must(t, cmd.Process.Signal(s)) }
		}
		out, wait, kill := start("trap 'echo got it; exit 3' USR1; touch /tmp/up; while :; do sleep 0.02; done")
		kill(unix.SIGUSR1)
		if code := wait(); code != 3 || out.String() != "got it\n" {
			t.Errorf("signalled: code %d, %q", code, out)
		}
		_, wait, kill = start("trap 'touch /tmp/asked; exit' TERM; touch /tmp/up; while :; do sleep 0.02; done")
		kill(unix.SIGKILL)
		wait()
		eventually(t, "it was asked to end", func() bool { _, err := os.Stat(filepath.Join(w.root, "tmp/asked")); return err == nil })
		eventually(t, "it is gone", func() bool { return d.inner() == 3 })
		_, wait, _ = start("touch /tmp/up; sleep 1000; true")
		must(t, d.container.Kill(time.Minute))
		if code := wait(); code != 137 {
			t.Errorf("the container was killed: code %d", code)
		}
		if res := d.exec("true"); res.code != 125 || !strings.Contains(res.stderr, "is not running") {
			t.Errorf("in a container that has ended: %+v", res)
		}
	})
}

// TestExecDetached: it lives without its caller.
func TestExecDetached(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		d := w.idle()
		for _, terminal := range []bool{false, true} {
			res := d.exec("seq 100000; touch /tmp/began; sleep 1000; true", func(o *ExecOptions) { o.Detach, o.Terminal = true, terminal })
			if res != (result{}) {
				t.Errorf("%+v", res)
			}
			eventually(t, "it runs", func() bool { return os.Remove(filepath.Join(w.root, "tmp/began")) == nil })
		}
		eventually(t, "there are 7 processes", func() bool { return d.inner() == 7 })
		if res := d.exec("", func(o *ExecOptions) { o.Args, o.Detach = []string{"nosuch"}, true }); res.code != 127 {
			t.Errorf("%+v", res)
		}
	})
}

func TestExecTerminal(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		d := w.idle()
		p := w.sitAt(d.verb(d.other(ExecOptions{
			Args:     []string{"sh", "-c", "tty; stty size; trap 'stty size' WINCH; echo $TERM; echo go; read line; echo \"<$line>\"; while :; do read x; [ \"$x\" = end ] && exit 5; done"},
			Terminal: true, Interactive: true,
		})...))
		p.expect("/dev/pts/0\r\n40 100\r\nxterm\r\ngo\r\n")
		p.types("hello\r")
		p.expect("<hello>")
		p.types("end\r")
		p.leaves(5)
		p = w.sitAt(d.verb(d.other(ExecOptions{Args: []string{"sh", "-c", "echo go; sleep 1000; true"}, Terminal: true, Interactive: true})...))
		p.expect("go\r\n")
		p.types("\x03")
		p.leaves(130)
		p = w.sitAt(d.verb(d.other(ExecOptions{Args: []string{"/nowhere"}, Terminal: true, Interactive: true})...))
		p.leaves(127)
	})
}

// TestExecMany: at once, and each has its own answer.
func TestExecMany(t *testing.T) {
	w := newWard(t, worlds()[0])
	d := w.idle()
	results := make(chan error)
	for i := range 12 {
		cmd := d.verb(d.other(ExecOptions{Args: []string{"sh", "-c", fmt.Sprintf("sleep 0.1; pwd; exit %d", i)}, Cwd: []string{"/tmp", "/etc"}[i%2]})...)
		go func() {
			out, _ := cmd.Output()
			if want := []string{"/tmp\n", "/etc\n"}[i%2]; cmd.ProcessState.ExitCode() != i || string(out) != want {
				results <- fmt.Errorf("command %d: %v, %q", i, cmd.ProcessState, out)
				return
			}
			results <- nil
		}()
	}
	for range 12 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	eventually(t, "3 processes are left", func() bool { return d.inner() == 3 })
}

// TestControlFromInside: a container that was given its own directory can't use the socket in it.
func TestControlFromInside(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell("sleep 1000")
		data, err := os.ReadFile(selfExe)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(w.root, "bin/runner.test"), data, 0o755))
		r.Spec.Mounts = append(r.Spec.Mounts, bindMount(w.state, w.state))
		for _, lib := range []string{"lib", "lib64"} { // what the test program is linked with
			if _, err := os.Stat("/usr/" + lib); err == nil {
				must(t, os.Symlink("usr/"+lib, filepath.Join(w.root, lib)))
				r.Spec.Mounts = append(r.Spec.Mounts, bindMount("/usr/"+lib, "/usr/"+lib, "ro"))
			}
		}
		d := w.detach(r)
		res := d.exec("", func(o *ExecOptions) {
			o.Args = append([]string{"/bin/runner.test"}, d.other(ExecOptions{Args: []string{"echo", "got in"}})...)
		})
		if res.code != 125 || !strings.Contains(res.stderr, "from within a container") {
			t.Errorf("%+v", res)
		}
	})
}
