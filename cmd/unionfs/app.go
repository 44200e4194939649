package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
)

const appDescription = `Merges directories and container images into one copy-on-write file system, and runs commands on it, for root
and for an ordinary user, with no daemon.

Examples:
   unionfs try sh -c 'rm -rf /usr/share/doc; echo hello > /etc/motd'
   unionfs mount --lower patched --lower original --upper changes /mnt
   unionfs pull alpine && unionfs run --rm -it alpine sh`

// newApp is the whole command line, with every verb.
func newApp(stdout, stderr io.Writer) *cli.App {
	var all []*cli.Command
	for _, v := range verbs() {
		all = append(all, v.command())
	}
	return appOf(stdout, stderr, all)
}

// appFor is as much of the command line as the arguments need: their verb, or all of them. Every flag is an allocation, of
// which all verbs together make more than a thousand, and a container's start would make them in each of its processes.
func appFor(args []string, stdout, stderr io.Writer) *cli.App {
	if v, ok := verbIn(args); ok && !v.needsAll {
		return appOf(stdout, stderr, []*cli.Command{v.command()})
	}
	return newApp(stdout, stderr)
}

// appOf is the command line with some verbs.
func appOf(stdout, stderr io.Writer, commands []*cli.Command) *cli.App {
	app := &cli.App{
		Name:        "unionfs",
		Usage:       "copy-on-write file systems, and commands on them",
		Version:     version,
		Description: appDescription,
		Writer:      stdout,
		ErrWriter:   stderr,
		Flags: []cli.Flag{
			&cli.StringFlag{
				Name:    "root",
				Usage:   "keep images, containers and volumes in `DIR`",
				EnvVars: []string{"UNIONFS_ROOT"},
				Value:   defaultRoot(),
				// The default depends on who asks; the words say it for all.
				DefaultText: "/var/lib/unionfs for root, else $XDG_DATA_HOME/unionfs or ~/.local/share/unionfs",
			},
		},
		Commands:                  commands,
		HideHelpCommand:           true,
		UseShortOptionHandling:    true,
		DisableSliceFlagSeparator: true, // a comma in -e or -v is the value's own
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              onUsageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError("unknown command %q; unionfs --help lists them all%s", c.Args().First(), cmdline.Hint(c.App, c.Args().First()))
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, command := range app.Commands {
		complete(command)
		for _, below := range command.Subcommands {
			complete(below)
		}
	}
	cmdline.SetUp()
	return app
}

// complete adds to a command what all have in common.
func complete(command *cli.Command) {
	command.HideHelpCommand = true // "help" may be an image, a container or a program
	command.OnUsageError = onUsageError
	if len(command.Subcommands) > 0 {
		command.Action = func(c *cli.Context) error {
			if typed := c.Args().First(); typed != "" {
				return usageError("unknown command \"%s %s\"; see unionfs %[1]s --help%[3]s", command.Name, typed, cmdline.HintBelow(command.Subcommands, typed))
			}
			return cli.ShowSubcommandHelp(c)
		}
	}
}

func onUsageError(c *cli.Context, err error, isSubcommand bool) error {
	where := "unionfs"
	if isSubcommand {
		where += " " + fullName(c.Command)
	}
	err = usageError("%w", cmdline.FlagError(c, err, where+" --help", insteadOf))
	if runsCommand(fullName(c.Command)) {
		return asRunFailure(err)
	}
	return err
}

// defaultRoot is where the state of the calling user is, as other container programs choose it.
func defaultRoot() string {
	if os.Geteuid() == 0 {
		return "/var/lib/unionfs"
	}
	if dir := os.Getenv("XDG_DATA_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "unionfs")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "" // stateRoot says what to do
	}
	return filepath.Join(home, ".local", "share", "unionfs")
}

// stateRoot returns the absolute path of --root.
func stateRoot(c *cli.Context) (string, error) {
	root := c.String("root")
	if root == "" {
		return "", fmt.Errorf("neither HOME nor XDG_DATA_HOME is set, so there is no place for images and containers; set one or give --root DIR")
	}
	return filepath.Abs(root)
}

// arguments checks the number of arguments after the flags. want names them, as in the command's usage.
func arguments(c *cli.Context, least, most int, want string) error {
	n, name := c.NArg(), fullName(c.Command)
	switch {
	case n < least:
		return usageError("%s: want %s; see unionfs %[1]s --help", name, want)
	case most >= 0 && n > most:
		return usageError("%s: unexpected argument %q; want %s", name, c.Args().Get(most), want)
	}
	return nil
}

// fullName is what a command is called, with the verb that it is one of: "volume create".
func fullName(command *cli.Command) string {
	_, name, _ := strings.Cut(command.HelpName, " ")
	return cmp.Or(name, command.Name)
}

// runsCommand reports whether a verb takes a command with flags and an exit code of its own.
func runsCommand(verb string) bool {
	return slices.Contains([]string{"run", "try", "create", "exec"}, verb)
}

// endsFlags reports whether a verb's first argument ends its own flags.
func endsFlags(verb string) bool { return runsCommand(verb) || verb == "top" }

func versionCommand() *cli.Command {
	return &cli.Command{
		Name:        "version",
		Usage:       "print the version",
		Description: "Prints the version and no more.\n\nExample:\n   unionfs version",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			_, err := fmt.Fprintln(c.App.Writer, version)
			return err
		},
	}
}
