package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Endpoint is one container's connection to one network; the content of endpoints/CONTAINER-ID. It is written before
// anything is made on the host, so whatever is left of a container that was killed can be found. It holds as long as the
// file Owner is locked, which the container's supervisor does for as long as it lives.
type Endpoint struct {
	ID        string     `json:"id"`        // 64 hexadecimal digits
	Container string     `json:"container"` // the container's ID
	Name      string     `json:"name"`      // the container's name
	Aliases   []string   `json:"aliases,omitempty"`
	Address   netip.Addr `json:"address"`
	Address6  netip.Addr `json:"address6,omitzero"` // where the network has IPv6
	MAC       string     `json:"mac"`
	Interface string     `json:"interface"`     // in the container
	Host      string     `json:"hostInterface"` // the other end, on the bridge
	Ports     []Port     `json:"ports,omitempty"`
	Owner     string     `json:"owner"` // absolute path
}

// names are those that the endpoint is found by, in lower case.
func (e *Endpoint) names() []string {
	names := []string{strings.ToLower(e.Name), e.Container[:min(12, len(e.Container))]}
	for _, a := range e.Aliases {
		names = append(names, strings.ToLower(a))
	}
	return names
}

func (n *Network) endpointPath(container string) string {
	return filepath.Join(n.path("endpoints"), container)
}

// Endpoints returns what is connected to the network now, by name.
func (n *Network) Endpoints() ([]*Endpoint, error) {
	all, err := n.allEndpoints()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(e *Endpoint) bool { return !e.alive() }), nil
}

// allEndpoints returns the dead too.
func (n *Network) allEndpoints() ([]*Endpoint, error) {
	entries, err := os.ReadDir(n.path("endpoints"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading network %s: %w", n.Name, err)
	}
	var all []*Endpoint
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") {
			continue // being written
		}
		e, err := n.endpoint(entry.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b *Endpoint) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// endpoint reads a container's endpoint. A torn one (it is not synced) reads as a dead one.
func (n *Network) endpoint(container string) (*Endpoint, error) {
	data, err := os.ReadFile(n.endpointPath(container))
	if err != nil {
		return nil, fmt.Errorf("reading network %s: %w", n.Name, err)
	}
	e := &Endpoint{}
	if err := json.Unmarshal(data, e); err != nil || e.Container != container {
		return &Endpoint{Container: container}, nil
	}
	return e, nil
}

func (n *Network) writeEndpoint(e *Endpoint) error {
	return writeJSON(n.endpointPath(e.Container), e)
}

// alive reports whether someone holds the owner's lock (a write lock of the open file description kind, fcntl_locking(2)).
func (e *Endpoint) alive() bool {
	f, err := os.Open(e.Owner)
	if err != nil {
		return false
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk)
	return err == nil && lk.Type != unix.F_UNLCK
}

// sweepLocked removes the endpoints of containers that were killed, and returns the others. The caller has the network's
// lock. What is left of them on the host are rules of the firewall, which the caller makes anew if it goes on; their
// interfaces have gone with the containers' network namespaces.
func (n *Network) sweepLocked() (alive []*Endpoint, err error) {
	all, err := n.allEndpoints()
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.alive() {
			alive = append(alive, e)
			continue
		}
		if err := os.Remove(n.endpointPath(e.Container)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return alive, nil
}

// Sweep takes away what containers that were killed have left on the host. It does nothing, and costs next to nothing,
// where there is nothing.
func (s *Store) Sweep() error {
	all, err := s.load()
	if err != nil {
		return err
	}
	var failed []error
	for _, n := range all {
		endpoints, err := n.allEndpoints()
		if err != nil {
			failed = append(failed, err)
		}
		if !slices.ContainsFunc(endpoints, func(e *Endpoint) bool { return !e.alive() }) {
			continue
		}
		failed = append(failed, n.sweep())
	}
	return errors.Join(failed...)
}

func (n *Network) sweep() error {
	lock, err := n.lock()
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	alive, err := n.sweepLocked()
	if err != nil {
		return err
	}
	if len(alive) == 0 {
		return n.takeDown()
	}
	if n.store.elsewhere {
		return nil // the next container that comes or goes does it
	}
	return n.writeRules(alive)
}
