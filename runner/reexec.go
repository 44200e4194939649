package runner

import (
	"os"

	"golang.org/x/sys/unix"
)

// RunIfInit must be called first in main, and in TestMain of tests that run containers. If the program was started as a
// container's init, or as another of the runner's inner processes, it does that work and never returns; otherwise it
// returns at once.
func RunIfInit() {
	// unix.Exit rather than os.Exit: these have nothing to tidy up, and the container's end waits for them.
	switch os.Args[0] {
	case argvInit:
		unix.Exit(runInit())
	case argvNamespace:
		unix.Exit(runNamespaceStage(os.Args[1:]))
	case argvFiles:
		unix.Exit(runFiles(os.Args[1:]))
	case argvUser:
		unix.Exit(runUserLookup(os.Args[1:]))
	}
}

// setCommandName sets what ps shows for this process (proc_pid_comm(5), 15 bytes); it would be "exe" or a number, by how it
// was executed. That it may fail doesn't matter.
func setCommandName(name string) {
	_ = os.WriteFile("/proc/self/comm", []byte(name), 0)
}
