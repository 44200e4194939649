package layerstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// TestCommitAgainstUnion does random things to images and commits them; the new image must show what the union showed, and so
// must the image of one layer that an export makes.
func TestCommitAgainstUnion(t *testing.T) {
	const rounds = 8
	for seed := range uint64(rounds) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			s := openStore(t)
			rng := rand.New(rand.NewPCG(seed, 7))
			i := importBytes(t, s, "base", tarOf(t, folder("a", 0o755), reg("a/a", "1"), reg("a/b", "2"), folder("a/c", 0o700), reg("a/c/a", "3"), reg("a/c/b", "4"),
				folder("b", 0o755), link("b/a", "a/a"), symlink("b/b", "c"), reg("c", "5"), link("d", "c")))
			for round := range 3 {
				w := newWorkbench(t, s, i)
				for range 30 {
					w.step(rng)
				}
				w.close()
				w.open()
				want := unlinked(w.snapshot())
				w.close()
				layer := w.layer()
				if again := w.layer(); !bytes.Equal(layer, again) {
					t.Fatal("a second export has other bytes")
				}
				next, err := s.Commit(context.Background(), i, bytes.NewReader(layer), "base", CommitOptions{})
				if err != nil {
					t.Fatal(err)
				}
				got := unlinked(imageSnapshot(t, next))
				if d := diffSnapshots(got, want); d != "" {
					t.Fatalf("round %d: the committed image differs from the union: %s\nlayer:\n%s", round, d, listTar(layer))
				}
				var flat bytes.Buffer
				if err := next.Export(&flat); err != nil {
					t.Fatal(err)
				}
				one := unlinked(imageSnapshot(t, importBytes(t, s, "flat", flat.Bytes())))
				if d := diffSnapshots(one, want); d != "" {
					t.Fatalf("round %d: the exported image differs: %s", round, d)
				}
				checkDiff(t, i, next, w)
				i = next
			}
		})
	}
}

// checkDiff compares Image.Diff with what [cow.Compare] finds of the upper branch that made the difference.
func checkDiff(t *testing.T, was, now *Image, w *workbench) {
	t.Helper()
	changes, err := was.Diff(now)
	if err != nil {
		t.Fatal(err)
	}
	b, err := was.Branch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	d, err := cow.Compare(w.upper, []cow.Branch{b})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// What is listed only for a further name that a file has got elsewhere is the same by itself.
	for _, c := range changes {
		if !slices.Contains(d.Changes, c) {
			t.Errorf("Diff has %c %s, Compare hasn't", c.Kind, c.Path)
		}
	}
	for _, c := range d.Changes {
		if c.Kind != cow.Changed && !slices.Contains(changes, c) {
			t.Errorf("Compare has %c %s, Diff hasn't", c.Kind, c.Path)
		}
	}
	if none, err := now.Diff(now); err != nil || len(none) != 0 {
		t.Errorf("an image differs from itself: %v, %v", none, err)
	}
}

// TestCommitLayer looks at the entries of a layer, one kind of change after the other.
func TestCommitLayer(t *testing.T) {
	base := tarOf(t, folder("dir", 0o755), reg("dir/a", "1"), reg("dir/b", "2"), folder("old", 0o755), reg("old/sub", "3"), reg("file", "4"), link("file2", "file"))
	ok := func(t *testing.T, err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	cases := []struct {
		name string
		do   func(t *testing.T, w *workbench)
		want string // names in the tar
	}{
		{"nothing", func(*testing.T, *workbench) {}, ""},
		{"deleted file", func(t *testing.T, w *workbench) { ok(t, w.remove("dir/a")) }, "dir/ dir/.wh.a"},
		{"all deleted", func(t *testing.T, w *workbench) { ok(t, w.remove("dir/a")); ok(t, w.remove("dir/b")) }, "dir/ dir/.wh..wh..opq"},
		{"directory made anew", func(t *testing.T, w *workbench) {
			ok(t, w.remove("dir"))
			ok(t, w.at("dir", func(d *cow.Node, name string) error {
				var a cow.Attr
				n, err := w.u.Mkdir(d, name, 0o700, cow.Owner{}, &a)
				if err != nil {
					return err
				}
				defer w.u.Forget(n, 1)
				f, err := w.u.Create(n, "new", unix.S_IFREG|0o600, cow.Owner{}, &a)
				w.u.Forget(f, 1)
				return err
			}))
		}, "dir/ dir/.wh..wh..opq dir/new"},
		{"renamed directory", func(t *testing.T, w *workbench) {
			ok(t, w.at("old", func(d *cow.Node, name string) error { return w.u.Rename(d, name, d, "renamed", 0) }))
		}, ".wh.old renamed/ renamed/sub"},
		{"one of two links changed", func(t *testing.T, w *workbench) {
			ok(t, w.node("file", func(n *cow.Node, _ *cow.Attr) error { _, err := w.u.Write(n, 0, []byte("x")); return err }))
		}, "file file2=file"},
		{"xattrs of unions", func(t *testing.T, w *workbench) {
			ok(t, w.node("dir", func(n *cow.Node, _ *cow.Attr) error { return w.u.Setxattr(n, "user.overlay.opaque", []byte("y"), 0) }))
		}, "dir/"},
		{"mode of the root", func(t *testing.T, w *workbench) {
			var a cow.Attr
			ok(t, w.u.Setattr(w.u.Root(), &cow.SetAttr{Valid: cow.SetMode, Mode: 0o711}, &a))
		}, "./"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			w := newWorkbench(t, s, importBytes(t, s, "base", base))
			c.do(t, w)
			w.close()
			var names []string
			for _, h := range headers(t, w.layer()) {
				name := h.Name
				if len(h.PAXRecords) > 0 && h.PAXRecords["mtime"] == "" || len(h.PAXRecords) > 1 {
					t.Errorf("%s has %v", name, h.PAXRecords)
				}
				if h.Linkname != "" {
					name += "=" + h.Linkname
				}
				names = append(names, name)
			}
			if got := strings.Join(names, " "); got != c.want {
				t.Errorf("the layer has %q, want %q", got, c.want)
			}
		})
	}
}

// TestArchiveForTar lets tar(1) unpack an export.
func TestArchiveForTar(t *testing.T) {
	s := openStore(t)
	long := strings.Repeat("long/", 60) + "ä\xff"
	i := importBytes(t, s, "x", tarOf(t, folder("d", 0o1777), reg("d/f", "content"), link("d/l", "d/f"), symlink("s", "d/f"), reg(long, "deep")))
	var b bytes.Buffer
	if err := i.Export(&b); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cmd := exec.Command("tar", "-C", dir, "-xpf", "-")
	cmd.Stdin = &b
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	out, err := exec.Command("sh", "-c", `cd "$1"; cat d/l s long/*/*/*/`+strings.Repeat("*/", 56)+`*; stat -c '%a %h' d/f; stat -c %a d`, "sh", dir).CombinedOutput()
	if want := "contentcontentdeep644 2\n1777\n"; err != nil || string(out) != want {
		t.Errorf("unpacked: %q, %v; want %q", out, err, want)
	}
}

// TestCommitConfig changes a configuration that has things in it which this program doesn't know.
func TestCommitConfig(t *testing.T) {
	s := openStore(t)
	i := importBytes(t, s, "x", tarOf(t, reg("a", "1")))
	i.record.Config = bytes.Replace(i.record.Config, []byte(`"config":{`), []byte(`"container":"gone","os.version":"7","config":{"Healthcheck":{"Test":["NONE"]},"Env":["PATH=/bin","A=old"]`), 1)
	i.id = digest.FromBytes(i.record.Config)
	if err := os.WriteFile(s.path(imagesDir, i.id.Encoded()), mustJSON(t, i.record), 0o600); err != nil {
		t.Fatal(err)
	}
	i, err := s.load(i.id)
	if err != nil {
		t.Fatal(err)
	}
	created := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	o := CommitOptions{Author: "Jo", Message: "why", CreatedBy: "sh -c x", Created: created, Changes: []string{
		`CMD ["a", "b"]`, "entrypoint run it", `ENV A=new B="x y" C=p\ q`, "ENV D e f", "EXPOSE 80 53/udp", "LABEL l=m n='o p'", "USER 7:8", "VOLUME /v /w", `VOLUME ["/x y"]`,
		"WORKDIR /w", "WORKDIR x", "STOPSIGNAL SIGINT", "ONBUILD RUN x",
	}}
	n, err := s.Commit(context.Background(), i, bytes.NewReader(tarOf(t, reg("b", "2"))), "", o)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{
		`"Healthcheck":{"Test":["NONE"]}`, `"os.version":"7"`, `"Cmd":["a","b"]`, `"Entrypoint":["/bin/sh","-c","run it"]`, `"Env":["PATH=/bin","A=new","B=x y","C=p q","D=e f"]`,
		`"ExposedPorts":{"53/udp":{},"80/tcp":{}}`, `"Labels":{"l":"m","n":"o p"}`, `"User":"7:8"`, `"Volumes":{"/v":{},"/w":{},"/x y":{}}`, `"WorkingDir":"/w/x"`,
		`"StopSignal":"SIGINT"`, `"OnBuild":["RUN x"]`, `"author":"Jo"`, `"created":"2026-03-04T05:06:07Z"`, `"created_by":"sh -c x"`, `"comment":"why"`,
	} {
		if !strings.Contains(string(n.RawConfig()), part) {
			t.Errorf("the configuration lacks %s:\n%s", part, n.RawConfig())
		}
	}
	if strings.Contains(string(n.RawConfig()), `"container"`) || len(n.Config().History) != 2 || len(n.Config().RootFS.DiffIDs) != 2 {
		t.Errorf("configuration: %s", n.RawConfig())
	}
	again, err := s.Commit(context.Background(), i, bytes.NewReader(tarOf(t, reg("b", "2"))), "named", o)
	if err != nil || again.ID() != n.ID() {
		t.Errorf("the same again has the ID %v, not %s: %v", again, n.ID(), err)
	}
	raw, mt := n.RawManifest()
	if m, err := parseManifest(raw, mt); err != nil || len(m.Layers) != 2 || m.Layers[1].MediaType != ocispec.MediaTypeImageLayer {
		t.Errorf("manifest %s: %v", raw, err)
	}
	for _, wrong := range []string{"", "CMD", "RUN x", "ENV =x", `LABEL a="b`, "ENV a=b c"} {
		if err := CheckConfigChange(wrong); err == nil {
			t.Errorf("change %q is accepted", wrong)
		}
	}
}
