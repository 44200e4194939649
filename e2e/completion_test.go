package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCompletion lets bash, zsh and fish complete command lines, with the names of an image, a container and a volume.
func TestCompletion(t *testing.T) {
	c := newCaller(t, "root")
	importBusybox(t, c)
	c.must(t, "create", "--name", "web", "-v", "data:/data", "bb:1", "true")
	if err := os.MkdirAll(filepath.Join(c.root, "volumes", "data", "_data"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(c.home, "a-file"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	shells := map[string]string{
		// What bash does at a tab, of a line that COMP_LINE is.
		"bash": `source <("$UNIONFS" completion bash)
			compopt() { :; }
			COMP_LINE=$1 COMP_POINT=${#1}
			_unionfs
			printf '%s\n' "${COMPREPLY[@]}"`,
		"zsh": `compdef() { :; }
			_describe() { print -l -- ${${(@)found//\\:/%}%%:*} | sed 's/%/:/g'; }
			_files() { print -l -- ${words[CURRENT]}*(N); }
			source <($UNIONFS completion zsh)
			words=("${(@s: :)1}") CURRENT=${#words}
			_unionfs`,
		"fish": `source ($UNIONFS completion fish | psub); complete -C $argv[1] | string replace -r '\t.*' ''; true`,
	}
	for line, want := range map[string][]string{
		"unionfs star":               {"start"},
		"unionfs volume inspect d":   {"data"},
		"unionfs network connect br": {"bridge"},
		"unionfs container pr":       {"prune"},
		"unionfs container rest":     {"restart"},
		"unionfs container start w":  {"web"},
		"unionfs image rm b":         {"bb:1"},
		"unionfs run --rm bb":        {"bb:1"},
		"unionfs start w":            {"web"},
		"unionfs run --hostn":        {"--hostname"},
		"unionfs run --network n":    {"none"},
		"unionfs run -v da":          {"data"},
		"unionfs completion f":       {"fish"},
		"unionfs import a-":          {"a-file"},
		"unionfs run bb:1 a-":        {"a-file"},
		"unionfs bench copyup --si":  {"--sizes"},
	} {
		for shell, script := range shells {
			arguments := []string{"-c", script, shell, line}
			if shell == "fish" {
				arguments = []string{"--no-config", "-c", script, line}
			}
			command := c.command(t, shell, arguments...)
			command.Dir = c.home
			// The line's first word is found in PATH.
			command.Env = append(command.Env, "UNIONFS="+shared.unionfs, "UNIONFS_ROOT="+c.root, "PATH="+shared.dir+":"+os.Getenv("PATH"))
			r := run(t, command)
			if got := strings.Fields(r.stdout); r.code != 0 || !slices.Equal(got, want) {
				t.Errorf("%s: %q: %q, want %q\n%s", shell, line, got, want, r.stderr)
			}
		}
	}
	c.must(t, "rm", "web")
	if r := c.try(t, "completion", "tcsh"); r.code != 2 || !strings.Contains(r.stderr, "known are bash, zsh and fish") {
		t.Errorf("completion tcsh: %+v", r)
	}
}

// TestCompletionOfNothing checks that where somebody has no state none is made.
func TestCompletionOfNothing(t *testing.T) {
	c := newCaller(t, "root")
	if out := c.must(t, "__complete", "run", ""); out != "" {
		t.Errorf("there are images %q", out)
	}
	if _, err := os.Stat(c.root); err == nil {
		t.Errorf("%s was made", c.root)
	}
}

// TestManualPages makes the manual pages and lets groff read them, which complains about what it doesn't know.
func TestManualPages(t *testing.T) {
	c := newCaller(t, "root")
	dir := filepath.Join(c.home, "man")
	c.must(t, "man", dir)
	if output, err := exec.Command(shared.unionfs+"-bench", "man", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	pages, err := filepath.Glob(filepath.Join(dir, "*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"unionfs.1", "unionfs-run.1", "unionfs-container-prune.1", "unionfs-bench.1", "unionfs-bench-depth.1"} {
		if !slices.Contains(pages, filepath.Join(dir, want)) {
			t.Errorf("there is no %s", want)
		}
	}
	for _, page := range pages {
		printed, err := exec.Command("groff", "-k", "-man", "-ww", "-Tutf8", "-P-cbou", page).CombinedOutput()
		if err != nil || strings.Contains(string(printed), "warning:") || !strings.Contains(string(printed), "OPTIONS") {
			t.Errorf("%s: %v\n%.300s", page, err, printed)
		}
	}
}
