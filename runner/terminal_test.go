package runner

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/containerd/console"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// person is a terminal with someone at it.
type person struct {
	t      *testing.T
	master console.Console
	slave  *os.File
	cmd    *exec.Cmd

	mu   sync.Mutex
	seen bytes.Buffer
	done chan struct{}
}

// sit starts P0 for a request at a new terminal of 40 rows and 100 columns, as a shell would in the foreground.
func (w *ward) sit(r *request) *person {
	w.t.Helper()
	return w.sitAt(w.cmd(r))
}

// sitAt starts a process at such a terminal.
func (w *ward) sitAt(cmd *exec.Cmd) *person {
	w.t.Helper()
	master, name, err := console.NewPty()
	must(w.t, err)
	must(w.t, os.Chmod(name, 0o666)) // the world's user opens it again
	must(w.t, master.Resize(console.WinSize{Height: 40, Width: 100}))
	slave, err := os.OpenFile(name, os.O_RDWR|unix.O_NOCTTY, 0)
	must(w.t, err)
	p := &person{t: w.t, master: master, slave: slave, cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = slave, slave, slave
	if p.cmd.SysProcAttr == nil {
		p.cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	p.cmd.SysProcAttr.Setsid, p.cmd.SysProcAttr.Setctty = true, true
	must(w.t, p.cmd.Start())
	go func() {
		defer close(p.done)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			p.mu.Lock()
			p.seen.Write(buf[:n])
			p.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	w.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
		slave.Close()
		master.Close()
	})
	return p
}

func (p *person) output() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen.String()
}

func (p *person) expect(text string) {
	p.t.Helper()
	defer func() {
		if p.t.Failed() {
			p.t.Logf("seen: %q", p.output())
		}
	}()
	eventually(p.t, "to see "+text, func() bool { return strings.Contains(p.output(), text) })
}

func (p *person) types(text string) {
	p.t.Helper()
	_, err := io.WriteString(p.master, text)
	must(p.t, err)
}

func (p *person) leaves(code int) {
	p.t.Helper()
	var exit *exec.ExitError
	if err := p.cmd.Wait(); err != nil && !errors.As(err, &exit) {
		p.t.Fatal(err)
	}
	if got := p.cmd.ProcessState.ExitCode(); got != code {
		p.t.Errorf("exit code %d, want %d; seen %q", got, code, p.output())
	}
}

func (w *ward) interactive(script string) *request {
	r := w.shell(script)
	r.Interactive = true
	r.Spec.Process.Terminal = true
	return r
}

func TestTerminal(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.interactive(`tty; stty size; stat -c %u /dev/pts/0; echo con >/dev/console; trap 'stty size' WINCH
			echo "TERM=$TERM"; echo go; read line; echo "got <$line>"; while :; do read x; [ "$x" = end ] && exit 5; done`)
		p := w.sit(r)
		before, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
		must(t, err)
		for _, text := range []string{"/dev/pts/0\r\n", "40 100\r\n0\r\n", "con\r\n", "TERM=xterm\r\n", "go\r\n"} {
			p.expect(text)
		}
		raw, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
		must(t, err)
		if raw.Lflag&(unix.ICANON|unix.ECHO|unix.ISIG) != 0 {
			t.Errorf("the caller's terminal is not in raw mode: %#x", raw.Lflag)
		}
		p.types("hello\r")
		p.expect("got <hello>")
		must(t, p.master.Resize(console.WinSize{Height: 30, Width: 90}))
		p.expect("30 90") // by the trap; the signal interrupts the read
		p.types("end\r")
		p.leaves(5)
		after, err := unix.IoctlGetTermios(int(p.slave.Fd()), unix.TCGETS)
		must(t, err)
		if *before != *after {
			t.Errorf("the caller's terminal was not given back as it was: %+v, now %+v", before, after)
		}
	})
}

func TestTerminalInterrupt(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		p := w.sit(w.interactive("echo go; sleep 1000; echo not reached"))
		p.expect("go\r\n")
		p.types("\x03") // Ctrl-C
		p.leaves(130)
		p = w.sit(w.interactive("trap 'echo trapped; exit 3' INT; echo go; while :; do sleep 0.02; done"))
		p.expect("go\r\n")
		p.types("\x03")
		p.expect("trapped")
		p.leaves(3)
	})
}

// TestTerminalOfUser: the terminal belongs to the command's user, who can open it again by name.
func TestTerminalOfUser(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.interactive("stat -c 'owner %u' /dev/pts/0; echo again >/dev/tty; echo out >/dev/stdout; exit 4")
		r.Options.User = "1000:1000"
		p := w.sit(r)
		p.expect("owner 1000\r\nagain\r\nout\r\n")
		p.leaves(4)
	})
}

// TestTerminalOutputIsWhole: all that the command wrote arrives, also what was still on its way when it ended.
func TestTerminalOutputIsWhole(t *testing.T) {
	w := newWard(t, worlds()[0])
	p := w.sit(w.interactive("seq 20000"))
	p.leaves(0)
	p.expect("\r\n20000\r\n")
	if n := strings.Count(p.output(), "\r\n"); n != 20000 {
		t.Errorf("%d lines, want 20000", n)
	}
}

// TestTerminalHangup: the caller at a terminal dies, and the shell inside with it.
func TestTerminalHangup(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		p := w.sit(w.interactive("touch /tmp/ready; exec sh -i"))
		var st *Status
		eventually(t, "the command runs", func() bool {
			all, err := (&State{root: w.state}).List()
			if err != nil || len(all) == 0 {
				return false
			}
			st, err = all[0].Status()
			return err == nil && st.State == StateRunning
		})
		must(t, p.cmd.Process.Kill())
		eventually(t, "the init is gone", func() bool { return gone(st.InitPID) })
		eventually(t, "the supervisor is gone", func() bool { return gone(st.SupervisorPID) })
	})
}

func TestTerminalWithoutDevpts(t *testing.T) {
	w := newWard(t, worlds()[0])
	r := w.interactive("true")
	r.Spec.Mounts = slices.DeleteFunc(r.Spec.Mounts, func(m specs.Mount) bool { return m.Type == "devpts" })
	if res := w.run(r); res.code != 125 || !strings.Contains(res.stderr, "devpts") {
		t.Errorf("code %d, %q", res.code, res.stderr)
	}
}

// TestTerminalFromPipe: a terminal inside, a pipe outside.
func TestTerminalFromPipe(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.interactive("stty -echo; tty; stty size; cat")
		r.Spec.Process.ConsoleSize = &specs.Box{Height: 20, Width: 60}
		cmd := w.cmd(r)
		cmd.Stdin = strings.NewReader("from a pipe\n")
		res := finish(t, cmd)
		if res.code != 0 || !strings.Contains(res.stdout, "/dev/pts/0\r\n20 60\r\n") || !strings.Contains(res.stdout, "from a pipe\r\n") {
			t.Errorf("code %d, %q, %q", res.code, res.stdout, res.stderr)
		}
	})
}

func TestStandardStreams(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, c := range []struct {
			name        string
			interactive bool
			script      string
			code        int
			out, err    string
		}{
			{"input", true, "cat", 0, "some input", ""},
			{"no input", false, "cat; readlink /proc/self/fd/0", 0, "/dev/null\n", ""},
			{"separate", false, "echo out; echo err >&2; exit 9", 9, "out\n", "err\n"},
			{"no terminal", true, "tty; true", 0, "not a tty\n", ""},
			{"much", false, "head -c 3000000 /dev/zero | tr '\\0' x", 0, strings.Repeat("x", 3000000), ""},
		} {
			t.Run(c.name, func(t *testing.T) {
				r := w.in(t).shell(c.script)
				r.Interactive = c.interactive
				cmd := w.in(t).cmd(r)
				cmd.Stdin = strings.NewReader("some input")
				if res := finish(t, cmd); res.code != c.code || res.stdout != c.out || res.stderr != c.err {
					t.Errorf("code %d, output %.100q, error %.300q; want %d, %.100q, %q", res.code, res.stdout, res.stderr, c.code, c.out, c.err)
				}
			})
		}
	})
}

// TestReopenedOutput: a pipe of the caller's can be opened by name by whoever the command runs as.
func TestReopenedOutput(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, user := range []string{"0", "1000:1000"} {
			out, in, err := os.Pipe()
			must(t, err)
			if w.user {
				must(t, in.Chown(testUID, testUID)) // as a pipe that the user made
			}
			r := w.shell("echo a >/dev/stdout")
			r.Options.User = user
			cmd := w.cmd(r)
			cmd.Stdout = in
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			err = cmd.Run()
			in.Close()
			data, _ := io.ReadAll(out)
			out.Close()
			if err != nil || string(data) != "a\n" {
				t.Errorf("user %s: %v, output %q, error %q", user, err, data, stderr.String())
			}
		}
	})
}

// TestClosedOutput: the reader of the command's output sees its end when the command closes it, though the container lives.
func TestClosedOutput(t *testing.T) {
	w := newWard(t, worlds()[0])
	// A pipe within the container: PID 1 must not hold it open.
	if got := w.output(w.shell("{ echo x; exec >&-; sleep 0; } | cat")); got != "x" {
		t.Errorf("output is %q", got)
	}
}
