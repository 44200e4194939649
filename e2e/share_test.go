package e2e

import (
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
		oneLine(t, c.try(t, "run", "--rm", "--pid", "container:one", "bb:1", "true"), 125, "--pid container:one")
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
