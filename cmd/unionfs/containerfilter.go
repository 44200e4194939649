package main

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"unionfs/network"
	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

// containerFilter reports whether a container is wanted.
type containerFilter func(*runner.Container, *runner.Status) bool

// containerFilters are the names that --filter takes.
var containerFilters = []string{"id", "name", "label", "status", "exited", "ancestor", "health", "volume", "network", "publish", "expose", "before", "since"}

// parseFilters reads the values of --filter. As in Docker, several for one name mean any of them, except for labels, and
// all names must agree.
func parseFilters(root string, values []string) (containerFilter, error) {
	byName := map[string][]string{}
	for _, value := range values {
		name, want, found := strings.Cut(value, "=")
		if !found || !slices.Contains(containerFilters, name) {
			return nil, usageError("--filter %q: want one of %s, with =VALUE", value, strings.Join(containerFilters, ", "))
		}
		switch name {
		case "before", "since":
			other, err := findContainer(root, want)
			if err != nil {
				return nil, fmt.Errorf("--filter %s: %w", value, err)
			}
			status, err := other.Status()
			if err != nil {
				return nil, fmt.Errorf("--filter %s: %w", value, err)
			}
			want = status.Created.Format(time.RFC3339Nano)
		case "publish", "expose":
			if _, err := network.ParsePort(want); err != nil {
				return nil, usageError("--filter %s: want a port, such as 80/tcp", value)
			}
		}
		byName[name] = append(byName[name], want)
	}
	return func(container *runner.Container, status *runner.Status) bool {
		for name, wanted := range byName {
			matches := func(want string) bool { return matchesFilter(root, container, status, name, want) }
			if name == "label" {
				if slices.ContainsFunc(wanted, func(want string) bool { return !matches(want) }) {
					return false
				}
			} else if !slices.ContainsFunc(wanted, matches) {
				return false
			}
		}
		return true
	}, nil
}

func matchesFilter(root string, container *runner.Container, status *runner.Status, name, want string) bool {
	switch name {
	case "id":
		return strings.HasPrefix(container.ID, want)
	case "name":
		return strings.Contains(container.Name, want)
	case "label":
		key, value, exact := strings.Cut(want, "=")
		have, ok := labelsOf(container)[key]
		return ok && (!exact || have == value)
	case "status":
		return stateOf(status) == want
	case "health":
		if status.Health == nil {
			return want == "none"
		}
		return status.Health.Status == want
	case "volume":
		return slices.ContainsFunc(supervisor.VolumesOf(container), func(v volumes.Volume) bool { return v.Source == want || v.Target == want })
	case "network":
		return slices.ContainsFunc(networksOf(container), func(m network.Membership) bool {
			return m.Network == want || len(want) >= 12 && strings.HasPrefix(m.ID, want)
		})
	case "publish", "expose":
		wanted, _ := network.ParsePort(want)
		return slices.ContainsFunc(wanted, func(p network.Port) bool { return hasPort(root, container, p, name == "publish") })
	case "before", "since":
		than, _ := time.Parse(time.RFC3339Nano, want)
		return name == "before" && status.Created.Before(than) || name == "since" && status.Created.After(than)
	case "exited":
		return status.State == runner.StateExited && fmt.Sprint(status.ExitCode) == want
	case "ancestor":
		id := container.Spec.Annotations[rootfs.AnnotationImageID]
		return container.Image() == want || container.Image() == want+":latest" || len(want) >= 12 && strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), want) || id == want
	}
	return false
}

// networksOf are the networks that a container is on, or will be when it runs.
func networksOf(container *runner.Container) []network.Membership {
	plan, err := network.ReadPlan(container.Dir())
	if err != nil || plan == nil {
		mode, _, _ := strings.Cut(supervisor.NetworkMode(container), ":")
		return []network.Membership{{Network: mode}}
	}
	return plan.Networks
}

// hasPort reports whether a container publishes a port, or, if it need not, exposes it.
func hasPort(root string, container *runner.Container, want network.Port, published bool) bool {
	is := func(p network.Port) bool { return p.String() == want.String() }
	if slices.ContainsFunc(portsOf(connectionsOf(root, container)), is) {
		return true
	}
	plan, err := network.ReadPlan(container.Dir())
	if err != nil || plan == nil {
		return false
	}
	return slices.ContainsFunc(plan.Ports, is) || !published && slices.ContainsFunc(plan.Exposed, is)
}
