package network

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A network may have addresses of IPv6 beside those of IPv4. What differs from IPv4:
//
//   - A container's address follows from its address of IPv4, unless it asks for one: both are at the same distance from the
//     starts of their subnets, so that the one that is free is free in both.
//   - The kernel has no route_localnet: ::1 never reaches a container through the firewall, but through the port's proxy.
//   - It forwards packets of an interface alone only since Linux 6.17 (force_forwarding), else for the machine as a whole. Where
//     that is off, published ports are left to the proxies.
//   - An ordinary user's networks have a way out by it if their uplink has: our own, and pasta if the machine has one itself.

// subnet6Bits are those of a subnet that is chosen, as networks usually have.
const subnet6Bits = 64

// completeIPv6 checks what was asked for of IPv6, and chooses what was left to us. It follows completeAddresses.
func (c *Config) completeIPv6(taken []netip.Prefix) error {
	if !c.Subnet6.IsValid() {
		if c.Gateway6.IsValid() {
			return errors.New("a --gateway of IPv6 needs a --subnet of it")
		}
		if !c.IPv6 {
			return nil
		}
		c.Subnet6 = uniqueLocal(c.ID)
	}
	if !HasIPv6() {
		return errors.New("this machine's kernel has no IPv6")
	}
	c.IPv6, c.Subnet6 = true, c.Subnet6.Masked()
	if t := overlapped(c.Subnet6, taken); t.IsValid() {
		return fmt.Errorf("the subnet %s overlaps %s, which another network has", c.Subnet6, t)
	}
	if a := c.Subnet6.Addr(); !a.IsPrivate() && !a.IsGlobalUnicast() {
		return fmt.Errorf("the subnet %s is not one that hosts can have addresses of; such as fd00:1234::/64", c.Subnet6)
	}
	if 128-c.Subnet6.Bits() < 32-c.Subnet.Bits() {
		return fmt.Errorf("the subnet %s has fewer addresses than %s: containers have one of each", c.Subnet6, c.Subnet)
	}
	if !c.Gateway6.IsValid() {
		c.Gateway6 = c.Subnet6.Addr().Next()
		if c.Gateway.IsValid() {
			c.Gateway6 = parallel(c.Gateway, c.Subnet, c.Subnet6)
		}
	}
	if !c.Subnet6.Contains(c.Gateway6) || c.Gateway6 == c.Subnet6.Addr() {
		return fmt.Errorf("the gateway %s is no host's address of the subnet %s", c.Gateway6, c.Subnet6)
	}
	return nil
}

// HasIPv6 reports whether the kernel has it.
func HasIPv6() bool {
	_, err := os.Stat("/proc/sys/net/ipv6")
	return err == nil
}

// uniqueLocal is a subnet of RFC 4193 that follows from a network's random ID.
func uniqueLocal(id string) netip.Prefix {
	a := [16]byte{0xfd}
	_, _ = hex.Decode(a[1:8], []byte(id[:14]))
	return netip.PrefixFrom(netip.AddrFrom16(a), subnet6Bits)
}

// parallel is the address that is as far from the start of subnet6 as a is from that of subnet.
func parallel(a netip.Addr, subnet, subnet6 netip.Prefix) netip.Addr {
	distance, start := a.As4(), subnet.Masked().Addr().As4()
	b := subnet6.Masked().Addr().As16()
	for i := range 4 {
		b[12+i] |= distance[i] ^ start[i]
	}
	return netip.AddrFrom16(b)
}

// allocate6 is the address that goes with one of IPv4, or checks the one that a container wants. The caller has the network's lock.
func (n *Network) allocate6(want, beside netip.Addr, endpoints []*Endpoint) (netip.Addr, error) {
	if !n.IPv6 {
		if want.IsValid() {
			return want, fmt.Errorf("the network has no addresses of IPv6, such as %s: make one with \"unionfs network create --ipv6\"", want)
		}
		return netip.Addr{}, nil
	}
	used := n.used(endpoints)
	if want.IsValid() {
		if !want.Is6() || !n.Subnet6.Contains(want) || want == n.Subnet6.Addr() {
			return want, fmt.Errorf("%s is no host's address of the subnet %s", want, n.Subnet6)
		}
		if who := used[want]; who != "" {
			return want, fmt.Errorf("the address %s is in use by %s", want, who)
		}
		return want, nil
	}
	// It is taken only where somebody has asked for it.
	a := parallel(beside, n.Subnet, n.Subnet6)
	for first := a; used[a] != "" || a == n.Subnet6.Addr(); {
		if a = next(a, n.Subnet6); a == first {
			return a, fmt.Errorf("every address of %s is in use", n.Subnet6)
		}
	}
	return a, nil
}

// setParameter6 sets a kernel parameter of an interface, in the network namespace of the calling thread. One that there is not is left.
func setParameter6(link, name, value string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, name), []byte(value), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS) {
		return err
	}
	return nil
}

// bringUp6 gives the bridge its address of IPv6.
func (n *Network) bringUp6(bridge netlink.Link) error {
	if !n.IPv6 {
		return nil
	}
	for _, set := range []struct{ name, value string }{
		{"disable_ipv6", "0"}, {"accept_ra", "0"}, {"autoconf", "0"}, {"forwarding", "1"}, {"force_forwarding", "1"},
	} {
		if err := setParameter6(n.Bridge, set.name, set.value); err != nil {
			return err
		}
	}
	return netlink.AddrReplace(bridge, address6(n.Gateway6, n.Subnet6))
}

// address6 is an address that can be used at once: nobody else gives out those of our subnets.
func address6(a netip.Addr, subnet netip.Prefix) *netlink.Addr {
	return &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, subnet.Bits())), Flags: unix.IFA_F_NODAD}
}

// setUpInside6 gives the container's interface its address of IPv6.
func (n *Network) setUpInside6(e *Endpoint, ns *os.File, inside *netlink.Handle, link netlink.Link, defaultRoute bool) error {
	if !n.IPv6 {
		return nil
	}
	// The machine may have switched it off for interfaces that are new.
	if err := inNamespace(ns, func() error { return setParameter6(e.Interface, "disable_ipv6", "0") }); err != nil {
		return fmt.Errorf("switching on the container's IPv6: %w", err)
	}
	if err := inside.AddrAdd(link, address6(e.Address6, n.Subnet6)); err != nil {
		return fmt.Errorf("giving the container the address %s: %w", e.Address6, err)
	}
	// Where an ordinary user's networks have no way out by it, it is better to know at once.
	if !defaultRoute || n.store.Inner && !leadsOut6() {
		return nil
	}
	if err := inside.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: n.Gateway6.AsSlice()}); err != nil {
		return fmt.Errorf("setting the container's default route of IPv6: %w", err)
	}
	return nil
}

// leadsOut6 reports whether there is a route to the machines of the world (RFC 4291, 2.4: global unicast) from this network namespace.
func leadsOut6() bool {
	routes, err := netlink.RouteGet(net.IP{0: 0x20, 15: 1})
	return err == nil && len(routes) > 0
}

// setUpTap6 gives the inner network's way out addresses of IPv6, if the kernel has it.
func setUpTap6(inner *os.File, h *netlink.Handle, link netlink.Link) error {
	if !HasIPv6() {
		return nil
	}
	err := inNamespace(inner, func() error {
		return errors.Join(setParameter6(uplinkInterface, "disable_ipv6", "0"), setParameter6(uplinkInterface, "accept_ra", "0"))
	})
	if err == nil {
		err = h.AddrAdd(link, address6(UplinkAddress6(), netip.MustParsePrefix(uplinkSubnet6)))
	}
	if err == nil {
		err = h.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: UplinkGateway6().AsSlice(), HardwareAddr: UplinkGatewayMAC(),
		})
	}
	if err == nil {
		err = h.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: UplinkGateway6().AsSlice()})
	}
	return err
}

// forwards6 reports whether this machine, or the inner network namespace, passes on packets of IPv6.
func forwards6() bool {
	data, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
	return err == nil && strings.TrimSpace(string(data)) == "1"
}

// ForwardingOff6 reports whether a plan's way out has IPv6, and the machine passes no packets of it on.
func (s *Store) ForwardingOff6(plan *Plan) bool {
	for _, m := range plan.Networks {
		if n, err := s.Get(m.Network); err == nil && !n.Internal {
			return n.IPv6 && !forwards6()
		}
	}
	return false
}

// reverseAddress6 reads b.a.9.8.….ip6.arpa (RFC 3596, 2.5).
func reverseAddress6(name string) (netip.Addr, bool) {
	digits, ok := strings.CutSuffix(name, ".ip6.arpa")
	if !ok || len(digits) != 63 {
		return netip.Addr{}, false
	}
	var text [32]byte
	for i := range text {
		text[31-i] = digits[2*i]
		if i > 0 && digits[2*i-1] != '.' {
			return netip.Addr{}, false
		}
	}
	var a [16]byte
	if _, err := hex.Decode(a[:], text[:]); err != nil {
		return netip.Addr{}, false
	}
	return netip.AddrFrom16(a), true
}
