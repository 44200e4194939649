package main

import (
	"errors"
	"fmt"

	"github.com/moby/sys/user"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/internal/cmdline"
	"unionfs/layerstore"
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
			early, ok := runner.AwaitContainer()
			if !ok {
				return &exitError{code: exitRunFailed}
			}
			root, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			// Whoever waits for the container hears of errors, and says them.
			served := &containerRoot{root: root, container: container}
			if err := runner.Supervise(c.Context, container, runner.Hooks{
				Early: early,
				MountRoot: func(target string, background bool) (func() error, error) {
					return served.mountRoot(c, target, background)
				},
				Running:    served.handOverSoon,
				SetOwner:   served.setOwner,
				MakeDevice: served.makeDevice,
				Removed:    func() error { return removeAnonymous(root, container) },
				Network:    containerNetwork(root, container),
			}); err != nil {
				return &exitError{code: exitRunFailed}
			}
			return nil
		},
	}
}

// mountRoot mounts the union of the container's upper branch and its image, and prepares its volumes.
func (r *containerRoot) mountRoot(c *cli.Context, target string, background bool) (func() error, error) {
	union, err := containerUnion(c, r.container, &r.serving)
	if err != nil {
		return nil, err
	}
	mount := func(union *cow.Union, target string) (func() error, error) {
		return mountForContainer(c, r.container, union, target)
	}
	unmountVolumes, err := prepareVolumes(r.root, r.container, union, mount)
	if err != nil {
		return nil, errors.Join(err, union.Close())
	}
	serve := r.serveFirst
	if background {
		serve = r.holdFromTheStart
	}
	unmount, err := serve(c, union, target)
	if err != nil {
		return nil, errors.Join(err, unmountVolumes())
	}
	return func() error { return errors.Join(unmount(), unmountVolumes()) }, nil
}

// rootOptions are how a container's root is mounted.
func rootOptions(c *cli.Context, container *runner.Container) fs.Options {
	return fs.Options{
		FsName:     "unionfs:" + container.Name,
		AllowOther: true, // the container's users; nobody else sees this mount namespace
		Logger:     newLogger(c.App.ErrWriter, false),
	}
}

// mountForContainer serves a union at target. It closes the union, also when it fails.
func mountForContainer(c *cli.Context, container *runner.Container, union *cow.Union, target string) (unmount func() error, err error) {
	server, err := fs.Mount(union, target, rootOptions(c, container))
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

// containerUnion opens a container's union, for one user at a time.
func containerUnion(c *cli.Context, container *runner.Container, s *serving) (*cow.Union, error) {
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	owners, err := ownerPolicy()
	if err != nil {
		return nil, err
	}
	if owners.Record, err = recordsOwners(container, &owners); err != nil {
		return nil, err
	}
	lower, err := containerBranch(root, container, s)
	if err != nil {
		return nil, err
	}
	mapOwners(&owners, container.Spec.Linux)
	return s.newUnion(cow.Options{Lower: []cow.Branch{lower}, Upper: container.Upper(), Work: container.Work(), Owners: owners})
}

// recordsOwners reports whether a container's upper branch has owners that this process's user namespace doesn't have, which
// has to be where that has one ID.
func recordsOwners(container *runner.Container, owners *cow.OwnerPolicy) (bool, error) {
	if len(owners.UIDs) == 1 && owners.UIDs[0].Size == 1 {
		return true, nil
	}
	return cow.RecordsOwners(container.Upper())
}

// mapOwners shows files to a container whose IDs are others than those around it: what is stored is what the container sees,
// and so exact whatever the map.
func mapOwners(policy *cow.OwnerPolicy, linux *specs.Linux) {
	maps := func(mappings []specs.LinuxIDMapping) (out []cow.IDMap, root uint32) {
		for _, m := range mappings {
			out = append(out, cow.IDMap{Disk: m.ContainerID, Shown: m.HostID, Size: m.Size})
			if m.ContainerID == 0 {
				root = m.HostID
			}
		}
		return out, root
	}
	policy.UIDMap, policy.Other.UID = maps(linux.UIDMappings)
	policy.GIDMap, policy.Other.GID = maps(linux.GIDMappings)
}

// containerBranch opens what is below a container's upper branch.
func containerBranch(root string, container *runner.Container, s *serving) (cow.Branch, error) {
	if container.Image() != hostImage {
		id := container.Spec.Annotations[annotationImageID]
		if branch, err := layerstore.OpenBranch(root, digest.Digest(id)); err == nil {
			return branch, nil
		}
		return openImage(root, id) // which mends what can be, and says what can't
	}
	owners, err := ownerPolicy()
	if err != nil {
		return nil, err
	}
	if err := s.takeHostTree(); err != nil {
		return nil, err
	}
	return hostBranch(root, s.hostTree, owners.UIDs == nil)
}

// ownerPolicy lets a union show only the owners that have an ID in this process's user namespace: the kernel refuses
// writes to any other file. The rest is root's.
func ownerPolicy() (cow.OwnerPolicy, error) {
	var policy cow.OwnerPolicy
	for _, m := range []struct {
		maps   func() ([]user.IDMap, error)
		ranges *[]cow.IDRange
	}{{user.CurrentProcessUIDMap, &policy.UIDs}, {user.CurrentProcessGIDMap, &policy.GIDs}} {
		mapped, err := m.maps()
		if err != nil {
			return policy, fmt.Errorf("reading the maps of the user namespace: %w", err)
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
	container, err := state.Get(ref)
	return container, explainMissing(state, ref, err)
}

// explainMissing says how to find the container that there is not, and which one may have been meant.
func explainMissing(state *runner.State, ref string, err error) error {
	if !errors.Is(err, runner.ErrNotFound) {
		return err
	}
	var names []string
	if all, err := state.List(); err == nil {
		for _, container := range all {
			names = append(names, container.Name)
		}
	}
	return fmt.Errorf("%w; \"unionfs ps -a\" lists those that there are%s", err, cmdline.HintAmong(ref, names))
}
