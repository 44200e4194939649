package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

const appDescription = `Merges directories and container images into one copy-on-write file system, and runs commands on it, for root
and for an ordinary user, with no daemon.

Examples:
   unionfs try sh -c 'rm -rf /usr/share/doc; echo hello > /etc/motd'
   unionfs mount --lower patched --lower original --upper changes /mnt
   unionfs pull alpine && unionfs run --rm -it alpine sh`

func newApp(stdout, stderr io.Writer) *cli.App {
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
		Commands: []*cli.Command{
			tryCommand(), runCommand(), psCommand(), diffCommand(), applyCommand(), rmCommand(), whichCommand(),
			createCommand(), startCommand(), stopCommand(), restartCommand(), killCommand(), waitCommand(), renameCommand(),
			logsCommand(), execCommand(), topCommand(), containerCommand(),
			imagesCommand(), pullCommand(), importCommand(), loadCommand(), saveCommand(), rmiCommand(),
			tagCommand(), inspectCommand(), historyCommand(), pruneCommand(), dfCommand(), verifyCommand(),
			commitCommand(), exportCommand(), pushCommand(), copyCommand(), loginCommand(), logoutCommand(),
			mountCommand(), umountCommand(),
			benchCommand(),
			versionCommand(), superviseCommand(), sweepCommand(),
		},
		HideHelpCommand:           true,
		UseShortOptionHandling:    true,
		DisableSliceFlagSeparator: true, // a comma in -e or -v is the value's own
		ExitErrHandler:            func(*cli.Context, error) {},
		OnUsageError:              onUsageError,
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return usageError("unknown command %q; unionfs --help lists them all%s", c.Args().First(), hint(c.App, c.Args().First()))
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, command := range app.Commands {
		command.HideHelpCommand = true // "help" may be an image, a container or a program
		command.OnUsageError = onUsageError
	}
	cli.FlagStringer = describeFlag
	return app
}

// describeFlag is a flag's line in the help: short name first, value, what it does, and the default if it says something.
func describeFlag(flag cli.Flag) string {
	doc, ok := flag.(cli.DocGenerationFlag)
	if !ok {
		return ""
	}
	before, rest, _ := strings.Cut(doc.GetUsage(), "`")
	placeholder, after, quoted := strings.Cut(rest, "`")
	usage := doc.GetUsage()
	if quoted {
		usage = before + placeholder + after
	}
	var names []string
	for _, name := range flag.Names() {
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		names = append(names, dashes+name)
	}
	slices.SortStableFunc(names, func(a, b string) int { return min(len(a), 3) - min(len(b), 3) })
	line := strings.Join(names, ", ")
	if doc.TakesValue() {
		if placeholder == "" {
			placeholder = "VALUE"
		}
		line += " " + placeholder
		if text := doc.GetDefaultText(); text != "" && text != `""` {
			usage += " (default: " + strings.Trim(text, `"`) + ")"
		}
	}
	for _, variable := range doc.GetEnvVars() {
		usage += " [$" + variable + "]"
	}
	return line + "\t" + usage
}

func onUsageError(c *cli.Context, err error, isSubcommand bool) error {
	where := "unionfs"
	if isSubcommand {
		where += " " + c.Command.Name
	}
	err = usageError("%w; see %s --help", err, where)
	if runsCommand(c.Command.Name) {
		return asRunFailure(err)
	}
	return err
}

// hint names the command that is closest to what was typed, if one is close.
func hint(app *cli.App, typed string) string {
	best, distance := "", 3
	for _, command := range app.VisibleCommands() {
		if d := editDistance(typed, command.Name); d < distance {
			best, distance = command.Name, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(" (did you mean %q?)", best)
}

// editDistance is Levenshtein's.
func editDistance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			change := diagonal
			if a[i] != b[j] {
				change++
			}
			diagonal = row[j+1]
			row[j+1] = min(change, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
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
	n := c.NArg()
	switch {
	case n < least:
		return usageError("%s: want %s; see unionfs %s --help", c.Command.Name, want, c.Command.Name)
	case most >= 0 && n > most:
		return usageError("%s: unexpected argument %q; want %s", c.Command.Name, c.Args().Get(most), want)
	}
	return nil
}

// ourFlags prepares a command line for the library, which wants flags before arguments and one name for each flag. For the
// verbs that take a command with flags of its own, the first argument ends ours.
func ourFlags(app *cli.App, args []string) []string {
	at, command := findCommand(app, args)
	if command == nil {
		return args
	}
	endsAtFirst := runsCommand(command.Name)
	var flags, rest []string
	for i := at + 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" || endsAtFirst && !isFlag(arg) {
			rest = append(rest, args[i:]...)
			break
		}
		if !isFlag(arg) {
			rest = append(rest, arg)
			continue
		}
		spelled, takesNext := spell(command.Flags, arg)
		flags = append(flags, spelled)
		if takesNext && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	return slices.Concat(args[:at+1], flags, rest)
}

// runsCommand reports whether a verb takes a command with flags and an exit code of its own.
func runsCommand(verb string) bool {
	return slices.Contains([]string{"run", "try", "create", "exec"}, verb)
}

func isFlag(arg string) bool { return len(arg) > 1 && arg[0] == '-' }

// findCommand returns the verb of a command line, or that verb's own verb where it has some, and where it stands.
func findCommand(app *cli.App, args []string) (int, *cli.Command) {
	for i := 1; i < len(args); i++ {
		if !isFlag(args[i]) {
			command := app.Command(args[i])
			if command != nil && i+1 < len(args) {
				if below := subcommand(command, args[i+1]); below != nil {
					return i + 1, below
				}
			}
			return i, command
		}
		if _, takesNext := spell(app.Flags, args[i]); takesNext {
			i++
		}
	}
	return 0, nil
}

func subcommand(command *cli.Command, name string) *cli.Command {
	for _, below := range command.Subcommands {
		if below.HasName(name) {
			return below
		}
	}
	return nil
}

// spell returns a flag with its first name in place of an alias, and whether its value is the next argument. What isn't a
// flag, several short ones together perhaps, comes back as it is.
func spell(flags []cli.Flag, arg string) (spelled string, takesNext bool) {
	name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	for _, flag := range flags {
		names := flag.Names()
		if !slices.Contains(names, name) {
			continue
		}
		spelled = "--" + names[0]
		if hasValue {
			return spelled + "=" + value, false
		}
		_, isBool := flag.(*cli.BoolFlag)
		return spelled, !isBool
	}
	return arg, false
}

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
