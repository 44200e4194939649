package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
	"unionfs/runner"
)

// runtimeName is the name under which the program is an OCI runtime without the verb "runtime", for callers that take no
// more than a program's path.
const runtimeName = "unionfs-runtime"

const runtimeDescription = `An OCI runtime with runc's command line: podman, containerd and others run their containers with it. They have
the images and the networks; this makes namespaces, mounts and limits of a bundle's config.json.

podman takes the path of a program: link unionfs under the name unionfs-runtime, which is short for "unionfs runtime".

Examples:
   ln -s unionfs /usr/local/bin/unionfs-runtime
   podman --runtime /usr/local/bin/unionfs-runtime run --rm alpine echo hello
   unionfs runtime run --bundle /tmp/bundle mycontainer`

// runtimeCommand hands its arguments on to an application of its own, in which --root is another directory.
func runtimeCommand() *cli.Command {
	return &cli.Command{
		Name:            "runtime",
		Usage:           "run OCI bundles, for podman, containerd and others",
		Description:     runtimeDescription,
		ArgsUsage:       "VERB [ID]",
		SkipFlagParsing: true,
		Action: func(c *cli.Context) error {
			return runRuntime(append([]string{"unionfs runtime"}, c.Args().Slice()...), c.App.Writer, c.App.ErrWriter)
		},
	}
}

// runRuntime is the runtime without the process. Errors go, besides to standard error, to the file that --log names.
func runRuntime(args []string, stdout, stderr io.Writer) error {
	app := newRuntimeApp(stdout, stderr)
	var log *runtimeLog
	app.Before = func(c *cli.Context) error {
		if c.Bool("systemd-cgroup") {
			return errors.New("--systemd-cgroup: cgroups are not managed by systemd here; set the caller's cgroup manager to cgroupfs (podman: --cgroup-manager=cgroupfs)")
		}
		log = &runtimeLog{file: c.String("log"), format: c.String("log-format")}
		if log.format != "text" && log.format != "json" {
			return fmt.Errorf("--log-format %q: want text or json", log.format)
		}
		return nil
	}
	err := app.Run(args)
	var warning *runner.HookWarning
	if errors.As(err, &warning) {
		fmt.Fprintln(stderr, "unionfs: warning:", warning)
		return nil
	}
	var coded *exitError
	if err != nil && !(errors.As(err, &coded) && coded.err == nil) && log != nil {
		log.error(err)
	}
	return err
}

// runtimeLog writes errors as runc does, for callers that read them there.
type runtimeLog struct{ file, format string }

func (l *runtimeLog) error(err error) {
	if l.file == "" {
		return
	}
	file, oerr := os.OpenFile(l.file, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if oerr != nil {
		return
	}
	defer file.Close()
	now := time.Now().Format(time.RFC3339)
	if l.format == "json" {
		_ = json.NewEncoder(file).Encode(map[string]string{"level": "error", "msg": err.Error(), "time": now})
		return
	}
	fmt.Fprintf(file, "time=%q level=error msg=%q\n", now, err)
}

func newRuntimeApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:        "unionfs runtime",
		Usage:       "run OCI bundles",
		Description: runtimeDescription,
		Version:     version,
		Writer:      stdout,
		ErrWriter:   stderr,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "root", Usage: "keep the containers' state in `DIR`", Value: runner.DefaultRuntimeRoot(), DefaultText: "/run/unionfs-runtime for root, else $XDG_RUNTIME_DIR/unionfs-runtime"},
			&cli.StringFlag{Name: "log", Usage: "write errors to `FILE`, too"},
			&cli.StringFlag{Name: "log-format", Usage: "write them as `FORMAT`: text or json", Value: "text"},
			&cli.BoolFlag{Name: "debug", Usage: "accepted for runc's sake"},
			&cli.BoolFlag{Name: "systemd-cgroup", Usage: "refused: cgroups are managed as cgroupfs"},
			&cli.StringFlag{Name: "rootless", Usage: "accepted for runc's sake: it is found out", Value: "auto"},
		},
		Commands: []*cli.Command{
			runtimeCreateCommand(), runtimeRunCommand(), runtimeStartCommand(), runtimeStateCommand(), runtimeKillCommand(),
			runtimeDeleteCommand(), runtimeExecCommand(), runtimeListCommand(), runtimePsCommand(), runtimePauseCommand(),
			runtimeResumeCommand(), runtimeUpdateCommand(), runtimeFeaturesCommand(), runtimeSpecCommand(),
		},
		HideHelpCommand:        true,
		UseShortOptionHandling: true,
		// A comma in -e is the value's own.
		DisableSliceFlagSeparator: true,
		ExitErrHandler:            func(*cli.Context, error) {},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError("unknown command %q; \"unionfs runtime --help\" lists them all", c.Args().First())
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, command := range app.Commands {
		command.HideHelpCommand = true
	}
	cli.FlagStringer = cmdline.DescribeFlag
	return app
}

// createFlags are those of create and run.
func createFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "the bundle's `DIR`", Value: "."},
		&cli.StringFlag{Name: "console-socket", Usage: "send the terminal's master to the socket `PATH`"},
		&cli.StringFlag{Name: "pid-file", Usage: "write the first process's number to `FILE`"},
		&cli.BoolFlag{Name: "no-pivot", Usage: "change the root without pivot_root, for a root in a ramdisk"},
		&cli.BoolFlag{Name: "no-new-keyring", Usage: "let the command keep the caller's session keyring"},
		&cli.IntFlag{Name: "preserve-fds", Usage: "pass `N` descriptors, from 3 on, to the command"},
	}
}

func createOptions(c *cli.Context) runner.OCICreateOptions {
	return runner.OCICreateOptions{
		ConsoleSocket: c.String("console-socket"), PIDFile: c.String("pid-file"), PreserveFDs: c.Int("preserve-fds"),
		NoPivot: c.Bool("no-pivot"), NoKeyring: c.Bool("no-new-keyring"),
	}
}

func runtimeCreateCommand() *cli.Command {
	return &cli.Command{
		Name:        "create",
		Usage:       "create a container of a bundle, which then waits to be started",
		Description: "The command gets the standard streams that create has.\n\nExample:\n   unionfs runtime create --bundle /tmp/bundle --pid-file /tmp/pid mycontainer",
		ArgsUsage:   "ID",
		Flags:       createFlags(),
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "ID"); err != nil {
				return err
			}
			r, err := openRuntime(c)
			if err != nil {
				return err
			}
			_, err = r.Create(c.Args().First(), c.String("bundle"), createOptions(c))
			return err
		},
	}
}

func runtimeRunCommand() *cli.Command {
	return &cli.Command{
		Name:        "run",
		Usage:       "create and start a container, and wait for its end",
		Description: "Afterwards the container is deleted. Signals are passed on.\n\nExample:\n   unionfs runtime run --bundle /tmp/bundle mycontainer",
		ArgsUsage:   "ID",
		Flags: append(createFlags(),
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "don't wait"},
			&cli.BoolFlag{Name: "keep", Usage: "don't delete it"},
			&cli.BoolFlag{Name: "no-subreaper", Usage: "accepted for runc's sake"},
		),
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "ID"); err != nil {
				return err
			}
			r, err := openRuntime(c)
			if err != nil {
				return err
			}
			if c.Bool("detach") {
				container, err := r.Create(c.Args().First(), c.String("bundle"), createOptions(c))
				if err != nil {
					return err
				}
				if err := container.Start(); err != nil {
					return errors.Join(err, container.Delete(true))
				}
				return nil
			}
			code, err := r.Run(c.Context, c.Args().First(), c.String("bundle"), createOptions(c), c.Bool("keep"), runner.RunOptions{Interactive: true})
			return exitWith(code, err)
		},
	}
}

// exitWith is the end of a verb whose exit code is a command's.
func exitWith(code int, err error) error {
	if err != nil || code == 0 {
		return err
	}
	return &exitError{code: code}
}

func openRuntime(c *cli.Context) (*runner.Runtime, error) {
	return runner.OpenRuntime(c.String("root"))
}

// withContainer is the action of a verb on one container.
func withContainer(most int, want string, do func(c *cli.Context, container *runner.OCIContainer) error) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, 1, most, want); err != nil {
			return err
		}
		r, err := openRuntime(c)
		if err != nil {
			return err
		}
		container, err := r.Get(c.Args().First())
		if err != nil {
			return err
		}
		return do(c, container)
	}
}

func runtimeStartCommand() *cli.Command {
	return &cli.Command{
		Name:        "start",
		Usage:       "let a created container execute its command",
		Description: "Example:\n   unionfs runtime start mycontainer",
		ArgsUsage:   "ID",
		Action: withContainer(1, "ID", func(_ *cli.Context, container *runner.OCIContainer) error {
			return container.Start()
		}),
	}
}

func runtimeStateCommand() *cli.Command {
	return &cli.Command{
		Name:        "state",
		Usage:       "print a container's state as JSON",
		Description: "Example:\n   unionfs runtime state mycontainer",
		ArgsUsage:   "ID",
		Action: withContainer(1, "ID", func(c *cli.Context, container *runner.OCIContainer) error {
			return printJSON(c.App.Writer, describeOCI(container))
		}),
	}
}

// ociDescription is the state of the runtime-spec, with what runc adds to it.
type ociDescription struct {
	OCIVersion  string            `json:"ociVersion"`
	ID          string            `json:"id"`
	PID         int               `json:"pid"`
	Status      string            `json:"status"`
	Bundle      string            `json:"bundle"`
	Rootfs      string            `json:"rootfs"`
	Created     time.Time         `json:"created"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Owner       string            `json:"owner"`
}

func describeOCI(container *runner.OCIContainer) ociDescription {
	s := container.State()
	return ociDescription{
		OCIVersion: s.Version, ID: s.ID, PID: s.Pid, Status: string(s.Status), Bundle: s.Bundle, Rootfs: container.Rootfs(),
		Created: container.Created(), Annotations: s.Annotations, Owner: ownerName(container.Owner()),
	}
}

func runtimeKillCommand() *cli.Command {
	return &cli.Command{
		Name:        "kill",
		Usage:       "send a signal to a container's first process",
		Description: "Example:\n   unionfs runtime kill mycontainer KILL",
		ArgsUsage:   "ID [SIGNAL]",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "to all of its processes"}},
		Action: withContainer(2, "ID [SIGNAL]", func(c *cli.Context, container *runner.OCIContainer) error {
			name := c.Args().Get(1)
			if name == "" {
				name = "TERM"
			}
			sig, err := runner.ParseSignal(name)
			if err != nil {
				return err
			}
			return container.Signal(sig, c.Bool("all"))
		}),
	}
}

func runtimeDeleteCommand() *cli.Command {
	return &cli.Command{
		Name:        "delete",
		Usage:       "delete a container that has stopped",
		Description: "Example:\n   unionfs runtime delete mycontainer",
		ArgsUsage:   "ID",
		Flags:       []cli.Flag{&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "kill it if it runs; no error if there is none"}},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "ID"); err != nil {
				return err
			}
			r, err := openRuntime(c)
			if err != nil {
				return err
			}
			id, force := c.Args().First(), c.Bool("force")
			container, err := r.Get(id)
			switch {
			case err == nil:
				return container.Delete(force)
			case !force:
				return err
			case errors.Is(err, runner.ErrNotFound), strings.Contains(err.Error(), "damaged"):
				return r.DeleteDamaged(id)
			}
			return err
		},
	}
}
