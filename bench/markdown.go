package bench

import (
	"fmt"
	"io"
	"strings"
)

// WriteMarkdown writes the tables of [Report.WriteTable] for a document.
func (r *Report) WriteMarkdown(w io.Writer) error {
	var out strings.Builder
	for _, table := range r.pageTables() {
		out.WriteString(table.markdown() + "\n")
	}
	for _, line := range append(r.reasons(), r.Notes...) {
		fmt.Fprintf(&out, "- %s\n", line)
	}
	_, err := io.WriteString(w, out.String())
	return err
}

func (t *pageTable) markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, "| %s |\n|%s\n", strings.Join(t.Header, " | "), strings.Repeat(" --- |", len(t.Header)))
	for _, row := range t.Rows {
		for _, cell := range row {
			text := cell.Value
			if cell.Spread != "" {
				text += " " + cell.Spread
			}
			if cell.Ratio != "" {
				text += " **" + cell.Ratio + "**"
			}
			fmt.Fprintf(&out, "| %s ", text)
		}
		out.WriteString("|\n")
	}
	return out.String()
}
