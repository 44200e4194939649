package runner

import (
	"fmt"
	"testing"
)

// signalState prints what a process inherits of signals.
const signalState = "grep -E 'Sig(Blk|Ign|Pnd)|ShdPnd' /proc/self/status | tr -d '\\t\\n'"

// TestCommandsSignals: that P2 is started with signals held back is nothing that its commands see.
func TestCommandsSignals(t *testing.T) {
	const want = "SigPnd:0000000000000000ShdPnd:0000000000000000SigBlk:0000000000000000SigIgn:0000000000000000"
	inEveryWorld(t, func(t *testing.T, w *ward) {
		if got := w.output(w.shell(signalState)); got != want {
			t.Errorf("the first command has %s", got)
		}
		d := w.idle()
		for n := range 2 {
			if res := d.exec(signalState); res.stdout != want {
				t.Errorf("command %d beside it has %+v", n+1, res)
			}
		}
	})
}

// TestSignalsToInit: what PID 1 of a container gets from inside goes to its command, from the first moment on. One signal is of
// those that P2 is started without, one can't be held back, one is a real-time one.
func TestSignalsToInit(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, signal := range []int{10, 11, 40} {
			script := fmt.Sprintf("trap 'exit 3' %[1]d; kill -%[1]d 1; while :; do sleep 0.1; done", signal)
			if res := w.run(w.shell(script)); res.code != 3 {
				t.Errorf("signal %d: %+v", signal, res)
			}
		}
		// Twice, before and after they are caught.
		script := "n=0; trap 'n=$((n+1)); [ $n -lt 2 ] || exit 4' USR1; trap 'exit 5' TERM; kill -USR1 1; while [ $n -lt 1 ]; do sleep 0.1; done; kill -USR1 1; while :; do sleep 0.1; done"
		if res := w.run(w.shell(script)); res.code != 4 {
			t.Errorf("one signal after another: %+v", res)
		}
	})
}
