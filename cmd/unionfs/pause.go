package main

import (
	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func pauseCommand() *cli.Command {
	return &cli.Command{
		Name:      "pause",
		Usage:     "hold all processes of containers where they are",
		ArgsUsage: "CONTAINER...",
		Description: `Holds all processes of each container where they are, until "unionfs unpause", by the kernel's freezer. An ordinary
user without a delegated cgroup has none: the processes are then stopped by SIGSTOP, which they can notice.

Example:
   unionfs pause db && unionfs volume export -o db.tar data; unionfs unpause db`,
		Action: func(c *cli.Context) error {
			return eachContainer(c, func(_ string, container *runner.Container) error { return container.Pause() })
		},
	}
}

func unpauseCommand() *cli.Command {
	return &cli.Command{
		Name:      "unpause",
		Usage:     "let paused containers go on",
		ArgsUsage: "CONTAINER...",
		Description: `Lets the processes of paused containers go on.

Example:
   unionfs unpause db`,
		Action: func(c *cli.Context) error {
			return eachContainer(c, func(_ string, container *runner.Container) error { return container.Unpause() })
		},
	}
}
