package main

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
	"unionfs/network"
	"unionfs/runner"
)

func networkCommand() *cli.Command {
	return &cli.Command{
		Name:  "network",
		Usage: "networks of containers: create, ls, inspect, rm, connect, disconnect, prune",
		Description: `Its own verbs are below. Containers on one network reach one another, by name too, and those of other networks only by
the ports that they publish. The network "bridge" is always there; on it, names don't resolve.

Example:
   unionfs network create backend && unionfs run -d --network backend --name db postgres`,
		Subcommands: []*cli.Command{
			networkCreateCommand(), networkListCommand(), networkInspectCommand(), networkRemoveCommand(),
			networkConnectCommand(), networkDisconnectCommand(), networkPruneCommand(),
		},
	}
}

func networkCreateCommand() *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "make a network",
		ArgsUsage: "NAME",
		Description: `Makes a network, and prints its ID. Its bridge comes to be on the machine when the first container is connected, and
goes with the last.

Examples:
   unionfs network create backend
   unionfs network create --subnet 10.5.0.0/24 --ip-range 10.5.0.128/25 --internal --label job=x closed
   unionfs network create --ipv6 --subnet fd00:1234::/64 both`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "driver", Aliases: []string{"d"}, Usage: "`DRIVER`: bridge", Value: "bridge"},
			&cli.BoolFlag{Name: "ipv6", Usage: "have addresses of IPv6 beside those of IPv4"},
			&cli.StringSliceFlag{Name: "subnet", Usage: "use the addresses of `PREFIX`, such as 10.5.0.0/24; one of IPv6 may be given too", DefaultText: "one that is free"},
			&cli.StringSliceFlag{Name: "gateway", Usage: "give the machine itself `ADDRESS`; one of IPv6 may be given too", DefaultText: "the first of the subnet"},
			&cli.StringFlag{Name: "ip-range", Usage: "give containers only addresses of `PREFIX`"},
			&cli.StringSliceFlag{Name: "aux-address", Usage: "give no container the address of `NAME=ADDRESS`, which has it on that network"},
			&cli.BoolFlag{Name: "attachable", Usage: "as without: every network is one that containers may be connected to"},
			&cli.BoolFlag{Name: "internal", Usage: "let nothing out, and nothing in"},
			&cli.StringSliceFlag{Name: "label", Usage: "give it the label `NAME=VALUE`"},
			&cli.StringSliceFlag{Name: "opt", Aliases: []string{"o"}, Usage: "set the driver's `OPTION=VALUE`: com.docker.network.bridge.name"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "NAME"); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			config, err := networkConfigOf(c)
			if err != nil {
				return err
			}
			n, err := network.OpenStore(root).Create(config)
			if err != nil {
				return err
			}
			fmt.Fprintln(c.App.Writer, n.ID)
			return nil
		},
	}
}

func networkConfigOf(c *cli.Context) (network.Config, error) {
	config := network.Config{Name: c.Args().First(), Driver: c.String("driver"), Internal: c.Bool("internal"), Attachable: c.Bool("attachable")}
	var err error
	if config.Labels, err = parseLabels(c.StringSlice("label")); err != nil {
		return config, err
	}
	config.Reserved = map[string]netip.Addr{}
	for _, value := range c.StringSlice("aux-address") {
		name, text, _ := strings.Cut(value, "=")
		address, err := netip.ParseAddr(text)
		if err != nil || name == "" {
			return config, usageError("--aux-address %q: want NAME=ADDRESS, such as router=10.5.0.254", value)
		}
		config.Reserved[name] = address
	}
	config.Options = map[string]string{}
	for _, option := range c.StringSlice("opt") {
		name, value, _ := strings.Cut(option, "=")
		config.Options[name] = value
	}
	config.IPv6 = c.Bool("ipv6")
	for _, value := range c.StringSlice("subnet") {
		prefix, err := netip.ParsePrefix(value)
		if err != nil {
			return config, usageError("--subnet: %q is no prefix, such as 10.5.0.0/24", value)
		}
		to := &config.Subnet
		if prefix.Addr().Is6() {
			to = &config.Subnet6
		}
		if to.IsValid() {
			return config, usageError("--subnet %s: a network has one subnet of IPv4 and one of IPv6", value)
		}
		*to = prefix
	}
	for _, value := range c.StringSlice("gateway") {
		address, err := netip.ParseAddr(value)
		if err != nil {
			return config, usageError("--gateway: %q is no IP address", value)
		}
		to := &config.Gateway
		if address.Is6() {
			to = &config.Gateway6
		}
		if to.IsValid() {
			return config, usageError("--gateway %s: a network has one gateway of IPv4 and one of IPv6", value)
		}
		*to = address
	}
	if value := c.String("ip-range"); value != "" {
		if config.Range, err = netip.ParsePrefix(value); err != nil {
			return config, usageError("--ip-range: %q is no prefix, such as 10.5.0.0/24", value)
		}
		if config.Range.Addr().Is6() {
			return config, usageError("--ip-range %s: addresses of IPv6 follow from those of IPv4; give a range of that", value)
		}
	}
	return config, nil
}

// networkRow is a line of "network ls", with Docker's names in JSON.
type networkRow struct {
	ID       string
	Name     string
	Driver   string
	Scope    string
	Internal bool
	Labels   string
	Created  time.Time `json:"CreatedAt"`
}

func (r networkRow) columns() []string { return []string{r.ID, r.Name, r.Driver, r.Scope} }

func networkListCommand() *cli.Command {
	return &cli.Command{
		Name:    "ls",
		Aliases: []string{"list"},
		Usage:   "list networks",
		Description: `Lists the networks, with "host" and "none", which are always there.

Example:
   unionfs network ls --filter label=job`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "list only those with `NAME=VALUE`: id, name, driver, label, type (custom or builtin)"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "print whole IDs"},
			quietFlag("IDs"),
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			all, err := network.OpenStore(root).List()
			if err != nil {
				return err
			}
			configs := []network.Config{fixedNetwork("host"), fixedNetwork("none")}
			for _, n := range all {
				configs = append(configs, n.Config)
			}
			slices.SortFunc(configs, func(a, b network.Config) int { return strings.Compare(a.Name, b.Name) })
			var rows []networkRow
			for _, config := range configs {
				wanted, err := networkMatches(config, c.StringSlice("filter"))
				if err != nil {
					return err
				}
				if wanted && !c.Bool("no-trunc") {
					config.ID = shortID(config.ID)
				}
				if wanted {
					rows = append(rows, networkRow{config.ID, config.Name, config.Driver, "local", config.Internal, labelText(config.Labels), config.Created})
				}
			}
			if c.Bool("quiet") {
				for _, r := range rows {
					fmt.Fprintln(c.App.Writer, r.ID)
				}
				return nil
			}
			return printRows(c, []string{"NETWORK ID", "NAME", "DRIVER", "SCOPE"}, rows)
		},
	}
}

// fixedNetwork describes one of those that aren't kept anywhere. It has no ID.
func fixedNetwork(name string) network.Config {
	driver := name
	if name == "none" {
		driver = "null"
	}
	return network.Config{Name: name, Driver: driver, Labels: map[string]string{}, Options: map[string]string{}}
}

func networkMatches(config network.Config, filters []string) (bool, error) {
	for _, filter := range filters {
		name, want, found := strings.Cut(filter, "=")
		if !found {
			return false, usageError("--filter %q: want NAME=VALUE", filter)
		}
		matches := false
		switch name {
		case "id":
			matches = strings.HasPrefix(config.ID, want)
		case "name":
			matches = strings.Contains(config.Name, want)
		case "driver":
			matches = config.Driver == want
		case "type":
			builtin := config.ID == "" || config.Name == network.DefaultName
			matches = want == "builtin" && builtin || want == "custom" && !builtin
		case "label":
			key, value, exact := strings.Cut(want, "=")
			have, ok := config.Labels[key]
			matches = ok && (!exact || have == value)
		default:
			return false, usageError("--filter %q: want id, name, driver, label or type", filter)
		}
		if !matches {
			return false, nil
		}
	}
	return true, nil
}

func findNetwork(store *network.Store, ref string) (*network.Network, error) {
	if network.IsMode(ref) && ref != "default" {
		return nil, fmt.Errorf("%q is no network that is kept anywhere, and has no more to it than its name", ref)
	}
	if ref == "default" {
		ref = network.DefaultName
	}
	n, err := store.Get(ref)
	return n, explainNoNetwork(store, ref, err)
}

// explainNoNetwork says how to find the network that there is not, and which one may have been meant.
func explainNoNetwork(store *network.Store, ref string, err error) error {
	if !errors.Is(err, network.ErrNotFound) {
		return err
	}
	var names []string
	if all, err := store.List(); err == nil {
		for _, n := range all {
			names = append(names, n.Name)
		}
	}
	return fmt.Errorf("%w; \"unionfs network create\" makes one, and \"unionfs network ls\" lists those that there are%s", err, cmdline.HintAmong(ref, names))
}

func networkRemoveCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Aliases:   []string{"remove"},
		Usage:     "remove networks that no running container is on",
		ArgsUsage: "NETWORK...",
		Description: `Removes networks. Containers that were on them and don't run can't be started before they are disconnected.

Example:
   unionfs network rm backend`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "say nothing of those that don't exist"}},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "NETWORK..."); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			store := network.OpenStore(root)
			var failed []error
			for _, ref := range c.Args().Slice() {
				n, err := findNetwork(store, ref)
				if err == nil {
					err = store.Remove(n)
				}
				switch {
				case err == nil:
					fmt.Fprintln(c.App.Writer, ref)
				case c.Bool("force") && errors.Is(err, network.ErrNotFound):
				default:
					failed = append(failed, err)
				}
			}
			return errors.Join(failed...)
		},
	}
}

func networkConnectCommand() *cli.Command {
	return &cli.Command{
		Name:      "connect",
		Usage:     "connect a container to one more network",
		ArgsUsage: "NETWORK CONTAINER",
		Description: `Connects a container to one more network, also while it runs.

Example:
   unionfs network connect --alias cache backend redis`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "alias", Usage: "have it found by `NAME` too"},
			&cli.StringFlag{Name: "ip", Usage: "give it `ADDRESS`"},
			&cli.StringFlag{Name: "ip6", Usage: "give it `ADDRESS` of IPv6"},
		},
		Action: func(c *cli.Context) error {
			return changeNetworks(c, func(store *network.Store, n *network.Network, plan *network.Plan) error {
				if plan.Membership(n) >= 0 {
					return errors.New("it is connected already")
				}
				m := network.Membership{Network: n.Name, Aliases: c.StringSlice("alias")}
				if err := readAddresses(c, &m); err != nil {
					return err
				}
				m, err := store.Check(m)
				plan.Networks = append(plan.Networks, m)
				return err
			})
		},
	}
}

func networkDisconnectCommand() *cli.Command {
	return &cli.Command{
		Name:      "disconnect",
		Usage:     "disconnect a container from a network",
		ArgsUsage: "NETWORK CONTAINER",
		Description: `Disconnects a container from a network, also while it runs.

Example:
   unionfs network disconnect backend redis`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "as without: there is nothing to force"}},
		Action: func(c *cli.Context) error {
			return changeNetworks(c, func(_ *network.Store, n *network.Network, plan *network.Plan) error {
				at := plan.Membership(n)
				if at < 0 {
					return errors.New("it is not connected")
				}
				plan.Networks = slices.Delete(plan.Networks, at, at+1)
				return nil
			})
		},
	}
}

// changeNetworks changes the plan of the container that the second argument names, about the network that the first names, and
// has the container's supervisor do it if it runs. If that can't be, the plan is as before.
func changeNetworks(c *cli.Context, change func(*network.Store, *network.Network, *network.Plan) error) error {
	if err := arguments(c, 2, 2, "NETWORK CONTAINER"); err != nil {
		return err
	}
	root, err := stateRoot(c)
	if err != nil {
		return err
	}
	container, err := findContainer(root, c.Args().Get(1))
	if err != nil {
		return err
	}
	store := network.OpenStore(root)
	n, err := networkInPlan(store, container, c.Args().First())
	if err != nil {
		return err
	}
	var before network.Plan
	err = store.ChangePlan(container.Dir(), func(plan *network.Plan) error {
		before = *plan
		before.Networks = slices.Clone(plan.Networks)
		return change(store, n, plan)
	})
	if err != nil {
		return fmt.Errorf("container %s, network %s: %w", container.Name, n.Name, err)
	}
	if err := container.UpdateNetwork(c.Context); err != nil {
		undo := store.ChangePlan(container.Dir(), func(plan *network.Plan) error { *plan = before; return nil })
		return fmt.Errorf("container %s: %w", container.Name, errors.Join(err, undo))
	}
	return nil
}

// networkInPlan finds a network; also one that was removed, if the container's plan names it.
func networkInPlan(store *network.Store, container *runner.Container, ref string) (*network.Network, error) {
	n, err := findNetwork(store, ref)
	plan, perr := network.ReadPlan(container.Dir())
	if perr != nil || plan == nil {
		return n, err
	}
	at := slices.IndexFunc(plan.Networks, func(m network.Membership) bool { return m.Network == ref })
	if at >= 0 && (errors.Is(err, network.ErrNotFound) || err == nil && n.ID != plan.Networks[at].ID) {
		return &network.Network{Config: network.Config{Name: ref, ID: plan.Networks[at].ID}}, nil
	}
	return n, err
}

func networkPruneCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune",
		Usage: "remove the networks that no running container is on",
		Description: `Removes all networks that no running container is on, and prints their names. It asks first. What containers that were
killed have left on the machine goes too.

Example:
   unionfs network prune -f`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "don't ask"},
			&cli.StringSliceFlag{Name: "filter", Usage: "remove only those with `NAME=VALUE`: id, name, driver, label"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			return pruneNetworks(c, network.OpenStore(root))
		},
	}
}

func pruneNetworks(c *cli.Context, store *network.Store) error {
	if err := store.Sweep(); err != nil {
		return err
	}
	all, err := store.List()
	if err != nil {
		return err
	}
	var unused []*network.Network
	for _, n := range all {
		wanted, err := networkMatches(n.Config, c.StringSlice("filter"))
		if err != nil {
			return err
		}
		if endpoints, err := n.Endpoints(); err != nil || len(endpoints) > 0 || !wanted || n.Name == network.DefaultName {
			continue
		}
		unused = append(unused, n)
	}
	if len(unused) == 0 {
		return nil
	}
	if !c.Bool("force") {
		fmt.Fprintf(c.App.ErrWriter, "Remove %d networks that no running container is on? [y/N] ", len(unused))
		answer, _ := bufio.NewReader(os.Stdin).ReadString('\n')
		if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
			return errors.New("nothing was removed; answer y, or give -f")
		}
	}
	var failed []error
	for _, n := range unused {
		switch err := store.Remove(n); {
		case err == nil:
			fmt.Fprintln(c.App.Writer, n.Name)
		case errors.Is(err, network.ErrInUse), errors.Is(err, network.ErrNotFound): // since we looked
		default:
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
