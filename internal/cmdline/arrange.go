// Package cmdline is how this project's programs read command lines and describe their flags: Docker's way, which their
// library alone doesn't have.
package cmdline

import (
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// Arrange prepares a command line for the library, which wants flags before arguments and one name for each flag. Where
// endsAtFirst says so of a verb, or of another one's verb ("volume create"), as for those that take a command with flags of its
// own, the first argument ends ours. A verb that reads its flags itself gets them as they are. -h is --help where it isn't another flag's short name: the library knows that by its
// long name alone (SetUp).
func Arrange(app *cli.App, args []string, endsAtFirst func(verb string) bool) []string {
	at, path, command := findCommand(app, args)
	if command == nil && len(args) > 1 && args[1] == "-h" {
		return slices.Concat(args[:1], []string{"--help"}, args[2:])
	}
	if command == nil || command.SkipFlagParsing {
		return args
	}
	ends := endsAtFirst(path)
	var flags, rest []string
	for i := at + 1; i < len(args); i++ {
		arg := args[i]
		if arg == "--" || ends && !isFlag(arg) {
			rest = append(rest, args[i:]...)
			break
		}
		if !isFlag(arg) {
			rest = append(rest, arg)
			continue
		}
		spelled, takesNext := spell(command.Flags, arg)
		flags = append(flags, spelled...)
		if takesNext && i+1 < len(args) {
			i++
			flags = append(flags, args[i])
		}
	}
	return slices.Concat(args[:at+1], flags, rest)
}

// FromVerb returns a command line from the verb on, without the flags that all verbs share.
func FromVerb(app *cli.App, args []string) []string {
	at, path, _ := findCommand(app, args)
	if strings.Contains(path, " ") {
		at-- // a verb's own verb
	}
	return args[at:]
}

func isFlag(arg string) bool { return len(arg) > 1 && arg[0] == '-' }

// findCommand returns the verb of a command line, or that verb's own verb where it has some, where it stands, and what it is called with
// the verb before it.
func findCommand(app *cli.App, args []string) (at int, path string, command *cli.Command) {
	for i := 1; i < len(args); i++ {
		if !isFlag(args[i]) {
			command := app.Command(args[i])
			if command == nil {
				return i, "", nil
			}
			if i+1 < len(args) {
				if below := subcommand(command, args[i+1]); below != nil {
					return i + 1, command.Name + " " + below.Name, below
				}
			}
			return i, command.Name, command
		}
		if _, takesNext := spell(app.Flags, args[i]); takesNext {
			i++
		}
	}
	return 0, "", nil
}

func subcommand(command *cli.Command, name string) *cli.Command {
	for _, below := range command.Subcommands {
		if below.HasName(name) {
			return below
		}
	}
	return nil
}

// spell returns a flag with its first name in place of an alias, and whether its value is the next argument. Short flags together
// (-it), the last perhaps with its value (-p8080:80), come back one by one. What isn't a flag comes back as it is.
func spell(flags []cli.Flag, arg string) (spelled []string, takesNext bool) {
	name, value, hasValue := strings.Cut(strings.TrimLeft(arg, "-"), "=")
	if flag := flagOf(flags, name); flag != nil {
		spelled := "--" + flag.Names()[0]
		if hasValue {
			return []string{spelled + "=" + value}, false
		}
		return []string{spelled}, !isSwitch(flag)
	}
	if arg == "-h" {
		return []string{"--help"}, false
	}
	if strings.HasPrefix(arg, "--") {
		return []string{arg}, false
	}
	for rest := arg[1:]; rest != ""; {
		flag := flagOf(flags, rest[:1])
		if flag == nil {
			return []string{arg}, false
		}
		name := "--" + flag.Names()[0]
		rest = rest[1:]
		switch {
		case rest == "":
			return append(spelled, name), !isSwitch(flag)
		case !isSwitch(flag) || rest[0] == '=':
			return append(spelled, name+"="+strings.TrimPrefix(rest, "=")), false
		}
		spelled = append(spelled, name)
	}
	return []string{arg}, false
}

// isSwitch reports whether a flag needs no value.
func isSwitch(flag cli.Flag) bool {
	switch flag.(type) {
	case *cli.BoolFlag, *boolFlag:
		return true
	}
	return false
}
