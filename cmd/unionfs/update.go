package main

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func updateCommand() *cli.Command {
	return &cli.Command{
		Name:      "update",
		Usage:     "change limits and the restart policy of containers",
		ArgsUsage: "CONTAINER...",
		Description: `Changes what containers may use, and when they are started again; of one that runs at once, else for its next start.
The limits are as of "unionfs run".

Examples:
   unionfs update --memory 1g --cpus 2 db
   unionfs update --restart on-failure:3 web`,
		Flags: slices.Concat(limitFlags(), []cli.Flag{
			&cli.StringFlag{Name: "restart", Usage: "`POLICY`: no, on-failure[:N], always or unless-stopped"},
		}),
		Action: func(c *cli.Context) error {
			var options runner.UpdateOptions
			var err error
			if options.Resources, err = resourcesOf(c); err != nil {
				return err
			}
			if c.String("pids-limit") == "-1" {
				none := int64(-1)
				if options.Resources == nil {
					options.Resources = &specs.LinuxResources{}
				}
				options.Resources.Pids = &specs.LinuxPids{Limit: &none}
			}
			if c.IsSet("restart") {
				policy, err := runner.ParseRestartPolicy(c.String("restart"))
				if err != nil {
					return usageError("--restart: %w", err)
				}
				options.Restart = &policy
			}
			if options.Resources == nil && options.Restart == nil {
				return usageError("update: give a limit or --restart")
			}
			return eachContainer(c, func(_ string, container *runner.Container) error { return container.Update(options) })
		},
	}
}
