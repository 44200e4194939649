package cmdline

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
)

// DescribeFlag is a flag's line in the help: short name first, value, what it does, and the default if it says something.
func DescribeFlag(flag cli.Flag) string {
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

// Hint names the command that is closest to what was typed, if one is close.
func Hint(app *cli.App, typed string) string { return HintBelow(app.VisibleCommands(), typed) }

// HintBelow is Hint for the commands below one.
func HintBelow(commands []*cli.Command, typed string) string {
	var names []string
	for _, command := range commands {
		names = append(names, command.Name)
	}
	return HintAmong(typed, names)
}

// SetUp has the library describe flags as we do. That -h asks for help is Arrange's business.
func SetUp() {
	cli.FlagStringer = DescribeFlag
	cli.HelpFlag = &cli.BoolFlag{Name: "help", Usage: "show help", DisableDefaultText: true}
}

// FlagError says in our words what the library's error about a flag says, where help is ("unionfs run --help"), and which flag may
// have been meant. instead, which may be nil, is asked first about a flag that there is not: for what to do without it, or "".
func FlagError(c *cli.Context, err error, help string, instead func(name string) string) error {
	text := err.Error()
	if _, typed, unknown := strings.Cut(text, "flag provided but not defined: -"); unknown {
		typed = strings.TrimLeft(typed, "-")
		if instead != nil {
			if way := instead(typed); way != "" {
				return fmt.Errorf("%s is not supported: %s", dashed(typed), way)
			}
		}
		return fmt.Errorf("there is no flag %s; see %s%s", dashed(typed), help, flagHint(c, typed))
	}
	if _, name, lacks := strings.Cut(text, "flag needs an argument: -"); lacks {
		return fmt.Errorf("%s needs a value after it; see %s", dashed(strings.TrimLeft(name, "-")), help)
	}
	// The library's words (flag.go, parseOne).
	invalidValue := regexp.MustCompile(`^invalid (?:boolean )?value (".*") for (?:flag )?-([^:]+): `)
	if found := invalidValue.FindStringSubmatch(text); found != nil {
		want := "a value of another kind"
		if kind := flagOf(flagsOf(c), found[2]); kind != nil {
			switch kind.(type) {
			case *cli.IntFlag:
				want = "a whole number"
			case *cli.BoolFlag, *boolFlag:
				want = "true or false"
			case *cli.DurationFlag:
				want = "a time, such as 30s"
			}
		}
		return fmt.Errorf("%s %s: want %s; see %s", dashed(found[2]), found[1], want, help)
	}
	return fmt.Errorf("%w; see %s", err, help)
}

func dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// flagsOf are the flags that the command line of c may have.
func flagsOf(c *cli.Context) []cli.Flag {
	if c.Command != nil && len(c.Command.Flags) > 0 {
		return c.Command.Flags
	}
	return c.App.Flags
}

// flagHint names the flag that is closest to what was typed.
func flagHint(c *cli.Context, typed string) string {
	names := []string{"--help"}
	for _, flag := range flagsOf(c) {
		for _, name := range flag.Names() {
			if len(name) > 1 {
				names = append(names, "--"+name)
			}
		}
	}
	return HintAmong("--"+typed, names)
}

// HintAmong names the one that at most two changes make of what was typed.
func HintAmong(typed string, names []string) string {
	best, distance := "", 3
	for _, name := range names {
		if d := editDistance(typed, name); d < distance {
			best, distance = name, d
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
