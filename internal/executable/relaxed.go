package executable

import (
	"runtime"

	"golang.org/x/sys/unix"
)

// While a Go program makes system calls that wait, or comes up, a thread of its runtime looks every 20 microseconds whether one waits for
// long, which was a fifth of a server's processor time, and an eighth of a container's start. So our own processes have timers that may be
// late; what they start for others has not.
const (
	timerSlack       = 1_000_000 // nanoseconds; no timer of ours needs to be more exact
	kernelTimerSlack = 50_000    // what a process has if nobody has set it (init/init_task.c)
)

// StartRelaxed calls start, which starts one of our own processes, such that its timers may be late. It must have that from its start: it is
// a property of each thread, and the runtime's own are there before its program can set anything.
func StartRelaxed(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if unix.Prctl(unix.PR_SET_TIMERSLACK, timerSlack, 0, 0, 0) == nil {
		defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) // 0 is what this thread began with
	}
	return start()
}

// StartExact calls start, which starts somebody else's process, such that its timers are as exact as usual. The caller is a process that was
// started by [StartRelaxed].
func StartExact(start func() error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ExactThread()
	defer unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0)
	return start()
}

// ExactThread has the timers of the calling thread, and of what it starts, be as exact as usual. The calling goroutine is locked to it.
func ExactThread() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, kernelTimerSlack, 0, 0, 0) }
