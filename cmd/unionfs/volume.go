package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

func volumeCommand() *cli.Command {
	return &cli.Command{
		Name:  "volume",
		Usage: "named volumes: create, ls, inspect, rm, prune, export, import",
		Description: `Volumes keep data apart from containers: a directory of the host, without any file system between. They are made by
the first container that names one (run -v NAME:TARGET), which also puts into it what the image has in that place, or
by "unionfs volume create". Its own verbs are below.

Example:
   unionfs volume ls`,
		Subcommands: []*cli.Command{
			volumeCreateCommand(), volumeLsCommand(), volumeInspectCommand(), volumeRmCommand(), volumePruneCommand(),
			volumeExportCommand(), volumeImportCommand(),
		},
	}
}

// openVolumes returns the store of volumes, and where the state is.
func openVolumes(c *cli.Context) (string, *volumes.Store, error) {
	root, err := stateRoot(c)
	if err != nil {
		return "", nil, err
	}
	return root, volumes.OpenStore(root), nil
}

func volumeCreateCommand() *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "make a volume",
		ArgsUsage: "[NAME]",
		Description: `Makes a volume and prints its name; a name is made up if none is given. One that is there already stays as it is. The
options type=none, o=bind and device=DIR make the volume stand for a directory of the host.

Examples:
   unionfs volume create --label for=web cache
   unionfs volume create -o type=none -o o=bind -o device=/srv/data data`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "label", Usage: "give it the label `NAME=VALUE`"},
			&cli.StringFlag{Name: "driver", Aliases: []string{"d"}, Usage: "`DRIVER`: there is one, local", Value: "local"},
			&cli.StringSliceFlag{Name: "opt", Aliases: []string{"o"}, Usage: "option `NAME=VALUE` of the driver: type, o, device"},
			&cli.StringFlag{Name: "name", Usage: "`NAME`, in Docker's old way", Hidden: true},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 1, "one NAME at most"); err != nil {
				return err
			}
			if driver := c.String("driver"); driver != "local" {
				return usageError("there is no volume driver %q; known is local", driver)
			}
			labels, err := parseLabels(c.StringSlice("label"))
			if err != nil {
				return err
			}
			options := map[string]string{}
			for _, value := range c.StringSlice("opt") {
				name, content, _ := strings.Cut(value, "=")
				options[name] = content
			}
			name := c.Args().First()
			if name == "" {
				name = c.String("name")
			}
			root, store, err := openVolumes(c)
			if err != nil {
				return err
			}
			state, err := runner.OpenState(root) // keeps the directory to its owner
			if err != nil {
				return err
			}
			_, missing := store.Get(name)
			info, err := store.Create(name, volumes.CreateOptions{Labels: labels, Options: options})
			if err != nil {
				return err
			}
			if missing != nil {
				noteVolume(state, "create", info.Name)
			}
			fmt.Fprintln(c.App.Writer, info.Name)
			return nil
		},
	}
}

// volumeRow is a line of "volume ls", with Docker's names in JSON.
type volumeRow struct {
	Driver     string
	Name       string
	Labels     string
	Mountpoint string
	Scope      string
}

func (r volumeRow) columns() []string { return []string{r.Driver, r.Name} }

func volumeLsCommand() *cli.Command {
	return &cli.Command{
		Name:    "ls",
		Aliases: []string{"list"},
		Usage:   "list volumes",
		Description: `Lists the volumes.

Examples:
   unionfs volume ls --filter dangling=true
   unionfs volume ls --format '{{.Name}} {{.Mountpoint}}'`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "list only those with `NAME=VALUE`: name, label, driver, dangling"},
			quietFlag("names"),
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			root, store, err := openVolumes(c)
			if err != nil {
				return err
			}
			all, err := filteredVolumes(root, store, c.StringSlice("filter"))
			if err != nil {
				return err
			}
			var rows []volumeRow
			for _, info := range all {
				if c.Bool("quiet") {
					fmt.Fprintln(c.App.Writer, info.Name)
					continue
				}
				rows = append(rows, volumeRow{Driver: info.Driver, Name: info.Name, Labels: labelText(info.Labels), Mountpoint: info.Mountpoint, Scope: info.Scope})
			}
			if c.Bool("quiet") {
				return nil
			}
			return printRows(c, []string{"DRIVER", "VOLUME NAME"}, rows)
		},
	}
}

// labelText writes labels in one line, as Docker's listings do.
func labelText(labels map[string]string) string {
	var all []string
	for name, value := range labels {
		all = append(all, name+"="+value)
	}
	slices.Sort(all)
	return strings.Join(all, ",")
}

// filteredVolumes lists the volumes that all filters agree on; several for one name mean any of them, but for labels.
func filteredVolumes(root string, store *volumes.Store, filters []string) ([]*volumes.Info, error) {
	type filter struct{ name, value string }
	var wanted []filter
	for _, f := range filters {
		name, value, found := strings.Cut(f, "=")
		if strings.HasSuffix(name, "!") && name != "label!" || !found || !slices.Contains([]string{"name", "label", "label!", "driver", "dangling"}, name) {
			return nil, usageError("--filter %q: want name, label, driver or dangling, with =VALUE", f)
		}
		if name == "dangling" && !slices.Contains([]string{"true", "false", "1", "0"}, value) {
			return nil, usageError("--filter %q: want dangling=true or dangling=false", f)
		}
		wanted = append(wanted, filter{name, value})
	}
	all, err := store.List()
	if err != nil {
		return nil, err
	}
	users, err := supervisor.VolumeUsers(root)
	if err != nil {
		return nil, err
	}
	matches := func(info *volumes.Info, f filter) bool {
		key, value, exact := strings.Cut(f.value, "=")
		have, ok := info.Labels[key]
		labelled := ok && (!exact || have == value)
		switch f.name {
		case "name":
			return strings.Contains(info.Name, f.value)
		case "driver":
			return info.Driver == f.value
		case "dangling":
			return (len(users[info.Name]) == 0) == (f.value == "true" || f.value == "1")
		case "label!":
			return !labelled
		}
		return labelled
	}
	return slices.DeleteFunc(all, func(info *volumes.Info) bool {
		return slices.ContainsFunc(wanted, func(f filter) bool {
			if f.name == "label" || f.name == "label!" {
				return !matches(info, f)
			}
			return !slices.ContainsFunc(wanted, func(other filter) bool { return other.name == f.name && matches(info, other) })
		})
	}), nil
}

func volumeInspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print all about volumes",
		ArgsUsage: "VOLUME...",
		Description: `Prints what is known about volumes as a JSON array, with Docker's names.

Examples:
   unionfs volume inspect cache
   unionfs volume inspect --format '{{.Mountpoint}}' cache`,
		Flags:  []cli.Flag{inspectFormatFlag()},
		Action: inspectEach("VOLUME...", inspectVolume),
	}
}

func inspectVolume(root, name string) (any, error) { return volumes.OpenStore(root).Get(name) }

func volumeRmCommand() *cli.Command {
	return &cli.Command{
		Name:      "rm",
		Aliases:   []string{"remove"},
		Usage:     "remove volumes, with all that is in them",
		ArgsUsage: "VOLUME...",
		Description: `Removes volumes that no container has, running or not, with all that is in them.

Example:
   unionfs volume rm cache`,
		Flags: []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "say nothing of those that don't exist"}},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "VOLUME..."); err != nil {
				return err
			}
			root, store, err := openVolumes(c)
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
			for _, name := range c.Args().Slice() {
				err := store.Remove(name, supervisor.NamesOfUsers(root))
				switch {
				case err == nil:
					noteVolume(state, "destroy", name)
					fmt.Fprintln(c.App.Writer, name)
				case c.Bool("force") && errors.Is(err, volumes.ErrNotFound):
				default:
					failed = append(failed, err)
				}
			}
			return errors.Join(failed...)
		},
	}
}

func volumePruneCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune",
		Usage: "remove volumes that no container has",
		Description: `Removes the volumes without a name of their own that no container has any more; with --all the named ones too. It asks
first.

Examples:
   unionfs volume prune
   unionfs volume prune --all --force --filter label=for=tests`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "remove named ones too"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "don't ask"},
			&cli.StringSliceFlag{Name: "filter", Usage: "remove only those with `NAME=VALUE`: label, label!, name"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			root, store, err := openVolumes(c)
			if err != nil {
				return err
			}
			if runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			return pruneVolumes(c, root, store)
		},
	}
}

func pruneVolumes(c *cli.Context, root string, store *volumes.Store) error {
	unused, err := filteredVolumes(root, store, append(c.StringSlice("filter"), "dangling=true"))
	if err != nil {
		return err
	}
	if !c.Bool("all") {
		unused = slices.DeleteFunc(unused, func(info *volumes.Info) bool { return !info.Anonymous() })
	}
	if len(unused) > 0 && !c.Bool("force") {
		if err := confirm(c, fmt.Sprintf("Remove %d volumes that no container has, with all that is in them?", len(unused))); err != nil {
			return err
		}
	}
	state, err := runner.OpenState(root)
	if err != nil {
		return err
	}
	var failed []error
	var freed int64
	if len(unused) > 0 {
		fmt.Fprintln(c.App.Writer, "Deleted Volumes:")
	}
	for _, info := range unused {
		size := store.Size(info.Name)
		err := store.Remove(info.Name, supervisor.NamesOfUsers(root))
		var inUse *volumes.InUseError
		switch {
		case err == nil:
			freed += size
			noteVolume(state, "destroy", info.Name)
			fmt.Fprintln(c.App.Writer, info.Name)
		case errors.As(err, &inUse), errors.Is(err, volumes.ErrNotFound): // since we looked
		default:
			failed = append(failed, err)
		}
	}
	if len(unused) > 0 {
		fmt.Fprintln(c.App.Writer)
	}
	fmt.Fprintln(c.App.Writer, "Total reclaimed space:", units.HumanSize(float64(freed)))
	return errors.Join(failed...)
}

func volumeExportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write a volume as a tar",
		ArgsUsage: "VOLUME",
		Description: `Writes all that is in a volume as a tar, to standard output or to a file, with owners, modes, extended attributes and
hard links. Files that a container changes meanwhile are written as they are found: stop or pause it for a copy of one
moment.

Examples:
   unionfs volume export -o cache.tar cache
   unionfs volume export db | zstd > db.tar.zst`,
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "VOLUME"); err != nil {
				return err
			}
			root, store, err := openVolumes(c)
			if err != nil {
				return err
			}
			if runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			name := c.Args().First()
			if _, err := store.Get(name); err != nil {
				return err
			}
			return toOutput(c, func(w io.Writer) error {
				return store.Export(name, w, func(file string) {
					fmt.Fprintf(c.App.ErrWriter, "unionfs: %s is a socket and is left out\n", file)
				})
			})
		},
	}
}

func volumeImportCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "put a tar into a volume",
		ArgsUsage: "VOLUME FILE|-",
		Description: `Unpacks a tar, such as "unionfs volume export" writes, into a volume, over what is there. The volume is made if there
is none of that name. Nothing in the tar can lead out of the volume.

Examples:
   unionfs volume import cache cache.tar
   zstd -d < db.tar.zst | unionfs volume import db -`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, 2, "VOLUME and FILE, or - for standard input"); err != nil {
				return err
			}
			root, store, err := openVolumes(c)
			if err != nil {
				return err
			}
			if runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			name, file := c.Args().First(), os.Stdin
			if from := c.Args().Get(1); from != "-" {
				if file, err = os.Open(from); err != nil {
					return err
				}
				defer file.Close()
			}
			if _, err := runner.OpenState(root); err != nil {
				return err
			}
			if _, err := store.Create(name, volumes.CreateOptions{}); err != nil {
				return err
			}
			oneID, err := rootfs.HasOneID()
			if err != nil {
				return err
			}
			return store.Import(name, file, oneID, func(name, why string) {
				fmt.Fprintf(c.App.ErrWriter, "unionfs: %s: %s\n", name, why)
			})
		},
	}
}
