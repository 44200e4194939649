package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/cow"
	"unionfs/layerstore"
	"unionfs/runner"
	"unionfs/volumes"
)

// annotationVolumes keeps a container's volumes as the user asked for them, in JSON: the specification has only mounts.
const annotationVolumes = "io.unionfs.volumes"

// volumesOf returns a container's volumes.
func volumesOf(container *runner.Container) []volumes.Volume {
	var all []volumes.Volume
	if text := container.Spec.Annotations[annotationVolumes]; text != "" && json.Unmarshal([]byte(text), &all) != nil {
		return nil
	}
	return all
}

// completeVolumes are the volumes of a new container: the command line's, then those of other containers, then those that its
// image asks for, as far as their targets are still free.
func completeVolumes(root, dir string, asked []volumes.Volume, from []string, ofImage map[string]struct{}) ([]volumes.Volume, error) {
	if err := volumes.CheckTargets(asked); err != nil {
		return nil, err
	}
	all := slices.Clone(asked)
	taken := func(target string) bool {
		return slices.ContainsFunc(all, func(v volumes.Volume) bool { return v.Target == target })
	}
	for _, value := range slices.Backward(from) { // the last one wins
		ref, readOnly, err := volumes.ParseVolumesFrom(value)
		if err != nil {
			return nil, usageError("--%w", err)
		}
		container, err := findContainer(root, ref)
		if err != nil {
			return nil, fmt.Errorf("volumes from %s: %w", ref, err)
		}
		for _, v := range volumes.Inherited(volumesOf(container), readOnly) {
			if !taken(v.Target) {
				all = append(all, v)
			}
		}
	}
	for _, target := range slices.Sorted(maps.Keys(ofImage)) {
		v, err := volumes.ParseVolume(target, "/")
		if err != nil {
			return nil, fmt.Errorf("the image's VOLUME: %w", err)
		}
		if v.Kind == volumes.Named && v.Source == "" && !taken(v.Target) {
			all = append(all, v)
		}
	}
	for i := range all {
		v := &all[i]
		if v.Kind != volumes.Image {
			continue
		}
		image, err := findImage(root, v.Reference)
		if err != nil {
			return nil, err
		}
		v.Image, v.Source = string(image.ID()), filepath.Join(dir, "images", strconv.Itoa(i))
	}
	return all, nil
}

// addVolumes puts the volumes behind the mounts that are there already, and in place of those at the same target.
// Shorter targets come first, so that one within another is mounted on it and not hidden by it.
func addVolumes(spec *specs.Spec, all []volumes.Volume, claim *volumes.Claim) error {
	if len(all) == 0 {
		return nil
	}
	all = slices.Clone(all)
	slices.SortStableFunc(all, func(a, b volumes.Volume) int {
		return strings.Count(a.Target, "/") - strings.Count(b.Target, "/")
	})
	for i := range all {
		mount, err := claim.Mount(&all[i])
		if err != nil {
			return err
		}
		spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == mount.Destination })
		spec.Mounts = append(spec.Mounts, mount)
	}
	text, err := json.Marshal(all)
	spec.Annotations[annotationVolumes] = string(text)
	return err
}

// prepareVolumes gives a container's new volumes the content that its image has in their place, and mounts its images. The
// union is the container's root.
func prepareVolumes(root string, container *runner.Container, union *cow.Union, mount func(*cow.Union, string) (func() error, error)) (unmount func() error, err error) {
	var mounted []func() error
	unmount = func() error {
		var failed error
		for _, u := range slices.Backward(mounted) {
			failed = errors.Join(failed, u())
		}
		return failed
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, unmount())
		}
	}()
	all := volumesOf(container)
	if len(all) == 0 {
		return unmount, nil
	}
	store := volumes.OpenStore(root)
	oneID, err := hasOneID()
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		switch {
		case v.Kind == volumes.Named && !v.NoCopy && container.Image() != hostImage:
			err := store.Fill(v.Source, oneID, func(w io.Writer) error { return directoryOf(union, v.Target, w) })
			if err != nil {
				return nil, err
			}
		case v.Kind == volumes.Image:
			one, err := mountImageVolume(root, v, mount)
			if err != nil {
				return nil, fmt.Errorf("mounting image %s for %s: %w", v.Reference, v.Target, err)
			}
			mounted = append(mounted, one)
		}
	}
	return unmount, nil
}

// directoryOf writes what a union has in a directory as a tar.
func directoryOf(union *cow.Union, dir string, w io.Writer) error {
	a := layerstore.NewArchive(w)
	there, err := union.ExportDirectory(path.Clean(dir), a.Add)
	if err != nil {
		return err
	}
	if !there {
		return volumes.ErrNotThere
	}
	return a.Close()
}

func mountImageVolume(root string, v volumes.Volume, mount func(*cow.Union, string) (func() error, error)) (func() error, error) {
	if err := os.MkdirAll(v.Source, 0o700); err != nil {
		return nil, err
	}
	owners, err := ownerPolicy()
	if err != nil {
		return nil, err
	}
	branch, err := openImage(root, v.Image)
	if err != nil {
		return nil, err
	}
	union, err := cow.New(cow.Options{Lower: []cow.Branch{branch}, Owners: owners})
	if err != nil {
		return nil, errors.Join(err, branch.Close())
	}
	return mount(union, v.Source)
}

// hasOneID reports whether this process's user namespace has a single user ID.
func hasOneID() (bool, error) {
	owners, err := ownerPolicy()
	if err != nil {
		return false, err
	}
	return len(owners.UIDs) == 1 && owners.UIDs[0].Size == 1, nil
}

// volumeUsers returns the containers that have each named volume.
func volumeUsers(root string) (map[string][]*runner.Container, error) {
	state, err := runner.OpenState(root)
	if err != nil {
		return nil, err
	}
	containers, err := state.List()
	if err != nil {
		return nil, err
	}
	users := map[string][]*runner.Container{}
	for _, container := range containers {
		for _, v := range volumesOf(container) {
			if v.Kind == volumes.Named && !slices.Contains(users[v.Source], container) {
				users[v.Source] = append(users[v.Source], container)
			}
		}
	}
	return users, nil
}

// namesOfUsers is volumeUsers for one volume, for its removal.
func namesOfUsers(root string) func(volume string) ([]string, error) {
	return func(volume string) ([]string, error) {
		users, err := volumeUsers(root)
		var names []string
		for _, container := range users[volume] {
			names = append(names, container.Name)
		}
		return names, err
	}
}

// removeAnonymous removes the volumes that were made for a container that is gone, and that no other one has.
func removeAnonymous(root string, container *runner.Container) error {
	store := volumes.OpenStore(root)
	var failed error
	for _, v := range volumesOf(container) {
		if !v.Anonymous {
			continue
		}
		err := store.Remove(v.Source, namesOfUsers(root))
		var inUse *volumes.InUseError
		if err != nil && !errors.As(err, &inUse) && !errors.Is(err, volumes.ErrNotFound) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}
