package layerstore

import (
	"bytes"
	"encoding/json"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"unionfs/internal/testimage"
)

// testRegistry starts a registry in this process. If lie is set and returns true, it has answered a request itself.
func testRegistry(t testing.TB, lie func(http.ResponseWriter, *http.Request) bool) (host string) {
	t.Helper()
	inner := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if lie == nil || !lie(w, r) {
			inner.ServeHTTP(w, r)
		}
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://")
}

// dockerRegistry starts Debian's docker-registry on loopback.
func dockerRegistry(t *testing.T) (host string) {
	t.Helper()
	return testimage.Registry(t)
}

// testImage is an image to push. What is wrong with it is done by changing it between make and push.
type testImage struct {
	blobs    [][]byte // as they are stored in the registry
	config   ocispec.Image
	manifest ocispec.Manifest
	extra    map[string]any // of the manifest
	rawConf  []byte         // instead of config
}

// compression makes a blob of a tar.
type compression struct {
	name   string
	pack   func(t testing.TB, tar []byte) []byte
	oci    string
	docker string
}

func compressions() []compression {
	return []compression{
		{"gzip", packGzip, ocispec.MediaTypeImageLayerGzip, string(types.DockerLayer)},
		{"zstd", packZstd, ocispec.MediaTypeImageLayerZstd, "application/vnd.docker.image.rootfs.diff.tar.zstd"},
		{"plain", func(_ testing.TB, b []byte) []byte { return b }, ocispec.MediaTypeImageLayer, string(types.DockerUncompressedLayer)},
		{"gzip of several members", func(t testing.TB, b []byte) []byte {
			n := len(b) / 3
			return bytes.Join([][]byte{packGzip(t, b[:n]), packGzip(t, nil), packGzip(t, b[n:])}, nil)
		}, ocispec.MediaTypeImageLayerGzip, string(types.DockerLayer)},
		{"zstd with skippable frames", func(t testing.TB, b []byte) []byte {
			skip := []byte{0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'x', 'y', 'z'}
			n := len(b) / 2
			return bytes.Join([][]byte{skip, packZstd(t, b[:n]), skip, packZstd(t, b[n:]), skip}, nil)
		}, ocispec.MediaTypeImageLayerZstd, ocispec.MediaTypeImageLayerZstd},
	}
}

func packGzip(t testing.TB, b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func packZstd(t testing.TB, b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// makeImage makes an OCI image of layers, compressed in turn in every way, or all in one way.
func makeImage(t testing.TB, tars [][]byte, ways ...compression) *testImage {
	if len(ways) == 0 {
		ways = compressions()
	}
	i := &testImage{config: ocispec.Image{
		Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"},
		Config:   ocispec.ImageConfig{Cmd: []string{"/bin/sh"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}}
	i.manifest.Versioned = specs.Versioned{SchemaVersion: 2}
	i.manifest.MediaType = ocispec.MediaTypeImageManifest
	i.manifest.Config.MediaType = ocispec.MediaTypeImageConfig
	for n, b := range tars {
		c := ways[n%len(ways)]
		blob := c.pack(t, b)
		i.blobs = append(i.blobs, blob)
		i.config.RootFS.DiffIDs = append(i.config.RootFS.DiffIDs, digest.FromBytes(b))
		i.manifest.Layers = append(i.manifest.Layers, ocispec.Descriptor{MediaType: c.oci, Digest: digest.FromBytes(blob), Size: int64(len(blob))})
	}
	return i
}

// asDocker changes the media types to Docker's.
func (i *testImage) asDocker() *testImage {
	i.manifest.MediaType = string(types.DockerManifestSchema2)
	i.manifest.Config.MediaType = string(types.DockerConfigJSON)
	for n := range i.manifest.Layers {
		for _, c := range compressions() {
			if i.manifest.Layers[n].MediaType == c.oci {
				i.manifest.Layers[n].MediaType = c.docker
				break
			}
		}
	}
	return i
}

// rawManifest is what remote.Put pushes.
type rawManifest struct {
	b  []byte
	mt types.MediaType
}

func (r rawManifest) RawManifest() ([]byte, error)        { return r.b, nil }
func (r rawManifest) MediaType() (types.MediaType, error) { return r.mt, nil }

// push puts the image into a registry and returns its manifest.
func (i *testImage) push(t testing.TB, ref string) []byte {
	t.Helper()
	r, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	config := i.rawConf
	if config == nil {
		if config, err = json.Marshal(i.config); err != nil {
			t.Fatal(err)
		}
	}
	for _, b := range append([][]byte{config}, i.blobs...) {
		if err := remote.WriteLayer(r.Context(), static.NewLayer(b, types.OCILayer)); err != nil {
			t.Fatal(err)
		}
	}
	if i.manifest.Config.Digest == "" {
		i.manifest.Config.Digest, i.manifest.Config.Size = digest.FromBytes(config), int64(len(config))
	}
	raw, err := json.Marshal(i.manifest)
	if err != nil {
		t.Fatal(err)
	}
	if i.extra != nil {
		var m map[string]any
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		for k, v := range i.extra {
			m[k] = v
		}
		if raw, err = json.Marshal(m); err != nil {
			t.Fatal(err)
		}
	}
	putManifest(t, r, raw, i.manifest.MediaType)
	return raw
}

func putManifest(t testing.TB, r name.Reference, raw []byte, mt string) {
	t.Helper()
	if err := remote.Put(r, rawManifest{raw, types.MediaType(mt)}); err != nil {
		t.Fatal(err)
	}
}

// someTars are the layers of an image with something of everything, large enough that its download takes several reads.
func someTars(t testing.TB) [][]byte {
	random := strings.Repeat("0123456789abcdef", 1<<15)
	return [][]byte{
		tarOf(t, folder("etc", 0o755), reg("etc/passwd", "root"), reg("big", random), reg("gone", "x"), folder("d", 0o755), reg("d/old", "1")),
		tarOf(t, wh(".wh.gone"), link("etc/passwd-", "etc/passwd"), symlink("l", "etc")),
		tarOf(t, wh("d/.wh..wh..opq"), reg("d/new", "2")),
		tarOf(t, reg("big2", random+"2")),
		tarOf(t, reg("last", "3")),
	}
}
