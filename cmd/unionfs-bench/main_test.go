package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestHelp checks that every benchmark says what it is for and shows how it is called.
func TestHelp(t *testing.T) {
	var list bytes.Buffer
	if code := run([]string{"unionfs-bench"}, &list, &list); code != 0 {
		t.Fatalf("exit code %d: %s", code, &list)
	}
	for _, command := range newApp(nil, nil).Commands {
		if command.Hidden {
			continue
		}
		if !strings.Contains(list.String(), command.Name) {
			t.Errorf("the list of benchmarks lacks %s", command.Name)
		}
		var help bytes.Buffer
		if code := run([]string{"unionfs-bench", command.Name, "--help"}, &help, &help); code != 0 || !strings.Contains(help.String(), "Example") {
			t.Errorf("%s --help: exit code %d, or no example:\n%s", command.Name, code, &help)
		}
	}
}

// TestUsage checks that what can't be meant ends with 2 and says what is wrong.
func TestUsage(t *testing.T) {
	for line, want := range map[string]string{
		"dept":                         `did you mean "depth"?`,
		"depth --runs 0":               "--runs must be at least 1",
		"depth --depths x":             "--depths wants numbers",
		"depth extra":                  `unexpected argument "extra"`,
		"depth --tree a --branches b":  "only one of",
		"copyup --sizes 1q":            "--sizes wants sizes",
		"holder --entries 100":         "at least ten times --rounds",
		"show":                         "want REPORT.json",
		"full --nonsense":              "see unionfs bench full --help",
		"depth --work walk --format x": `unknown format "x"`,
	} {
		var said bytes.Buffer
		if code := run(append([]string{"unionfs-bench"}, strings.Fields(line)...), &said, &said); code != 2 || !strings.Contains(said.String(), want) {
			t.Errorf("%s: exit code %d, %q; want %q", line, code, &said, want)
		}
	}
}
