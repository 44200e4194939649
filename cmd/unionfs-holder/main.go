// Command unionfs-holder keeps a mount alive when its server dies, and starts another. It is unionfs without all that a server
// needs: a program of Go prepares all of its packages before it does anything, and stays as large as they are. "unionfs" starts it
// where it lies beside it and is of the same build, and does all that itself otherwise.
package main

import (
	"fmt"
	"os"

	"unionfs/holder"
)

func main() {
	mount, err := holder.Started()
	if err != nil {
		fmt.Fprintln(os.Stderr, "unionfs-holder:", err)
		os.Exit(2)
	}
	os.Exit(holder.ExitCode(mount.Hold()))
}
