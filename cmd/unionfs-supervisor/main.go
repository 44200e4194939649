// Command unionfs-supervisor is the supervisor of a container, and the server of its root. It is unionfs without the command line: a
// program of Go prepares all of its packages before it does anything. "unionfs" starts it where it lies beside it and is of the same
// build, and does all that itself otherwise.
package main

import (
	"fmt"
	"os"

	"unionfs/runner"
	"unionfs/supervisor"
)

func main() {
	runner.RunIfInit() // the program may have been started as one of the container's inner processes; then this doesn't return
	code, ok := supervisor.Main(os.Args)
	if !ok {
		fmt.Fprintln(os.Stderr, "unionfs-supervisor: this is started by unionfs, as the supervisor of a container")
		code = 2
	}
	os.Exit(code)
}
