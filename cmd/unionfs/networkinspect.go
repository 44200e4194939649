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
		Config  []map[string]string
	}
	Internal   bool
	Attachable bool
	Ingress    bool
	Containers map[string]networkContainer
	Options    map[string]string
	Labels     map[string]string
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
		Name: n.Name, ID: n.ID, Created: n.Created, Scope: "local", Driver: n.Driver, EnableIPv4: true, Internal: n.Internal,
		Containers: map[string]networkContainer{}, Labels: n.Labels, Options: map[string]string{network.OptionBridgeName: n.Bridge},
	}
	for name, value := range n.Options {
		d.Options[name] = value
	}
	addresses := map[string]string{"Subnet": n.Subnet.String(), "Gateway": n.Gateway.String()}
	if n.Range.IsValid() {
		addresses["IPRange"] = n.Range.String()
	}
	d.IPAM.Driver, d.IPAM.Options, d.IPAM.Config = "default", map[string]string{}, []map[string]string{addresses}
	if d.EnableIPv6 = n.IPv6; n.IPv6 {
		d.IPAM.Config = append(d.IPAM.Config, map[string]string{"Subnet": n.Subnet6.String(), "Gateway": n.Gateway6.String()})
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
