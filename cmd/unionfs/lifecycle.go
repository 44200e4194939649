package main

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/runner"
	"unionfs/supervisor"
)

// lifecycleFlags are those of run and create that are about how a container lives.
func lifecycleFlags() []cli.Flag {
	return []cli.Flag{
		&cli.IntFlag{Name: "stop-timeout", Usage: "kill it `SECONDS` after it was asked to end; -1 never", Value: int(runner.DefaultStopTimeout / time.Second)},
		&cli.StringFlag{Name: "restart", Usage: "start it again when it has ended: `POLICY` no, on-failure[:N], always or unless-stopped", Value: "no"},
		&cli.StringFlag{Name: "log-driver", Usage: "`DRIVER`: k8s-file, or json-file and local, which are the same here", Hidden: true},
		&cli.StringSliceFlag{Name: "log-opt", Usage: "keep `max-size=10m` of output in a file, and max-file=3 files; labels=NAME,… and env=NAME,… are what logs --details shows"},
	}
}

// lifecycleAnnotations reads what lifecycleFlags say.
func lifecycleAnnotations(c *cli.Context, interactive bool) (map[string]string, error) {
	annotations := map[string]string{}
	if interactive {
		annotations[runner.AnnotationInteractive] = "true"
	}
	if c.IsSet("stop-timeout") {
		annotations[runner.AnnotationStopTimeout] = strconv.Itoa(c.Int("stop-timeout"))
	}
	policy, err := runner.ParseRestartPolicy(c.String("restart"))
	if err != nil {
		return nil, usageError("--restart: %w", err)
	}
	if policy.Name != runner.RestartNo {
		if c.Bool("rm") {
			return nil, usageError("--restart and --rm exclude each other")
		}
		annotations[runner.AnnotationRestart] = policy.String()
	}
	switch driver := c.String("log-driver"); driver {
	case "", "json-file", "local", "k8s-file":
	default:
		return nil, usageError("--log-driver %q is not supported: what a container writes in the background is kept in a file, see unionfs logs", driver)
	}
	for _, option := range c.StringSlice("log-opt") {
		name, value, _ := strings.Cut(option, "=")
		switch name {
		case "max-size":
			size, err := units.RAMInBytes(value)
			if err != nil || size < 1 {
				return nil, usageError("--log-opt %s: want a size such as 10m", option)
			}
			annotations[runner.AnnotationLogSize] = strconv.FormatInt(size, 10)
		case "max-file":
			if n, err := strconv.Atoi(value); err != nil || n < 1 {
				return nil, usageError("--log-opt %s: want a number from 1", option)
			}
			annotations[runner.AnnotationLogFiles] = value
		case "labels":
			annotations[annotationLogLabels] = value
		case "env":
			annotations[annotationLogEnv] = value
		default:
			return nil, usageError("--log-opt %s: known are max-size, max-file, labels and env", option)
		}
	}
	return annotations, nil
}

// startAhead starts the supervisor of a container that is about to be made and to run in front, unless it has to wait for
// what others do first.
func startAhead(c *cli.Context, l launch, id string) *runner.Supervisor {
	mode := defaultNetwork(l.image)
	if names := c.StringSlice("network"); len(names) > 0 {
		mode = names[0]
	}
	joins := joinsOther(mode)
	for _, flag := range []string{"ipc", "uts", "cgroupns"} {
		joins = joins || runner.NeedsUserNamespace() && strings.HasPrefix(c.String(flag), "container:")
	}
	root, err := stateRoot(c)
	if l.background || !passesSignals(c) || err != nil || joins {
		return nil
	}
	o := l.options(nil)
	o.Supervisor = supervisor.Arguments(root, id)
	return runner.StartAhead(o, l.terminal)
}

// startInBackground starts a container, and returns the exit code of the command that did not start as an error.
func startInBackground(c *cli.Context, root string, container *runner.Container) error {
	join, release, err := joinOf(root, container)
	if err != nil {
		return &exitError{exitRunFailed, err}
	}
	defer release()
	code, err := container.Start(c.Context, runner.StartOptions{Supervisor: supervisor.Arguments(root, container.ID), Join: join})
	if err != nil {
		return &exitError{code, err}
	}
	return nil
}

// eachContainer calls do with every container that the command line names, and prints what was named when it succeeds.
func eachContainer(c *cli.Context, do func(root string, container *runner.Container) error) error {
	if err := arguments(c, 1, -1, "CONTAINER..."); err != nil {
		return err
	}
	root, err := stateRoot(c)
	if err != nil {
		return err
	}
	var failed []error
	for _, ref := range c.Args().Slice() {
		container, err := findContainer(root, ref)
		if err == nil {
			err = do(root, container)
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		fmt.Fprintln(c.App.Writer, ref)
	}
	if len(failed) == 1 {
		return failed[0]
	}
	return errors.Join(failed...)
}

func createCommand() *cli.Command {
	return &cli.Command{
		Name:      "create",
		Usage:     "make a container without starting it",
		UsageText: "unionfs create [options] IMAGE [COMMAND [ARG...]]",
		Description: `Makes a container as "unionfs run" does, and prints its ID. "unionfs start" runs its command.

Example:
   unionfs create --name web -u www-data nginx && unionfs start web`,
		Flags: imageRunFlags(),
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "IMAGE [COMMAND...]"); err != nil {
				return asRunFailure(err)
			}
			l, err := launchOf(c)
			if err != nil {
				return asRunFailure(err)
			}
			_, container, err := createContainer(c, l, runner.NewID())
			if err != nil {
				return asRunFailure(err)
			}
			fmt.Fprintln(c.App.Writer, container.ID)
			return nil
		},
	}
}

func startCommand() *cli.Command {
	return &cli.Command{
		Name:      "start",
		Usage:     "run the commands of containers that don't run",
		ArgsUsage: "CONTAINER...",
		Description: `Starts containers that were created or have ended, in the background; what they write goes to "unionfs logs". With
--attach one runs in front, as with "unionfs run", and its exit code is the command's.

With --all it is those whose --restart policy wants them to run: always, unless-stopped if nobody stopped them,
on-failure if they failed. There is no daemon that does so after a reboot: call it from a unit of systemd, or from
cron's @reboot.

Examples:
   unionfs start web db
   unionfs start -ai shell
   unionfs start --all`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Usage: "start those that their --restart policy wants to run"},
			&cli.BoolFlag{Name: "attach", Aliases: []string{"a"}, Usage: "stay in front, with the command's output"},
			&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "pass standard input to the command; implies --attach"},
			sigProxyFlag(),
			detachKeysFlag(),
		},
		Action: func(c *cli.Context) error {
			if c.Bool("all") {
				if err := arguments(c, 0, 0, "no arguments with --all"); err != nil {
					return err
				}
				return startAll(c)
			}
			if !c.Bool("attach") && !c.Bool("interactive") {
				return eachContainer(c, func(root string, container *runner.Container) error {
					return startInBackground(c, root, container)
				})
			}
			if err := arguments(c, 1, 1, "one CONTAINER with --attach"); err != nil {
				return err
			}
			root, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			return runInFront(c, root, container, runner.RunOptions{Interactive: c.Bool("interactive")})
		},
	}
}

// startAll starts the containers whose restart policy wants them to run, and prints their names.
func startAll(c *cli.Context) error {
	root, err := stateRoot(c)
	if err != nil {
		return err
	}
	state, err := runner.OpenState(root)
	if err != nil {
		return err
	}
	all, err := state.List()
	if err != nil {
		return err
	}
	var failed []error
	for _, container := range slices.Backward(all) { // the oldest first
		status, err := container.Status()
		if err != nil || !container.WantsStart(status) {
			continue
		}
		if err := startInBackground(c, root, container); err != nil {
			failed = append(failed, fmt.Errorf("starting %s: %w", container.Name, err))
			continue
		}
		fmt.Fprintln(c.App.Writer, container.Name)
	}
	return errors.Join(failed...)
}

// runInFront runs a container as this process's child, and returns its exit code as an error. What is to be said about every container is
// added to the options.
func runInFront(c *cli.Context, root string, container *runner.Container, o runner.RunOptions) error {
	keys, err := runner.ParseDetachKeys(c.String("detach-keys"))
	if err != nil {
		o.Ahead.Abandon()
		return usageError("--detach-keys: %w", err)
	}
	join, release, err := joinOf(root, container)
	if err != nil {
		o.Ahead.Abandon()
		return &exitError{exitRunFailed, err}
	}
	defer release()
	o.Join, o.Supervisor, o.DetachKeys = join, supervisor.Arguments(root, container.ID), keys
	var code int
	if passesSignals(c) {
		code, err = container.Run(c.Context, o)
	} else {
		code, err = container.Start(c.Context, runner.StartOptions{Join: join, Supervisor: o.Supervisor, Attach: &runner.AttachOptions{
			Stdout: o.Stdout, Stderr: o.Stderr, NoStdin: !o.Interactive, NoSignals: true, DetachKeys: keys,
		}})
	}
	if errors.Is(err, runner.ErrDetached) {
		fmt.Fprintln(c.App.ErrWriter, "read escape sequence")
		return nil
	}
	if code == 0 && err == nil {
		return nil
	}
	return &exitError{code, err}
}

// sigProxyFlag is for a container that runs in front.
func sigProxyFlag() cli.Flag {
	return &cli.BoolFlag{Name: "sig-proxy", Usage: "pass on the signals that this process gets; without, they end only this process, and the container goes on", Value: true}
}

// passesSignals reports whether a container that runs in front gets the signals of this process. One that doesn't runs in the background,
// and we watch it.
func passesSignals(c *cli.Context) bool { return !c.IsSet("sig-proxy") || c.Bool("sig-proxy") }

func timeoutFlag() cli.Flag {
	return &cli.IntFlag{Name: "time", Aliases: []string{"t", "timeout"}, Usage: "kill it after `SECONDS`; -1 never", DefaultText: "the container's --stop-timeout"}
}

func stopSignalFlag() cli.Flag {
	return &cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "ask it to end by `SIGNAL`", DefaultText: "the container's stop signal"}
}

// stopSignalOf is the signal that asks a container to end.
func stopSignalOf(c *cli.Context, container *runner.Container) (unix.Signal, error) {
	if !c.IsSet("signal") {
		return container.StopSignal(), nil
	}
	signal, err := runner.ParseSignal(c.String("signal"))
	if err != nil {
		return 0, usageError("--signal: %w", err)
	}
	return signal, nil
}

// stopContainer stops a container as the flags of stop and restart say.
func stopContainer(c *cli.Context, container *runner.Container) error {
	signal, err := stopSignalOf(c, container)
	if err != nil {
		return err
	}
	return container.Stop(c.Context, signal, graceOf(c, container))
}

// graceOf is how long a container has to end.
func graceOf(c *cli.Context, container *runner.Container) time.Duration {
	if c.IsSet("time") {
		return time.Duration(c.Int("time")) * time.Second
	}
	return container.StopTimeout()
}

func stopCommand() *cli.Command {
	return &cli.Command{
		Name:      "stop",
		Usage:     "ask containers to end, and kill those that don't",
		ArgsUsage: "CONTAINER...",
		Description: `Sends the command of each container its stop signal (the image's, --stop-signal's, or TERM), kills the container if it
has not ended after a while, and waits for its end.

Example:
   unionfs stop -t 30 web`,
		Flags: []cli.Flag{timeoutFlag(), stopSignalFlag()},
		Action: func(c *cli.Context) error {
			return eachContainer(c, func(_ string, container *runner.Container) error {
				return stopContainer(c, container)
			})
		},
	}
}

func restartCommand() *cli.Command {
	return &cli.Command{
		Name:      "restart",
		Usage:     "stop containers and start them again",
		ArgsUsage: "CONTAINER...",
		Description: `Stops containers as "unionfs stop" does, and starts them in the background. One that doesn't run is started.

Example:
   unionfs restart web`,
		Flags: []cli.Flag{timeoutFlag(), stopSignalFlag()},
		Action: func(c *cli.Context) error {
			return eachContainer(c, func(root string, container *runner.Container) error {
				if container.AutoRemove() {
					return fmt.Errorf("container %s is removed when it ends (--rm), so it can't be restarted", container.Name)
				}
				if err := stopContainer(c, container); err != nil {
					return err
				}
				if err := startInBackground(c, root, container); err != nil {
					return err
				}
				container.Note("restart")
				return nil
			})
		},
	}
}

func killCommand() *cli.Command {
	return &cli.Command{
		Name:      "kill",
		Usage:     "send a signal to containers",
		ArgsUsage: "CONTAINER...",
		Description: `Sends a signal to the command of each container. KILL, which is the default, ends the whole container at once.

Example:
   unionfs kill -s HUP web`,
		Flags: []cli.Flag{&cli.StringFlag{Name: "signal", Aliases: []string{"s"}, Usage: "send `SIGNAL`, a name or a number", Value: "KILL"}},
		Action: func(c *cli.Context) error {
			signal, err := runner.ParseSignal(c.String("signal"))
			if err != nil {
				return usageError("--signal: %w", err)
			}
			return eachContainer(c, func(_ string, container *runner.Container) error { return container.Signal(signal) })
		},
	}
}

func waitCommand() *cli.Command {
	return &cli.Command{
		Name:      "wait",
		Usage:     "wait for containers to end, and print their exit codes",
		ArgsUsage: "CONTAINER...",
		Description: `Waits for the end of each container, and prints its exit code. Of one that doesn't run it is that of its last run.

Example:
   unionfs wait job`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "CONTAINER..."); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			for _, ref := range c.Args().Slice() {
				container, err := findContainer(root, ref)
				if err != nil {
					return err
				}
				code, err := container.Wait(c.Context)
				if err != nil {
					return err
				}
				fmt.Fprintln(c.App.Writer, code)
			}
			return nil
		},
	}
}

func renameCommand() *cli.Command {
	return &cli.Command{
		Name:      "rename",
		Usage:     "give a container another name",
		ArgsUsage: "CONTAINER NAME",
		Description: `Gives a container another name, also while it runs.

Example:
   unionfs rename quiet_hopper web`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, 2, "CONTAINER NAME"); err != nil {
				return err
			}
			_, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			if err := container.Rename(c.Args().Get(1)); err != nil {
				return err
			}
			return container.UpdateNetwork(c.Context) // it is found by its new name
		},
	}
}
