package main

import (
	"io"
	"os"
	"strings"

	"github.com/mattn/go-runewidth"
	"golang.org/x/term"
)

// columnGap is between the columns of a table.
const columnGap = 3

// leastColumn is the width below which a column is not cut.
const leastColumn = 8

// writeTable writes rows of cells in columns. A width above 0 is that of the terminal: what is too wide for it is cut in the
// widest columns, with "…" at their ends, so that a row stays a line. Elsewhere nothing is ever cut, for those who read it
// with a program.
func writeTable(w io.Writer, rows [][]string, width int) error {
	var widths []int
	for _, row := range rows {
		for i, cell := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], runewidth.StringWidth(cell))
		}
	}
	if width > 0 {
		fit(widths, width)
	}
	var out strings.Builder
	for _, row := range rows {
		for i, cell := range row {
			if runewidth.StringWidth(cell) > widths[i] {
				cell = runewidth.Truncate(cell, widths[i], "…")
			}
			if i < len(row)-1 {
				cell = runewidth.FillRight(cell, widths[i]+columnGap)
			}
			out.WriteString(cell)
		}
		out.WriteByte('\n')
	}
	_, err := io.WriteString(w, out.String())
	return err
}

// fit makes the widest columns narrower, until all fit or none can be cut any more.
func fit(widths []int, width int) {
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > width; total-- {
		widest := 0
		for i, w := range widths {
			if w > widths[widest] {
				widest = i
			}
		}
		if widths[widest] <= leastColumn {
			return
		}
		widths[widest]--
	}
}

// terminalWidth returns the number of columns of the terminal that w is, 0 if it is none.
func terminalWidth(w io.Writer) int {
	file, ok := w.(*os.File)
	if !ok {
		return 0
	}
	width, _, err := term.GetSize(int(file.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// painter colours words on a terminal.
type painter bool

// newPainter returns one that does nothing where w is no terminal, or the user wants no colours (no-color.org).
func newPainter(w io.Writer) painter {
	return painter(terminalWidth(w) > 0 && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb")
}

// Colours by their numbers in ECMA-48, select graphic rendition.
const (
	red    = "31"
	green  = "32"
	yellow = "33"
)

func (p painter) paint(color, text string) string {
	if !p {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}
