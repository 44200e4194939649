package supervisor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/rootfs"
	"unionfs/runner"
)

// What the program is called with, behind --root and the state's root, and before a container's ID.
const (
	superviseVerb = "supervise-container" // its supervisor
	serveVerb     = "serve-container"     // the server of its root, which the supervisor starts
)

// Arguments start the supervisor of a container.
func Arguments(root, id string) []string { return arguments(root, superviseVerb, id) }

func arguments(root, verb, id string) []string { return []string{"--root", root, verb, id} }

// errSaid is the end of a process whose error somebody else has heard, and says.
var errSaid = errors.New("the error was passed on")

// Main is the program's entry in the place of any other, if args, with the program's name first, are what arguments returns. It returns
// the exit code, or that they are something else.
func Main(args []string) (code int, ok bool) {
	if len(args) != 5 || args[1] != "--root" || !filepath.IsAbs(args[2]) {
		return 0, false
	}
	root, verb, id := args[2], args[3], args[4]
	var err error
	switch verb {
	case superviseVerb:
		err, code = supervise(root, id), exitOurs
	case serveVerb:
		err, code = serve(root, id), exitFailure
	default:
		return 0, false
	}
	if err == nil {
		return 0, true
	}
	if err != errSaid {
		fmt.Fprintf(os.Stderr, "unionfs: %v\n", err)
	}
	return code, true
}

// Exit codes.
const (
	exitFailure = 1
	exitOurs    = 125 // as that of "run" when unionfs itself failed
)

// supervise is a container's supervisor.
func supervise(root, id string) error {
	var container *runner.Container
	var err error
	found := make(chan struct{})
	early, ok := runner.AwaitContainer(func() {
		go func() {
			container, err = find(root, id)
			close(found)
		}()
	})
	if !ok {
		return errSaid
	}
	<-found
	if err != nil {
		return err
	}
	// Whoever waits for the container hears of errors, and says them.
	served := &containerRoot{root: root, container: container}
	err = runner.Supervise(context.Background(), container, runner.Hooks{
		Early:      early,
		MountRoot:  served.mountRoot,
		Running:    served.handOverSoon,
		SetOwner:   served.setOwner,
		MakeDevice: served.makeDevice,
		Removed:    func() error { return RemoveAnonymous(root, container) },
		Network:    connection(root, container),
	})
	if err != nil {
		return errSaid
	}
	return nil
}

// mountRoot mounts the union of the container's upper branch and its image, and prepares its volumes.
func (r *containerRoot) mountRoot(target string, background bool) (func() error, error) {
	union, err := r.serving.ContainerUnion(r.root, r.container)
	if err != nil {
		return nil, err
	}
	mount := func(union *cow.Union, target string) (func() error, error) {
		return mountForContainer(r.container, union, target)
	}
	unmountVolumes, err := prepareVolumes(r.root, r.container, union, mount)
	if err != nil {
		return nil, errors.Join(err, union.Close())
	}
	serve := r.serveFirst
	if background {
		serve = r.holdFromTheStart
	}
	unmount, err := serve(union, target)
	if err != nil {
		return nil, errors.Join(err, unmountVolumes())
	}
	return func() error { return errors.Join(unmount(), unmountVolumes()) }, nil
}

// rootOptions are how a container's root is mounted.
func rootOptions(container *runner.Container) fs.Options {
	return fs.Options{
		FsName:     "unionfs:" + container.Name,
		AllowOther: true, // the container's users; nobody else sees this mount namespace
		Logger:     rootfs.NewLogger(os.Stderr, false),
	}
}

// mountForContainer serves a union at target. It closes the union, also when it fails.
func mountForContainer(container *runner.Container, union *cow.Union, target string) (unmount func() error, err error) {
	server, err := fs.Mount(union, target, rootOptions(container))
	if err != nil {
		return nil, errors.Join(err, union.Close())
	}
	return func() error {
		if err := unmountUnused(target); err != nil {
			return err
		}
		server.Wait()
		return union.Close()
	}, nil
}

// unmountUnused unmounts what this process mounted for a container, in a mount namespace of its own. Nothing of the container is left
// that would be surprised.
func unmountUnused(target string) error {
	err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	if err != nil {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	return nil
}

// find finds a container by name, ID, or the start of its ID.
func find(root, ref string) (*runner.Container, error) {
	state, err := runner.OpenState(root)
	if err != nil {
		return nil, err
	}
	container, err := state.Get(ref)
	if errors.Is(err, runner.ErrNotFound) {
		err = fmt.Errorf("%w; \"unionfs ps -a\" lists those that there are", err)
	}
	return container, err
}
