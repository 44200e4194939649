package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"text/tabwriter"

	"github.com/docker/cli/templates"
	"github.com/urfave/cli/v2"
)

func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "print as `FORMAT`: table, json (one object a line), or a Go template such as '{{.Name}}'", Value: "table"}
}

func quietFlag(what string) cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only " + what}
}

// row is one line of a listing.
type row interface {
	columns() []string
}

// inspectFormatFlag is that of the verbs that print all about something.
func inspectFormatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "print as `FORMAT`: array, json (one object a line), or a Go template such as '{{.Name}}'", Value: "array"}
}

// printRows writes a listing in the format that --format asks for. The rows' own JSON names are Docker's.
func printRows[R row](c *cli.Context, header []string, rows []R) error {
	switch format := c.String("format"); format {
	case "json":
		encoder := json.NewEncoder(c.App.Writer)
		encoder.SetEscapeHTML(false)
		for _, r := range rows {
			if err := encoder.Encode(r); err != nil {
				return err
			}
		}
		return nil
	case "table":
		var cells [][]string
		if header != nil {
			cells = append(cells, header)
		}
		for _, r := range rows {
			cells = append(cells, r.columns())
		}
		return writeTable(c.App.Writer, cells, terminalWidth(c.App.Writer))
	default:
		if !strings.Contains(format, "{{") {
			return usageError("unknown format %q; known are table, json and Go templates", format)
		}
		return printTemplate(c.App.Writer, format, rows)
	}
}

// printTemplate writes one line for each row by a Go template with Docker's functions. With "table" before it, the columns, which
// the template parts by \t, are lined up under their names.
func printTemplate[R any](w io.Writer, format string, rows []R) error {
	format, isTable := strings.CutPrefix(format, "table ")
	// As typed in a shell.
	format = strings.NewReplacer(`\t`, "\t", `\n`, "\n").Replace(format)
	parsed, err := templates.Parse(format)
	if err != nil {
		return usageError("--format: %w", err)
	}
	if isTable {
		table := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
		defer table.Flush()
		w = table
		heading := templateField.ReplaceAllStringFunc(format, func(s string) string {
			return strings.ToUpper(templateField.FindStringSubmatch(s)[1])
		})
		fmt.Fprintln(w, heading)
	}
	for _, r := range rows {
		if err := parsed.Execute(w, r); err != nil {
			return usageError("--format: %w", err)
		}
		fmt.Fprintln(w)
	}
	return nil
}

// templateField is a template's use of a field.
var templateField = regexp.MustCompile(`{{[^}]*\.(\w+)[^}]*}}`)

// confirm asks a question whose answer is yes or no.
func confirm(c *cli.Context, question string) error {
	fmt.Fprint(c.App.ErrWriter, question, " [y/N] ")
	answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("reading the answer: %w", err)
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was removed; answer y, or give -f")
	}
	return nil
}

// shortID cuts a digest or an ID to the twelve digits that people compare.
func shortID(id string) string {
	_, hex, found := strings.Cut(id, ":")
	if !found {
		hex = id
	}
	return hex[:min(12, len(hex))]
}
