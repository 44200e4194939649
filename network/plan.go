package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Plan is what a container wants of networks: the content of network.json in the container's directory. It is made with the
// container; "network connect" and "disconnect" change it, and the container's supervisor does as it says.
type Plan struct {
	Networks []Membership `json:"networks"` // the first that leads out is the way out, and the published ports are its
	Ports    []Port       `json:"ports,omitempty"`
	Exposed  []Port       `json:"exposed,omitempty"` // the container's ports that nobody outside is led to; for people

	// What the container's resolv.conf says, or its name server does. The machine's own if empty.
	Servers []netip.Addr `json:"dns,omitempty"`
	Search  []string     `json:"dnsSearch,omitempty"`
	Options []string     `json:"dnsOptions,omitempty"`

	// Hosts are further lines of /etc/hosts, an address and a name. HostGateway in place of the address is the gateway.
	Hosts []string `json:"hosts,omitempty"`
}

// HostGateway stands for the address at which a container reaches its host.
const HostGateway = "host-gateway"

// Membership is one network that a container wants to be on.
type Membership struct {
	Network string     `json:"network"` // its name
	ID      string     `json:"id"`      // its ID: another network of the same name is not meant
	Aliases []string   `json:"aliases,omitempty"`
	Address netip.Addr `json:"address,omitzero"` // one is chosen if zero
	// Address6 is that of IPv6; one is chosen if zero, where the network has them.
	Address6 netip.Addr `json:"address6,omitzero"`
	MAC      string     `json:"mac,omitempty"` // it follows from the address if empty
}

// Check looks for what can't be, before a container is made.
func (s *Store) Check(m Membership) (Membership, error) {
	n, err := s.Get(m.Network)
	if err != nil {
		return m, err
	}
	m.Network, m.ID = n.Name, n.ID
	if m.Address.IsValid() {
		if _, err := n.allocate(m.Address, nil); err != nil {
			return m, err
		}
	}
	if m.Address6.IsValid() {
		if _, err := n.allocate6(m.Address6, netip.Addr{}, nil); err != nil {
			return m, err
		}
	}
	if n.Name == DefaultName && len(m.Aliases) > 0 {
		return m, fmt.Errorf("names don't resolve on the network %s: make one with \"unionfs network create\" for aliases", DefaultName)
	}
	if m.MAC != "" {
		mac, err := net.ParseMAC(m.MAC)
		if err != nil || len(mac) != 6 || mac[0]&1 != 0 {
			return m, fmt.Errorf("%q is no hardware address of one interface, such as 02:42:ac:11:00:02", m.MAC)
		}
		m.MAC = mac.String()
	}
	for _, a := range m.Aliases {
		if a == "" || strings.ContainsAny(a, " \t\n/") {
			return m, fmt.Errorf("%q is no name for a network alias", a)
		}
	}
	return m, nil
}

func planPath(dir string) string { return filepath.Join(dir, "network.json") }

// ReadPlan reads the plan in a container's directory. One without a plan has nothing to do with networks; the plan is then nil.
func ReadPlan(dir string) (*Plan, error) {
	data, err := os.ReadFile(planPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("reading the container's networks: %w", err)
	}
	p := &Plan{}
	if err := json.Unmarshal(data, p); err != nil {
		return nil, fmt.Errorf("reading the container's networks: %s is damaged: %w", planPath(dir), err)
	}
	return p, nil
}

// Write puts the plan into a container's directory.
func (p *Plan) Write(dir string) error {
	if err := writeJSON(planPath(dir), p); err != nil {
		return fmt.Errorf("writing the container's networks: %w", err)
	}
	return nil
}

// ChangePlan changes the plan of a container.
func (s *Store) ChangePlan(dir string, change func(*Plan) error) error {
	lock, err := s.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	p, err := ReadPlan(dir)
	if err != nil {
		return err
	}
	if p == nil {
		return errors.New("it was made with --network none, host or container:ID, and has no network of its own to change")
	}
	if err := change(p); err != nil {
		return err
	}
	return p.Write(dir)
}

// Membership finds the plan's entry for a network, or returns -1.
func (p *Plan) Membership(n *Network) int {
	return slices.IndexFunc(p.Networks, func(m Membership) bool { return m.ID == n.ID })
}
