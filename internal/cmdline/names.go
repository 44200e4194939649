package cmdline

import "github.com/urfave/cli/v2"

// KeepNames has the flags of every command keep their names. The library makes a flag's names by a regular expression each time that it
// asks for them, and it asks each flag for each: with the hundred flags of "run" that was 144 page faults of 585 until one is found unknown.
// It is called once the arguments are arranged.
func KeepNames(commands []*cli.Command) {
	for _, command := range commands {
		for i, flag := range command.Flags {
			switch flag := flag.(type) {
			case *cli.BoolFlag:
				command.Flags[i] = &boolFlag{flag, flag.Names()}
			case *cli.StringFlag:
				command.Flags[i] = &stringFlag{flag, flag.Names()}
			case *cli.StringSliceFlag:
				command.Flags[i] = &stringSliceFlag{flag, flag.Names()}
			}
		}
		KeepNames(command.Subcommands)
	}
}

type boolFlag struct {
	*cli.BoolFlag
	names []string
}

func (f *boolFlag) Names() []string { return f.names }

type stringFlag struct {
	*cli.StringFlag
	names []string
}

func (f *stringFlag) Names() []string { return f.names }

type stringSliceFlag struct {
	*cli.StringSliceFlag
	names []string
}

func (f *stringSliceFlag) Names() []string { return f.names }
