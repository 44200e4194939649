package main

import (
	"errors"
	"fmt"

	"github.com/moby/sys/user"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/runner"
)

const superviseName = "supervise-container"

// superviseCommand is the entry of a container's supervisor, a process that "run" starts.
func superviseCommand() *cli.Command {
	return &cli.Command{
		Name:        superviseName,
		Hidden:      true,
		Usage:       "run a container's supervisor (for unionfs itself)",
		Description: "The process that mounts a container's root and waits for its end. It is started by \"unionfs run\" and of no use\notherwise.\n\nExample:\n   unionfs --root /var/lib/unionfs supervise-container ID",
		ArgsUsage:   "ID",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "ID"); err != nil {
				return err
			}
			root, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			// Whoever waits for the container hears of errors, and says them.
			if err := runner.Supervise(c.Context, container, runner.Hooks{
				MountRoot: func(target string) (func() error, error) { return mountContainerRoot(c, container, target) },
				Removed:   func() error { return removeAnonymous(root, container) },
				Network:   containerNetwork(root, container),
			}); err != nil {
				return &exitError{code: exitRunFailed}
			}
			return nil
		},
	}
}

// mountContainerRoot mounts the union of the container's upper branch and its image, and prepares its volumes.
func mountContainerRoot(c *cli.Context, container *runner.Container, target string) (func() error, error) {
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	union, err := containerUnion(c, container)
	if err != nil {
		return nil, err
	}
	mount := func(union *cow.Union, target string) (func() error, error) {
		return mountForContainer(c, container, union, target)
	}
	unmountVolumes, err := prepareVolumes(root, container, union, mount)
	if err != nil {
		return nil, errors.Join(err, union.Close())
	}
	unmount, err := mount(union, target)
	if err != nil {
		return nil, errors.Join(err, unmountVolumes())
	}
	return func() error { return errors.Join(unmount(), unmountVolumes()) }, nil
}

// mountForContainer serves a union at target. It closes the union, also when it fails.
func mountForContainer(c *cli.Context, container *runner.Container, union *cow.Union, target string) (func() error, error) {
	server, err := fs.Mount(union, target, fs.Options{
		FsName:     "unionfs:" + container.Name,
		AllowOther: true, // the container's users; nobody else sees this mount namespace
		Logger:     newLogger(c.App.ErrWriter, false),
	})
	if err != nil {
		return nil, errors.Join(err, union.Close())
	}
	return func() error {
		err := server.Unmount()
		if errors.Is(err, unix.EBUSY) {
			// Nothing of the container is left to be surprised.
			err = fs.Unmount(target, true)
		}
		if err != nil {
			return err
		}
		server.Wait()
		return union.Close()
	}, nil
}

// containerUnion opens a container's union, for one user at a time.
func containerUnion(c *cli.Context, container *runner.Container) (*cow.Union, error) {
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	owners, err := ownerPolicy()
	if err != nil {
		return nil, err
	}
	lower, err := containerBranch(root, container)
	if err != nil {
		return nil, err
	}
	return cow.New(cow.Options{Lower: []cow.Branch{lower}, Upper: container.Upper(), Work: container.Work(), Owners: owners})
}

// containerBranch opens what is below a container's upper branch.
func containerBranch(root string, container *runner.Container) (cow.Branch, error) {
	if container.Image() == hostImage {
		owners, err := ownerPolicy()
		if err != nil {
			return nil, err
		}
		return hostBranch(root, owners.UIDs == nil)
	}
	return openImage(root, container.Spec.Annotations[annotationImageID])
}

// ownerPolicy lets a union show only the owners that have an ID in this process's user namespace: the kernel refuses
// writes to any other file. The rest is root's.
func ownerPolicy() (cow.OwnerPolicy, error) {
	var policy cow.OwnerPolicy
	for _, m := range []struct {
		file   string
		ranges *[]cow.IDRange
	}{{"/proc/self/uid_map", &policy.UIDs}, {"/proc/self/gid_map", &policy.GIDs}} {
		mapped, err := user.ParseIDMapFile(m.file)
		if err != nil {
			return policy, fmt.Errorf("reading %s: %w", m.file, err)
		}
		for _, r := range mapped {
			*m.ranges = append(*m.ranges, cow.IDRange{First: uint32(r.ID), Size: uint32(r.Count)})
		}
		if len(mapped) == 1 && mapped[0].ID == 0 && mapped[0].Count >= 1<<32-1 {
			*m.ranges = nil // all of them
		}
	}
	return policy, nil
}

// namedContainer finds the container that the first argument names, and where the state is.
func namedContainer(c *cli.Context) (root string, container *runner.Container, err error) {
	if root, err = stateRoot(c); err != nil {
		return "", nil, err
	}
	container, err = findContainer(root, c.Args().First())
	return root, container, err
}

// findContainer finds a container by name, ID, or the start of its ID.
func findContainer(root, ref string) (*runner.Container, error) {
	state, err := runner.OpenState(root)
	if err != nil {
		return nil, err
	}
	return state.Get(ref)
}
