package testimage

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TestDebianIsItsLayers applies the split image's layers to a map of names, as simply as can be, and compares with the
// root that it was split from.
func TestDebianIsItsLayers(t *testing.T) {
	fixture := Debian(t)
	layers, err := fixture.Image.Layers()
	if err != nil {
		t.Fatal(err)
	}
	if len(layers) != DebianLayers {
		t.Fatalf("%d layers, want %d", len(layers), DebianLayers)
	}

	got := map[string]string{}
	whiteouts, opaques := 0, 0
	for _, layer := range layers {
		here, gone, opaque := map[string]string{}, []string{}, []string{}
		eachHeader(t, layer, func(h *tar.Header, name, digest string) {
			dir, base := path.Split(name)
			switch {
			case base == ".wh..wh..opq":
				opaque = append(opaque, path.Clean(dir))
			case strings.HasPrefix(base, ".wh."):
				gone = append(gone, dir+strings.TrimPrefix(base, ".wh."))
			default:
				here[name] = digest
			}
		})
		whiteouts, opaques = whiteouts+len(gone), opaques+len(opaque)
		removed := map[string]bool{}
		for _, name := range gone {
			removed[name] = true
		}
		for name, digest := range here {
			// A file over a directory hides what was in it.
			if !strings.HasPrefix(digest, "dir ") {
				removed[name] = true
			}
		}
		for _, name := range opaque {
			for below := range got {
				if strings.HasPrefix(below, name+"/") {
					delete(got, below)
				}
			}
		}
		maps.DeleteFunc(got, func(name, _ string) bool {
			for ; name != "."; name = path.Dir(name) {
				if removed[name] {
					return true
				}
			}
			return false
		})
		maps.Copy(got, here)
	}
	if whiteouts < 20 || opaques < 5 {
		t.Errorf("%d whiteouts and %d opaque directories, want more", whiteouts, opaques)
	}

	want := map[string]string{}
	eachEntry(fixture.RootTar, func(h *tar.Header, name string, content io.Reader) error {
		want[name] = describe(t, h, content)
		return nil
	})
	for _, name := range slices.Sorted(maps.Keys(want)) {
		if got[name] != want[name] {
			t.Errorf("%s: %q, want %q", name, got[name], want[name])
		}
	}
	for _, name := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[name]; !ok {
			t.Errorf("%s is in the layers but not in the root", name)
		}
	}
}

// eachHeader reads a layer, which gzip(1) decompresses: see layerWriter.
func eachHeader(t *testing.T, layer v1.Layer, visit func(h *tar.Header, name, digest string)) {
	t.Helper()
	compressed, err := layer.Compressed()
	if err != nil {
		t.Fatal(err)
	}
	defer compressed.Close()
	gzip := exec.Command("gzip", "-dc")
	gzip.Stdin = compressed
	pipe, err := gzip.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := gzip.Start(); err != nil {
		t.Fatal(err)
	}
	reader := tar.NewReader(bufio.NewReaderSize(pipe, 1<<18))
	for {
		h, err := reader.Next()
		if err == io.EOF {
			io.Copy(io.Discard, pipe) // the padding
			if err := gzip.Wait(); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		visit(h, clean(h.Name), describe(t, h, reader))
	}
}

func describe(t *testing.T, h *tar.Header, content io.Reader) string {
	t.Helper()
	kind := map[byte]string{tar.TypeDir: "dir", tar.TypeReg: "file", tar.TypeLink: "link", tar.TypeSymlink: "symlink"}[h.Typeflag]
	hash := sha256.New()
	if h.Typeflag == tar.TypeReg {
		if _, err := io.Copy(hash, content); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%s %o %d:%d %s %s %x", kind, h.Mode, h.Uid, h.Gid, h.ModTime.UTC(), h.Linkname, hash.Sum(nil)[:8])
}

func TestRegistryServesWhatIsPushed(t *testing.T) {
	addr := Registry(t)
	image := Busybox(t, v1.Config{})
	Push(t, image, addr+"/busybox:1")
	ref, err := name.ParseReference(addr+"/busybox:1", name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	descriptor, err := remote.Head(ref)
	if err != nil {
		t.Fatal(err)
	}
	if want, _ := image.Digest(); descriptor.Digest != want {
		t.Errorf("digest %s, want %s", descriptor.Digest, want)
	}
}
