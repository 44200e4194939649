package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/network"
	"unionfs/runner"
)

// AnnotationNetwork is the network's mode: "none", "host", "container:ID" or the name of the first network.
const AnnotationNetwork = "unionfs.network"

// NetworkMode is what Docker calls the network mode of a container.
func NetworkMode(container *runner.Container) string {
	if mode := container.Spec.Annotations[AnnotationNetwork]; mode != "" {
		return mode
	}
	if slices.ContainsFunc(container.Spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace }) {
		return "none"
	}
	return "host"
}

// attachment is a container's network as its supervisor has it.
type attachment struct {
	*network.Attachment
	unreachable error // the machine's network
}

func (a attachment) Connect(pid int) error {
	if a.unreachable != nil {
		return a.unreachable
	}
	return a.Attachment.Connect(pid)
}

// Namespace: the network namespace is the container's own.
func (attachment) Namespace() (*os.File, error) { return nil, nil }

// sharing is the network of a container that has another container's.
type sharing struct {
	root  string
	other string // the other's ID
}

// connection returns what connects a container, or nil if nothing does.
func connection(root string, container *runner.Container) runner.Network {
	mode := NetworkMode(container)
	if other, ok := strings.CutPrefix(mode, "container:"); ok {
		return sharing{root, other}
	}
	if network.IsMode(mode) {
		return nil
	}
	file := func(name string) string {
		path := filepath.Join(container.Dir(), name)
		if _, err := os.Stat(path); err != nil {
			return "" // the container has its image's own
		}
		return path
	}
	store := network.OpenStore(root)
	var host network.Host
	held, err := store.Held()
	switch {
	case err == nil:
		host, store.Inner = held, true
	case errors.Is(err, network.ErrNoHolder):
		err = nil // root's: the machine's network is the one that we are in
	}
	return attachment{network.NewAttachment(store, network.Container{
		ID: container.ID, Dir: container.Dir(), Lock: filepath.Join(container.Dir(), "lock"), Hostname: container.Spec.Hostname,
		Name: func() string {
			if now, err := find(root, container.ID); err == nil {
				return now.Name
			}
			return container.Name
		},
		Hosts: file("hosts"), ResolvConf: file("resolv.conf"),
	}, host), err}
}

func (s sharing) Namespace() (*os.File, error) {
	other, err := find(s.root, s.other)
	if err != nil {
		return nil, fmt.Errorf("sharing a network: %w", err)
	}
	status, err := other.Status()
	if err != nil {
		return nil, fmt.Errorf("sharing the network of container %s: %w", other.Name, err)
	}
	if status.State != runner.StateRunning {
		return nil, fmt.Errorf("sharing the network of container %s: it is not running", other.Name)
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", status.InitPID))
	if err != nil {
		return nil, fmt.Errorf("sharing the network of container %s: %w", other.Name, err)
	}
	return ns, nil
}

func (sharing) Connect(int) error { return nil }
func (sharing) Update() error     { return nil }
func (sharing) Disconnect() error { return nil }
func (sharing) Tidy()             {}
