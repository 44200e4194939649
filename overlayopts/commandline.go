package overlayopts

import (
	"errors"
	"fmt"
	"strings"
)

// CommandLine is a call of fuse-overlayfs, or of a mount helper of mount(8).
type CommandLine struct {
	Options
	Source     string // what mount(8) puts before the target, by which the mount is named; often "overlay"
	Target     string
	Foreground bool // -f
	Help       bool // -h: print a help text, and nothing else counts
	Version    bool // -V: print the version, and nothing else counts
}

// ParseArgs reads the arguments that follow the program's name: [-f] [-o OPTIONS]... [SOURCE] TARGET, in any order. Of a
// mount it checks that it is complete.
func ParseArgs(args []string) (*CommandLine, error) {
	c := &CommandLine{}
	var rest []string
	for i := 0; i < len(args); i++ {
		arg := args[i]
		next := func() (string, error) {
			if i++; i == len(args) {
				return "", fmt.Errorf("%s needs a value after it", arg)
			}
			return args[i], nil
		}
		switch {
		case arg == "--":
			rest = append(rest, args[i+1:]...)
			i = len(args)
		case len(arg) < 2 || arg[0] != '-':
			rest = append(rest, arg)
		case strings.HasPrefix(arg, "-o"):
			value := arg[2:]
			if value == "" {
				var err error
				if value, err = next(); err != nil {
					return nil, err
				}
			}
			if err := c.Options.Parse(value); err != nil {
				return nil, err
			}
		case arg == "-t": // the type, from mount(8)
			if _, err := next(); err != nil {
				return nil, err
			}
		case arg == "--help":
			c.Help = true
		case arg == "--version":
			c.Version = true
		case arg == "--debug":
			c.Debug, c.Foreground = true, true
		case arg[1] == '-':
			return nil, fmt.Errorf("unknown flag %q", arg)
		default:
			if err := c.letters(arg); err != nil {
				return nil, err
			}
		}
	}
	if c.Help || c.Version {
		return c, nil
	}
	switch len(rest) {
	case 0:
		return nil, errors.New("there is no TARGET, the directory to mount on")
	case 1:
		c.Target = rest[0]
	case 2:
		c.Source, c.Target = rest[0], rest[1]
	default:
		return nil, fmt.Errorf("unexpected argument %q after the target", rest[2])
	}
	if c.Target == "" {
		return nil, errors.New("the target is an empty path")
	}
	return c, c.Check()
}

// letters reads short flags, which may stand together.
func (c *CommandLine) letters(arg string) error {
	for _, letter := range arg[1:] {
		switch letter {
		case 'f':
			c.Foreground = true
		case 'd':
			c.Debug, c.Foreground = true, true
		case 'h':
			c.Help = true
		case 'V':
			c.Version = true
		case 's', 'n', 'v': // one thread, no mtab, verbose: of libfuse and mount(8)
		default:
			return fmt.Errorf("unknown flag -%c in %q", letter, arg)
		}
	}
	return nil
}

// IsMount reports whether arguments that begin with no verb of another program are a command line of this kind: flags
// first, or options that name a lower directory.
func IsMount(args []string) bool {
	for i, arg := range args {
		if !strings.HasPrefix(arg, "-o") {
			continue
		}
		if i == 0 {
			return true
		}
		value := arg[2:]
		if value == "" && i+1 < len(args) {
			value = args[i+1]
		}
		for _, option := range split(value, ',') {
			if strings.HasPrefix(option, "lowerdir=") || strings.HasPrefix(option, "lowerdir+=") {
				return true
			}
		}
	}
	return false
}
