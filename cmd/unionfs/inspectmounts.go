package main

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

// mountDetails is one of Mounts in Docker's "inspect".
type mountDetails struct {
	Type        string // bind, volume, tmpfs or image
	Name        string `json:",omitempty"` // of a volume, and of an image its reference
	Source      string
	Destination string
	Driver      string `json:",omitempty"`
	Mode        string
	RW          bool
	Propagation string
}

// mountsOf lists what is mounted in a container because somebody asked for it.
func mountsOf(container *runner.Container) []mountDetails {
	all := []mountDetails{} // [] rather than null
	for _, v := range supervisor.VolumesOf(container) {
		at := slices.IndexFunc(container.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == v.Target })
		if at < 0 {
			continue
		}
		mount := container.Spec.Mounts[at]
		m := mountDetails{Source: mount.Source, Destination: v.Target, Mode: strings.Join(v.Options, ","), RW: !v.ReadOnly()}
		switch v.Kind {
		case volumes.Bind:
			m.Type = "bind"
		case volumes.Named:
			m.Type, m.Name, m.Driver = "volume", v.Source, "local"
		case volumes.Tmpfs:
			m.Type, m.Source = "tmpfs", ""
		case volumes.Image:
			m.Type, m.Name = "image", v.Reference
		}
		for _, o := range mount.Options {
			if strings.HasSuffix(o, "private") || strings.HasSuffix(o, "shared") || strings.HasSuffix(o, "slave") {
				m.Propagation = o
			}
		}
		all = append(all, m)
	}
	return all
}
