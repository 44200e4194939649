package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func containerCommand() *cli.Command {
	return &cli.Command{
		Name:  "container",
		Usage: "prune those that don't run; and Docker's other names of the verbs about containers",
		Description: `Its own verb is prune; the others are those outside, with all of their flags.

Examples:
   unionfs container prune
   unionfs container ls`,
		Subcommands: append(othersOf("container"), containerPruneCommand()),
	}
}

func containerPruneCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune",
		Usage: "remove all containers that don't run",
		Description: `Removes all containers that were created and never started, or have ended, with all that their commands wrote, and
prints their IDs. It asks first. Volumes stay.

Example:
   unionfs container prune --filter label=job -f`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "don't ask"},
			&cli.StringSliceFlag{Name: "filter", Usage: "remove only those with `NAME=VALUE`: " + strings.Join(containerFilters, ", ")},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			wanted, err := parseFilters(root, c.StringSlice("filter"))
			if err != nil {
				return err
			}
			if runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			return pruneContainers(c, root, wanted)
		},
	}
}

func pruneContainers(c *cli.Context, root string, wanted containerFilter) error {
	state, err := runner.OpenState(root)
	if err != nil {
		return err
	}
	all, err := state.List()
	if err != nil {
		return err
	}
	var old []*runner.Container
	for _, container := range all {
		status, err := container.Status()
		if err == nil && status.State != runner.StateRunning && wanted(container, status) {
			old = append(old, container)
		}
	}
	if len(old) == 0 {
		return nil
	}
	if !c.Bool("force") {
		if err := confirm(c, fmt.Sprintf("Remove %d containers that don't run, with all that they changed?", len(old))); err != nil {
			return err
		}
	}
	var failed []error
	for _, container := range old {
		switch err := state.Remove(container); {
		case err == nil:
			fmt.Fprintln(c.App.Writer, container.ID)
		case errors.Is(err, runner.ErrRunning), errors.Is(err, runner.ErrNotFound): // since we looked
		default:
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}
