package runner

import (
	"slices"
	"strings"
	"testing"
	"time"
)

// TestProcesses: all that is in the container and nothing else, also what was left by its parent.
func TestProcesses(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		d := w.detach(w.shell("(setsid sh -c 'sleep 1001; true' &); sleep 1002; true"))
		var all []Process
		eventually(t, "all of it runs", func() bool {
			var err error
			all, err = d.container.Processes()
			must(t, err)
			// What was just forked has its parent's arguments yet, and what starts the others is there for a moment.
			var names []string
			for _, p := range all {
				names = append(names, strings.Join(p.Args, " "))
			}
			return len(all) == 5 && slices.Contains(names, "sleep 1001") && slices.Contains(names, "sleep 1002")
		})
		if all[0].PID != d.status.InitPID || all[0].PPID != d.status.SupervisorPID {
			t.Errorf("the first is %+v", all[0])
		}
		var names []string
		for _, p := range all {
			names = append(names, strings.Join(p.Args, " "))
			if want := map[bool]int{true: testUID}[w.user]; p.UID != want || p.Started.Before(d.status.Created.Add(-2e9)) || p.Started.After(d.status.Created.Add(60e9)) {
				t.Errorf("%+v, want user %d and started after %s", p, want, d.status.Created)
			}
		}
		for _, want := range []string{"unionfs-init", "sleep 1001", "sleep 1002"} {
			if !strings.Contains(strings.Join(names, "\n"), want) {
				t.Errorf("%q lacks %q", names, want)
			}
		}
		must(t, d.container.Kill(time.Minute))
		if _, err := d.container.Processes(); err == nil || !strings.Contains(err.Error(), "not running") {
			t.Errorf("after its end: %v", err)
		}
	})
}
