package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"unionfs/internal/testimage"
)

// TestPullToRun has run and create get their image as --pull says.
func TestPullToRun(t *testing.T) {
	registry := testimage.Registry(t)
	ref := registry + "/team/tool:1"
	version := func(name string) {
		testimage.Push(t, testimage.Busybox(t, v1.Config{Cmd: []string{"echo", name}, Env: []string{"PATH=/bin"}}), ref)
	}
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			c := newCaller(t, kind)
			version("one")
			oneLine(t, c.try(t, "run", "--rm", "--pull", "never", ref), 125, "no such image")
			if r := c.try(t, "run", "--rm", ref); r.code != 0 || r.stdout != "one\n" || !strings.Contains(r.stderr, "is not here: pulling it") {
				t.Errorf("missing: %+v", r)
			}
			version("two")
			if r := c.try(t, "run", "--rm", ref); r.stdout != "one\n" || r.stderr != "" {
				t.Errorf("there already: %+v", r)
			}
			if r := c.try(t, "run", "--rm", "--pull", "always", "-q", ref); r.stdout != "two\n" || r.stderr != "" {
				t.Errorf("always, quietly: %+v", r)
			}
			if r := c.try(t, "run", "--rm", registry+"/team/none:1"); r.code != 125 || !strings.Contains(r.stderr, "could not be had") {
				t.Errorf("an image that there is not: %+v", r)
			}
			c.must(t, "create", "--name", "box", "--pull", "missing", ref)
			c.must(t, "rm", "box")
		})
	}
}

// TestRunNotes checks what run and create note about a container: its ID in a file, labels, annotations and names.
func TestRunNotes(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "box") })
		file, labels := filepath.Join(c.home, "id"), filepath.Join(c.home, "labels")
		if err := os.WriteFile(labels, []byte("# words\na=1\n\nb=2\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		out := c.must(t, "run", "--name", "box", "--cidfile", file, "--label-file", labels, "-l", "b=3", "--annotation", "org.example=x",
			"-h", "little", "--domainname", "example.org", "bb:1", "sh", "-c", "hostname; cat /proc/sys/kernel/domainname")
		if out != "little\nexample.org\n" {
			t.Errorf("names: %q", out)
		}
		var all []struct {
			ID     string `json:"Id"`
			Config struct {
				Labels map[string]string
			}
		}
		if err := json.Unmarshal([]byte(c.must(t, "inspect", "box")), &all); err != nil || len(all) != 1 {
			t.Fatal(err)
		}
		if id, err := os.ReadFile(file); err != nil || string(id) != all[0].ID {
			t.Errorf("--cidfile: %q, %v", id, err)
		}
		if l := all[0].Config.Labels; l["a"] != "1" || l["b"] != "3" || l["org.example"] != "x" {
			t.Errorf("labels: %v", l)
		}
		oneLine(t, c.try(t, "run", "--cidfile", file, "bb:1", "true"), 125, "--cidfile", "there already")
		other := filepath.Join(c.home, "other")
		oneLine(t, c.try(t, "run", "--name", "box", "--cidfile", other, "bb:1", "true"), 125, "name is in use")
		if _, err := os.Lstat(other); err == nil {
			t.Error("the file of a container that was not made is left")
		}
	})
}

// TestListingFlags checks the sizes, filters and fields of "ps", and what "inspect" finds.
func TestListingFlags(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "first", "second") })
		first := strings.TrimSpace(c.must(t, "create", "--name", "first", "-p", "8080:80", "--expose", "90", "--network", "bridge", "bb:1", "true"))
		c.must(t, "run", "--name", "second", "bb:1", "sh", "-c", "head -c 5000 /dev/zero >/a; ln /a /b")
		if got := c.must(t, "ps", "-a", "--filter", "name=first", "--format", "{{.ID}} {{.Networks}}"); got != first[:12]+" bridge\n" {
			t.Errorf("ps: %q", got)
		}
		if got := c.must(t, "ps", "-a", "--no-trunc", "--filter", "name=first", "--format", "{{.ID}}"); got != first+"\n" {
			t.Errorf("ps --no-trunc: %q", got)
		}
		for filter, want := range map[string]string{
			"network=bridge": "first", "network=none": "second", "before=second": "first", "since=first": "second",
			"publish=80": "first", "publish=80/udp": "", "publish=90": "", "expose=90/tcp": "first", "expose=85-95": "first",
		} {
			if got := strings.TrimSpace(c.must(t, "ps", "-a", "--filter", filter, "--format", "{{.Names}}")); got != want {
				t.Errorf("ps --filter %s: %q, want %q", filter, got, want)
			}
		}
		oneLine(t, c.try(t, "ps", "-a", "--filter", "before=nowhere"), 1, "before=nowhere", "no such container")
		// A file counts once, whatever the number of its names.
		if got := c.must(t, "ps", "-as", "--filter", "name=second"); !strings.Contains(got, "SIZE") || !strings.Contains(got, "5kB (virtual ") {
			t.Errorf("ps -s: %q", got)
		}
		if got := c.must(t, "ps", "-a", "--filter", "name=first", "--format", "{{.Size}}"); !strings.HasPrefix(got, "0B (virtual ") {
			t.Errorf("size by template: %q", got)
		}
		if got := c.must(t, "inspect", "-s", "-f", "{{.SizeRw}}", "second"); got != "5000\n" {
			t.Errorf("inspect -s: %q", got)
		}
		c.must(t, "volume", "create", "Data")
		for ref, want := range map[string]string{"first": "/first", "Data": "Data", "bridge": "bridge"} {
			if got := c.must(t, "inspect", "-f", "{{.Name}}", ref); got != want+"\n" {
				t.Errorf("inspect %s: %q", ref, got)
			}
		}
		if r := c.try(t, "inspect", "--type", "image", "first"); r.code != 1 || !strings.Contains(r.stderr, "no such image") {
			t.Errorf("inspect --type image of a container: %+v", r)
		}
		if r := c.try(t, "inspect", "nowhere"); r.code != 1 || r.stdout != "[]\n" || !strings.Contains(r.stderr, `no container, image, volume or network "nowhere"`) {
			t.Errorf("inspect of nothing: %+v", r)
		}
		c.must(t, "volume", "rm", "Data")
		if got := c.must(t, "network", "ls", "--no-trunc", "--filter", "name=bridge", "-q"); len(got) != 65 {
			t.Errorf("network ls --no-trunc: %q", got)
		}
		if got := c.must(t, "network", "inspect", "-f", "{{.Name}} {{len .IPAM.Config}}", "bridge"); got != "bridge 1\n" {
			t.Errorf("network inspect -f: %q", got)
		}
	})
}

// TestRunningFlags checks flags of the verbs for running containers.
func TestRunningFlags(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "box") })
		c.must(t, "run", "-d", "--name", "box", "bb:1", "sh", "-c", "trap 'exit 9' USR1; trap '' TERM; echo ready; while :; do sleep 0.02; done")
		waitFor(t, func() bool { return c.must(t, "logs", "box") == "ready\n" })
		if got := c.must(t, "top", "box", "-o", "pid,args"); !strings.Contains(got, "PID COMMAND") || !strings.Contains(got, "unionfs-init") || strings.Contains(got, "kthreadd") {
			t.Errorf("top by ps: %q", got)
		}
		oneLine(t, c.try(t, "top", "box", "-o", "args"), 1, "no column PID")
		// With more than the container's own: a change of the user namespace's own parameters is one that its filter forbids.
		const plain, all = "CapBnd:\t00000000a80425fb\n", "Seccomp:\t0\n"
		if got := c.must(t, "exec", "box", "grep", "CapBnd", "/proc/self/status"); got != plain {
			t.Errorf("exec: %q", got)
		}
		if got := c.must(t, "exec", "--privileged", "box", "grep", "-E", "CapBnd|Seccomp:", "/proc/self/status"); strings.Contains(got, plain) || (c.uid == 0 || c.subordinates) && !strings.Contains(got, all) {
			t.Errorf("exec --privileged: %q", got)
		}
		// The keys leave the command running, whenever they come.
		r := run(t, withInput(c.command(t, shared.unionfs, "exec", "-it", "box", "sh", "-c", "echo $$ >/pid; while :; do echo more; sleep 0.01; done"), "\x10\x11"))
		if r.code != 0 || !strings.Contains(r.stderr, "read escape sequence") {
			t.Errorf("detached: %+v", r)
		}
		waitFor(t, func() bool { return c.try(t, "exec", "box", "sh", "-c", "kill -0 $(cat /pid)").code == 0 })
		if r := run(t, withInput(c.command(t, shared.unionfs, "exec", "-it", "--detach-keys", "ctrl-x", "box", "sh", "-c", "head -n 1 | od -c"), "\x10a\n")); r.code != 0 || !strings.Contains(r.stdout, "020   a") {
			t.Errorf("other keys: %+v", r)
		}
		c.must(t, "stop", "-s", "USR1", "--timeout", "60", "box")
		if got := c.must(t, "wait", "box"); got != "9\n" {
			t.Errorf("stop -s: %q", got)
		}
		oneLine(t, c.try(t, "stop", "-s", "NOSUCH", "box"), 2, "NOSUCH")
	})
}

// TestRestartFromTheFront has containers with a restart policy run in front: their callers see one run, and they go on behind.
func TestRestartFromTheFront(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "failing", "always", "orphan", "tty") })
		r := c.try(t, "run", "--name", "failing", "--restart", "on-failure:2", "bb:1", "sh", "-c", "echo run; exit 3")
		if r.code != 3 || r.stdout != "run\n" || r.stderr != "" {
			t.Errorf("in front: %+v", r)
		}
		waitFor(t, func() bool { return c.must(t, "inspect", "-f", "{{.State.Status}}", "failing") == "exited\n" })
		if got := c.must(t, "inspect", "-f", "{{.RestartCount}} {{.State.ExitCode}}", "failing"); got != "2 3\n" {
			t.Errorf("behind: %q", got)
		}
		if got := c.must(t, "logs", "failing"); got != "run\nrun\n" {
			t.Errorf("logs: %q", got)
		}
		// Who reads its output sees the end of it.
		if got := c.script(t, `"$UNIONFS" run --name always --restart always bb:1 sh -c 'echo run; sleep 0.1' 2>&1 | cat`); got != "run\n" {
			t.Errorf("by a pipe: %q", got)
		}
		waitFor(t, func() bool { return strings.Count(c.must(t, "logs", "always"), "run\n") > 1 })
		c.must(t, "stop", "always")
		if got := c.must(t, "inspect", "-f", "{{.State.Status}}", "always"); got != "exited\n" {
			t.Errorf("stopped: %q", got)
		}
		if r := c.try(t, "run", "-t", "--name", "tty", "--restart", "on-failure:1", "bb:1", "sh", "-c", "tty; exit 4"); r.code != 4 || !strings.HasPrefix(r.stdout, "/dev/") {
			t.Errorf("with a terminal: %+v", r)
		}
		waitFor(t, func() bool { return c.must(t, "logs", "tty") != "" })
		// One whose caller dies is not started again.
		caller := c.command(t, shared.unionfs, "run", "--name", "orphan", "--restart", "always", "bb:1", "sh", "-c", "echo x >>/runs; while :; do sleep 0.02; done")
		if err := caller.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return c.try(t, "exec", "orphan", "test", "-e", "/runs").code == 0 })
		caller.Process.Kill()
		caller.Wait()
		waitFor(t, func() bool { return c.must(t, "inspect", "-f", "{{.State.Status}}", "orphan") == "exited\n" })
		if got := c.script(t, `"$UNIONFS" cp orphan:/runs - | tar -xO`); got != "x\n" {
			t.Errorf("runs of the one whose caller died: %q", got)
		}
	})
}

// TestRunAttach: run --attach passes on the streams that it names, and no others.
func TestRunAttach(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		const script = "cat; echo error >&2"
		for _, test := range []struct {
			flags          []string
			stdout, stderr string
		}{
			{nil, "", "error\n"},
			{[]string{"-i"}, "input\n", "error\n"},
			{[]string{"-i", "-a", "stdin", "-a", "STDOUT"}, "input\n", ""},
			{[]string{"-i", "--attach", "stderr"}, "", "error\n"},
			{[]string{"-a", "stdin"}, "", ""},
		} {
			args := slices.Concat([]string{"run", "--rm", "--network", "none"}, test.flags, []string{"bb:1", "sh", "-c", script})
			r := run(t, withInput(c.command(t, shared.unionfs, args...), "input\n"))
			if r.code != 0 || r.stdout != test.stdout || r.stderr != test.stderr {
				t.Errorf("%q: %+v, want %q and %q", test.flags, r, test.stdout, test.stderr)
			}
		}
		c.must(t, "run", "--name", "front", "--network", "none", "bb:1", "echo", "hello")
		oneLine(t, c.try(t, "logs", "front"), 0, "front", "in the background")
		c.must(t, "rm", "front")
		oneLine(t, c.try(t, "run", "-d", "-a", "stdout", "bb:1", "true"), 125, "--attach", "--detach")
		oneLine(t, c.try(t, "create", "-a", "output", "bb:1", "true"), 125, `"output"`, "stdin, stdout or stderr")
	})
}

// TestSigProxy runs containers that get no signals of their caller's: they run in the background, and it watches them.
func TestSigProxy(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "kept", "again") })
		with := func(args ...string) []string {
			return slices.Concat([]string{"run", "--sig-proxy=false", "--network", "none"}, args)
		}
		for _, test := range []struct {
			args           []string
			code           int
			stdout, stderr string
		}{
			{[]string{"--rm", "bb:1", "sh", "-c", "echo out; echo err >&2; cat; exit 3"}, 3, "out\n", "err\n"},
			{[]string{"--rm", "-i", "bb:1", "sh", "-c", "cat; echo over"}, 0, "input\nover\n", ""},
			{[]string{"--rm", "-it", "bb:1", "sh", "-c", "stty -echo; echo on; cat; exit 4"}, 4, "input", ""},
			{[]string{"--rm", "-a", "stderr", "bb:1", "sh", "-c", "echo out; echo err >&2"}, 0, "", "err\n"},
			{[]string{"--rm", "bb:1", "seq", "100000"}, 0, "\n99999\n100000\n", ""},
			{[]string{"--rm", "bb:1", "nosuch"}, 127, "", "nosuch"},
		} {
			r := run(t, withInput(c.command(t, shared.unionfs, with(test.args...)...), "input\n"))
			if r.code != test.code || !strings.Contains(r.stdout, test.stdout) || !strings.Contains(r.stderr, test.stderr) || test.stdout == "" && r.stdout != "" {
				t.Errorf("%q: %+v, want %+v", test.args, r, test)
			}
		}
		if left := c.must(t, "ps", "-aq"); left != "" {
			t.Errorf("containers are left: %q", left)
		}

		seen := func(command *exec.Cmd) func() string {
			out, err := os.CreateTemp(c.home, "out-")
			if err != nil {
				t.Fatal(err)
			}
			defer out.Close()
			command.Stdout = out
			if err := command.Start(); err != nil {
				t.Fatal(err)
			}
			return func() string { text, _ := os.ReadFile(out.Name()); return string(text) }
		}
		watch := c.command(t, shared.unionfs, with("--name", "kept", "bb:1", "sh", "-c", "echo ready; while ! test -e /end; do sleep 0.05; done; echo over; exit 5")...)
		text := seen(watch)
		waitFor(t, func() bool { return text() == "ready\n" })
		watch.Process.Signal(syscall.SIGINT)
		watch.Wait()
		if status := watch.ProcessState.Sys().(syscall.WaitStatus); status.Signal() != syscall.SIGINT {
			t.Errorf("the caller: %v", watch.ProcessState)
		}
		// Who attaches now sees the rest, and the end of it is written down when they hear of it.
		if running := c.must(t, "inspect", "-f", "{{.State.Running}}", "kept"); running != "true\n" {
			t.Errorf("left by its caller: %q", running)
		}
		attach := c.command(t, shared.unionfs, "attach", "--no-stdin", "kept")
		text = seen(attach)
		waitFor(t, func() bool {
			return c.must(t, "events", "--since", "1h", "--until", "0s", "-f", "event=attach", "-f", "container=kept", "--format", "{{.Action}}") == "attach\nattach\n"
		})
		c.must(t, "exec", "kept", "touch", "/end")
		attach.Wait()
		if code := attach.ProcessState.ExitCode(); code != 5 || text() != "over\n" {
			t.Errorf("attached: %d, %q", code, text())
		}
		if logs := c.must(t, "logs", "kept"); logs != "ready\nover\n" {
			t.Errorf("log: %q", logs)
		}
		c.must(t, "rm", "kept")

		c.must(t, "create", "-i", "--name", "again", "--network", "none", "bb:1", "cat")
		for range 2 {
			r := run(t, withInput(c.command(t, shared.unionfs, "start", "-i", "--sig-proxy=false", "again"), "input\n"))
			if r.code != 0 || r.stdout != "input\n" {
				t.Errorf("start: %+v", r)
			}
		}
	})
}
