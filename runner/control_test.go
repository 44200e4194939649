package runner

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// TestWaitAtTheEnd: who has connected when the end is told hears of it, though nobody has read what they want yet.
func TestWaitAtTheEnd(t *testing.T) {
	c := must1(newState(t).Create(aSpec(), CreateOptions{}))
	s := &supervisor{container: c}
	control := must1(s.listen())
	var waiting []*wire
	for range 20 {
		w := must1(c.connect())
		defer w.close()
		waiting = append(waiting, w)
	}
	control.leave()
	control.tell(outcome{code: 6})
	for _, w := range waiting {
		must(t, w.send(message{Kind: msgWait}))
	}
	control.answerLate()
	for _, w := range waiting {
		if m, _, err := w.recv(); err != nil || m.Kind != msgExited || m.Code != 6 {
			t.Errorf("answer: %+v, %v", m, err)
		}
	}
	if _, err := c.connect(); err != errNoSupervisor {
		t.Errorf("connecting after the end: %v", err)
	}
}

// TestKilledRunIsForgotten: a run whose supervisor was killed has ended, also while the next one starts, which holds the lock.
func TestKilledRunIsForgotten(t *testing.T) {
	c := must1(newState(t).Create(aSpec(), CreateOptions{}))
	must(t, c.writeStatus(&Status{Version: statusVersion, ID: c.ID, State: StateRunning, SupervisorPID: os.Getpid(), InitPID: os.Getpid()}))
	lock := must1(c.tryLock())
	defer lock.Close()
	s := &supervisor{container: c, status: must1(c.readStatus())}
	must(t, s.forgetKilled())
	if st := must1(c.Status()); st.State != StateExited || st.ExitCode != exitUnknown || st.InitPID != 0 {
		t.Errorf("status is %+v", st)
	}
}

// TestLogInRotation: a reader that stands at an old file goes on with the next, also where the name in between is free for a moment.
func TestLogInRotation(t *testing.T) {
	c := must1(newState(t).Create(aSpec(), CreateOptions{}))
	write := func(suffix string, n int) {
		line := fmt.Sprintf("2026-11-23T14:00:00.1Z stdout F line %d\n", n)
		must(t, os.WriteFile(c.LogPath()+suffix, []byte(line), 0o600))
	}
	write(".3", 0)
	write(".2", 1)
	write("", 2) // it is about to become log.1
	r := &logReader{path: c.LogPath()}
	defer r.close()
	var seen []string
	for range 3 {
		line, ok, err := r.next()
		must(t, err)
		if ok {
			seen = append(seen, string(line.Text))
		}
	}
	if got := strings.Join(seen, ", "); got != "line 0, line 1, line 2" {
		t.Errorf("seen: %q", got)
	}
}

// TestDescendants: processes that come and go while they are listed.
func TestDescendants(t *testing.T) {
	all := map[int]Process{1: {PID: 1}, 5: {PID: 5, PPID: 1}, 7: {PID: 7, PPID: 6}, 8: {PID: 8, PPID: 9}, 10: {PID: 10, PPID: 1}}
	// 6 was not listed; 9 has ended, and 8 is the init's now.
	now := map[int]Process{6: {PID: 6, PPID: 5}, 8: {PID: 8, PPID: 5}}
	found := map[int]bool{}
	for _, p := range descendants(all, 5, func(pid int) (Process, bool) { p, ok := now[pid]; return p, ok }) {
		found[p.PID] = true
	}
	if len(found) != 4 || !found[5] || !found[6] || !found[7] || !found[8] {
		t.Errorf("found %v", found)
	}
}
