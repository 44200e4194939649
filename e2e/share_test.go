package e2e

import (
	"encoding/json"
	"os"
	"strings"
	"testing"
)

// TestNamespacesOfAnotherContainer starts containers in namespaces of a running one.
func TestNamespacesOfAnotherContainer(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		c.must(t, "run", "-d", "--name", "one", "--hostname", "first", "bb:1", "sleep", "1000")
		t.Cleanup(func() { c.try(t, "rm", "-f", "one") })
		c.must(t, "exec", "one", "sh", "-c", "echo here > /dev/shm/file")
		const script = `for n in ipc uts cgroup pid mnt user; do readlink /proc/self/ns/$n; done; hostname; cat /dev/shm/file; ls /sys/fs/cgroup | sort`
		of := func(out string) (namespaces map[string]string, rest string) {
			lines := strings.SplitN(out, "\n", 7)
			if len(lines) != 7 {
				t.Fatalf("output %q", out)
			}
			namespaces = map[string]string{}
			for _, l := range lines[:6] {
				kind, id, _ := strings.Cut(l, ":")
				namespaces[kind] = id
			}
			return namespaces, lines[6]
		}
		theirs, rest := of(c.must(t, "exec", "one", "sh", "-c", script))
		ours, same := of(c.must(t, "run", "--rm", "--ipc", "container:one", "--uts", "container:one", "--cgroupns", "container:one", "bb:1", "sh", "-c", script))
		for kind, id := range ours {
			if shared := kind == "ipc" || kind == "uts" || kind == "cgroup"; shared != (id == theirs[kind]) {
				t.Errorf("namespace %s is %s, and the other container's %s", kind, id, theirs[kind])
			}
		}
		if !strings.HasPrefix(rest, "first\nhere\n") || same != rest {
			t.Errorf("it sees %q, and the other container %q", same, rest)
		}
		// What it makes in shared memory outlives it.
		c.must(t, "run", "--rm", "--ipc", "container:one", "bb:1", "sh", "-c", "echo there > /dev/shm/other")
		if got := c.must(t, "exec", "one", "cat", "/dev/shm/other"); got != "there\n" {
			t.Errorf("the first one reads %q", got)
		}
		oneLine(t, c.try(t, "run", "--rm", "--ipc", "container:nobody", "bb:1", "true"), 125, "no such container")
		oneLine(t, c.try(t, "run", "--rm", "--uts", "container:one", "--hostname", "x", "bb:1", "true"), 125, "--hostname")
		if c.uid != 0 {
			oneLine(t, c.try(t, "run", "--rm", "--network", "bridge", "--ipc", "container:one", "bb:1", "true"), 125, "another user namespace")
		}
		c.must(t, "rm", "-f", "one")
		c.must(t, "create", "--name", "two", "bb:1", "true")
		oneLine(t, c.try(t, "run", "--rm", "--ipc", "container:two", "bb:1", "true"), 125, "not running")
		c.must(t, "rm", "two")
	})
}

// TestSharedPIDs starts containers in the PID namespace of a running one and in the machine's, and for users without a cgroup of
// their own looks at what they are told.
func TestSharedPIDs(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		c.must(t, "run", "-d", "--name", "one", "bb:1", "sleep", "1001")
		if c.uid != 0 {
			for _, mode := range []string{"host", "container:one"} {
				oneLine(t, c.try(t, "run", "--rm", "--pid", mode, "bb:1", "true"), 125, "cgroup of its own", "Delegate=yes")
			}
		}
		c.delegateCgroup(t)
		t.Cleanup(func() { c.try(t, "rm", "-f", "one", "two") })
		own, err := os.Readlink("/proc/self/ns/pid")
		if err != nil {
			t.Fatal(err)
		}
		mark := "MARK=" + c.home
		got := c.must(t, "run", "--rm", "--pid", "host", "-e", mark, "bb:1", "sh", "-c", "sleep 1002 >/dev/null & (setsid sleep 1002 >/dev/null &); readlink /proc/self/ns/pid; chown 5:6 /tmp && rmdir /tmp && echo owned")
		if got != own+"\nowned\n" {
			t.Errorf("with the machine's: %q", got)
		}
		waitFor(t, func() bool { return len(c.inContainers()) == 0 })
		theirs := c.must(t, "exec", "one", "readlink", "/proc/self/ns/pid")
		c.must(t, "run", "-d", "--name", "two", "--pid", "container:one", "-e", mark, "bb:1", "sh", "-c", "trap 'exit 4' TERM; echo ready; (setsid sleep 1002 &); while :; do sleep 0.02; done")
		if got := c.must(t, "exec", "two", "sh", "-c", "readlink /proc/self/ns/pid; until pidof sleep > /dev/null; do sleep 0.02; done; grep -l '100[1]' /proc/[0-9]*/cmdline | wc -l"); got != theirs+"1\n" {
			t.Errorf("with another container's: %q, want %q", got, theirs)
		}
		if got := c.must(t, "top", "two"); strings.Contains(got, "sleep 1001") || !strings.Contains(got, "sleep 1002") {
			t.Errorf("top: %q", got)
		}
		var all []struct{ HostConfig struct{ PidMode string } }
		if err := json.Unmarshal([]byte(c.must(t, "inspect", "two")), &all); err != nil || !strings.HasPrefix(all[0].HostConfig.PidMode, "container:") {
			t.Errorf("inspect: %+v, %v", all, err)
		}
		waitFor(t, func() bool { return c.must(t, "logs", "two") == "ready\n" })
		c.must(t, "stop", "-t", "60", "two")
		if got := c.must(t, "wait", "two"); got != "4\n" {
			t.Errorf("stopped: %q", got)
		}
		waitFor(t, func() bool { return len(c.inContainers()) == 0 })
		// The other's first process has yet to reap those that were killed.
		const count = "for i in $(seq 1000); do set -- $(pidof sleep); test $# -le 1 && break; done; echo $#"
		if got := c.must(t, "exec", "one", "sh", "-c", count); got != "1\n" {
			t.Errorf("the other container: %q", got)
		}
		// It is in that one, and ends with it.
		c.must(t, "start", "two")
		c.must(t, "rm", "-f", "one")
		if got := c.must(t, "wait", "two"); got != "137\n" {
			t.Errorf("ended with the other: %q", got)
		}
		// Its files can be had all the same.
		c.must(t, "cp", "two:/etc/passwd", "passwd")
		oneLine(t, c.try(t, "start", "two"), 125, "sharing")
	})
}
