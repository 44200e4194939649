package e2e

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// server is the process that serves the root of the caller's only container; 0 while there is none, as while one stands by to take
// the place of the supervisor.
func (c *caller) server() int {
	for pid, line := range c.processes() {
		if !strings.Contains(line, " serve-container ") {
			continue
		}
		open, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
		for _, fd := range open {
			if name, _ := os.Readlink(fd); strings.HasSuffix(name, "/work/lock") {
				return pid
			}
		}
	}
	return 0
}

// killServer kills the process that serves the root of the caller's only container, and returns when it is gone.
func (c *caller) killServer(t *testing.T) {
	t.Helper()
	server := 0
	waitFor(t, func() bool { server = c.server(); return server != 0 })
	if err := unix.Kill(server, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return c.server() != server })
}

// counting is a shell script that works on the root until it is sent SIGUSR1, with a file that has no name, and says to what it has
// counted.
const counting = `exec 3<>/gone; rm /gone; i=0; trap enough=1 USR1
until [ $enough ]; do
	i=$((i+1)); echo $i >> /count || exit 1; echo $i >&3 || exit 2; ls / >/dev/null || exit 3; mkdir /dir$i || exit 4; mv /dir$i /moved$i || exit 5
	rmdir /moved$i || exit 6
done
test $(cat /count | wc -l) = $i || exit 7
test $(cat <&3 | wc -l) = 0 || exit 8
test $(cat /proc/self/fd/3 | wc -l) = $i || exit 9`

// TestContainerOutlivesItsServer kills the server of a container's root again and again, in the foreground and in the background,
// and the container goes on.
func TestContainerOutlivesItsServer(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		c.must(t, "run", "-d", "--name", "background", "bb:1", "sh", "-c", counting)
		c.outlives(t, "background")
		if out := c.must(t, "wait", "background") + c.must(t, "logs", "background"); out != "0\n" {
			t.Errorf("in the background: %q", out)
		}
		c.must(t, "rm", "background")

		front := c.command(t, shared.unionfs, "run", "--name", "front", "bb:1", "sh", "-c", counting)
		ended := make(chan result, 1)
		go func() { ended <- run(t, front) }()
		c.outlives(t, "front")
		if r := <-ended; r.code != 0 || r.stdout+r.stderr != "" {
			t.Errorf("in the foreground: %+v", r)
		}
		c.must(t, "rm", "front")
	})
}

// outlives kills the server of a container that counts, and then has it end.
func (c *caller) outlives(t *testing.T, name string) {
	t.Helper()
	waitFor(t, func() bool { return c.try(t, "exec", name, "test", "-s", "/count").code == 0 })
	last := 0
	for range 10 {
		c.killServer(t)
		out := strings.TrimSpace(c.must(t, "exec", name, "tail", "-n", "1", "/count"))
		now, err := strconv.Atoi(out)
		if err != nil || now < last {
			t.Fatalf("it had counted to %d, and now to %q", last, out)
		}
		last = now
		time.Sleep(time.Duration(last%50) * time.Millisecond)
	}
	c.enough(t, name)
}

// enough tells the script of a container to end. It isn't told by a file that a command in the container makes: that would be killed
// when the script ends, perhaps before it has.
func (c *caller) enough(t *testing.T, name string) {
	t.Helper()
	c.must(t, "kill", "--signal", "USR1", name)
}

// TestOwnersOutliveTheServer kills the server while it is asked to keep owners and devices that the one ID can't have.
func TestOwnersOutliveTheServer(t *testing.T) {
	c := newCaller(t, "user without subordinate IDs")
	importBusybox(t, c)
	const script = `i=0; trap enough=1 USR1
until [ $enough ]; do
	i=$((i+1)); touch /f$i && chown $((i+10)):$((i+20)) /f$i || exit 1
	mknod /d$i c 7 $i || exit 2
	ln -s target /l$i && chown -h 5:$i /l$i || exit 3
	echo $i
done`
	cmd := c.command(t, shared.unionfs, "run", "--name", "owners", "bb:1", "sh", "-c", script)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	said := filepath.Join(t.TempDir(), "stderr")
	stderr, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd.Stderr = stderr
	defer func() {
		if t.Failed() {
			text, _ := os.ReadFile(said)
			t.Logf("the container said: %s\nprocesses: %v", text, c.processes())
		}
	}()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	last := 0
	next := func() {
		if !lines.Scan() {
			t.Fatalf("it ended after %d", last)
		}
		fmt.Sscan(lines.Text(), &last)
	}
	next() // while the supervisor serves the root
	counted := make(chan int)
	go func() {
		n := last
		for lines.Scan() {
			fmt.Sscan(lines.Text(), &n)
		}
		counted <- n
	}()
	for range 15 {
		c.killServer(t)
		time.Sleep(time.Duration(time.Now().Nanosecond()%60) * time.Millisecond)
	}
	c.enough(t, "owners")
	last = <-counted
	if err := cmd.Wait(); err != nil {
		t.Fatalf("it counted to %d, and ended with %v", last, err)
	}
	list := c.script(t, `"$UNIONFS" export owners | tar -tv --numeric-owner -f -`)
	has := map[string]string{}
	for line := range strings.Lines(list) {
		f := strings.Fields(line)
		has[f[5]] = f[0][:1] + " " + f[1] + " " + f[2]
	}
	for i := 1; i <= last; i++ {
		for name, want := range map[string]string{
			fmt.Sprint("f", i): fmt.Sprintf("- %d/%d 0", i+10, i+20),
			fmt.Sprint("d", i): fmt.Sprintf("c 0/0 7,%d", i),
			fmt.Sprint("l", i): fmt.Sprintf("l 5/%d 0", i),
		} {
			if has[name] != want {
				t.Errorf("%s is %q, want %q", name, has[name], want)
			}
		}
	}
	c.must(t, "rm", "owners")
}

// TestHostContainerEnds kills the server of a container on this machine's own root. The next one must not have the union among the
// machine's mounts, which would then never go.
func TestHostContainerEnds(t *testing.T) {
	c := newCaller(t, "root")
	c.must(t, "run", "-d", "--name", "host", "host", "sleep", "1000")
	for range 2 {
		c.killServer(t)
		waitFor(t, func() bool { return c.server() != 0 })
	}
	c.must(t, "rm", "-f", "host")
}
