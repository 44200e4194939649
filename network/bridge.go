package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// dumpAttempts is how often a list is asked for which changes while the kernel gives it, as when containers start beside this one.
const dumpAttempts = 100

// hostPrefixes returns the addresses that the host's interfaces and routes take up.
func hostPrefixes() ([]netip.Prefix, error) {
	list := func() ([]netlink.Route, error) {
		return netlink.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
	}
	routes, err := list()
	for n := 1; n < dumpAttempts && errors.Is(err, netlink.ErrDumpInterrupted); n++ {
		routes, err = list()
	}
	if err != nil {
		return nil, fmt.Errorf("reading the host's routes: %w", err)
	}
	var all []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil {
			continue
		}
		a, ok := netip.AddrFromSlice(r.Dst.IP.To4())
		ones, _ := r.Dst.Mask.Size()
		if ok && ones > 0 {
			all = append(all, netip.PrefixFrom(a, ones))
		}
	}
	return all, nil
}

// bringUp makes the network's bridge if it is not there, with the gateway's address. The caller has the network's lock.
func (n *Network) bringUp() error {
	link, err := netlink.LinkByName(n.Bridge)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		link, err = n.makeBridge()
	}
	if err != nil {
		return fmt.Errorf("making the bridge %s: %w", n.Bridge, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("there is an interface %s, which is no bridge", n.Bridge)
	}
	// Also if it was there: its making may have been cut short.
	err = netlink.AddrReplace(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(n.Gateway, n.Subnet.Bits()))})
	if err == nil {
		err = n.bringUp6(link)
	}
	if err == nil && link.Attrs().Flags&net.FlagUp == 0 {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("setting up the bridge %s: %w", n.Bridge, err)
	}
	return nil
}

func (n *Network) makeBridge() (netlink.Link, error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = n.Bridge
	// Without an address of its own, a bridge has the lowest of its ports', which changes as they come and go.
	attrs.HardwareAddr = hardwareAddress(n.Gateway)
	bridge := &netlink.Bridge{LinkAttrs: attrs}
	if err := netlink.LinkAdd(bridge); err != nil && !errors.Is(err, unix.EEXIST) {
		return nil, explain(err)
	}
	if !n.IPv6 {
		// It has no address of that kind, and needs none of its own making.
		if err := setParameter6(n.Bridge, "disable_ipv6", "1"); err != nil {
			return nil, err
		}
	}
	for _, set := range []struct{ name, value string }{
		// What is published on 127.0.0.1 goes through the bridge with that address, until the firewall has changed it;
		// that nothing comes in with one is the firewall's to see to, see rulesOf.
		{"ipv4/conf/%s/route_localnet", "1"},
		// For packets that come from the bridge, also where the host as a whole forwards none: between containers, by
		// published ports.
		{"ipv4/conf/%s/forwarding", "1"},
	} {
		err := os.WriteFile(filepath.Join("/proc/sys/net", fmt.Sprintf(set.name, n.Bridge)), []byte(set.value), 0)
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.EROFS) {
			return nil, err
		}
	}
	return netlink.LinkByName(n.Bridge)
}

// ErrNoPermission is wrapped by the errors of a process that may not change the network.
var ErrNoPermission = errors.New("this process may not change the network")

func explain(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w (CAP_NET_ADMIN)", ErrNoPermission)
	case errors.Is(err, unix.EOPNOTSUPP):
		return fmt.Errorf("the kernel has none of that kind: %w", err)
	}
	return err
}

// plug makes the pair of interfaces that leads from the network namespace ns to the bridge, and sets up the end inside. The
// first network that leads out is the default route. The caller has the network's lock.
func (n *Network) plug(e *Endpoint, ns *os.File, defaultRoute bool) error {
	bridge, err := netlink.LinkByName(n.Bridge)
	if err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MasterIndex, attrs.Flags = e.Host, bridge.Attrs().Index, net.FlagUp
	mac, err := net.ParseMAC(e.MAC)
	if err != nil {
		return err
	}
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: e.Interface, PeerHardwareAddr: mac, PeerNamespace: netlink.NsFd(int(ns.Fd()))}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("making a pair of interfaces: %w", explain(err))
	}
	// A container by its own published port: where br_netfilter has bridged packets pass through the firewall too, the
	// answer leaves by the port that the question came from.
	port, err := netlink.LinkByName(e.Host)
	if err == nil {
		err = netlink.LinkSetHairpin(port, true)
	}
	if err == nil {
		err = n.setUpInside(e, ns, defaultRoute)
	}
	if err != nil {
		_ = netlink.LinkDel(pair)
	}
	return err
}

// netlinkIn returns a connection to the kernel about a network namespace. (netlink.NewHandleAt leaves a thread behind in the
// namespace where it may not go back to its own.)
func netlinkIn(ns *os.File) (h *netlink.Handle, err error) {
	err = inNamespace(ns, func() error {
		h, err = netlink.NewHandle(unix.NETLINK_ROUTE)
		return err
	})
	return h, err
}

// raiseLoopback brings up lo in a network namespace, before there are addresses to listen on.
func raiseLoopback(ns *os.File) error {
	inside, err := netlinkIn(ns)
	if err != nil {
		return err
	}
	defer inside.Close()
	lo, err := inside.LinkByName("lo")
	if err != nil {
		return err
	}
	return inside.LinkSetUp(lo)
}

func (n *Network) setUpInside(e *Endpoint, ns *os.File, defaultRoute bool) error {
	inside, err := netlinkIn(ns)
	if err != nil {
		return fmt.Errorf("entering the container's network namespace: %w", err)
	}
	defer inside.Close()
	link, err := inside.LinkByName(e.Interface)
	if err != nil {
		return err
	}
	address := ipNet(netip.PrefixFrom(e.Address, n.Subnet.Bits()))
	if err := inside.AddrAdd(link, &netlink.Addr{IPNet: address}); err != nil {
		return fmt.Errorf("giving the container the address %s: %w", e.Address, err)
	}
	if err := inside.LinkSetUp(link); err != nil {
		return fmt.Errorf("bringing up the container's interface: %w", err)
	}
	if err := n.setUpInside6(e, ns, inside, link, defaultRoute); err != nil {
		return err
	}
	if !defaultRoute {
		return nil
	}
	if err := inside.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: n.Gateway.AsSlice()}); err != nil {
		return fmt.Errorf("setting the container's default route: %w", err)
	}
	return nil
}

// unplug takes away the pair of interfaces. It is slow (the kernel waits until no processor can be using it): where the
// network namespace goes too, it is left to that.
func (n *Network) unplug(e *Endpoint) error {
	link, err := netlink.LinkByName(e.Host)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return nil
	}
	if err == nil {
		err = netlink.LinkDel(link)
	}
	if err != nil {
		return fmt.Errorf("removing the interface %s: %w", e.Host, err)
	}
	return nil
}

// takeDown takes the network's bridge and rules off the host. The caller has the network's lock, and there is no endpoint.
func (n *Network) takeDown() error {
	if n.store.elsewhere {
		return n.store.takeDownHeld(n)
	}
	err := n.removeRules()
	link, lerr := netlink.LinkByName(n.Bridge)
	var missing netlink.LinkNotFoundError
	switch {
	case errors.As(lerr, &missing):
		return err
	case lerr != nil:
		return errors.Join(err, lerr)
	case link.Type() != "bridge":
		return err
	}
	if lerr := netlink.LinkDel(link); lerr != nil {
		err = errors.Join(err, fmt.Errorf("removing the bridge %s: %w", n.Bridge, lerr))
	}
	return err
}

// mayChangeNetwork reports whether this process has CAP_NET_ADMIN over its network namespace: that one must also be of its own
// user namespace (ioctl_ns(2)), where the capability counts.
func mayChangeNetwork() bool {
	ns, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return false
	}
	defer ns.Close()
	fd, err := unix.IoctlRetInt(int(ns.Fd()), unix.NS_GET_USERNS)
	if err != nil {
		return false
	}
	owner := os.NewFile(uintptr(fd), "owner")
	defer owner.Close()
	theirs, err := owner.Stat()
	if err != nil {
		return false
	}
	if own, err := os.Stat("/proc/self/ns/user"); err != nil || !os.SameFile(own, theirs) {
		return false
	}
	caps, err := capability.NewPid2(0)
	if err == nil {
		err = caps.Load()
	}
	if err != nil {
		return os.Geteuid() == 0
	}
	return caps.Get(capability.EFFECTIVE, capability.CAP_NET_ADMIN)
}

// ForwardingOff reports whether the host passes no packets on, so that what is beyond it can't be reached.
func ForwardingOff() bool {
	data, err := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
	return err == nil && strings.TrimSpace(string(data)) == "0"
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// hardwareAddress is a locally administered address that follows from the IP address, so that who remembers the one for the
// other never remembers wrong.
func hardwareAddress(a netip.Addr) net.HardwareAddr {
	b := a.As4()
	return net.HardwareAddr{0x02, 0x42, b[0], b[1], b[2], b[3]}
}
