// Command unionfs-init is the first process of a container, which sets it up from inside and stays to pass signals on. It is
// unionfs without what pulls images and serves them: a program of Go prepares all of its packages before it does anything, and
// this one has half of them. "unionfs" starts it where it lies beside it and is of the same build, and does all that itself
// otherwise.
package main

import (
	"fmt"
	"os"

	"unionfs/runner"
)

func main() {
	runner.RunIfInit()
	fmt.Fprintln(os.Stderr, "unionfs-init: this is started by unionfs, as the first process of a container")
	os.Exit(2)
}
