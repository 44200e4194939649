package main

import (
	"errors"
	"fmt"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/internal/cmdline"
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
			served := &containerRoot{container: container}
			if err := runner.Supervise(c.Context, container, runner.Hooks{
				MountRoot: func(target string, background bool) (func() error, error) {
					return served.mount(c, target, background)
				},
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

// containerRoot is the root of a container.
type containerRoot struct {
	container *runner.Container

	// What serves it, if this process does.
	union  *cow.Union
	server *fs.Server
}

// mount mounts the union of the container's upper branch and its image, and prepares its volumes.
//
// A container in the background has its root served by a process of its own, so that it outlives that. One in the foreground lives
// as long as its supervisor anyhow, and starts faster when that serves the root; and where there is one ID the supervisor
// records owners in the union.
func (r *containerRoot) mount(c *cli.Context, target string, background bool) (func() error, error) {
	container := r.container
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	union, err := containerUnion(c, container, &serving{})
	if err != nil {
		return nil, err
	}
	mount := func(union *cow.Union, target string) (func() error, error) {
		_, unmount, err := mountForContainer(c, container, union, target)
		return unmount, err
	}
	unmountVolumes, err := prepareVolumes(root, container, union, mount)
	if err != nil {
		return nil, errors.Join(err, union.Close())
	}
	oneID, err := hasOneID()
	if err != nil {
		return nil, errors.Join(err, union.Close(), unmountVolumes())
	}
	if background && !oneID {
		if err := union.Close(); err != nil {
			return nil, errors.Join(err, unmountVolumes())
		}
		unmount, err := holdContainerRoot(root, container, target)
		if err != nil {
			return nil, errors.Join(err, unmountVolumes())
		}
		return func() error { return errors.Join(unmount(), unmountVolumes()) }, nil
	}
	server, unmount, err := mountForContainer(c, container, union, target)
	if err != nil {
		return nil, errors.Join(err, unmountVolumes())
	}
	r.union, r.server = union, server
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
func mountForContainer(c *cli.Context, container *runner.Container, union *cow.Union, target string) (*fs.Server, func() error, error) {
	server, err := fs.Mount(union, target, rootOptions(c, container))
	if err != nil {
		return nil, nil, errors.Join(err, union.Close())
	}
	return server, func() error {
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

// setOwner keeps the owner of a file that the host can't give it.
func (r *containerRoot) setOwner(file uint64, uid, gid uint32) error {
	n := r.union.Node(file)
	if n == nil {
		return unix.ESTALE
	}
	s := cow.SetAttr{UID: uid, GID: gid}
	if uid != ^uint32(0) {
		s.Valid |= cow.SetUID
	}
	if gid != ^uint32(0) {
		s.Valid |= cow.SetGID
	}
	var a cow.Attr
	if err := r.union.Setattr(n, &s, &a); err != nil {
		return err
	}
	r.server.AttributesChanged(file)
	if n.Kind() != unix.S_IFREG && n.Kind() != unix.S_IFDIR {
		// It may be another file on disk now, and its directory have other times.
		for _, dir := range r.union.InDirectories(n) {
			r.server.AttributesChanged(dir)
		}
	}
	return nil
}

// makeDevice keeps a device that the host doesn't let us make.
func (r *containerRoot) makeDevice(dir uint64, name string, mode, rdev uint32) error {
	in := r.union.Node(dir)
	if in == nil {
		return unix.ESTALE
	}
	var a cow.Attr
	n, err := r.union.Mknod(in, name, mode, rdev, cow.Owner{}, &a)
	if err != nil {
		return err
	}
	r.union.Forget(n, 1)
	r.server.NameChanged(dir, name)
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
	lower, err := containerBranch(root, container)
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
