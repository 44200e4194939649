package cmdline

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
)

// WriteMan writes a manual page for the program and one for each of its verbs to a directory: unionfs.1, unionfs-run.1 and
// so on, as man-pages(7) wants them. What only stands for another verb ([AliasCategory]) has none. The same program always gives the
// same pages.
func WriteMan(app *cli.App, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	root := strings.ReplaceAll(app.Name, " ", "-")
	main := manPage{Name: root, About: app.Usage, Usage: app.Name + " [options] COMMAND [options] [arguments]", Description: app.Description, Flags: app.Flags, Version: app.Version}
	var write func(name string, command *cli.Command) error
	write = func(name string, command *cli.Command) error {
		if command.Hidden || command.Category == AliasCategory {
			return nil
		}
		page := manPage{Name: strings.ReplaceAll(name, " ", "-"), About: command.Usage, Usage: usageOf(name, command), Description: command.Description, Flags: command.Flags, Version: app.Version, See: []string{root}}
		main.Commands = append(main.Commands, Candidate{name, command.Usage})
		for _, below := range command.Subcommands {
			if err := write(name+" "+below.Name, below); err != nil {
				return err
			}
			if below.Category == AliasCategory {
				continue
			}
			page.See = append(page.See, strings.ReplaceAll(name+" "+below.Name, " ", "-"))
		}
		return page.writeTo(dir)
	}
	for _, command := range app.Commands {
		if err := write(app.Name+" "+command.Name, command); err != nil {
			return err
		}
	}
	return main.writeTo(dir)
}

// AliasCategory is the category of commands that stand for others.
const AliasCategory = "Other names"

func usageOf(name string, command *cli.Command) string {
	switch {
	case command.UsageText != "":
		return command.UsageText
	case len(command.Subcommands) > 0:
		return name + " COMMAND [options] [arguments]"
	}
	return strings.TrimSpace(name + " [options] " + command.ArgsUsage)
}

// manPage is one page.
type manPage struct {
	Name, About, Usage, Description, Version string
	Flags                                    []cli.Flag
	Commands                                 []Candidate
	See                                      []string // other pages
}

func (p *manPage) writeTo(dir string) error {
	var out strings.Builder
	p.write(&out)
	return os.WriteFile(filepath.Join(dir, p.Name+".1"), []byte(out.String()), 0o644)
}

func (p *manPage) write(w io.Writer) {
	fmt.Fprintf(w, ".TH %s 1 \"\" \"unionfs %s\" \"unionfs\"\n", strings.ToUpper(roff(p.Name)), roff(p.Version))
	fmt.Fprintf(w, ".SH NAME\n%s \\- %s\n", roff(p.Name), roff(p.About))
	fmt.Fprint(w, ".SH SYNOPSIS\n.nf\n")
	for line := range strings.Lines(p.Usage) {
		fmt.Fprintln(w, roff(strings.TrimSpace(line)))
	}
	fmt.Fprint(w, ".fi\n.SH DESCRIPTION\n")
	p.describe(w)
	if len(p.Commands) > 0 {
		fmt.Fprint(w, ".SH COMMANDS\n")
		for _, command := range p.Commands {
			fmt.Fprintf(w, ".TP\n.BR %s (1)\n%s\n", roff(strings.ReplaceAll(command.Value, " ", "-")), roff(command.About))
		}
	}
	fmt.Fprint(w, ".SH OPTIONS\n")
	for _, flag := range p.Flags {
		if name, about, found := strings.Cut(DescribeFlag(flag), "\t"); found && flag.Names()[0] != "help" {
			fmt.Fprintf(w, ".TP\n.B %s\n%s\n", roff(name), roff(about))
		}
	}
	fmt.Fprint(w, ".TP\n.B \\-h, \\-\\-help\nshow help\n")
	if len(p.See) > 0 {
		fmt.Fprint(w, ".SH SEE ALSO\n")
		for i, name := range p.See {
			comma := ","
			if i == len(p.See)-1 {
				comma = ""
			}
			fmt.Fprintf(w, ".BR %s (1)%s\n", roff(name), comma)
		}
	}
}

// describe writes a description: paragraphs, and indented lines as they are, below "Examples:".
func (p *manPage) describe(w io.Writer) {
	verbatim := false
	for line := range strings.Lines(p.Description) {
		line = strings.TrimRight(line, "\n")
		indented := strings.HasPrefix(line, "   ")
		if indented != verbatim {
			if verbatim = indented; verbatim {
				fmt.Fprint(w, ".PP\n.RS\n.nf\n")
			} else {
				fmt.Fprint(w, ".fi\n.RE\n")
			}
		}
		switch {
		case line == "Example:", line == "Examples:":
			fmt.Fprintf(w, ".SH EXAMPLES\n")
		case line == "":
			fmt.Fprint(w, ".PP\n")
		default:
			fmt.Fprintln(w, roff(strings.TrimSpace(line)))
		}
	}
	if verbatim {
		fmt.Fprint(w, ".fi\n.RE\n")
	}
}

// roff escapes a text so that every character of it is printed.
func roff(text string) string {
	text = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", "\\`").Replace(text)
	if strings.HasPrefix(text, ".") {
		text = `\&` + text
	}
	return text
}
