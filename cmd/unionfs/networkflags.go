package main

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"unionfs/network"
	"unionfs/rootfs"
	"unionfs/runner"
)

// networkFlags are the flags of run and try that are about the container's network, with Docker's names.
func networkFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "network", Aliases: []string{"net"}, Usage: "connect it to `NETWORK`: none (only a loopback), host (the machine's own), container:NAME, bridge, or one that \"network create\" made", DefaultText: "$UNIONFS_NETWORK, or none; host for the image host"},
		&cli.StringSliceFlag{Name: "publish", Aliases: []string{"p"}, Usage: "publish a port of the container: `[ADDRESS:][PORT:]PORT[/udp]`"},
		&cli.BoolFlag{Name: "publish-all", Aliases: []string{"P"}, Usage: "publish all ports that the image exposes, each on a free one"},
		&cli.StringSliceFlag{Name: "expose", Usage: "expose `PORT[/udp]` of the container, for --publish-all"},
		&cli.StringSliceFlag{Name: "network-alias", Usage: "have it found by `NAME` too, on its network"},
		&cli.StringFlag{Name: "ip", Usage: "give it `ADDRESS` on its network"},
		&cli.StringFlag{Name: "ip6", Usage: "give it `ADDRESS` of IPv6 on its network"},
		&cli.StringFlag{Name: "mac-address", Usage: "give its interface the hardware `ADDRESS`"},
		&cli.StringSliceFlag{Name: "dns", Usage: "ask the name server `ADDRESS`", DefaultText: "the machine's"},
		&cli.StringSliceFlag{Name: "dns-search", Usage: "look for names within `DOMAIN`"},
		&cli.StringSliceFlag{Name: "dns-option", Usage: "`OPTION` of resolv.conf(5)"},
	}
}

// networkRequest is what the command line says about the network.
type networkRequest struct {
	mode  string
	plan  *network.Plan // for networks; else nil
	other *runner.Container
	hosts []string // lines for /etc/hosts
}

// networkOf reads networkFlags, and checks them against what there is.
func networkOf(c *cli.Context, root, image string, config imagespec.ImageConfig, request processRequest) (networkRequest, error) {
	names := c.StringSlice("network")
	if len(names) == 0 {
		names = []string{defaultNetwork(image)}
	}
	r := networkRequest{mode: names[0], hosts: request.isolation.hosts}
	if r.mode == "default" {
		r.mode = network.DefaultName
	}
	if request.isolation.runtime != "" && r.mode != "none" && r.mode != "host" {
		return r, usageError("--network %s is not supported together with --runtime; known are none and host", r.mode)
	}
	if network.IsMode(r.mode) {
		if len(names) > 1 {
			return r, usageError("--network %s can't be together with another network", r.mode)
		}
		return r, r.readMode(c, root, request)
	}
	plan, err := planOf(c, config)
	if err != nil {
		return r, err
	}
	plan.Hosts = r.hosts
	r.hosts = slices.DeleteFunc(slices.Clone(r.hosts), func(line string) bool { return strings.HasPrefix(line, network.HostGateway) })
	store := network.OpenStore(root)
	for i, name := range names {
		if name == "default" {
			name = network.DefaultName
		}
		m := network.Membership{Network: name}
		if name != network.DefaultName {
			m.Aliases = c.StringSlice("network-alias")
		}
		if i == 0 {
			m.MAC = c.String("mac-address")
			if err := readAddresses(c, &m); err != nil {
				return r, err
			}
			m.Aliases = c.StringSlice("network-alias")
		}
		if m, err = store.Check(m); err != nil {
			return r, fmt.Errorf("--network %s: %w", name, explainNoNetwork(store, name, err))
		}
		if slices.ContainsFunc(plan.Networks, func(o network.Membership) bool { return o.ID == m.ID }) {
			return r, usageError("--network %s is given twice", name)
		}
		plan.Networks = append(plan.Networks, m)
	}
	r.mode, r.plan = plan.Networks[0].Network, plan
	if os.Geteuid() == 0 && network.ForwardingOff() {
		fmt.Fprintln(c.App.ErrWriter, "unionfs: this machine forwards no packets, so the container reaches nothing beyond it; \"sysctl net.ipv4.ip_forward=1\" changes that")
	} else if os.Geteuid() == 0 && store.ForwardingOff6(plan) {
		fmt.Fprintln(c.App.ErrWriter, "unionfs: this machine forwards no packets of IPv6, so the container reaches nothing beyond it by that; \"sysctl net.ipv6.conf.all.forwarding=1\" changes that")
	}
	return r, nil
}

// readAddresses reads --ip and --ip6.
func readAddresses(c *cli.Context, m *network.Membership) error {
	for flag, to := range map[string]*netip.Addr{"ip": &m.Address, "ip6": &m.Address6} {
		value := c.String(flag)
		if value == "" {
			continue
		}
		address, err := netip.ParseAddr(value)
		switch {
		case err != nil:
			return usageError("--%s: %q is no IP address", flag, value)
		case flag == "ip" && !address.Is4():
			return usageError("--ip: %s is not of IPv4; see --ip6", value)
		case flag == "ip6" && !address.Is6():
			return usageError("--ip6: %s is not of IPv6; see --ip", value)
		}
		*to = address
	}
	return nil
}

// defaultNetwork is that of a container for which none is named.
func defaultNetwork(image string) string {
	if image == rootfs.HostImage {
		return "host"
	}
	if name := os.Getenv("UNIONFS_NETWORK"); name != "" {
		return name
	}
	return "none"
}

// readMode is for containers that are on no network of ours.
func (r *networkRequest) readMode(c *cli.Context, root string, request processRequest) error {
	for _, flag := range []string{"ip", "ip6", "mac-address", "network-alias", "dns", "dns-search", "dns-option"} {
		if c.IsSet(flag) {
			return usageError("--%s needs a network that the container is connected to; with --network %s there is none", flag, r.mode)
		}
	}
	// As in Docker, publishing is of no effect where the container has the machine's ports anyway.
	if (c.IsSet("publish") || c.Bool("publish-all")) && r.mode != "host" {
		return usageError("--publish needs a network that the container is connected to, such as --network bridge; with --network %s there is none", r.mode)
	}
	for i, line := range r.hosts {
		name, gateway := strings.CutPrefix(line, network.HostGateway+"\t")
		if !gateway {
			continue
		}
		if r.mode != "host" {
			return usageError("--add-host %s:host-gateway: with --network %s there is no way to this machine", name, r.mode)
		}
		r.hosts[i] = "127.0.0.1\t" + name
	}
	ref, shared := strings.CutPrefix(r.mode, "container:")
	if !shared {
		return nil
	}
	other, err := findContainer(root, ref)
	if err != nil {
		return fmt.Errorf("--network %s: %w", r.mode, err)
	}
	if request.hostname != "" || len(r.hosts) > 0 {
		return usageError("--hostname and --add-host: with --network %s they are the other container's", r.mode)
	}
	r.other, r.mode = other, "container:"+other.ID
	return nil
}

func planOf(c *cli.Context, config imagespec.ImageConfig) (*network.Plan, error) {
	plan := &network.Plan{Search: c.StringSlice("dns-search"), Options: c.StringSlice("dns-option")}
	for _, value := range c.StringSlice("publish") {
		ports, err := network.ParsePort(value)
		if err != nil {
			return nil, usageError("--publish %w", err)
		}
		plan.Ports = append(plan.Ports, ports...)
	}
	exposed := slices.Sorted(maps.Keys(config.ExposedPorts))
	for _, value := range append(exposed, c.StringSlice("expose")...) {
		ports, err := network.ParsePort(value)
		if err != nil || strings.Contains(value, ":") {
			return nil, usageError("--expose %q: want PORT[/udp]", value)
		}
		for _, p := range ports {
			published := slices.ContainsFunc(plan.Ports, func(o network.Port) bool { return o.String() == p.String() })
			switch {
			case published:
			case c.Bool("publish-all"):
				plan.Ports = append(plan.Ports, p)
			case !slices.Contains(plan.Exposed, p):
				plan.Exposed = append(plan.Exposed, p)
			}
		}
	}
	for _, value := range c.StringSlice("dns") {
		a, err := netip.ParseAddr(value)
		if err != nil {
			return nil, usageError("--dns: %q is no IP address", value)
		}
		plan.Servers = append(plan.Servers, a)
	}
	return plan, nil
}

// apply changes the specification.
func (r *networkRequest) apply(spec *specs.Spec) {
	if r.mode == "host" || r.other != nil {
		runner.ShareHostNetwork(spec)
	} else {
		// As in Docker: the ports of its own network are the container's to use, whoever its user is.
		spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"}
	}
	if r.other == nil {
		return
	}
	spec.Hostname = r.other.Spec.Hostname
	for _, name := range []string{"hosts", "hostname", "resolv.conf"} {
		source := filepath.Join(r.other.Dir(), name)
		if _, err := os.Stat(source); err == nil {
			spec.Mounts = append(spec.Mounts, specs.Mount{
				Destination: "/etc/" + name, Type: "bind", Source: source, Options: []string{"bind", "rprivate"},
			})
		}
	}
}

func (r *networkRequest) writePlan(container *runner.Container) error {
	if r.plan == nil {
		return nil
	}
	return r.plan.Write(container.Dir())
}
