// Command unionfs-bench measures unionfs beside its peers, and draws plots of it. "unionfs bench" starts it.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"unionfs/internal/cmdline"
)

func main() { os.Exit(run(os.Args, os.Stdout, os.Stderr)) }

// run is main without the process: it returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	app := newApp(stdout, stderr)
	err := app.Run(cmdline.Arrange(app, args, func(string) bool { return false }))
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "unionfs: bench: %v\n", err)
	var coded cli.ExitCoder
	if errors.As(err, &coded) {
		return coded.ExitCode()
	}
	return 1
}

// usageError is for a command line that can't be meant.
func usageError(format string, args ...any) error { return cli.Exit(fmt.Errorf(format, args...), 2) }

func newApp(stdout, stderr io.Writer) *cli.App {
	app := &cli.App{
		Name:  "unionfs bench",
		Usage: "measure file systems and containers, beside others that do the same",
		Description: `Measures unionfs and those of its peers that are installed, in turns, on this machine.

Examples:
   unionfs bench depth --depths 1,10,100 --against overlayfs,fuse-overlayfs
   unionfs bench full --out report`,
		Writer:    stdout,
		ErrWriter: stderr,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "program", Usage: "measure the unionfs at `PATH`", EnvVars: []string{"UNIONFS_PROGRAM"}, DefaultText: "the one next to this program, or in PATH"},
			&cli.StringFlag{Name: "root", Usage: "take images from the store in `DIR`", EnvVars: []string{"UNIONFS_ROOT"}, DefaultText: "the user's own"},
		},
		Commands: []*cli.Command{
			depthCommand(), copyUpCommand(), memoryCommand(), holderCommand(), takeoverCommand(), runCommand(), imagesCommand(), volumeCommand(),
			fullCommand(), showCommand(), volumeWorkCommand(), completeCommand(), manCommand(),
		},
		HideHelpCommand: true,
		HideVersion:     true,
		ExitErrHandler:  func(*cli.Context, error) {},
		OnUsageError:    onUsageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError("unknown benchmark %q; see unionfs bench --help%s", c.Args().First(), cmdline.Hint(c.App, c.Args().First()))
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, command := range app.Commands {
		command.HideHelpCommand = true
		command.OnUsageError = onUsageError
	}
	cmdline.SetUp()
	return app
}

func onUsageError(c *cli.Context, err error, isSubcommand bool) error {
	where := "unionfs bench"
	if isSubcommand {
		where += " " + c.Command.Name
	}
	return usageError("%w", cmdline.FlagError(c, err, where+" --help", nil))
}

// noArguments refuses what stands besides flags.
func noArguments(c *cli.Context) error {
	if c.Args().Present() {
		return usageError("%s: unexpected argument %q", c.Command.Name, c.Args().First())
	}
	return nil
}

// completeCommand is what "unionfs __complete bench" asks.
func completeCommand() *cli.Command {
	return &cli.Command{
		Name:            "__complete",
		Usage:           "print what the last of the words may become",
		Description:     "Example:\n   unionfs-bench __complete dep",
		Hidden:          true,
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			completion := cmdline.Completion{
				App: c.App, EndsAtFirst: func(string) bool { return false },
				Names: func(string) ([]cmdline.Candidate, bool) { return nil, false },
			}
			words := c.Args().Slice()
			if len(words) == 0 {
				words = []string{""}
			}
			return completion.Print(c.App.Writer, words)
		},
	}
}

// manCommand writes the manual pages, for "make man".
func manCommand() *cli.Command {
	return &cli.Command{
		Name:        "man",
		Usage:       "write manual pages",
		ArgsUsage:   "DIR",
		Description: "Writes a manual page for each benchmark to DIR.\n\nExample:\n   unionfs-bench man share/man/man1",
		Hidden:      true,
		Action:      func(c *cli.Context) error { return cmdline.WriteMan(c.App, c.Args().First()) },
	}
}

// place returns the unionfs to measure and the directory in which to measure.
func place(c *cli.Context) (program, dir string, err error) {
	if program = c.String("program"); program == "" {
		if program, err = findUnionfs(); err != nil {
			return "", "", err
		}
	}
	if program, err = filepath.Abs(program); err != nil {
		return "", "", err
	}
	if dir = c.String("dir"); dir == "" {
		dir = os.TempDir()
	}
	dir, err = filepath.Abs(dir)
	return program, dir, err
}

func findUnionfs() (string, error) {
	if self, err := os.Executable(); err == nil {
		program := filepath.Join(filepath.Dir(self), "unionfs")
		if info, err := os.Stat(program); err == nil && info.Mode().IsRegular() {
			return program, nil
		}
	}
	program, err := exec.LookPath("unionfs")
	if err != nil {
		return "", errors.New("there is no unionfs next to this program or in PATH; --program PATH says which to measure")
	}
	return program, nil
}
