package layerstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// saved saves images in a format and returns the path.
func saved(t *testing.T, s *Store, format SaveFormat, refs ...string) (path string, what []Saved) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "saved")
	var err error
	if format == SaveOCIDir {
		what, err = s.SaveDir(t.Context(), path, refs)
	} else {
		var b bytes.Buffer
		if what, err = s.Save(t.Context(), &b, refs, format); err == nil {
			err = os.WriteFile(path, b.Bytes(), 0o600)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	if staged, _ := os.ReadDir(s.path(stagingDir)); len(staged) > 0 {
		t.Errorf("%d directories are left in staging", len(staged))
	}
	return path, what
}

func allFormats() []SaveFormat { return []SaveFormat{SaveDocker, SaveOCI, SaveOCIDir} }

// TestSaveLoad saves a pulled image, one that was made here on it, and one without a name, and loads them elsewhere.
func TestSaveLoad(t *testing.T) {
	host := testRegistry(t, nil)
	tars := someTars(t)
	ways := []compression{compressions()[0], compressions()[2]}
	makeImage(t, tars, ways...).push(t, host+"/team/app:1")
	s := openStore(t)
	pulled := mustPull(t, s, host+"/team/app:1", PullOptions{})
	if err := s.Tag(host+"/team/app:1", "app:other"); err != nil {
		t.Fatal(err)
	}
	made, err := s.Commit(t.Context(), pulled, bytes.NewReader(tarOf(t, reg("more", "1"))), "made:1", CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	nameless := importBytes(t, s, "nameless", tarOf(t, reg("a", "1")))
	refs := []string{host + "/team/app:1", "app:other", "made:1", string(nameless.ID())}
	for _, format := range allFormats() {
		t.Run(string(format), func(t *testing.T) {
			path, what := saved(t, s, format, refs...)
			if len(what) != 3 || !slices.Equal(what[0].Names, []string{host + "/team/app:1", "app:other"}) || len(what[2].Names) != 0 {
				t.Errorf("saved %+v", what)
			}
			again, _ := saved(t, s, format, refs...)
			if format != SaveOCIDir {
				a, _ := os.ReadFile(path)
				if b, _ := os.ReadFile(again); !bytes.Equal(a, b) {
					t.Error("saved again, it has other bytes")
				}
			}
			other := openStore(t)
			loaded, err := other.Load(t.Context(), path, LoadOptions{})
			if err != nil || len(loaded) != 3 {
				t.Fatal(loaded, err)
			}
			for n, want := range []*Image{pulled, made, nameless} {
				i := loaded[n].Image
				if i.ID() != want.ID() || !slices.Equal(loaded[n].Names, what[n].Names) {
					t.Errorf("image %d: loaded %s with the names %q", n, i.ID(), loaded[n].Names)
				}
				if d := diffSnapshots(imageSnapshot(t, i), imageSnapshot(t, want)); d != "" {
					t.Error(d)
				}
				was, _ := want.RawManifest()
				is, _ := i.RawManifest()
				if format != SaveDocker && (!what[n].Same || !bytes.Equal(was, is) || what[n].Digest != digest.FromBytes(is)) {
					t.Errorf("image %d: the manifest is another: %s, was %s", n, is, was)
				}
			}
			// Loaded again, nothing is read; and what was loaded can be saved as it was.
			o := LoadOptions{Progress: func(p LayerProgress) {
				if p.State != LayerPresent {
					t.Errorf("loading again: %+v", p)
				}
			}}
			if _, err := other.Load(t.Context(), path, o); err != nil {
				t.Error(err)
			}
			if format == SaveOCI {
				a, _ := os.ReadFile(path)
				back, _ := saved(t, other, format, refs...)
				if b, _ := os.ReadFile(back); !bytes.Equal(a, b) {
					t.Error("loaded and saved, it has other bytes")
				}
			}
			found, err := other.Verify(t.Context(), VerifyOptions{})
			if err != nil || len(found.Faults) > 0 {
				t.Errorf("%+v, %v", found, err)
			}
			for _, l := range loaded {
				for _, ref := range slices.Concat(l.Names, []string{string(l.Image.ID())}) {
					if _, err := other.Remove(ref); err != nil && !errors.Is(err, ErrNotFound) {
						t.Error(err)
					}
				}
			}
			checkEmpty(t, other)
		})
	}
}

// TestSaveCompressedElsewhere saves an image whose blobs were compressed by another program: then the manifest differs in
// them alone.
func TestSaveCompressedElsewhere(t *testing.T) {
	host := testRegistry(t, nil)
	tars := someTars(t)[:2]
	makeImage(t, tars, compressions()[3]).push(t, host+"/x:1")
	s := openStore(t)
	i := mustPull(t, s, host+"/x:1", PullOptions{})
	path, what := saved(t, s, SaveOCI, host+"/x:1")
	if what[0].Same {
		t.Fatal("nothing was compressed anew")
	}
	other := openStore(t)
	loaded, err := other.Load(t.Context(), path, LoadOptions{})
	if err != nil || loaded[0].Image.ID() != i.ID() {
		t.Fatal(loaded, err)
	}
	raw, _ := loaded[0].Image.RawManifest()
	if digest.FromBytes(raw) != what[0].Digest {
		t.Errorf("loaded the manifest %s", raw)
	}
	if d := diffSnapshots(imageSnapshot(t, loaded[0].Image), stacked(t, tars)); d != "" {
		t.Error(d)
	}
}

// TestLoadStreams loads archives that can only be read once, compressed and not.
func TestLoadStreams(t *testing.T) {
	s := openStore(t)
	i := importBytes(t, s, "foo:1", tarOf(t, reg("a", "1")))
	for _, format := range []SaveFormat{SaveDocker, SaveOCI} {
		path, _ := saved(t, s, format, "foo:1")
		plain, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range compressions() {
			t.Run(fmt.Sprint(format, " ", c.name), func(t *testing.T) {
				packed := c.pack(t, plain)
				file := filepath.Join(t.TempDir(), "packed")
				if err := os.WriteFile(file, packed, 0o600); err != nil {
					t.Fatal(err)
				}
				f, err := os.Open(file)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				for _, r := range []io.Reader{bytes.NewReader(packed), f} {
					other := openStore(t)
					loaded, err := other.LoadStream(t.Context(), r, LoadOptions{})
					if err != nil || len(loaded) != 1 || loaded[0].Image.ID() != i.ID() {
						t.Fatal(loaded, err)
					}
					if staged, _ := os.ReadDir(other.path(stagingDir)); len(staged) > 0 {
						t.Error("something is left in staging")
					}
				}
			})
		}
	}
}

// layoutOf makes an OCI layout of one image, as a map of files.
func layoutOf(t *testing.T, i *testImage, annotations map[string]string) map[string]string {
	t.Helper()
	config, err := json.Marshal(i.config)
	if err != nil {
		t.Fatal(err)
	}
	i.manifest.Config.Digest, i.manifest.Config.Size = digest.FromBytes(config), int64(len(config))
	raw, err := json.Marshal(i.manifest)
	if err != nil {
		t.Fatal(err)
	}
	index := ocispec.Index{Manifests: []ocispec.Descriptor{{MediaType: i.manifest.MediaType, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Annotations: annotations}}}
	index.SchemaVersion = 2
	listed, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{"oci-layout": `{"imageLayoutVersion":"1.0.0"}`, "index.json": string(listed)}
	for n, b := range i.blobs {
		files[layoutBlob(i.manifest.Layers[n].Digest)] = string(b)
	}
	files[layoutBlob(digest.FromBytes(config))] = string(config)
	files[layoutBlob(digest.FromBytes(raw))] = string(raw)
	return files
}

// writeFiles writes files into a new directory.
func writeFiles(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// TestLoadNames loads layouts that name their image in the ways of various programs.
func TestLoadNames(t *testing.T) {
	cases := []struct {
		name        string
		annotations map[string]string
		base        string
		want        []string
	}{
		{"containerd", map[string]string{annotationContainerdName: "docker.io/library/x:1", annotationRefName: "1"}, "", []string{"x:1"}},
		{"skopeo", map[string]string{annotationRefName: "registry.example/team/x:1"}, "", []string{"registry.example/team/x:1"}},
		{"umoci", map[string]string{annotationRefName: "v1.2"}, "team/x", []string{"team/x:v1.2"}},
		{"umoci without a base", map[string]string{annotationRefName: "latest"}, "", []string{"latest:latest"}},
		{"none", nil, "", nil},
		{"none, with a base", nil, "team/x", []string{"team/x:latest"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			dir := writeFiles(t, layoutOf(t, makeImage(t, [][]byte{tarOf(t, reg("a", "1"))}), c.annotations))
			loaded, err := s.Load(t.Context(), dir, LoadOptions{BaseName: c.base})
			if err != nil || len(loaded) != 1 || !slices.Equal(loaded[0].Names, c.want) {
				t.Errorf("%+v, %v", loaded, err)
			}
		})
	}
}

// TestLoadOldDockerArchive loads what Docker wrote long ago: a layer that is a symbolic link to that of another image.
func TestLoadOldDockerArchive(t *testing.T) {
	layer := tarOf(t, reg("a", "1"))
	i := makeImage(t, [][]byte{layer, layer})
	config, err := json.Marshal(i.config)
	if err != nil {
		t.Fatal(err)
	}
	list, err := json.Marshal([]dockerEntry{{Config: "c.json", RepoTags: []string{"old:1", "old:2"}, Layers: []string{"one/layer.tar", "two/layer.tar"}}})
	if err != nil {
		t.Fatal(err)
	}
	archive := tarOf(t,
		reg("c.json", string(config)),
		symlink("one/layer.tar", "../two/layer.tar"),
		reg("./two/layer.tar", string(layer)),
		reg("manifest.json", string(list)),
		reg("repositories", `{"old":{"1":"two"}}`),
	)
	s := openStore(t)
	loaded, err := s.LoadStream(t.Context(), bytes.NewReader(archive), LoadOptions{})
	if err != nil || len(loaded) != 1 || !slices.Equal(loaded[0].Names, []string{"old:1", "old:2"}) {
		t.Fatal(loaded, err)
	}
	if d := diffSnapshots(imageSnapshot(t, loaded[0].Image), stacked(t, [][]byte{layer})); d != "" {
		t.Error(d)
	}
}

// TestLoadRefusesLies loads bundles in which something is wrong.
func TestLoadRefusesLies(t *testing.T) {
	image := func() *testImage { return makeImage(t, someTars(t)[:2]) }
	layout := func(change func(files map[string]string, i *testImage)) func(t *testing.T) string {
		return func(t *testing.T) string {
			i := image()
			files := layoutOf(t, i, nil)
			change(files, i)
			return writeFiles(t, files)
		}
	}
	first := func(i *testImage) string { return layoutBlob(i.manifest.Layers[0].Digest) }
	archive := func(b []byte) func(t *testing.T) string {
		return func(t *testing.T) string {
			path := filepath.Join(t.TempDir(), "archive")
			if err := os.WriteFile(path, b, 0o600); err != nil {
				t.Fatal(err)
			}
			return path
		}
	}
	cases := []struct {
		name string
		make func(t *testing.T) string
		want string
	}{
		{"a layer is missing", layout(func(f map[string]string, i *testImage) { delete(f, first(i)) }), "the layer is not in it"},
		{"a layer is too long", layout(func(f map[string]string, i *testImage) { f[first(i)] += "x" }), "the manifest says"},
		{"a layer has a wrong byte", layout(func(f map[string]string, i *testImage) {
			b := []byte(f[first(i)])
			b[len(b)/2] ^= 1
			f[first(i)] = string(b)
		}), "with the digest sha256:"},
		{"the configuration has a wrong byte", layout(func(f map[string]string, i *testImage) {
			name := layoutBlob(i.manifest.Config.Digest)
			f[name] = strings.Replace(f[name], "amd64", "amd65", 1)
		}), "configuration: "},
		{"the index names what isn't there", layout(func(f map[string]string, i *testImage) {
			f["index.json"] = strings.ReplaceAll(f["index.json"], `"digest":"sha256:`, `"digest":"sha256:0000`)
		}), "is not a digest"},
		{"the index is no index", layout(func(f map[string]string, i *testImage) { f["index.json"] = `{"schemaVersion":2}` }), "index.json: "},
		{"no index", layout(func(f map[string]string, i *testImage) { delete(f, "index.json") }), "it has no index.json"},
		{"a layer is a link out of it", func(t *testing.T) string {
			i := image()
			dir := writeFiles(t, layoutOf(t, i, nil))
			path := filepath.Join(dir, first(i))
			outside := filepath.Join(t.TempDir(), "outside")
			if err := errors.Join(os.Rename(path, outside), os.Symlink(outside, path)); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "path escapes"},
		{"a layer is a FIFO", func(t *testing.T) string {
			i := image()
			dir := writeFiles(t, layoutOf(t, i, nil))
			path := filepath.Join(dir, first(i))
			if err := errors.Join(os.Remove(path), unix.Mkfifo(path, 0o600)); err != nil {
				t.Fatal(err)
			}
			return dir
		}, "not a regular file"},
		{"a name that is reserved", func(t *testing.T) string {
			return writeFiles(t, layoutOf(t, image(), map[string]string{annotationRefName: "host:1"}))
		}, "is reserved"},
		{"an empty directory", func(t *testing.T) string { return t.TempDir() }, "is for import"},
		{"the tar of a root", archive(tarOf(t, reg("etc/passwd", "x"))), "is for import"},
		{"text", archive(bytes.Repeat([]byte("text "), 1000)), "is for import"},
		{"nothing", archive(nil), "is for import"},
		{"xz", archive([]byte("\xfd7zXZ\x00 and so on")), "xz -d"},
		{"headers without end", archive(endlessHeaders()), "MiB of headers"},
		{"truncated", archive(tarOf(t, reg("manifest.json", strings.Repeat("x", 5000)))[:3000]), "truncated"},
		{"a name that leads out", archive(tarOf(t, reg("../x", "x"))), "leads out of the image"},
		{"links in a circle", archive(tarOf(t,
			symlink("manifest.json", "b"), symlink("b", "manifest.json"))), "is for import"},
		{"a manifest.json that is none", archive(tarOf(t, reg("manifest.json", "[1]"))), "can't be read"},
		{"a configuration that leads out", archive(tarOf(t, reg("manifest.json", `[{"Config":"../../etc/passwd"}]`))), "leads out"},
		{"no images", archive(tarOf(t, reg("manifest.json", `[]`))), "there is no image in it"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			path := c.make(t)
			_, err := s.Load(context.Background(), path, LoadOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
				t.Errorf("error is %v, expected one with %q", err, c.want)
			}
			checkEmpty(t, s)
		})
	}
}

func TestSaveErrors(t *testing.T) {
	s := openStore(t)
	importBytes(t, s, "foo", tarOf(t, reg("a", "1")))
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.SaveDir(t.Context(), full, []string{"foo"}); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("into a directory that is not empty: %v", err)
	}
	parent := t.TempDir()
	if _, err := s.SaveDir(t.Context(), filepath.Join(parent, "new"), []string{"foo", "absent"}); !errors.Is(err, ErrNotFound) {
		t.Errorf("of an image that isn't there: %v", err)
	}
	if left, _ := os.ReadDir(parent); len(left) > 0 {
		t.Errorf("%s is left", left[0].Name())
	}
	if _, err := s.Save(t.Context(), &fullWriter{}, []string{"foo"}, SaveOCI); !errors.Is(err, unix.ENOSPC) || strings.Contains(err.Error(), "--root") {
		t.Errorf("onto a full disk: %v", err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Save(cancelled, io.Discard, []string{"foo"}, SaveDocker); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// fullWriter is a disk on which a little has room.
type fullWriter struct{ n int }

func (f *fullWriter) Write(p []byte) (int, error) {
	if f.n += len(p); f.n > 2000 {
		return 0, unix.ENOSPC
	}
	return len(p), nil
}
