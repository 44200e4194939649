package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
	"unionfs/network"
	"unionfs/runner"
	"unionfs/supervisor"
)

func psCommand() *cli.Command {
	return &cli.Command{
		Name:  "ps",
		Usage: "list containers",
		Description: `Lists the containers that are running, or with --all also those that have ended.

Examples:
   unionfs ps -a
   unionfs ps -a --filter status=exited --filter label=job
   unionfs ps -a --format json`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "list those too that don't run"},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "list only those with `NAME=VALUE`: " + strings.Join(containerFilters, ", ")},
			&cli.IntFlag{Name: "last", Aliases: []string{"n"}, Usage: "list the `N` newest, running or not", Value: -1, DefaultText: "all"},
			&cli.BoolFlag{Name: "latest", Aliases: []string{"l"}, Usage: "list the newest one, running or not"},
			&cli.BoolFlag{Name: "size", Aliases: []string{"s"}, Usage: "show what each container wrote, and what its image has"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "print whole IDs and commands"},
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
			sizes := c.Bool("size") || strings.Contains(c.String("format"), ".Size")
			if sizes && runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			wanted, err := parseFilters(root, c.StringSlice("filter"))
			if err != nil {
				return err
			}
			last := c.Int("last")
			if c.Bool("latest") {
				last = 1
			}
			rows, err := containerRows(root, c.Bool("all") || last >= 0 || slices.ContainsFunc(c.StringSlice("filter"), aboutState), wanted)
			if err != nil {
				return err
			}
			if last >= 0 {
				rows = rows[:min(last, len(rows))]
			}
			for i := range rows {
				if rows[i].whole = c.Bool("no-trunc"); !rows[i].whole {
					rows[i].ID = shortID(rows[i].ID) // as Docker has it in all formats
				}
			}
			if c.Bool("quiet") {
				for _, r := range rows {
					fmt.Fprintln(c.App.Writer, r.columns()[0])
				}
				return nil
			}
			header := []string{"CONTAINER ID", "IMAGE", "COMMAND", "CREATED", "STATUS", "PORTS", "NAMES"}
			if sizes {
				header = append(header, "SIZE")
				if err := addSizes(root, rows); err != nil {
					return err
				}
			}
			return printRows(c, header, rows)
		},
	}
}

// aboutState reports whether a filter says by itself which states are wanted.
func aboutState(filter string) bool {
	return strings.HasPrefix(filter, "status=") || strings.HasPrefix(filter, "exited=")
}

// containerRow is a line of "ps", with Docker's names in JSON.
type containerRow struct {
	ID         string
	Image      string
	Command    string
	CreatedAt  time.Time
	State      string
	Status     string
	ExitCode   int
	OOMKilled  bool
	Error      string `json:",omitempty"`
	Ports      string
	Names      string
	Labels     string
	Mounts     string // names of volumes and paths, separated by commas
	RunningFor string
	Networks   string // names, separated by commas
	Size       string `json:",omitempty"` // with --size

	whole     bool // nothing is cut
	container *runner.Container
}

func (r containerRow) columns() []string {
	const most = 30
	command := r.Command
	if !r.whole {
		if runes := []rune(command); len(runes) > most {
			command = string(runes[:most-1]) + "…"
		}
	}
	columns := []string{r.ID, r.Image, fmt.Sprintf("%q", command), ago(r.CreatedAt), r.Status, r.Ports, r.Names}
	if r.Size != "" {
		columns = append(columns, r.Size)
	}
	return columns
}

func containerRows(root string, all bool, wanted containerFilter) ([]containerRow, error) {
	state, err := runner.OpenState(root)
	if err != nil {
		return nil, err
	}
	containers, err := state.List()
	if err != nil {
		return nil, err
	}
	_ = network.OpenStore(root).Sweep() // the next that may change the network does it
	var rows []containerRow
	for _, container := range containers {
		status, err := container.Status()
		if errors.Is(err, runner.ErrNotFound) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		if !all && status.State != runner.StateRunning && status.State != runner.StateRestarting || !wanted(container, status) {
			continue
		}
		rows = append(rows, containerRow{
			ID:         container.ID,
			Image:      container.Image(),
			Command:    strings.Join(container.Spec.Process.Args, " "),
			CreatedAt:  status.Created,
			State:      stateOf(status),
			Status:     describeStatus(status),
			ExitCode:   status.ExitCode,
			OOMKilled:  status.OutOfMemory,
			Error:      status.Error,
			Ports:      portText(portsOf(connectionsOf(root, container))),
			Names:      container.Name,
			Labels:     labelText(labelsOf(container)),
			Mounts:     mountText(container),
			RunningFor: ago(status.Created),
			Networks:   networkText(container),
			container:  container,
		})
	}
	return rows, nil
}

// mountText names a container's volumes in one line, as Docker's listing does.
func mountText(container *runner.Container) string {
	var all []string
	for _, m := range mountsOf(container) {
		all = append(all, cmp.Or(m.Name, m.Source))
	}
	return strings.Join(all, ",")
}

// networkText names a container's networks in one line.
func networkText(container *runner.Container) string {
	var all []string
	for _, m := range networksOf(container) {
		all = append(all, m.Network)
	}
	return strings.Join(all, ",")
}

// stateOf is a container's state in Docker's words.
func stateOf(s *runner.Status) string {
	if s.Paused {
		return "paused"
	}
	return s.State
}

func describeStatus(s *runner.Status) string {
	switch {
	case s.State == runner.StateRunning && s.Started != nil:
		text := "Up " + units.HumanDuration(time.Since(*s.Started))
		switch {
		case s.Paused:
			text += " (Paused)"
		case s.Health != nil && s.Health.Status == runner.HealthStarting:
			text += " (health: starting)"
		case s.Health != nil:
			text += " (" + s.Health.Status + ")"
		}
		return text
	case s.State == runner.StateRestarting && s.Finished != nil:
		return fmt.Sprintf("Restarting (%d) %s", s.ExitCode, ago(*s.Finished))
	case s.State == runner.StateExited && s.Finished != nil && s.OutOfMemory:
		return fmt.Sprintf("Exited (%d, out of memory) %s", s.ExitCode, ago(*s.Finished))
	case s.State == runner.StateExited && s.Finished != nil:
		return fmt.Sprintf("Exited (%d) %s", s.ExitCode, ago(*s.Finished))
	case s.State == runner.StateExited:
		return fmt.Sprintf("Exited (%d)", s.ExitCode)
	}
	return "Created"
}

func ago(t time.Time) string { return units.HumanDuration(time.Since(t)) + " ago" }

func rmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Usage:     "remove containers, with all that they changed",
		ArgsUsage: "CONTAINER...",
		Description: `Removes containers that have ended, with all that their commands wrote. Volumes stay; with --volumes, those that were
made for the container alone and have no name go too. With --force it ends a running one first.

Example:
   unionfs rm -f web`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill those that run; say nothing of those that don't exist"},
			&cli.BoolFlag{Name: "volumes", Aliases: []string{"v"}, Usage: "remove the volumes without a name too"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "CONTAINER..."); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			if runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			state, err := runner.OpenState(root)
			if err != nil {
				return err
			}
			var failed []error
			for _, ref := range c.Args().Slice() {
				name, err := removeContainer(state, ref, c.Bool("force"), c.Bool("volumes"))
				switch {
				case err == nil:
					fmt.Fprintln(c.App.Writer, name)
				case c.Bool("force") && errors.Is(err, runner.ErrNotFound):
				default:
					failed = append(failed, err)
				}
			}
			return errors.Join(failed...)
		},
	}
}

// againInNamespace runs this same command line in a user namespace that has the user's subordinate IDs: files that a
// container made may belong to those, and only there can they be read, changed or removed.
func againInNamespace(c *cli.Context, root string) error {
	code, err := runner.InUserNamespace(c.Context, append([]string{"--root", root}, cmdline.FromVerb(c.App, os.Args)...)...)
	if code == 0 && err == nil {
		return nil
	}
	return &exitError{code, err}
}

// How long "rm --force" waits for a container that it kills.
const killLimit = 30 * time.Second

// removeContainer returns the name of the container that it removed.
func removeContainer(state *runner.State, ref string, force, withVolumes bool) (string, error) {
	container, err := state.Get(ref)
	if err != nil {
		return "", explainMissing(state, ref, err)
	}
	if force {
		if err := container.Kill(killLimit); err != nil {
			return "", err
		}
	}
	err = state.Remove(container)
	if errors.Is(err, runner.ErrRunning) {
		return "", fmt.Errorf("%w, or use --force", err)
	}
	if force && errors.Is(err, runner.ErrNotFound) {
		err = nil // --rm was faster
	}
	if err == nil && withVolumes {
		err = supervisor.RemoveAnonymous(state.Root(), container)
	}
	if err == nil {
		_ = network.OpenStore(state.Root()).Sweep() // the next that may change the network does it
	}
	return container.Name, err
}
