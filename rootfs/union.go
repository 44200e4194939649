package rootfs

import (
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/cow"
	"unionfs/layerstore"
	"unionfs/runner"
)

// AnnotationImageID names the image that a container was made from for ever, also when its reference moves on.
const AnnotationImageID = "unionfs.image.id"

// ContainerUnion opens the union of a container's upper branch and its image, for one user at a time. root is that of the state.
func (s *Serving) ContainerUnion(root string, container *runner.Container) (*cow.Union, error) {
	owners, err := OwnerPolicy()
	if err != nil {
		return nil, err
	}
	if owners.Record, err = recordsOwners(container, &owners); err != nil {
		return nil, err
	}
	lower, err := s.ContainerBranch(root, container)
	if err != nil {
		return nil, err
	}
	mapOwners(&owners, container.Spec.Linux)
	return s.NewUnion(cow.Options{Lower: []cow.Branch{lower}, Upper: container.Upper(), Work: container.Work(), Owners: owners})
}

// recordsOwners reports whether a container's upper branch has owners that this process's user namespace doesn't have, which
// has to be where that has one ID.
func recordsOwners(container *runner.Container, owners *cow.OwnerPolicy) (bool, error) {
	if isOneID(owners) {
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

// ContainerBranch opens what is below a container's upper branch.
func (s *Serving) ContainerBranch(root string, container *runner.Container) (cow.Branch, error) {
	if container.Image() != HostImage {
		id := container.Spec.Annotations[AnnotationImageID]
		if branch, err := layerstore.OpenBranch(root, digest.Digest(id)); err == nil {
			return branch, nil
		}
		return OpenImage(root, id) // which mends what can be, and says what can't
	}
	owners, err := OwnerPolicy()
	if err != nil {
		return nil, err
	}
	if err := s.takeHostTree(); err != nil {
		return nil, err
	}
	return hostBranch(root, s.hostTree, owners.UIDs == nil)
}
