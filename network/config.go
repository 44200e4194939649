package network

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// DefaultName is the network that a container is connected to when none is named. It exists in every [Store]. As with
// Docker, the names of its containers don't resolve.
const DefaultName = "bridge"

// OptionBridgeName is the option, with Docker's name, that names a network's bridge interface.
const OptionBridgeName = "com.docker.network.bridge.name"

// Config is a network as a person asked for it; the content of network.json.
type Config struct {
	Version int          `json:"version"`
	Name    string       `json:"name"`
	ID      string       `json:"id"` // 64 hexadecimal digits
	Created time.Time    `json:"created"`
	Driver  string       `json:"driver"` // "bridge"
	Subnet  netip.Prefix `json:"subnet"`
	Gateway netip.Addr   `json:"gateway"`        // the bridge's own address
	Range   netip.Prefix `json:"range,omitzero"` // what containers get addresses from; the whole subnet if zero

	// IPv6 says that there are addresses of it beside those of IPv4, in Subnet6.
	IPv6     bool         `json:"ipv6,omitempty"`
	Subnet6  netip.Prefix `json:"subnet6,omitzero"`
	Gateway6 netip.Addr   `json:"gateway6,omitzero"`

	// Reserved are addresses of the subnets that no container gets or may have, by what they are for.
	Reserved map[string]netip.Addr `json:"reserved,omitempty"`

	Attachable bool `json:"attachable,omitempty"` // means nothing here, and is kept

	Internal bool              `json:"internal"`        // no way out, and none in
	Labels   map[string]string `json:"labels"`          // never nil
	Options  map[string]string `json:"options"`         // as given, by Docker's names; never nil
	Bridge   string            `json:"bridgeInterface"` // the name of the interface on the host
}

const configVersion = 1

// complete checks what was asked for, and fills in what was left to us. A zero Subnet is left for the pool.
func (c *Config) complete() error {
	if err := checkName(c.Name); err != nil {
		return err
	}
	if c.Driver == "" {
		c.Driver = "bridge"
	}
	if c.Driver != "bridge" {
		return fmt.Errorf("unknown network driver %q; known is bridge", c.Driver)
	}
	c.Version, c.Created, c.ID = configVersion, time.Now().UTC(), randomID()
	c.Labels, c.Options = cloned(c.Labels), cloned(c.Options)
	c.Bridge = "un-" + c.ID[:12]
	for key, value := range c.Options {
		switch key {
		case OptionBridgeName:
			if err := checkInterfaceName(value); err != nil {
				return err
			}
			c.Bridge = value
		case "com.docker.network.bridge.enable_ip_masquerade", "com.docker.network.bridge.enable_icc", "com.docker.network.driver.mtu", "com.docker.network.bridge.host_binding_ipv4":
			return fmt.Errorf("the network option %s is not supported", key)
		}
	}
	return nil
}

// completeAddresses checks subnet, gateway and range against one another. The subnet is chosen.
func (c *Config) completeAddresses() error {
	c.Subnet = c.Subnet.Masked()
	if !c.Subnet.Addr().Is4() {
		return fmt.Errorf("the subnet %s is not of IPv4; containers always have an address of that too", c.Subnet)
	}
	if c.Subnet.Bits() > 30 {
		return fmt.Errorf("the subnet %s has no room for containers", c.Subnet)
	}
	if !c.Gateway.IsValid() {
		c.Gateway = c.Subnet.Addr().Next()
		if c.Range.IsValid() && c.Range.Masked().Addr() != c.Subnet.Addr() {
			c.Gateway = c.Range.Masked().Addr().Next()
		}
	}
	if !c.Subnet.Contains(c.Gateway) || c.Gateway == c.Subnet.Addr() || c.Gateway == lastAddress(c.Subnet) {
		return fmt.Errorf("the gateway %s is no host's address of the subnet %s", c.Gateway, c.Subnet)
	}
	if c.Range.IsValid() {
		c.Range = c.Range.Masked()
		if c.Range.Bits() < c.Subnet.Bits() || !c.Subnet.Contains(c.Range.Addr()) {
			return fmt.Errorf("the range %s is not within the subnet %s", c.Range, c.Subnet)
		}
	}
	return nil
}

// checkReserved is called when all subnets are known.
func (c *Config) checkReserved() error {
	for what, a := range c.Reserved {
		if !c.Subnet.Contains(a) && !(c.IPv6 && c.Subnet6.Contains(a)) {
			return fmt.Errorf("the address %s, reserved for %s, is not of the network's subnet", a, what)
		}
		if a == c.Gateway || a == c.Gateway6 {
			return fmt.Errorf("the address %s, reserved for %s, is the gateway's", a, what)
		}
	}
	return nil
}

// used are the addresses that no further container can have, and who has them.
func (c *Config) used(endpoints []*Endpoint) map[netip.Addr]string {
	used := map[netip.Addr]string{c.Gateway: "the gateway", c.Gateway6: "the gateway"}
	for what, a := range c.Reserved {
		used[a] = what + ", which it is reserved for"
	}
	for _, e := range endpoints {
		used[e.Address], used[e.Address6] = "container "+e.Name, "container "+e.Name
	}
	return used
}

func cloned(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return maps.Clone(m)
}

const maxNameLength = 128

func checkName(name string) error {
	ok := name != "" && len(name) <= maxNameLength
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", r)) {
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%q is no network name: use letters, digits, '_', '.' and '-', starting with a letter or digit, at most %d", name, maxNameLength)
	}
	return nil
}

// IsMode reports whether a name stands for something else than a network of a [Store].
func IsMode(name string) bool {
	return slices.Contains([]string{"none", "host", "default"}, name) || strings.HasPrefix(name, "container:")
}

// checkInterfaceName: dev_valid_name() in the kernel's net/core/dev.c.
func checkInterfaceName(name string) error {
	if name == "" || len(name) > 15 || name == "." || name == ".." || strings.ContainsAny(name, "/: \t\n") {
		return fmt.Errorf("%q is no name for a network interface: at most 15 characters, with no slash, colon or space", name)
	}
	return nil
}

func randomID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// ErrNotFound is wrapped by the errors for a network that does not exist.
var ErrNotFound = errors.New("no such network")

// ErrInUse is wrapped by the errors for a network that containers are connected to.
var ErrInUse = errors.New("network is in use")

// ErrExists is wrapped by the errors for a name that another network has.
var ErrExists = errors.New("network exists")
