package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"unionfs/internal/testimage"
)

// imageBench is a store of its own.
type imageBench struct {
	t    *testing.T
	root string
}

func newImageBench(t *testing.T) *imageBench { return &imageBench{t, t.TempDir()} }

// try runs a command line, without "unionfs".
func (b *imageBench) try(args ...string) (code int, stdout, stderr string) {
	b.t.Helper()
	var out, errs bytes.Buffer
	code = run(append([]string{"unionfs", "--root", b.root}, args...), &out, &errs)
	return code, out.String(), errs.String()
}

// must runs a command line that succeeds.
func (b *imageBench) must(args ...string) string {
	b.t.Helper()
	code, out, errs := b.try(args...)
	if code != 0 {
		b.t.Fatalf("unionfs %q: exit code %d\n%s%s", args, code, out, errs)
	}
	return out
}

// importFiles makes an image of files and returns its ID.
func (b *imageBench) importFiles(name string, files ...testimage.File) string {
	b.t.Helper()
	tar := filepath.Join(b.t.TempDir(), "root.tar")
	if err := os.WriteFile(tar, testimage.Tar(b.t, files...), 0o600); err != nil {
		b.t.Fatal(err)
	}
	return strings.TrimSpace(b.must("import", tar, name))
}

func TestTagInspectHistory(t *testing.T) {
	b := newImageBench(t)
	id := b.importFiles("mine:1", testimage.File{Name: "etc/motd", Content: []byte("hello\n")})
	b.must("tag", "mine:1", "localhost:5000/team/other:2")

	var all []map[string]any
	if err := json.Unmarshal([]byte(b.must("inspect", "mine:1", "localhost:5000/team/other:2")), &all); err != nil || len(all) != 2 {
		t.Fatalf("inspect: %v, %v", all, err)
	}
	tags, _ := json.Marshal(all[0]["RepoTags"])
	if all[0]["Id"] != id || string(tags) != `["localhost:5000/team/other:2","mine:1"]` || all[0]["Os"] != "linux" || all[0]["Size"].(float64) < 512 {
		t.Errorf("inspect: %v", all[0])
	}
	if out := b.must("inspect", "--format", "json", "mine:1"); strings.Count(out, "\n") != 1 || !strings.HasPrefix(out, "{") {
		t.Errorf("inspect --format json: %q", out)
	}
	code, out, errs := b.try("inspect", "mine:1", "nowhere")
	if code != 1 || !strings.Contains(out, id) || !strings.Contains(errs, "nowhere") {
		t.Errorf("inspect of something that isn't there: %d %q %q", code, out, errs)
	}

	var step map[string]any
	if err := json.Unmarshal([]byte(b.must("history", "--format", "json", "mine:1")), &step); err != nil {
		t.Fatal(err)
	}
	if step["ID"] != id || !strings.HasPrefix(step["Comment"].(string), "imported from ") || step["Size"].(float64) < 512 {
		t.Errorf("history: %v", step)
	}
	if out := b.must("history", "-q", "mine:1"); out != id[len("sha256:"):][:12]+"\n" {
		t.Errorf("history -q: %q", out)
	}
	for _, wrong := range [][]string{{"tag", "mine:1", "host"}, {"tag", "nowhere", "x"}, {"tag", "mine:1"}, {"inspect", "--format", "xml", "mine:1"}, {"history"}} {
		if code, _, errs := b.try(wrong...); code == 0 || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q", wrong, code, errs)
		}
	}
}

func TestPruneDfVerify(t *testing.T) {
	b := newImageBench(t)
	old := b.importFiles("mine:1", testimage.File{Name: "a", Content: make([]byte, 1<<20)})
	b.importFiles("mine:1", testimage.File{Name: "b"})

	if out := b.must("prune", "--dry-run"); !strings.Contains(out, "Would delete: "+old+"\n") || !strings.Contains(out, "reclaimable space: 1.0") {
		t.Errorf("prune --dry-run: %q", out)
	}
	var row struct{ TotalCount, Active, Size, Reclaimable int64 }
	if err := json.Unmarshal([]byte(strings.SplitAfter(b.must("df", "--format", "json"), "\n")[0]), &row); err != nil || row.TotalCount != 2 || row.Size < 1<<20 || row.Reclaimable < 1<<20 {
		t.Errorf("df: %+v, %v", row, err)
	}
	if out := b.must("df", "-v"); !strings.Contains(out, "<none>") || !strings.Contains(out, "UNIQUE SIZE") || strings.Count(out, "\n") != 3 {
		t.Errorf("df -v: %q", out)
	}
	if out := b.must("prune"); !strings.Contains(out, "Deleted: "+old+"\n") {
		t.Errorf("prune: %q", out)
	}
	if out := b.must("prune"); out != "Total reclaimed space: 0B\n" {
		t.Errorf("prune again: %q", out)
	}

	if code, out, errs := b.try("verify"); code != 0 || out != "" || !strings.Contains(errs, "verified 1 images, 1 layers") {
		t.Errorf("verify: %d %q %q", code, out, errs)
	}
	indexes, err := filepath.Glob(filepath.Join(b.root, "layers/*/index"))
	if err != nil || len(indexes) != 1 {
		t.Fatalf("indexes: %v, %v", indexes, err)
	}
	if err := os.Truncate(indexes[0], 100); err != nil {
		t.Fatal(err)
	}
	if code, out, errs := b.try("verify"); code != 1 || !strings.HasPrefix(out, "damaged") || !strings.Contains(errs, "not repaired: 1") {
		t.Errorf("verify of a damaged index: %d %q %q", code, out, errs)
	}
	if code, out, _ := b.try("verify", "--repair"); code != 0 || !strings.HasPrefix(out, "repaired") {
		t.Errorf("verify --repair: %d %q", code, out)
	}
	if code, out, _ := b.try("verify"); code != 0 || out != "" {
		t.Errorf("verify after the repair: %d %q", code, out)
	}
}
