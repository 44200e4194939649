package main

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"unionfs/network"
	"unionfs/runner"
	"unionfs/supervisor"
)

func portCommand() *cli.Command {
	return &cli.Command{
		Name:      "port",
		Usage:     "list the ports that a container publishes",
		ArgsUsage: "CONTAINER [PORT[/PROTOCOL]]",
		Description: `Lists the ports that a running container publishes, with the addresses of this machine that lead there; or only those
addresses, for one port.

Example:
   unionfs port web 80`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 2, "CONTAINER [PORT[/PROTOCOL]]"); err != nil {
				return err
			}
			root, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			ports := portsOf(connectionsOf(root, container))
			want := c.Args().Get(1)
			if want == "" {
				for _, p := range ports {
					fmt.Fprintf(c.App.Writer, "%s -> %s\n", p, p.Host())
				}
				return nil
			}
			if !strings.Contains(want, "/") {
				want += "/tcp"
			}
			found := false
			for _, p := range ports {
				if p.String() == want {
					found = true
					fmt.Fprintln(c.App.Writer, p.Host())
				}
			}
			if !found {
				return fmt.Errorf("container %s publishes no port %s", container.Name, want)
			}
			return nil
		},
	}
}

// connection is a network that a container is on now.
type connection struct {
	network  *network.Network
	endpoint *network.Endpoint
}

// connectionsOf returns what a container is connected to, in the order of its plan. What can't be read isn't there.
func connectionsOf(root string, container *runner.Container) (all []connection) {
	plan, err := network.ReadPlan(container.Dir())
	if err != nil || plan == nil {
		return nil
	}
	store := network.OpenStore(root)
	for _, m := range plan.Networks {
		n, err := store.Get(m.Network)
		if err != nil || n.ID != m.ID {
			continue
		}
		endpoints, err := n.Endpoints()
		if err != nil {
			continue
		}
		if at := slices.IndexFunc(endpoints, func(e *network.Endpoint) bool { return e.Container == container.ID }); at >= 0 {
			all = append(all, connection{n, endpoints[at]})
		}
	}
	return all
}

func portsOf(connections []connection) (ports []network.Port) {
	for _, each := range connections {
		ports = append(ports, each.endpoint.Ports...)
	}
	slices.SortFunc(ports, func(a, b network.Port) int {
		return cmp.Or(cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.HostPort, b.HostPort))
	})
	return ports
}

// portText is the column PORTS of "ps".
func portText(ports []network.Port) string {
	var all []string
	for _, p := range ports {
		all = append(all, p.Host()+"->"+p.String())
	}
	return strings.Join(all, ", ")
}

// networkSettings is a part of what "inspect" prints of a container, with Docker's names.
type networkSettings struct {
	Ports             map[string][]portBinding
	IPAddress         string
	GlobalIPv6Address string
	Networks          map[string]networkConnection
}

type portBinding struct {
	HostIP   string `json:"HostIp"`
	HostPort string
}

type networkConnection struct {
	Aliases             []string
	NetworkID           string
	EndpointID          string
	Gateway             string
	IPAddress           string
	IPPrefixLen         int
	IPv6Gateway         string
	GlobalIPv6Address   string
	GlobalIPv6PrefixLen int
	MacAddress          string
}

func networkSettingsOf(root string, container *runner.Container) networkSettings {
	s := networkSettings{Ports: map[string][]portBinding{}, Networks: map[string]networkConnection{}}
	plan, err := network.ReadPlan(container.Dir())
	if err != nil || plan == nil {
		mode := supervisor.NetworkMode(container)
		if !strings.HasPrefix(mode, "container:") {
			s.Networks[mode] = networkConnection{}
		}
		return s
	}
	for _, m := range plan.Networks {
		s.Networks[m.Network] = networkConnection{NetworkID: m.ID, Aliases: m.Aliases}
	}
	for _, p := range plan.Exposed {
		s.Ports[p.String()] = nil
	}
	for _, each := range connectionsOf(root, container) {
		n, e := each.network, each.endpoint
		c := networkConnection{
			Aliases: e.Aliases, NetworkID: n.ID, EndpointID: e.ID, Gateway: n.Gateway.String(), IPAddress: e.Address.String(),
			IPPrefixLen: n.Subnet.Bits(), MacAddress: e.MAC,
		}
		if n.IPv6 {
			c.IPv6Gateway, c.GlobalIPv6Address, c.GlobalIPv6PrefixLen = n.Gateway6.String(), e.Address6.String(), n.Subnet6.Bits()
		}
		s.Networks[n.Name] = c
		if s.IPAddress == "" {
			s.IPAddress, s.GlobalIPv6Address = c.IPAddress, c.GlobalIPv6Address
		}
		for _, p := range e.Ports {
			host, _ := netip.ParseAddrPort(p.Host())
			s.Ports[p.String()] = append(s.Ports[p.String()], portBinding{host.Addr().String(), fmt.Sprint(p.HostPort)})
		}
	}
	return s
}
