package fs

import (
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// shortSlice is for how long at a time a thread of a server asks to run, in nanoseconds; the kernel's own default is some
// milliseconds. 100 µs is the shortest that the kernel takes.
const shortSlice = 100_000

// leastProcs is how many threads of a server may run Go or be in system calls. With 2, on two CPUs, a cold walk over ten directories took
// 437 ms, with 4 397, with 6 382, with 8 376; each costs a quarter of a MiB, and warm works don't notice.
const leastProcs = 6

// AnswerSoon asks the scheduler to let this process run as soon as it has something to do (sched_setattr(2): on Linux 6.12 and newer
// the runtime of an ordinary thread is the slice that it asks for). Whoever waits for an answer waits until a thread of the server
// has a CPU, and where all are busy that is until somebody's slice is over, unless the thread that wakes up has a shorter
// one. It gets no more of the CPU than before. Threads that are started later have it from those that start them; so have
// child processes, so that it is for processes that do nothing but serve. Where the kernel is older nothing changes, so no
// error is of interest.
//
// It also lets more threads of this process be in system calls at once: Go counts one that waits for the disk as one that runs, until
// its monitor looks (runtime.GOMAXPROCS), and directories of several branches are read at once.
func AnswerSoon() {
	if runtime.GOMAXPROCS(0) < leastProcs && os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(leastProcs)
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return
	}
	for _, task := range tasks {
		id, err := strconv.Atoi(task.Name())
		if err != nil {
			continue
		}
		attr, err := unix.SchedGetAttr(id, 0)
		if err != nil || attr.Policy != unix.SCHED_NORMAL {
			continue // what else somebody chose stays
		}
		attr.Runtime = shortSlice
		_ = unix.SchedSetAttr(id, attr, 0)
	}
}
