// Package runner runs a command in a container: namespaces, mounts, an init, a terminal and a life cycle, for root and
// for an ordinary user, with no daemon. It takes any root directory and an OCI runtime specification
// (github.com/opencontainers/runtime-spec, v1.3.0) as the description; it knows nothing of images and layers.
//
// # Processes
//
// Three processes make a container, all of them the program's own binary:
//
//	P0  the caller of [Container.Run]: a person's command line. Relays terminal and signals, returns the exit code.
//	P1  the supervisor ([Supervise]), in its own session, outside the container's user, PID and mount namespaces.
//	    Holds the container's lock, mounts the root, starts P2, waits, records the end, unmounts. For an ordinary
//	    user it is root of a user namespace "S" with all the IDs that the user may have.
//	P2  the init, PID 1 of the container, in a user namespace nested in S (or in the first one, for root) that maps
//	    the same IDs to themselves. Sets up the mounts, changes the root, starts the command as its child, passes
//	    signals on and reaps.
//
// They talk over socket pairs (wire.go). When P0 dies, P1's end of its socket closes and P1 ends the container; when P1
// dies the kernel kills P2 (parent-death signal, and P2 leaves when its own socket closes), and with PID 1 all else in
// the container and its mounts.
//
// # How a program uses it
//
//	func main() {
//		runner.RunIfInit()                     // first: the binary may be running as P2
//		...
//		st, err := runner.OpenState(root)
//		c, err := st.Create(spec, runner.CreateOptions{Name: "web"})
//		code, err := c.Run(ctx, runner.RunOptions{Supervisor: []string{"supervise", "--root", root, c.ID}})
//		os.Exit(code)
//	}
//
//	// the hidden verb "supervise ROOT ID":
//		c, err := st.Get(id)
//		err = runner.Supervise(ctx, c, runner.Hooks{MountRoot: mountUnionAt})
//
// [Container.Start] runs it in the background instead, with its output in a log ([Container.Logs]); [Container.Exec] runs
// another command in it. What is kept on disk is described in docs/runner.md.
package runner
