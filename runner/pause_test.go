package runner

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// counting is a container in the background that adds a line to /tmp/lines all the time, with a child of its own.
func counting(t *testing.T, w *ward) *Container {
	t.Helper()
	return w.detach(w.shell("(while :; do echo child >>/tmp/lines; sleep 0.01; done) & while :; do echo parent >>/tmp/lines; sleep 0.01; done")).container
}

// TestPause holds a container, looks whether it stands still, and lets it go on; then ends one that is paused.
func TestPause(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		c := counting(t, w)
		size := func() int64 {
			st, err := os.Stat(filepath.Join(w.root, "tmp/lines"))
			if err != nil {
				return 0
			}
			return st.Size()
		}
		moves := func(what string) {
			t.Helper()
			before := size()
			eventually(t, what, func() bool { return size() > before })
		}
		ask := func(what string) {
			t.Helper()
			if res := finish(t, w.verb("test-"+what, w.state, c.ID)); res.code != 0 {
				t.Fatalf("%s: %+v", what, res)
			}
		}
		moves("it writes")
		ask("pause")
		before := size()
		time.Sleep(200 * time.Millisecond)
		if after := size(); after != before {
			t.Errorf("it wrote %d bytes while it was paused", after-before)
		}
		if st, err := c.Status(); err != nil || st.State != StateRunning || !st.Paused {
			t.Errorf("%+v, %v", st, err)
		}
		if res := finish(t, w.verb("test-pause", w.state, c.ID)); res.code == 0 || !strings.Contains(res.stderr, "already paused") {
			t.Errorf("paused twice: %+v", res)
		}
		options, err := json.Marshal(ExecOptions{Args: []string{"true"}})
		must(t, err)
		if res := finish(t, w.verb("test-other", w.state, c.ID, string(options))); res.code != exitOurs || !strings.Contains(res.stderr, "paused") {
			t.Errorf("exec while it is paused: %+v", res)
		}
		ask("unpause")
		moves("it goes on")
		if res := finish(t, w.verb("test-unpause", w.state, c.ID)); res.code == 0 || !strings.Contains(res.stderr, "not paused") {
			t.Errorf("unpaused twice: %+v", res)
		}
		ask("pause")
		must(t, c.Kill(time.Minute))
		if st, err := c.Status(); err != nil || st.State != StateExited || st.ExitCode != 137 || st.Paused {
			t.Errorf("killed while it was paused: %+v, %v", st, err)
		}
		if left, _ := filepath.Glob("/sys/fs/cgroup/*/" + c.cgroupName()); len(left) > 0 {
			t.Errorf("left: %q", left)
		}
		if res := finish(t, w.verb("test-pause", w.state, c.ID)); res.code == 0 || !strings.Contains(res.stderr, "not running") {
			t.Errorf("pausing what has ended: %+v", res)
		}
	})
}

// TestPausedOrphan kills the supervisor of a paused container: nothing may stay frozen for ever.
func TestPausedOrphan(t *testing.T) {
	w := newWard(t, world{name: "root"})
	c := counting(t, w)
	must(t, c.Pause())
	st, err := c.Status()
	must(t, err)
	process, err := os.FindProcess(st.SupervisorPID)
	must(t, err)
	must(t, process.Kill())
	state, err := OpenState(w.state)
	must(t, err)
	eventually(t, "the init is gone", func() bool {
		_, err := state.List() // sweeps
		must(t, err)
		return gone(st.InitPID)
	})
}

// TestEvents notes events from many at once, over the bound, and reads them back.
func TestEvents(t *testing.T) {
	state, err := OpenState(t.TempDir())
	must(t, err)
	begin := time.Now()
	const writers, each = 4, 3000
	done := make(chan bool)
	for i := range writers {
		go func() {
			for j := range each {
				state.Note(Event{Type: "volume", Action: "create", Actor: Actor{ID: strconv.Itoa(i*each + j), Attributes: map[string]string{"long": strings.Repeat("x", 300)}}})
			}
			done <- true
		}()
	}
	for range writers {
		<-done
	}
	seen := map[string]int{}
	last := ""
	must(t, state.Events(context.Background(), EventOptions{Since: begin, Until: time.Now()}, func(e Event) error {
		seen[e.Actor.ID]++
		last = e.Actor.ID
		if e.Type != "volume" || e.Action != "create" || e.Time.Before(begin) {
			t.Errorf("%+v", e)
		}
		return nil
	}))
	if len(seen) != writers*each {
		t.Errorf("%d of %d events", len(seen), writers*each)
	}
	for id, n := range seen {
		if n != 1 {
			t.Errorf("event %s was seen %d times", id, n)
		}
	}
	if _, err := os.Stat(filepath.Join(state.Root(), "events.1")); err != nil {
		t.Errorf("nothing was rotated: %v", err)
	}
	if seen[last] == 0 {
		t.Error("nothing was seen")
	}
	// Those that come, over a rotation.
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	got := make(chan string, 10)
	since := time.Now()
	go func() {
		_ = state.Events(ctx, EventOptions{Since: since}, func(e Event) error { got <- e.Action; return nil })
	}()
	// The first may come before the reader, the second comes after it has begun.
	for _, action := range []string{"zero", "one"} {
		state.Note(Event{Type: "volume", Action: action})
		if a := <-got; a != action {
			t.Errorf("%q, want %q", a, action)
		}
	}
	must(t, os.Rename(state.eventsPath(), state.eventsPath()+".1"))
	state.Note(Event{Type: "volume", Action: "two"})
	if a := <-got; a != "two" {
		t.Errorf("%q", a)
	}
}
