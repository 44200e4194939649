package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestPauseAndEvents pauses and ends a container, and reads what happened to it.
func TestPauseAndEvents(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "web", "other") })
		id := strings.TrimSpace(c.must(t, "run", "-d", "--name", "web", "-l", "job=x", "bb:1", "sleep", "1000"))
		if got := c.must(t, "pause", "web"); got != "web\n" {
			t.Errorf("pause: %q", got)
		}
		if got := c.must(t, "ps", "--filter", "status=paused", "--format", "{{.Names}} {{.State}} {{.Status}}"); !strings.HasPrefix(got, "web paused Up ") || !strings.HasSuffix(got, "(Paused)\n") {
			t.Errorf("ps: %q", got)
		}
		if got := c.must(t, "inspect", "-f", "{{.State.Status}} {{.State.Paused}} {{.State.Running}}", "web"); got != "paused true true\n" {
			t.Errorf("inspect: %q", got)
		}
		c.must(t, "unpause", "web")
		c.must(t, "rename", "web", "other")
		c.must(t, "pause", "other")
		// A paused one ends as any other.
		c.must(t, "stop", "-t", "60", "other")
		c.must(t, "volume", "create", "v")
		c.must(t, "volume", "rm", "v")
		c.must(t, "rm", "other")

		got := c.must(t, "events", "--since", "1h", "--until", "0s", "--filter", "container="+id[:12], "--format", "{{.Action}}")
		if want := "create start pause unpause rename pause kill unpause die stop destroy"; strings.Join(strings.Fields(got), " ") != want {
			t.Errorf("events: %q", got)
		}
		if got := c.must(t, "events", "--since", "1h", "--until", "0s", "-f", "type=volume", "--format", "{{.Action}} {{.Actor.ID}}"); got != "create v\ndestroy v\n" {
			t.Errorf("volume events: %q", got)
		}
		line := c.must(t, "events", "--since", "1h", "--until", "0s", "-f", "event=die", "-f", "label=job=x")
		if !strings.Contains(line, " container die "+id+" (exitCode=143, image=bb:1, job=x, name=") {
			t.Errorf("die: %q", line)
		}
		var e struct {
			Status, ID, From, Type, Action string
			TimeNano                       int64 `json:"timeNano"`
		}
		if err := json.Unmarshal([]byte(c.must(t, "events", "--since", "1h", "--until", "0s", "-f", "event=start", "--format", "json")), &e); err != nil || e.Status != "start" || e.ID != id || e.From != "bb:1" || e.TimeNano == 0 {
			t.Errorf("%+v, %v", e, err)
		}
	})
}
