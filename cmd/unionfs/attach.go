package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func attachCommand() *cli.Command {
	return &cli.Command{
		Name:      "attach",
		Usage:     "connect to the input and output of a container in the background",
		ArgsUsage: "CONTAINER",
		Description: `Connects standard input, output and error with those of a container that runs in the background, from now on; what it
wrote before is in "unionfs logs". Any number may be attached at once. It ends with the container, with its exit code;
the keys ctrl-p ctrl-q, typed one after the other, leave it running.

Examples:
   unionfs run -dit --name box alpine sh && unionfs attach box
   unionfs attach --no-stdin --sig-proxy=false web`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-stdin", Usage: "pass no input on"},
			&cli.BoolFlag{Name: "sig-proxy", Usage: "pass on the signals that this process gets", Value: true},
			detachKeysFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "CONTAINER"); err != nil {
				return err
			}
			keys, err := runner.ParseDetachKeys(c.String("detach-keys"))
			if err != nil {
				return usageError("--detach-keys: %w", err)
			}
			_, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			code, err := container.Attach(c.Context, runner.AttachOptions{
				NoStdin: c.Bool("no-stdin"), NoSignals: !c.Bool("sig-proxy"), DetachKeys: keys,
			})
			if errors.Is(err, runner.ErrDetached) {
				fmt.Fprintln(c.App.ErrWriter, "read escape sequence")
				return nil
			}
			if code == 0 && err == nil {
				return nil
			}
			if code == exitRunFailed {
				code = exitFailure // nobody's command was to run
			}
			return &exitError{code, err}
		},
	}
}

func detachKeysFlag() cli.Flag {
	return &cli.StringFlag{Name: "detach-keys", Usage: "leave it running when `KEYS` are typed", Value: runner.DefaultDetachKeys}
}
