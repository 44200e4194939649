package e2e

import (
	"encoding/json"
	"fmt"
	"os"

	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"unionfs/internal/testimage"
)

// TestRestartPolicies has containers started again, or not, by what their policy says.
func TestRestartPolicies(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		names := []string{"always", "failing", "fine", "stopped", "nowhere"}
		t.Cleanup(func() { c.try(t, append([]string{"rm", "-f"}, names...)...) })
		const script = `echo run >> /runs; exit $1`
		c.must(t, "run", "-d", "--name", "failing", "--restart", "on-failure:2", "bb:1", "sh", "-c", script, "sh", "3")
		c.must(t, "run", "-d", "--name", "fine", "--restart", "on-failure", "bb:1", "sh", "-c", script, "sh", "0")
		c.must(t, "run", "-d", "--name", "always", "--restart", "always", "bb:1", "sh", "-c", "echo run; sleep 0.05")
		c.must(t, "run", "-d", "--name", "stopped", "--restart", "unless-stopped", "bb:1", "sh", "-c", "trap 'exit 1' TERM; echo ready; while :; do sleep 0.02; done")
		if got := c.must(t, "wait", "failing"); got != "3\n" {
			t.Errorf("wait: %q", got)
		}
		if got := c.must(t, "inspect", "-f", "{{.RestartCount}} {{.State.ExitCode}} {{.HostConfig.RestartPolicy.Name}} {{.HostConfig.RestartPolicy.MaximumRetryCount}}", "failing"); got != "2 3 on-failure 2\n" {
			t.Errorf("failing: %q", got)
		}
		if got := c.script(t, `"$UNIONFS" cp failing:/runs -|tar -xO`); got != "run\nrun\nrun\n" {
			t.Errorf("runs of the failing one: %q", got)
		}
		c.must(t, "wait", "fine")
		if got := c.script(t, `"$UNIONFS" cp fine:/runs -|tar -xO`); got != "run\n" {
			t.Errorf("runs of the one that is fine: %q", got)
		}
		waitFor(t, func() bool { return strings.Count(c.must(t, "logs", "always"), "run\n") > 3 })
		c.must(t, "stop", "always")
		if got := c.must(t, "ps", "-q", "--filter", "name=always"); got != "" {
			t.Errorf("a stopped one goes on: %q", got)
		}
		waitFor(t, func() bool { return c.must(t, "logs", "stopped") == "ready\n" })
		c.must(t, "stop", "-t", "60", "stopped")
		if got := c.must(t, "wait", "stopped"); got != "1\n" {
			t.Errorf("stopped: %q", got)
		}
		if r := c.try(t, "run", "-d", "--name", "nowhere", "--restart", "always", "bb:1", "/nowhere"); r.code != 127 {
			t.Errorf("a command that isn't there: %+v", r)
		}
		c.must(t, "rm", "nowhere")
		// As after a reboot: what was stopped stays so, unless it is to run always.
		if got := c.must(t, "start", "--all"); strings.Contains(got, "stopped\n") || strings.Contains(got, "fine") || !strings.Contains(got, "always\n") {
			t.Errorf("start --all: %q", got)
		}
		c.must(t, "update", "--restart", "no", "always")
		waitFor(t, func() bool { return c.must(t, "inspect", "-f", "{{.State.Status}}", "always") == "exited\n" })
		if r := c.try(t, "run", "--rm", "--restart", "always", "bb:1", "true"); r.code != 125 || !strings.Contains(r.stderr, "exclude") {
			t.Errorf("--rm and --restart: %+v", r)
		}
	})
}

// TestHealth follows a container from starting to healthy to unhealthy, with the image's check and the command line's.
func TestHealth(t *testing.T) {
	image := testimage.Busybox(t, v1.Config{
		Cmd: []string{"sh", "-c", "while :; do sleep 1; done"}, Env: []string{"PATH=/bin"},
		Healthcheck: &v1.HealthConfig{Test: []string{"CMD-SHELL", "echo looked; test -e /tmp/well"}, Interval: 50 * time.Millisecond, Retries: 2, StartPeriod: time.Hour, Timeout: 30 * time.Second},
	})
	registry := testimage.Registry(t)
	ref := registry + "/team/health:1"
	testimage.Push(t, image, ref)
	eachKind(t, func(t *testing.T, c *caller) {
		c.must(t, "pull", ref)
		t.Cleanup(func() { c.try(t, "rm", "-f", "web", "slow", "none") })
		c.must(t, "run", "-d", "--name", "web", "--health-start-interval", "50ms", ref)
		health := func(name string) string {
			return strings.TrimSpace(c.must(t, "inspect", "-f", "{{if .State.Health}}{{.State.Health.Status}}{{else}}none{{end}}", name))
		}
		if got := c.must(t, "ps", "--format", "{{.Status}}"); health("web") != "starting" || !strings.Contains(got, "(health: starting)") {
			t.Errorf("at first: %q", got)
		}
		c.must(t, "exec", "web", "touch", "/tmp/well")
		waitFor(t, func() bool { return health("web") == "healthy" })
		if got := c.must(t, "ps", "--filter", "health=healthy", "--format", "{{.Status}}"); !strings.Contains(got, "(healthy)") {
			t.Errorf("ps: %q", got)
		}
		var log []struct {
			ExitCode int
			Output   string
		}
		if err := json.Unmarshal([]byte(c.must(t, "inspect", "-f", "{{json .State.Health.Log}}", "web")), &log); err != nil || len(log) == 0 || log[len(log)-1].Output != "looked\n" || log[len(log)-1].ExitCode != 0 {
			t.Errorf("%+v, %v", log, err)
		}
		c.must(t, "run", "-d", "--name", "slow", "--health-cmd", "echo hangs; sleep 1000", "--health-interval", "20ms", "--health-timeout", "2s", "--health-retries", "1", "--health-start-period", "1ms", ref)
		waitFor(t, func() bool { return health("slow") == "unhealthy" })
		// On a machine that is slow itself, a shell may have written nothing yet.
		waitFor(t, func() bool {
			got := c.must(t, "inspect", "-f", "{{range .State.Health.Log}}{{.ExitCode}} {{.Output}}{{end}}", "slow")
			return strings.Contains(got, "-1 Health check exceeded timeout (2s): hangs\n")
		})
		if got := c.must(t, "events", "--since", "1h", "--until", "0s", "-f", "event=health_status", "-f", "container=web", "--format", "{{.Action}}"); got != "health_status: healthy\n" {
			t.Errorf("events: %q", got)
		}
		c.must(t, "run", "-d", "--name", "none", "--no-healthcheck", ref)
		if got := health("none"); got != "none" {
			t.Errorf("--no-healthcheck: %q", got)
		}
		c.must(t, "kill", "web")
		c.must(t, "wait", "web")
		if got := health("web"); got != "none" {
			t.Errorf("after the end: %q", got)
		}
	})
}

// TestAttach attaches two at once, types, and detaches by the keys.
func TestAttach(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "cat", "tty", "front") })
		c.must(t, "run", "-di", "--name", "cat", "bb:1", "sh", "-c", `while read line; do echo "got $line"; echo "err $line" >&2; test "$line" != end || exit 7; done`)
		watch := c.command(t, shared.unionfs, "attach", "--no-stdin", "cat")
		seen, err := os.Create(filepath.Join(c.home, "seen"))
		if err != nil {
			t.Fatal(err)
		}
		defer seen.Close()
		watch.Stdout, watch.Stderr = seen, seen
		if err := watch.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool { return c.must(t, "events", "--since", "1h", "--until", "0s", "-f", "event=attach") != "" })
		// ctrl-p alone is passed on; with ctrl-q after it the rest is not.
		r := run(t, withInput(c.command(t, shared.unionfs, "attach", "cat"), "one\n\x10two\n\x10\x11end\n"))
		if r.code != 0 || !strings.Contains(r.stderr, "read escape sequence") {
			t.Errorf("detached: %+v", r)
		}
		waitFor(t, func() bool {
			logs := c.try(t, "logs", "cat")
			return strings.Contains(logs.stdout, "got \x10two\n") && strings.Contains(logs.stderr, "err \x10two\n")
		})
		r = run(t, withInput(c.command(t, shared.unionfs, "attach", "--detach-keys", "ctrl-x", "cat"), "\x10\x11three\nend\n"))
		if r.code != 7 || r.stdout != "got \x10\x11three\ngot end\n" || r.stderr != "err \x10\x11three\nerr end\n" {
			t.Errorf("attached to the end: %+v", r)
		}
		watch.Wait()
		text, _ := os.ReadFile(seen.Name())
		if code := watch.ProcessState.ExitCode(); code != 7 || !strings.Contains(string(text), "got one\n") || !strings.Contains(string(text), "err end\n") {
			t.Errorf("who watched: %d, %q", code, text)
		}
		if r := c.try(t, "attach", "cat"); r.code != 1 || !strings.Contains(r.stderr, "not running") {
			t.Errorf("attach to what has ended: %+v", r)
		}
		// Signals are passed on; and a terminal echoes.
		c.must(t, "run", "-dit", "--name", "tty", "bb:1", "sh", "-c", "trap 'echo got it; exit 5' TERM; echo ready; while :; do sleep 0.02; done")
		attached := c.command(t, shared.unionfs, "attach", "tty")
		out, err := os.Create(filepath.Join(c.home, "out"))
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		attached.Stdout = out
		if err := attached.Start(); err != nil {
			t.Fatal(err)
		}
		waitFor(t, func() bool {
			return c.must(t, "events", "--since", "1h", "--until", "0s", "-f", "event=attach", "-f", "container=tty") != ""
		})
		waitFor(t, func() bool { return strings.Contains(c.must(t, "logs", "tty"), "ready") }) // it has its trap
		attached.Process.Signal(syscall.SIGTERM)
		attached.Wait()
		text, _ = os.ReadFile(out.Name())
		if code := attached.ProcessState.ExitCode(); code != 5 || !strings.Contains(string(text), "got it") {
			t.Errorf("signalled: %d, %q", code, text)
		}
	})
}

// TestUpdateAndStats changes limits while a container runs, and reads what it uses.
func TestUpdateAndStats(t *testing.T) {
	c := newCaller(t, "root")
	importBusybox(t, c)
	t.Cleanup(func() { c.try(t, "rm", "-f", "box") })
	id := strings.TrimSpace(c.must(t, "run", "-d", "--name", "box", "bb:1", "sh", "-c", "while :; do :; done"))
	row := func() (r struct{ ID, Name, CPUPerc, MemUsage, MemPerc, PIDs, NetIO string }) {
		t.Helper()
		if err := json.Unmarshal([]byte(c.must(t, "stats", "--no-stream", "--format", "json", "box")), &r); err != nil {
			t.Fatal(err)
		}
		return r
	}
	waitFor(t, func() bool { return row().CPUPerc != "0.00%" })
	if r := row(); r.ID != id[:12] || r.Name != "box" || r.PIDs == "0" || !strings.Contains(r.NetIO, "B / ") {
		t.Errorf("%+v", r)
	}
	// It had no limit, so no cgroup.
	if got := c.must(t, "update", "--memory", "64m", "--pids-limit", "30", "--cpus", "0.5", "box"); got != "box\n" {
		t.Errorf("update: %q", got)
	}
	if r := row(); !strings.HasSuffix(r.MemUsage, " / 64MiB") {
		t.Errorf("%+v", r)
	}
	file := func(name string) string {
		t.Helper()
		all, _ := filepath.Glob("/sys/fs/cgroup/*/unionfs-" + id + "/" + name)
		deep, _ := filepath.Glob("/sys/fs/cgroup/*/*/*/unionfs-" + id + "/" + name)
		if all = append(all, deep...); len(all) != 1 {
			t.Fatalf("%s: %q", name, all)
		}
		data, err := os.ReadFile(all[0])
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(data))
	}
	if got := file("memory.limit_in_bytes"); got != fmt.Sprint(64<<20) {
		t.Errorf("memory: %s", got)
	}
	if got := file("pids.max"); got != "40" { // with the init's threads
		t.Errorf("processes: %s", got)
	}
	c.must(t, "update", "--memory", "256m", "--pids-limit", "-1", "box") // up, where the order of writing matters
	if got := file("memory.limit_in_bytes") + " " + file("pids.max"); got != fmt.Sprint(256<<20, " max") {
		t.Errorf("raised: %s", got)
	}
	c.must(t, "update", "--memory", "32m", "box")
	if got := c.must(t, "inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}} {{.HostConfig.PidsLimit}}", "box"); got != fmt.Sprint(32<<20, " 500000000 -1\n") {
		t.Errorf("inspect: %q", got)
	}
	c.must(t, "rm", "-f", "box")
	if left, _ := filepath.Glob("/sys/fs/cgroup/*/unionfs-" + id); len(left) > 0 {
		t.Errorf("left: %q", left)
	}
	if r := c.try(t, "update", "--restart", "sometimes", "box"); r.code != 2 {
		t.Errorf("%+v", r)
	}
}
