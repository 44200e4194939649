package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/internal/testimage"
	"unionfs/layerstore"
	"unionfs/rootfs"
	"unionfs/runner"
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

// TestSweepWithoutStore: the process that deletes large files comes late, and must not make a store again that was removed.
func TestSweepWithoutStore(t *testing.T) {
	b := &imageBench{t, filepath.Join(t.TempDir(), "removed")}
	b.must(sweepName)
	if _, err := os.Stat(b.root); !os.IsNotExist(err) {
		t.Errorf("there is a store: %v", err)
	}
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

func TestImagesRmi(t *testing.T) {
	b := newImageBench(t)
	one := b.importFiles("one:1", testimage.File{Name: "a"})
	b.must("tag", "one:1", "team/app:2")
	nameless := b.importFiles("gone:1", testimage.File{Name: "b"})
	b.importFiles("gone:1", testimage.File{Name: "c"})
	short := func(id string) string { return id[len("sha256:"):][:12] }
	for line, want := range map[string]string{
		"images -q one":                                                    short(one) + "\n",
		"images -q --no-trunc one:1":                                       one + "\n",
		"images -q one:2":                                                  "",
		"images -q --filter dangling=true":                                 short(nameless) + "\n",
		"images --filter reference=team/* --format {{.Tag}}":               "2\n",
		"images --filter label=x --format {{.ID}}":                         "",
		"images --filter before=one:1 -q":                                  "",
		"images --filter since=one:1 --filter dangling=true -q --no-trunc": nameless + "\n",
	} {
		if out := b.must(strings.Fields(line)...); out != want {
			t.Errorf("%s: %q, want %q", line, out, want)
		}
	}
	if out := b.must("images", "--digests", "--no-trunc", "one"); !strings.Contains(out, "DIGEST") || !strings.Contains(out, one) || !strings.Contains(out, "<none>") {
		t.Errorf("images --digests: %s", out)
	}
	for _, wrong := range [][]string{{"images", "--filter", "x=1"}, {"images", "--filter", "dangling=x"}, {"images", "--filter", "reference=["}, {"images", "--filter", "before=nowhere"},
		{"images", "a", "b"}, {"rmi", one}, {"rmi", "nowhere"}} {
		if code, _, errs := b.try(wrong...); code == 0 || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q", wrong, code, errs)
		}
	}
	if out := b.must("rmi", "-f", short(one), "nowhere"); !strings.HasPrefix(out, "Untagged: team/app:2\nUntagged: one:1\nDeleted: "+one) {
		t.Errorf("rmi -f: %q", out)
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

// container makes a container of an image whose command did something, by its upper branch.
func (b *imageBench) container(name, image string, files ...string) {
	b.t.Helper()
	state, err := runner.OpenState(b.root)
	if err != nil {
		b.t.Fatal(err)
	}
	store, err := layerstore.Open(b.root)
	if err != nil {
		b.t.Fatal(err)
	}
	i, err := store.Image(image)
	if err != nil {
		b.t.Fatal(err)
	}
	spec := &specs.Spec{
		Process:     &specs.Process{Args: []string{"sh", "-c", "work"}, Cwd: "/"},
		Root:        &specs.Root{},
		Linux:       &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}}},
		Annotations: map[string]string{rootfs.AnnotationImageID: string(i.ID()), runner.AnnotationImage: image},
	}
	c, err := state.Create(spec, runner.CreateOptions{Name: name})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, file := range files {
		if err := os.WriteFile(filepath.Join(c.Upper(), file), []byte(file), 0o644); err != nil {
			b.t.Fatal(err)
		}
	}
}

func TestCommitExportDiff(t *testing.T) {
	b := newImageBench(t)
	b.importFiles("base:1", testimage.File{Name: "etc/motd", Content: []byte("hello\n")}, testimage.File{Name: "gone"})
	b.container("work", "base:1", "new", ".wh.gone")

	id := strings.TrimSpace(b.must("commit", "-m", "a message", "--change", `CMD ["ls"]`, "work", "made:1"))
	if out := b.must("diff", "base:1", "made:1"); out != "D /gone\nA /new\n" {
		t.Errorf("diff: %q", out)
	}
	out := b.must("inspect", "made:1")
	for _, part := range []string{id, `"made:1"`, `"a message"`, `"ls"`} {
		if !strings.Contains(out, part) {
			t.Errorf("inspect lacks %s: %s", part, out)
		}
	}
	if out := b.must("history", "made:1"); !strings.Contains(out, "sh -c work") {
		t.Errorf("history: %q", out)
	}

	ofContainer, ofImage := b.must("export", "work"), b.must("export", "made:1")
	for _, tar := range []string{ofContainer, ofImage} {
		list := exec.Command("tar", "-tf", "-")
		list.Stdin = strings.NewReader(tar)
		names, err := list.CombinedOutput()
		if err != nil || string(names) != "./\netc/\netc/motd\nnew\n" || !strings.Contains(tar, "hello\n") {
			t.Errorf("export: %q, %v", names, err)
		}
	}
	file := filepath.Join(t.TempDir(), "out.tar")
	if out := b.must("export", "-o", file, "made:1"); out != "" {
		t.Errorf("export -o: %q", out)
	}
	if written, err := os.ReadFile(file); err != nil || string(written) != ofImage {
		t.Errorf("export -o wrote %d bytes, %v", len(written), err)
	}
	// A nameless image is kept, and listed.
	nameless := strings.TrimSpace(b.must("commit", "work"))
	if out := b.must("images"); nameless == id || !strings.Contains(out, "<none>") {
		t.Errorf("images: %q", out)
	}
	// What a container was made from is not pruned, though it has no name any more.
	b.importFiles("base:1", testimage.File{Name: "other"})
	b.must("prune")
	b.must("commit", "work", "made:2")

	for _, wrong := range [][]string{
		{"commit", "nowhere", "x"}, {"commit", "work", "host"}, {"commit", "work", "BAD NAME"}, {"commit", "--change", "RUN x", "work", "x"}, {"commit"},
		{"export", "nowhere"}, {"export", "-o", "/nowhere/x", "made:1"}, {"diff", "base:1", "nowhere"},
	} {
		if code, _, errs := b.try(wrong...); code == 0 || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q", wrong, code, errs)
		}
	}
}

func TestSaveLoad(t *testing.T) {
	b := newImageBench(t)
	id := b.importFiles("mine:1", testimage.File{Name: "a", Content: []byte("hello")})
	dir := t.TempDir()
	archive, layout := filepath.Join(dir, "x.tar"), filepath.Join(dir, "layout")
	if out := b.must("save", "-o", archive, "mine:1"); out != "" {
		t.Errorf("save -o: %q", out)
	}
	if out := b.must("save", "mine:1"); len(out) < 2048 {
		t.Errorf("save wrote %d bytes to standard output", len(out))
	}
	b.must("save", "--format", "oci-dir", "-o", layout, id)
	other := newImageBench(t)
	if code, out, errs := other.try("load", "-i", archive); code != 0 || out != "Loaded image: mine:1\n" || !strings.Contains(errs, ": Pull complete\n") {
		t.Errorf("load: %d %q %q", code, out, errs)
	}
	if code, out, errs := other.try("load", "-q", "-i", layout); code != 0 || out != "Loaded image ID: "+id+"\n" || errs != "" {
		t.Errorf("load of a directory: %d %q %q", code, out, errs)
	}
	if out := other.must("load", "-i", layout, "--base-name", "team/app"); out != "Loaded image: team/app:latest\n" {
		t.Errorf("load --base-name: %q", out)
	}
	stdin, err := os.Open(archive)
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	old := os.Stdin
	os.Stdin = stdin
	defer func() { os.Stdin = old }()
	if out := newImageBench(t).must("load"); out != "Loaded image: mine:1\n" {
		t.Errorf("load of standard input: %q", out)
	}
	for _, wrong := range [][]string{
		{"save"}, {"save", "nowhere"}, {"save", "--format", "zip", "mine:1"}, {"save", "--format", "oci-dir", "mine:1"},
		{"load", "x"}, {"load", "-i", "/nowhere"}, {"load", "-i", dir}, {"load", "--platform", "x", "-i", archive},
	} {
		if code, _, errs := b.try(wrong...); code == 0 || strings.Count(errs, "\n") != 1 {
			t.Errorf("%q: exit code %d, %q", wrong, code, errs)
		}
	}
}

func TestPush(t *testing.T) {
	registry := testimage.Registry(t)
	b := newImageBench(t)
	id := b.importFiles("mine:1", testimage.File{Name: "a", Content: []byte("hello")})
	code, out, errs := b.try("push", "mine:1", registry+"/team/mine:1")
	if code != 0 || !strings.Contains(out, ": Pushed\ndigest: sha256:") || !strings.Contains(errs, "compressed anew") {
		t.Fatalf("push: %d %q %q", code, out, errs)
	}
	_, digest, _ := strings.Cut(strings.TrimSpace(out), "digest: ")
	digest, _, _ = strings.Cut(digest, " ")
	b.must("tag", "mine:1", registry+"/team/mine:1")
	if out, again := b.must("push", "-q", registry+"/team/mine:1"), digest+"\n"; out != again {
		t.Errorf("push again: %q, want %q", out, again)
	}
	if out := b.must("inspect", "mine:1"); !strings.Contains(out, registry+"/team/mine@"+digest) {
		t.Errorf("inspect lacks the digest: %s", out)
	}
	other := newImageBench(t)
	if out := other.must("pull", registry+"/team/mine@"+digest); strings.TrimSpace(out) != id {
		t.Errorf("pulled %q, pushed %s", out, id)
	}
	if out := b.must("copy", registry+"/team/mine:1", registry+"/team/copy:1"); out != digest+"\n" {
		t.Errorf("copy: %q, want %s", out, digest)
	}
	if code, _, errs := b.try("copy", "--platform", "x", registry+"/team/mine:1", registry+"/y"); code != 2 || !strings.Contains(errs, "no platform") {
		t.Errorf("copy for a platform that can't be: %d %q", code, errs)
	}
	if code, _, errs := b.try("push", "nowhere"); code != 1 || !strings.Contains(errs, "no such image") {
		t.Errorf("push of nothing: %d %q", code, errs)
	}
}

func TestLoginLogout(t *testing.T) {
	registry := testimage.Registry(t) // wants no password, so any will do
	b := newImageBench(t)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	if out := b.must("login", "-u", "jo", "-p", "secret", registry); out != "Login Succeeded\n" {
		t.Errorf("login: %q", out)
	}
	kept, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil || !strings.Contains(string(kept), registry) {
		t.Errorf("config.json: %s, %v", kept, err)
	}
	b.must("logout", registry)
	if code, _, errs := b.try("logout", registry); code != 0 || !strings.Contains(errs, "not logged in") {
		t.Errorf("logout again: %d %q", code, errs)
	}
	if code, _, _ := b.try("login", "--password-stdin", registry); code != 2 {
		t.Errorf("login --password-stdin without a user: %d", code)
	}
}
