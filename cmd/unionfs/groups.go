package main

import (
	"fmt"
	"os/exec"
	"slices"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
)

// group is a verb under which Docker has others, by what they are about.
type group struct {
	name   string
	others []otherName
}

// otherName is a verb's name in a group.
type otherName struct{ name, verb string }

func groups() []group {
	same := func(names ...string) (others []otherName) {
		for _, name := range names {
			others = append(others, otherName{name, name})
		}
		return others
	}
	return []group{
		{"container", append(
			same("attach", "commit", "cp", "create", "diff", "exec", "export", "inspect", "kill", "logs", "pause", "port", "rename", "restart",
				"rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait"),
			otherName{"ls", "ps"}, otherName{"list", "ps"}, otherName{"ps", "ps"}, otherName{"remove", "rm"})},
		{"image", append(
			same("history", "import", "inspect", "load", "mount", "prune", "pull", "push", "save", "tag"),
			otherName{"ls", "images"}, otherName{"list", "images"}, otherName{"rm", "rmi"}, otherName{"remove", "rmi"})},
		{"system", same("df", "events", "info")},
	}
}

// namesIn are the names that verbs have in a group; none if there is no such group.
func namesIn(group string) []otherName {
	for _, g := range groups() {
		if g.name == group {
			return g.others
		}
	}
	return nil
}

// ungroup puts the verb itself in the place of its name in a group: "images" for "image ls", and "run --help" in that of "help run". All
// else has to know only verbs.
func ungroup(args []string) []string {
	at := verbAt(args)
	if at < 0 {
		return args
	}
	if args[at] == "help" {
		return ungroup(slices.Concat(args[:at], args[at+1:], []string{"--help"}))
	}
	if at+1 >= len(args) {
		return args
	}
	for _, other := range namesIn(args[at]) {
		if other.name == args[at+1] {
			return slices.Concat(args[:at], []string{other.verb}, args[at+2:])
		}
	}
	return args
}

// othersOf are the commands of a group that stand for verbs, for the help and for completion.
func othersOf(name string) (commands []*cli.Command) {
	for _, other := range namesIn(name) {
		commands = append(commands, &cli.Command{Name: other.name, Usage: "is \"unionfs " + other.verb + "\"", Category: cmdline.AliasCategory})
	}
	return commands
}

func imageCommand() *cli.Command {
	return &cli.Command{
		Name:  "image",
		Usage: "Docker's other names of the verbs about images",
		Description: `Each of the verbs below is another one, with all of its flags.

Example:
   unionfs image ls`,
		Subcommands: othersOf("image"),
	}
}

func systemCommand() *cli.Command {
	return &cli.Command{
		Name:  "system",
		Usage: "prune all that isn't used; and Docker's other names of df, events and info",
		Description: `Its own verb is prune; the others are those outside, with all of their flags.

Example:
   unionfs system prune`,
		Subcommands: append(othersOf("system"), systemPruneCommand()),
	}
}

func systemPruneCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune",
		Usage: "remove all that isn't used",
		Description: `Removes the containers that don't run, networks that no running container is on, and images without a name; with --all
every image that no container was made from, and with --volumes the volumes without a name of their own that no
container has. It asks first, and is "container prune", "network prune", "volume prune" and "prune", one after the other.

Examples:
   unionfs system prune
   unionfs system prune --all --volumes --force`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "remove images with names too"},
			&cli.BoolFlag{Name: "volumes", Usage: "remove volumes too"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "don't ask"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			if !c.Bool("force") {
				if err := confirm(c, "Remove all containers that don't run, with all that they changed, and the networks and images that nothing uses?"); err != nil {
					return err
				}
			}
			return pruneSystem(c)
		},
	}
}

func pruneSystem(c *cli.Context) error {
	root, err := stateRoot(c)
	if err != nil {
		return err
	}
	steps := [][]string{{"container", "prune", "--force"}, {"network", "prune", "--force"}}
	if c.Bool("volumes") {
		steps = append(steps, []string{"volume", "prune", "--force"})
	}
	images := []string{"prune", "--force"}
	if c.Bool("all") {
		images = append(images, "--all")
	}
	// Some of them go into a user namespace of their own, others must not.
	for _, step := range append(steps, images) {
		command := exec.CommandContext(c.Context, "/proc/self/exe", append([]string{"--root", root}, step...)...)
		command.Stdout, command.Stderr = c.App.Writer, c.App.ErrWriter
		if err := command.Run(); err != nil {
			return fmt.Errorf("%q: %w", step, err)
		}
	}
	return nil
}
