package main

import (
	"encoding/json"
	"strings"

	"github.com/urfave/cli/v2"
)

func formatFlag() cli.Flag {
	return &cli.StringFlag{Name: "format", Usage: "print as `FORMAT`: table, or json (one object a line)", Value: "table"}
}

func quietFlag(what string) cli.Flag {
	return &cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print only " + what}
}

// row is one line of a listing.
type row interface {
	columns() []string
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
		return usageError("unknown format %q; known are table and json", format)
	}
}

// shortID cuts a digest or an ID to the twelve digits that people compare.
func shortID(id string) string {
	_, hex, found := strings.Cut(id, ":")
	if !found {
		hex = id
	}
	return hex[:min(12, len(hex))]
}
