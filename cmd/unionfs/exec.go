package main

import (
	"errors"
	"fmt"
	"path"

	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func execCommand() *cli.Command {
	return &cli.Command{
		Name:      "exec",
		Usage:     "run another command in a running container",
		UsageText: "unionfs exec [options] CONTAINER COMMAND [ARG...]",
		Description: `Runs COMMAND beside a container's own, with the same root, namespaces, capabilities and limits. It ends with the
container, and with this process, unless that detaches: with -it, the keys ctrl-p ctrl-q leave it running. The exit code
is as "unionfs run"'s.

Examples:
   unionfs exec -it web sh
   unionfs exec -u postgres -w /var/lib/postgresql db pg_dump app > app.sql`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "pass standard input to the command"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "don't wait for its end; its output is lost"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `NAME=VALUE`, or pass the caller's NAME"},
			&cli.StringSliceFlag{Name: "env-file", Usage: "set the variables in `FILE`, one a line"},
			&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "start in `DIR`", DefaultText: "the container's"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `USER[:GROUP]`, names or numbers", DefaultText: "the container's"},
			&cli.BoolFlag{Name: "privileged", Usage: "give the command all capabilities, and no filter of system calls"},
			detachKeysFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, -1, "CONTAINER COMMAND [ARG...]"); err != nil {
				return asRunFailure(err)
			}
			return asRunFailure(execInContainer(c))
		},
	}
}

func execInContainer(c *cli.Context) error {
	_, container, err := namedContainer(c)
	if err != nil {
		return err
	}
	keys, err := runner.ParseDetachKeys(c.String("detach-keys"))
	if err != nil {
		return usageError("--detach-keys: %w", err)
	}
	options := runner.ExecOptions{
		DetachKeys:  keys,
		Privileged:  c.Bool("privileged"),
		Args:        c.Args().Tail(),
		User:        c.String("user"),
		Terminal:    c.Bool("tty"),
		Detach:      c.Bool("detach"),
		Interactive: c.Bool("interactive"),
	}
	if dir := c.String("workdir"); dir != "" {
		options.Cwd = path.Join("/", dir)
	}
	for _, file := range c.StringSlice("env-file") {
		env, err := readEnvFile(file)
		if err != nil {
			return err
		}
		options.Env = append(options.Env, env...)
	}
	env, err := resolveEnv(c.StringSlice("env"))
	if err != nil {
		return err
	}
	options.Env = append(options.Env, env...)
	code, err := container.Exec(c.Context, options)
	if errors.Is(err, runner.ErrDetached) {
		fmt.Fprintln(c.App.ErrWriter, "read escape sequence")
		return nil
	}
	if code == 0 && err == nil {
		return nil
	}
	return &exitError{code, err}
}
