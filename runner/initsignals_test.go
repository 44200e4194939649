package runner

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"testing"
)

// signalState returns what the status of a process says of signals that are pending, blocked and ignored.
func signalState(t *testing.T, status string) (waiting, ignored uint64) {
	t.Helper()
	found := regexp.MustCompile(`(SigPnd|ShdPnd|SigBlk|SigIgn):\s*([0-9a-f]{16})`).FindAllStringSubmatch(status, -1)
	if len(found) != 4 {
		t.Fatalf("a status without signals: %q", status)
	}
	for _, f := range found {
		set := must1(strconv.ParseUint(f[2], 16, 64))
		if f[1] == "SigIgn" {
			ignored = set
		} else {
			waiting |= set
		}
	}
	return waiting, ignored
}

// TestCommandsSignals: no signal is blocked or ignored for a command, whatever P2 does with it. Commands may ignore what was ignored
// where the tests were started.
func TestCommandsSignals(t *testing.T) {
	_, before := signalState(t, string(must1(os.ReadFile("/proc/self/status"))))
	check := func(t *testing.T, which, status string) {
		t.Helper()
		if waiting, ignored := signalState(t, status); waiting != 0 || ignored&^before != 0 {
			t.Errorf("%s: %#x are blocked or pending, %#x ignored, %#x before", which, waiting, ignored, before)
		}
	}
	inEveryWorld(t, func(t *testing.T, w *ward) {
		check(t, "the first command", w.output(w.shell("exec cat /proc/self/status")))
		d := w.idle()
		for n := range 2 {
			check(t, fmt.Sprintf("command %d beside it", n+1), d.exec("exec cat /proc/self/status").stdout)
		}
	})
}

// TestCommandsTimers: the timers of commands are as exact as everybody's, though ours aren't.
func TestCommandsTimers(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		const slack = "exec cat /proc/self/timerslack_ns"
		d := w.idle()
		for which, got := range map[string]string{"the first command": w.output(w.shell(slack)), "another": d.exec(slack).stdout} {
			if got != "50000" && got != "50000\n" {
				t.Errorf("%s may be late by %s ns", which, got)
			}
		}
	})
}

// TestSignalsToInit: what PID 1 of a container gets from inside goes to its command, from the first moment on. One of the
// signals is one that Go's runtime acts on itself, one a real-time one.
func TestSignalsToInit(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, signal := range []int{10, 11, 15, 40} {
			script := fmt.Sprintf("trap 'exit 3' %[1]d; kill -%[1]d 1; while :; do sleep 0.1; done", signal)
			if res := w.run(w.shell(script)); res.code != 3 {
				t.Errorf("signal %d: %+v", signal, res)
			}
		}
		script := "n=0; trap 'n=$((n+1)); [ $n -lt 2 ] || exit 4' USR1; trap 'exit 5' TERM; kill -USR1 1; while [ $n -lt 1 ]; do sleep 0.1; done; kill -USR1 1; while :; do sleep 0.1; done"
		if res := w.run(w.shell(script)); res.code != 4 {
			t.Errorf("one signal after another: %+v", res)
		}
	})
}
