package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestOtherRuntime has runc, and the program itself under its name as a runtime, make containers of "run".
func TestOtherRuntime(t *testing.T) {
	for _, test := range []struct{ kind, runtime string }{
		{"root", "runc"}, {"root", "own"}, {"user with subordinate IDs", "own"},
	} {
		t.Run(test.runtime+" as "+test.kind, func(t *testing.T) {
			c := newCaller(t, test.kind)
			importBusybox(t, c)
			runtime := test.runtime
			if runtime == "own" {
				c.linkNames(t)
				runtime = filepath.Join(c.home, "bin/unionfs-runtime")
			}
			for _, sub := range []struct {
				flags  []string
				args   []string
				code   int
				stdout string
			}{
				{nil, []string{"sh", "-c", "id -u; cat /proc/1/comm; hostname | wc -c; echo new > /etc/new; cat /etc/new; exit 7"}, 7, "0\nsh\n13\nnew\n"},
				{[]string{"-u", "12:34", "-w", "/bin", "-e", "A=b"}, []string{"sh", "-c", "id -u; id -g; pwd; echo $A; grep Seccomp: /proc/self/status; kill -9 $$; true"}, 0, "12\n34\n/bin\nb\nSeccomp:\t2\n"},
				{nil, []string{"cat", "/proc/self/timerslack_ns"}, 0, "50000\n"}, // the supervisor's timers are less exact
				{nil, []string{"nosuchcommand"}, 127, ""},
				{[]string{"--read-only"}, []string{"touch", "/x"}, 1, ""},
				{[]string{"-t"}, []string{"tty"}, 0, "/dev/pts/0\r\n"},
				{[]string{"-v", c.home + ":/v:ro"}, []string{"sh", "-c", "ls -d /v/state; touch /v/x 2> /dev/null || echo refused"}, 0, "/v/state\nrefused\n"},
			} {
				args := append(append(append([]string{"run", "--rm", "--runtime", runtime}, sub.flags...), "bb:1"), sub.args...)
				if r := c.try(t, args...); r.code != sub.code || r.stdout != sub.stdout {
					t.Errorf("%q: %+v, want code %d and %q", sub.args, r, sub.code, sub.stdout)
				}
			}
			c.must(t, "run", "-d", "--name", "back", "--runtime", runtime, "bb:1", "sh", "-c", "trap 'echo ended; exit 3' TERM; echo started; touch /ready; while :; do sleep 0.02; done")
			if got := c.must(t, "exec", "-e", "X=y", "-u", "5", "back", "sh", "-c", "until test -e /ready; do sleep 0.02; done; echo $X; id -u; pidof sh | wc -w"); !strings.HasPrefix(got, "y\n5\n") {
				t.Errorf("exec: %q", got)
			}
			if got := c.must(t, "exec", "back", "cat", "/proc/self/timerslack_ns"); got != "50000\n" {
				t.Errorf("exec: its timers may be late by %q ns", got)
			}
			if r := c.try(t, "exec", "back", "sh", "-c", "exit 9"); r.code != 9 {
				t.Errorf("exec: %+v", r)
			}
			if r := c.try(t, "exec", "back", "nosuchcommand"); r.code != 127 || !strings.Contains(r.stderr, "nosuchcommand") {
				t.Errorf("exec of what isn't there: %+v", r)
			}
			if got := c.must(t, "exec", "-t", "back", "sh", "-c", "tty; test -t 0 && test -t 2 && echo terminal"); !strings.HasPrefix(got, "/dev/pts/") || !strings.HasSuffix(got, "\r\nterminal\r\n") {
				t.Errorf("exec -t: %q", got)
			}
			if r := run(t, withInput(c.command(t, shared.unionfs, "exec", "-it", "back", "sh"), "exit 8\n")); r.code != 8 {
				t.Errorf("exec -it: %+v", r)
			}
			c.must(t, "exec", "-d", "back", "sh", "-c", "echo there >/beside; exec sleep 1000")
			waitFor(t, func() bool { return c.try(t, "exec", "back", "cat", "/beside").stdout == "there\n" })
			c.must(t, "exec", "back", "rm", "/beside")
			// Whose caller is gone, a command ends.
			caller := c.command(t, shared.unionfs, "exec", "back", "sh", "-c", "trap 'touch /asked; exit' TERM; touch /waits; while :; do sleep 0.02; done")
			if err := caller.Start(); err != nil {
				t.Fatal(err)
			}
			waitFor(t, func() bool { return c.try(t, "exec", "back", "rm", "/waits").code == 0 })
			caller.Process.Kill()
			caller.Wait()
			waitFor(t, func() bool { return c.try(t, "exec", "back", "rm", "/asked").code == 0 })
			c.must(t, "stop", "-t", "60", "back")
			if got := c.must(t, "logs", "back"); got != "started\nended\n" {
				t.Errorf("logs: %q", got)
			}
			if got := c.must(t, "ps", "-a"); !strings.Contains(got, "Exited (3)") {
				t.Errorf("ps: %s", got)
			}
			if got := c.must(t, "diff", "back"); got != "A /ready\n" {
				t.Errorf("diff: %q", got)
			}
			c.must(t, "rm", "back")

			// Nothing outlives the supervisor, nor the command that has the host's PID namespace.
			killed := []string{"run", "-d", "--name", "killed", "--runtime", runtime, "bb:1", "sleep", "1000"}
			hostPID := []string{"run", "--runtime", runtime, "--pid", "host", "--name", "host", "bb:1", "sh", "-c", "sleep 1000 & echo $! $$; test -d /proc/$! && test -d /proc/$PPID && exit 6"}
			if test.kind == "root" {
				killed = slices.Insert(killed, 2, "--pid", "host")
				r := c.try(t, hostPID...)
				var other, command int
				if _, err := fmt.Sscanf(r.stdout, "%d %d\n", &other, &command); err != nil || r.code != 6 || command == 1 {
					t.Errorf("--pid host: %+v, %v", r, err)
				} else {
					awaitEnd(t, other)
				}
				c.must(t, "rm", "host")
			} else {
				oneLine(t, c.try(t, hostPID...), 125, "--pid host needs a cgroup", "run unionfs as root")
			}
			oneLine(t, c.try(t, "run", "--runtime", runtime, "--ipc", "container:killed", "bb:1", "true"), 125, "killed")
			c.must(t, killed...)
			oneLine(t, c.try(t, "run", "--runtime", runtime, "--ipc", "container:killed", "bb:1", "true"), 125, "leave out --runtime")
			pid := containerState(t, c).InitPID
			killPart(t, c, "supervisor")
			awaitEnd(t, pid)
			waitFor(t, func() bool { return strings.Contains(c.must(t, "ps", "-a"), "Exited (137)") })
			c.must(t, "rm", "killed")
		})
	}
	c := newCaller(t, "root")
	importBusybox(t, c)
	oneLine(t, c.try(t, "run", "--rm", "--runtime", "no-such-runtime", "bb:1", "true"), 125, "no-such-runtime")
}

// awaitEnd waits until a process has ended. It may be there still for whoever adopted it to reap.
func awaitEnd(t *testing.T, pid int) {
	t.Helper()
	waitFor(t, func() bool {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		return err != nil || strings.Contains(string(state), ") Z ")
	})
}
