package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// TestNothingWrittenIsLost kills the command, the init and the supervisor of containers that write files and say so after each
// fsync: in the foreground, where the supervisor is the FUSE server too, there again when another process serves, and in the
// background. All that was said to be written must be there, in the upper branch and in a volume; ps must tell the truth, and the
// container must be removable. TestContainerOutlivesItsServer is about the server.
func TestNothingWrittenIsLost(t *testing.T) {
	const script = `mkdir /written
i=0
while :; do
	i=$((i + 1))
	echo "content $i" | dd of=/written/$i conv=fsync 2> /dev/null
	echo "content $i" | dd of=/volume/$i conv=fsync 2> /dev/null
	echo $i
done`
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		volume := filepath.Join(c.home, "volume")
		c.script(t, "mkdir volume")
		for turn := range 9 {
			victim := []string{"command", "init", "supervisor"}[turn%3]
			mode := []string{"in the foreground", "handed over", "in the background"}[turn/3]
			name := fmt.Sprintf("k%d", turn)
			args := []string{"--root", c.root, "run", "--name", name, "-v", volume + ":/volume", "bb:1", "sh", "-c", script}
			if mode == "in the background" {
				args = slices.Insert(args, 3, "-d")
			}
			cmd := c.command(t, shared.unionfs, args...)
			out, err := os.Create(filepath.Join(c.home, "out"))
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout = out
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			out.Close()
			said := func() (last int) {
				text, err := os.ReadFile(out.Name())
				if mode == "in the background" {
					text = []byte(c.try(t, "logs", name).stdout)
				}
				if err != nil {
					t.Fatal(err)
				}
				lines := strings.Fields(string(text))
				if len(lines) > 0 {
					fmt.Sscan(lines[len(lines)-1], &last)
				}
				return last
			}
			waitFor(t, func() bool { return said() > turn && (mode == "in the foreground" || c.server() != 0) })
			// What the command says in the foreground doesn't go by the supervisor, which may not have recorded it yet.
			waitFor(t, func() bool { state, err := c.state(); return err == nil && state.InitPID != 0 })
			time.Sleep(time.Duration(rand.IntN(10_000)) * time.Microsecond)
			killPart(t, c, victim)
			_ = cmd.Wait()
			code := cmd.ProcessState.ExitCode()
			if mode == "in the background" {
				fmt.Sscan(c.must(t, "wait", name), &code)
			}
			waitFor(t, func() bool { return len(c.processes()) == 0 })
			last := said()
			if code != 137 {
				t.Errorf("%s killed %s: exit code %d", victim, mode, code)
			}
			if got := c.must(t, "ps", "-a", "--filter", "name="+name, "--format", "json"); !strings.Contains(strings.ToLower(got), "exited") {
				t.Errorf("%s killed %s: ps says %s", victim, mode, got)
			}
			upper, err := filepath.Glob(filepath.Join(c.root, "containers/*/upper/written"))
			if err != nil || len(upper) != 1 || last == 0 {
				t.Fatalf("%s killed %s after %d files: upper branches %q, %v", victim, mode, last, upper, err)
			}
			for _, dir := range []string{upper[0], volume} {
				for i := 1; i <= last; i++ {
					data, err := os.ReadFile(filepath.Join(dir, fmt.Sprint(i)))
					if err != nil || string(data) != fmt.Sprintf("content %d\n", i) {
						t.Errorf("%s killed %s after %d files: %s/%d holds %q, %v", victim, mode, last, dir, i, data, err)
					}
				}
			}
			c.must(t, "rm", name)
			c.script(t, "rm -f volume/*")
		}
	})
}

// TestKilledAtAnyInstant kills one of a container's processes, whichever, at random instants from its start on: before it runs,
// while the supervisor serves its root, while another process takes that over, and later; with a PID namespace of its own and in the
// host's. What is left can be listed and removed, and nothing else is left.
func TestKilledAtAnyInstant(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		c.delegateCgroup(t)
		for turn := range 24 {
			name := fmt.Sprintf("k%d", turn)
			args := []string{"--root", c.root, "run", "--name", name, "-e", "MARK=" + c.home, "bb:1", "sh", "-c", "sleep 1000 & while :; do echo more >> /file; mkdir /dir; rmdir /dir; done"}
			if turn%4 >= 2 {
				args = slices.Insert(args, 3, "--pid", "host")
			}
			if turn%2 == 0 {
				args = slices.Insert(args, 3, "-d")
			}
			if c.uid == 0 {
				args = slices.Insert(args, 3, "--pids-limit", "50") // it has a cgroup then
			}
			cmd := c.command(t, shared.unionfs, args...)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				_ = cmd.Wait()
			}()
			time.Sleep(time.Duration(rand.IntN([]int{100, 400, 2000}[turn%3])) * time.Millisecond)
			var all []int
			for pid := range c.processes() {
				all = append(all, pid)
			}
			if state, err := c.state(); err == nil && state.InitPID != 0 {
				all = append(all, state.InitPID)
			}
			what := "nothing"
			if len(all) > 0 {
				pid := all[rand.IntN(len(all))]
				what = commandLine(pid)
				_ = unix.Kill(pid, unix.SIGKILL) // it may just have ended
			}
			if r := c.try(t, "ps", "-a"); r.code != 0 {
				t.Errorf("after killing %s: ps: %+v", what, r)
			}
			waitFor(t, func() bool {
				r := c.try(t, "rm", "-f", name)
				select {
				case <-ended:
				default:
					return false // it may have to become unionfs yet
				}
				return len(c.processes()) == 0 && (r.code == 0 || strings.Contains(r.stderr, "no such container"))
			})
			waitFor(t, func() bool { return len(c.inContainers()) == 0 })
			if out := c.must(t, "ps", "-a", "-q"); out != "" {
				t.Errorf("after killing %s ps says %q", what, out)
			}
			// A process that ends has its root for a moment longer than its program.
			var left []string
			for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
				if left = paths(filepath.Glob("/proc/[0-9]*/root/" + c.root + "/containers/*/rootfs/bin")); len(left) == 0 || time.Now().After(deadline) {
					break
				}
			}
			if len(left) > 0 {
				t.Errorf("after killing %s a root is mounted: %q", what, left)
			}
		}
	})
}

// inContainers lists the processes, other than zombies, in containers that were run with -e MARK=HOME.
func (c *caller) inContainers() (found []string) {
	for _, name := range paths(filepath.Glob("/proc/[0-9]*/environ")) {
		environ, err := os.ReadFile(name)
		if err == nil && slices.Contains(strings.Split(string(environ), "\x00"), "MARK="+c.home) {
			found = append(found, name)
		}
	}
	return found
}

// commandLine is how a process was started, for messages.
func commandLine(pid int) string {
	line, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.ReplaceAll(string(line), "\x00", " ")
}

// state is what the state.json of the caller's only container says.
func (c *caller) state() (state struct{ SupervisorPID, InitPID int }, err error) {
	states, err := filepath.Glob(filepath.Join(c.root, "containers/*/state.json"))
	if err == nil && len(states) != 1 {
		err = fmt.Errorf("there are %q", states)
	}
	if err != nil {
		return state, err
	}
	data, err := os.ReadFile(states[0])
	if err != nil {
		return state, err
	}
	return state, json.Unmarshal(data, &state)
}

// containerState is that of a container which runs.
func containerState(t *testing.T, c *caller) (state struct{ SupervisorPID, InitPID int }) {
	t.Helper()
	state, err := c.state()
	if err != nil || state.InitPID == 0 {
		t.Fatalf("%+v, %v", state, err)
	}
	return state
}

// killPart kills one of a container's processes, as root.
func killPart(t *testing.T, c *caller, victim string) {
	t.Helper()
	state := containerState(t, c)
	pid := map[string]int{"supervisor": state.SupervisorPID, "init": state.InitPID}[victim]
	if victim == "command" {
		children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", state.InitPID))
		if err != nil {
			t.Fatal(err)
		}
		for _, task := range paths(filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", state.InitPID))) {
			if more, err := os.ReadFile(task); err == nil {
				children = append(children, more...)
			}
		}
		fmt.Sscan(string(children), &pid)
	}
	if pid == 0 {
		t.Fatalf("no %s to kill", victim)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestRuntimeKilled kills "runtime create", "start" and "exec" at different instants. What is left is what "state" says, and
// "delete --force" removes it.
func TestRuntimeKilled(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	group := filepath.Base(c.home)
	bundle := c.writeBundle(t, func(s *specs.Spec) {
		s.Process.Args = []string{"sh", "-c", "sleep 1000 & sleep 1000"}
		s.Linux.CgroupsPath = "/unionfs-test/" + group
	})
	runtime := func(args ...string) *exec.Cmd {
		return c.command(t, c.home+"/bin/unionfs-runtime", append([]string{"--root", c.home + "/runtime"}, args...)...)
	}
	ok := func(args ...string) {
		t.Helper()
		if r := run(t, runtime(args...)); r.code != 0 {
			t.Fatalf("%q: %+v", args, r)
		}
	}
	for turn := range 24 {
		verb := []string{"create", "start", "exec"}[turn%3]
		command := map[string][]string{"create": {"create", "--bundle", bundle, "x"}, "start": {"start", "x"}, "exec": {"exec", "x", "sh", "-c", "sleep 1000"}}[verb]
		if verb != "create" {
			null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			create := runtime("create", "--bundle", bundle, "x")
			create.Stdout, create.Stderr = null, null // it keeps them
			if err := create.Run(); err != nil {
				t.Fatal(err)
			}
			null.Close()
		}
		if verb == "exec" {
			ok("start", "x")
		}
		victim := runtime(command...)
		if err := victim.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(turn*turn) * time.Millisecond / 8)
		_ = victim.Process.Kill()
		_ = victim.Wait()
		if verb != "create" {
			r := run(t, runtime("state", "x"))
			var state specs.State
			if err := json.Unmarshal([]byte(r.stdout), &state); err != nil {
				t.Fatalf("%s killed: %+v", verb, r)
			}
			if state.Status != specs.StateRunning && (verb != "start" || state.Status != specs.StateCreated) {
				t.Errorf("%s killed: state %s", verb, state.Status)
			}
		}
		ok("delete", "--force", "x")
		if entries, err := os.ReadDir(c.home + "/runtime"); err != nil && !os.IsNotExist(err) || len(entries) > 0 {
			t.Errorf("%s killed: left %v, %v", verb, entries, err)
		}
		if left := paths(filepath.Glob("/sys/fs/cgroup/*/unionfs-test/" + group)); len(left) > 0 {
			t.Errorf("%s killed: cgroups are left: %q", verb, left)
		}
	}
	// Nothing of the program that waits, or would wait for ever, to become a command. Other tests' are other files.
	own := func(pid string) bool {
		runs, err := os.Stat("/proc/" + pid + "/exe")
		return err == nil && slices.ContainsFunc([]string{"unionfs", "unionfs-init"}, func(name string) bool {
			program, err := os.Stat(filepath.Join(shared.dir, name))
			return err == nil && os.SameFile(runs, program)
		})
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		var left []string
		for _, name := range paths(filepath.Glob("/proc/[0-9]*/cmdline")) {
			if line, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(line), "unionfs-oci-init") && own(filepath.Base(filepath.Dir(name))) {
				left = append(left, name)
			}
		}
		if len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("processes are left: %q", left)
		}
	}
	for _, dir := range paths(filepath.Glob("/sys/fs/cgroup/*/unionfs-test")) {
		os.Remove(dir)
	}
}
