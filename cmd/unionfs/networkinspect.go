package main

import (
	"net/netip"
	"time"

	"github.com/urfave/cli/v2"

	"unionfs/network"
)

// networkDetails is what "network inspect" prints, with Docker's names.
type networkDetails struct {
	Name       string
	ID         string `json:"Id"`
	Created    time.Time
	Scope      string
	Driver     string
	EnableIPv4 bool
	EnableIPv6 bool
	IPAM       struct {
		Driver  string
		Options map[string]string
		Config  []networkAddresses
	}
	Internal   bool
	Attachable bool
	Ingress    bool
	Containers map[string]networkContainer
	Options    map[string]string
	Labels     map[string]string
}

// networkAddresses are those of one kind.
type networkAddresses struct {
	Subnet             string
	IPRange            string `json:",omitempty"`
	Gateway            string
	AuxiliaryAddresses map[string]string `json:",omitempty"`
}

func networkAddressesOf(n *network.Network, subnet netip.Prefix, gateway netip.Addr) networkAddresses {
	a := networkAddresses{Subnet: subnet.String(), Gateway: gateway.String(), AuxiliaryAddresses: map[string]string{}}
	for what, address := range n.Reserved {
		if subnet.Contains(address) {
			a.AuxiliaryAddresses[what] = address.String()
		}
	}
	return a
}

type networkContainer struct {
	Name        string
	EndpointID  string
	MacAddress  string
	IPv4Address string
	IPv6Address string
}

func networkDetailsOf(n *network.Network) (networkDetails, error) {
	d := networkDetails{
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, EnableIPv4: true, Internal: n.Internal, Attachable: n.Attachable,
		Containers: map[string]networkContainer{}, Labels: n.Labels, Options: map[string]string{network.OptionBridgeName: n.Bridge},
	}
	for name, value := range n.Options {
		d.Options[name] = value
	}
	addresses := networkAddressesOf(n, n.Subnet, n.Gateway)
	if n.Range.IsValid() {
		addresses.IPRange = n.Range.String()
	}
	d.IPAM.Driver, d.IPAM.Options, d.IPAM.Config = "default", map[string]string{}, []networkAddresses{addresses}
	if d.EnableIPv6 = n.IPv6; n.IPv6 {
		d.IPAM.Config = append(d.IPAM.Config, networkAddressesOf(n, n.Subnet6, n.Gateway6))
	}
	endpoints, err := n.Endpoints()
	for _, e := range endpoints {
		c := networkContainer{
			Name: e.Name, EndpointID: e.ID, MacAddress: e.MAC, IPv4Address: netip.PrefixFrom(e.Address, n.Subnet.Bits()).String(),
		}
		if n.IPv6 {
			c.IPv6Address = netip.PrefixFrom(e.Address6, n.Subnet6.Bits()).String()
		}
		d.Containers[e.Container] = c
	}
	return d, err
}

func networkInspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print all about networks, as JSON",
		ArgsUsage: "NETWORK...",
		Description: `Prints the configuration of networks, and the running containers on them, with Docker's names.

Examples:
   unionfs network inspect backend
   unionfs network inspect -f '{{range .IPAM.Config}}{{.Subnet}} {{end}}' backend`,
		Flags:  []cli.Flag{inspectFormatFlag()},
		Action: inspectEach("NETWORK...", inspectNetwork),
	}
}

func inspectNetwork(root, ref string) (any, error) {
	n, err := findNetwork(network.OpenStore(root), ref)
	if err != nil {
		return nil, err
	}
	return networkDetailsOf(n)
}
