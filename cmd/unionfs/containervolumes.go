package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/rootfs"
	"unionfs/supervisor"
	"unionfs/volumes"
)

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
		for _, v := range volumes.Inherited(supervisor.VolumesOf(container), readOnly) {
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
		image, err := rootfs.FindImage(root, v.Reference)
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
	spec.Annotations[supervisor.AnnotationVolumes] = string(text)
	return err
}
