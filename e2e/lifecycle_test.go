package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestLifecycle walks a container through its life in the background, with Docker's verbs.
func TestLifecycle(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		const script = `trap 'echo bye; exit 4' USR1; echo "$GREETING"; echo err >&2; while :; do sleep 0.02; done`
		// The session that starts it is gone when this returns.
		id := strings.TrimSpace(c.script(t, `setsid -w "$UNIONFS" run -d --name web -l job=x -e GREETING=hello --stop-signal USR1 --log-opt max-size=1m --log-opt labels=job,none --log-opt env=GREETING bb:1 sh -c "$1"`, script))
		t.Cleanup(func() { c.try(t, "rm", "-f", "web", "other", "made") })
		if len(id) != 64 {
			t.Fatalf("run -d printed %q", id)
		}
		waitFor(t, func() bool { r := c.try(t, "logs", "web"); return r.stdout == "hello\n" && r.stderr == "err\n" })
		if got := c.must(t, "logs", "-t", "--tail", "1", "web"); got != "" && !strings.HasSuffix(got, "Z hello\n") {
			t.Errorf("logs -t: %q", got)
		}
		if got := c.must(t, "logs", "--details", "web"); got != "GREETING=hello,job=x hello\n" {
			t.Errorf("logs --details: %q", got)
		}
		if got := c.must(t, "inspect", "-f", "{{.HostConfig.LogConfig.Config.labels}} {{.HostConfig.LogConfig.Config.env}}", "web"); got != "job,none GREETING\n" {
			t.Errorf("what is shown with the log: %q", got)
		}
		if got := c.must(t, "logs", "--since", "2100-01-01", "web"); got != "" {
			t.Errorf("logs --since: %q", got)
		}
		if got := c.must(t, "ps", "-q", "--filter", "label=job", "--filter", "name=we"); got != id[:12]+"\n" {
			t.Errorf("ps --filter: %q", got)
		}
		if got := c.must(t, "ps", "-q", "--filter", "status=exited"); got != "" {
			t.Errorf("ps --filter status=exited: %q", got)
		}

		if r := c.try(t, "exec", "-e", "A=b", "-w", "/tmp", "web", "sh", "-c", `echo "$A $GREETING $(pwd)"; exit 3`); r.code != 3 || r.stdout != "b hello /tmp\n" {
			t.Errorf("exec: %+v", r)
		}
		if got := c.script(t, `echo typed | "$UNIONFS" exec -i web cat`); got != "typed\n" {
			t.Errorf("exec -i: %q", got)
		}
		if r := c.try(t, "exec", "web", "nowhere"); r.code != 127 {
			t.Errorf("exec of no command: %+v", r)
		}
		if r := c.try(t, "exec", "-d", "web", "sh", "-c", "echo written > /tmp/by-exec"); r.code != 0 || r.stdout+r.stderr != "" {
			t.Errorf("exec -d: %+v", r)
		}
		waitFor(t, func() bool { return c.try(t, "exec", "web", "cat", "/tmp/by-exec").stdout == "written\n" })

		if got := c.must(t, "top", "web"); strings.Count(got, "\n") < 3 || !strings.HasPrefix(got, "UID") || !strings.Contains(got, "unionfs-init") {
			t.Errorf("top: %q", got)
		}
		c.must(t, "rename", "web", "other")
		var details []struct {
			ID    string `json:"Id"`
			Name  string
			State struct {
				Status   string
				Running  bool
				Pid      int
				ExitCode int
			}
			Config struct {
				Image, StopSignal string
				Labels            map[string]string
			}
		}
		inspect := func() {
			t.Helper()
			if err := json.Unmarshal([]byte(c.must(t, "inspect", "other")), &details); err != nil || len(details) != 1 {
				t.Fatalf("inspect: %v, %+v", err, details)
			}
		}
		inspect()
		d := details[0]
		if d.ID != id || d.Name != "/other" || !d.State.Running || d.State.Pid == 0 || d.Config.Image != "bb:1" || d.Config.StopSignal != "USR1" || len(d.Config.Labels) != 1 {
			t.Errorf("inspect: %+v", d)
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", d.State.Pid)); err != nil {
			t.Errorf("the init: %v", err)
		}

		if got := c.must(t, "stop", "-t", "60", "other"); got != "other\n" {
			t.Errorf("stop: %q", got)
		}
		if got := c.must(t, "wait", "other"); got != "4\n" {
			t.Errorf("wait: %q", got)
		}
		if got := c.must(t, "logs", "-f", "--tail", "1", "other"); got != "bye\n" {
			t.Errorf("logs after the end: %q", got)
		}
		if inspect(); details[0].State.Status != "exited" || details[0].State.ExitCode != 4 {
			t.Errorf("inspect after the end: %+v", details[0])
		}
		if r := c.try(t, "exec", "other", "true"); r.code != 125 || !strings.Contains(r.stderr, "not running") {
			t.Errorf("exec after the end: %+v", r)
		}
		c.must(t, "restart", "other")
		waitFor(t, func() bool { return c.must(t, "logs", "other") == "hello\nbye\nhello\n" })
		// What was written before is still there.
		if got := c.must(t, "exec", "other", "cat", "/tmp/by-exec"); got != "written\n" {
			t.Errorf("after a restart: %q", got)
		}
		c.must(t, "kill", "-s", "USR1", "other")
		if got := c.must(t, "wait", "other"); got != "4\n" {
			t.Errorf("wait after kill -s: %q", got)
		}
		c.must(t, "start", "other")
		c.must(t, "kill", "other")
		if got := c.must(t, "wait", "other"); got != "137\n" {
			t.Errorf("wait after kill: %q", got)
		}

		c.must(t, "create", "-i", "--name", "made", "bb:1", "sh", "-c", "cat; exit 6")
		if r := run(t, withInput(c.command(t, shared.unionfs, "start", "-ai", "made"), "given")); r.code != 6 || r.stdout != "given" {
			t.Errorf("start -ai: %+v", r)
		}
		if got := c.must(t, "container", "prune", "-f", "--filter", "exited=6"); len(got) != 65 {
			t.Errorf("container prune: %q", got)
		}
		c.must(t, "run", "-d", "--rm", "--name", "made", "bb:1", "true")
		waitFor(t, func() bool { return c.must(t, "ps", "-aq", "--filter", "name=made") == "" })
		if got := c.must(t, "container", "prune", "-f"); got != id+"\n" {
			t.Errorf("container prune: %q", got)
		}
		if got := c.must(t, "ps", "-a", "-q"); got != "" {
			t.Errorf("ps after prune: %q", got)
		}
	})
}

func withInput(command *exec.Cmd, input string) *exec.Cmd {
	command.Stdin = strings.NewReader(input)
	return command
}
