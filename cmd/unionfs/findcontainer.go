package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
	"unionfs/runner"
)

// namedContainer finds the container that the first argument names, and where the state is.
func namedContainer(c *cli.Context) (root string, container *runner.Container, err error) {
	if root, err = stateRoot(c); err != nil {
		return "", nil, err
	}
	container, err = findContainer(root, c.Args().First())
	return root, container, err
}

// findContainer finds a container by name, ID, or the start of its ID.
func findContainer(root, ref string) (*runner.Container, error) {
	state, err := runner.OpenState(root)
	if err != nil {
		return nil, err
	}
	container, err := state.Get(ref)
	return container, explainMissing(state, ref, err)
}

// explainMissing says how to find the container that there is not, and which one may have been meant.
func explainMissing(state *runner.State, ref string, err error) error {
	if !errors.Is(err, runner.ErrNotFound) {
		return err
	}
	var names []string
	if all, err := state.List(); err == nil {
		for _, container := range all {
			names = append(names, container.Name)
		}
	}
	return fmt.Errorf("%w; \"unionfs ps -a\" lists those that there are%s", err, cmdline.HintAmong(ref, names))
}
