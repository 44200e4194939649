package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"unionfs/cow"
	"unionfs/layerstore"
	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/volumes"
)

// AnnotationVolumes keeps a container's volumes as the user asked for them, in JSON: the specification has only mounts.
const AnnotationVolumes = "io.unionfs.volumes"

// VolumesOf returns a container's volumes.
func VolumesOf(container *runner.Container) []volumes.Volume {
	var all []volumes.Volume
	if text := container.Spec.Annotations[AnnotationVolumes]; text != "" && json.Unmarshal([]byte(text), &all) != nil {
		return nil
	}
	return all
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
	all := VolumesOf(container)
	if len(all) == 0 {
		return unmount, nil
	}
	store := volumes.OpenStore(root)
	oneID, err := rootfs.HasOneID()
	if err != nil {
		return nil, err
	}
	for _, v := range all {
		switch {
		case v.Kind == volumes.Named && !v.NoCopy && container.Image() != rootfs.HostImage:
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
	owners, err := rootfs.OwnerPolicy()
	if err != nil {
		return nil, err
	}
	branch, err := rootfs.OpenImage(root, v.Image)
	if err != nil {
		return nil, err
	}
	union, err := cow.New(cow.Options{Lower: []cow.Branch{branch}, Owners: owners})
	if err != nil {
		return nil, errors.Join(err, branch.Close())
	}
	return mount(union, v.Source)
}

// VolumeUsers returns the containers that have each named volume.
func VolumeUsers(root string) (map[string][]*runner.Container, error) {
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
		for _, v := range VolumesOf(container) {
			if v.Kind == volumes.Named && !slices.Contains(users[v.Source], container) {
				users[v.Source] = append(users[v.Source], container)
			}
		}
	}
	return users, nil
}

// NamesOfUsers is [VolumeUsers] for one volume, for its removal.
func NamesOfUsers(root string) func(volume string) ([]string, error) {
	return func(volume string) ([]string, error) {
		users, err := VolumeUsers(root)
		var names []string
		for _, container := range users[volume] {
			names = append(names, container.Name)
		}
		return names, err
	}
}

// RemoveAnonymous removes the volumes that were made for a container that is gone, and that no other one has.
func RemoveAnonymous(root string, container *runner.Container) error {
	store := volumes.OpenStore(root)
	var failed error
	for _, v := range VolumesOf(container) {
		if !v.Anonymous {
			continue
		}
		err := store.Remove(v.Source, NamesOfUsers(root))
		var inUse *volumes.InUseError
		if err != nil && !errors.As(err, &inUse) && !errors.Is(err, volumes.ErrNotFound) {
			failed = errors.Join(failed, err)
		}
	}
	return failed
}
