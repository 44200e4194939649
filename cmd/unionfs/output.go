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
	var lines []string
	if isTable {
		field := regexp.MustCompile(`{{[^}]*\.(\w+)[^}]*}}`) // a use of one, of which the name is its heading
		lines = append(lines, field.ReplaceAllStringFunc(format, func(s string) string {
			return strings.ToUpper(field.FindStringSubmatch(s)[1])
		}))
	}
	for _, r := range rows {
		var line strings.Builder
		if err := parsed.Execute(&line, r); err != nil {
			return usageError("--format: %w", err)
		}
		lines = append(lines, line.String())
	}
	if !isTable {
		for _, line := range lines {
			if _, err := fmt.Fprintln(w, line); err != nil {
				return err
			}
		}
		return nil
	}
	var cells [][]string
	for _, line := range lines {
		cells = append(cells, strings.Split(line, "\t"))
	}
	return writeTable(w, cells, terminalWidth(w))
}

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
