package cmdline

import (
	"fmt"
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
	return hintOf(typed, names)
}

// FlagHint names the flag that is closest to one that an error of the library's says it doesn't know.
func FlagHint(c *cli.Context, err error) string {
	_, typed, unknown := strings.Cut(err.Error(), "flag provided but not defined: -")
	if !unknown {
		return ""
	}
	flags := c.App.Flags
	if c.Command != nil && len(c.Command.Flags) > 0 {
		flags = c.Command.Flags
	}
	names := []string{"--help"}
	for _, flag := range flags {
		for _, name := range flag.Names() {
			if len(name) > 1 {
				names = append(names, "--"+name)
			}
		}
	}
	return hintOf("--"+strings.TrimLeft(typed, "-"), names)
}

// hintOf names the one that at most two changes make of what was typed.
func hintOf(typed string, names []string) string {
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
