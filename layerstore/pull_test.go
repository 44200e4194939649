package layerstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func mustPull(t *testing.T, s *Store, ref string, o PullOptions) *Image {
	t.Helper()
	i, err := s.Pull(context.Background(), ref, o)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func imageSnapshot(t *testing.T, i *Image) snapshot {
	t.Helper()
	b, err := i.Branch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	s, err := snapshotBranch(b)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// stacked is what an image of these layers must look like.
func stacked(t *testing.T, tars [][]byte) snapshot {
	t.Helper()
	i, err := addStack(openStore(t), "expected", tars...)
	if err != nil {
		t.Fatal(err)
	}
	return imageSnapshot(t, i)
}

func TestPullFromDockerRegistry(t *testing.T) {
	host := dockerRegistry(t)
	tars := someTars(t)
	want := stacked(t, tars)
	for _, docker := range []bool{false, true} {
		t.Run(fmt.Sprintf("docker %v", docker), func(t *testing.T) {
			i := makeImage(t, tars)
			if docker {
				i = makeImage(t, tars, compressions()[0]).asDocker()
			}
			ref := fmt.Sprintf("%s/team/app:%v", host, docker)
			raw := i.push(t, ref)
			s := openStore(t)
			states := map[int][]LayerState{}
			got := mustPull(t, s, ref, PullOptions{Progress: func(p LayerProgress) {
				if p.Done < 0 || p.Done > p.Total || p.Layers != len(tars) {
					t.Errorf("progress %+v", p)
				}
				if l := states[p.Index]; len(l) == 0 || l[len(l)-1] != p.State {
					states[p.Index] = append(l, p.State)
				}
			}})
			for n := range tars {
				if !slices.Equal(states[n], []LayerState{LayerPending, LayerDownloading, LayerVerified}) {
					t.Errorf("layer %d went through %v", n, states[n])
				}
			}
			if d := diffSnapshots(imageSnapshot(t, got), want); d != "" {
				t.Error(d)
			}
			if m, _ := got.RawManifest(); !bytes.Equal(m, raw) {
				t.Error("the manifest was not kept byte for byte")
			}
			info, err := s.Images()
			if err != nil || len(info) != 1 || !slices.Equal(info[0].Names, []string{ref}) || info[0].ID != got.ID() {
				t.Fatalf("Images: %+v, %v", info, err)
			}
			byDigest := host + "/team/app@" + string(digest.FromBytes(raw))
			if !slices.Equal(info[0].Digests, []string{byDigest}) {
				t.Errorf("digests %v", info[0].Digests)
			}
			for _, r := range []string{ref, byDigest, string(got.ID()), got.ID().Encoded()[:12]} {
				if i, err := s.Image(r); err != nil || i.ID() != got.ID() {
					t.Errorf("Image(%s): %v", r, err)
				}
			}
			// Pulled again, by digest, nothing is fetched.
			again := mustPull(t, s, byDigest, PullOptions{Progress: func(p LayerProgress) {
				if p.State != LayerPresent {
					t.Errorf("second pull: %+v", p)
				}
			}})
			if again.ID() != got.ID() {
				t.Error("the second pull gave another image")
			}
			for _, r := range []string{ref, byDigest} {
				if _, err := s.Remove(r); err != nil {
					t.Fatal(err)
				}
			}
			checkEmpty(t, s)
		})
	}
}

func TestPullChoosesPlatform(t *testing.T) {
	host := testRegistry(t, nil)
	ref := host + "/multi:1"
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for _, p := range []string{"unknown/unknown", "linux/arm64/v8", "linux/amd64", "windows/amd64", "linux/arm/v7"} {
		platform, err := ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		i := makeImage(t, [][]byte{tarOf(t, reg("platform", p))})
		i.config.Platform = *platform
		raw := i.push(t, host+"/multi:"+strings.ReplaceAll(p, "/", "-"))
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Platform: platform})
	}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	putManifest(t, parsed, raw, index.MediaType)
	s := openStore(t)
	for _, p := range []string{"linux/amd64", "linux/arm64", "linux/arm/v7", "windows/amd64"} {
		platform, err := ParsePlatform(p)
		if err != nil {
			t.Fatal(err)
		}
		i := mustPull(t, s, ref, PullOptions{Platform: platform, As: "as/" + strings.ReplaceAll(p, "/", "-")})
		if got := i.Config().OS + "/" + i.Config().Architecture; !strings.HasPrefix(p, got) {
			t.Errorf("for %s, an image for %s was pulled", p, got)
		}
		if _, err := s.Image(host + "/multi@" + string(digest.FromBytes(raw))); err == nil {
			t.Error("an image that was pulled under another name is found by its registry's")
		}
	}
	list, err := s.Images()
	if err != nil || len(list) != 4 {
		t.Errorf("%d images, %v", len(list), err)
	}
	for _, i := range list {
		if len(i.Names) != 1 || len(i.Digests) != 0 {
			t.Errorf("names %v, digests %v", i.Names, i.Digests)
		}
	}
	_, err = s.Pull(context.Background(), ref, PullOptions{Platform: &ocispec.Platform{OS: "plan9", Architecture: "386"}})
	if err == nil || !strings.Contains(err.Error(), "not available for plan9/386, only for linux/arm64/v8, linux/amd64") || strings.Contains(err.Error(), "unknown") {
		t.Errorf("for a platform that isn't there: %v", err)
	}
	_, err = s.Pull(context.Background(), host+"/multi:linux-amd64", PullOptions{Platform: &ocispec.Platform{OS: "linux", Architecture: "arm64"}})
	if err == nil || !strings.Contains(err.Error(), "the image is for linux/amd64, not for linux/arm64") {
		t.Errorf("an image for one other platform: %v", err)
	}
}

// liar is a registry that lies about one blob.
type liar struct {
	blob atomic.Pointer[digest.Digest]
	lie  func(w http.ResponseWriter, r *http.Request, b []byte)
	data []byte
}

func (l *liar) handle(w http.ResponseWriter, r *http.Request) bool {
	d := l.blob.Load()
	if d == nil || r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, "/blobs/"+string(*d)) {
		return false
	}
	l.lie(w, r, l.data)
	return true
}

func TestPullRefusesLies(t *testing.T) {
	type request = *http.Request
	type writer = http.ResponseWriter
	flip := func(b []byte, at int) []byte {
		b = bytes.Clone(b)
		b[at] ^= 0x40
		return b
	}
	second := func(t *testing.T) *testImage { return makeImage(t, someTars(t)) }
	sha512 := digest.SHA512.FromString("x")
	cases := []struct {
		name  string
		image func(t *testing.T) *testImage // default: second
		lie   func(w writer, r request, b []byte)
		of    string // "config", or by default the first layer
		want  string // part of the error
	}{
		{"layer cut off", nil, func(w writer, r request, b []byte) {
			w.Header().Set("Content-Length", strconv.Itoa(len(b)))
			w.Write(b[:len(b)/2])
			w.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}, "", "the download broke off after"},
		{"layer too short", nil, func(w writer, r request, b []byte) { w.(http.Flusher).Flush(); w.Write(b[:len(b)-1]) }, "", "bytes of it, the manifest says"},
		{"layer too long", nil, func(w writer, r request, b []byte) { w.(http.Flusher).Flush(); w.Write(append(bytes.Clone(b), 0)) }, "", "bytes of it, the manifest says"},
		{"layer's length", nil, func(w writer, r request, b []byte) { w.Write(append(bytes.Clone(b), "more"...)) }, "", "bytes of it, the manifest says"},
		{"layer with a wrong byte", nil, func(w writer, r request, b []byte) { w.Write(flip(b, len(b)/2)) }, "", "sent something with the digest sha256:"},
		{"layer with a wrong first byte", nil, func(w writer, r request, b []byte) { w.Write(flip(b, 0)) }, "", "sent something with the digest sha256:"},
		{"layer that isn't there", nil, func(w writer, r request, b []byte) { w.WriteHeader(404) }, "", "404"},
		{"endless layer", nil, func(w writer, r request, b []byte) {
			for {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, "", "bytes of it, the manifest says"},
		{"configuration with a wrong byte", nil, func(w writer, r request, b []byte) { w.Write(flip(b, 5)) }, "config", "configuration: the registry sent something with the digest"},
		{"configuration too long", nil, func(w writer, r request, b []byte) { w.Write(append(bytes.Clone(b), ' ')) }, "config", "the manifest says"},
		{"configuration without end", nil, func(w writer, r request, b []byte) {
			for {
				if _, err := w.Write(b); err != nil {
					return
				}
			}
		}, "config", "more than the 8388608 bytes that are allowed"},
		{"manifest's size of a layer", func(t *testing.T) *testImage {
			i := second(t)
			i.manifest.Layers[2].Size++
			return i
		}, nil, "", "layer 3 of 5"},
		{"manifest's digest of a layer", func(t *testing.T) *testImage {
			i := second(t)
			i.manifest.Layers[2].Digest = digest.FromString("nothing")
			return i
		}, nil, "", "layer 3 of 5"},
		{"negative size", func(t *testing.T) *testImage {
			i := second(t)
			i.manifest.Layers[2].Size = -1
			return i
		}, nil, "", "layer 3 of the manifest has a size of -1 bytes"},
		{"digest that isn't sha256", func(t *testing.T) *testImage {
			i := second(t)
			i.manifest.Layers[0].Digest = sha512
			return i
		}, nil, "", "only sha256 is supported"},
		{"digest that is a path", func(t *testing.T) *testImage {
			i := second(t)
			i.config.RootFS.DiffIDs[0] = "sha256:../../../../etc/passwd"
			return i
		}, nil, "", "is not a digest"},
		{"wrong diff ID", func(t *testing.T) *testImage {
			i := second(t)
			i.config.RootFS.DiffIDs[1] = digest.FromString("other")
			return i
		}, nil, "", "its content has the diff ID"},
		{"too few diff IDs", func(t *testing.T) *testImage {
			i := second(t)
			i.config.RootFS.DiffIDs = i.config.RootFS.DiffIDs[:4]
			return i
		}, nil, "", "its manifest has 5 layers, its configuration 4"},
		{"no layers", func(t *testing.T) *testImage { return makeImage(t, nil) }, nil, "", "0 layers"},
		{"configuration that is none", func(t *testing.T) *testImage {
			i := second(t)
			i.rawConf = []byte(`{"rootfs": 1}`)
			return i
		}, nil, "", "its configuration can't be read"},
		{"configuration of an artifact", func(t *testing.T) *testImage {
			i := second(t)
			i.manifest.Config.MediaType = "application/vnd.cncf.helm.config.v1+json"
			return i
		}, nil, "", "not a container image: its configuration is of type application/vnd.cncf.helm"},
		{"manifest that is an index too", func(t *testing.T) *testImage {
			i := second(t)
			i.extra = map[string]any{"manifests": []any{}}
			return i
		}, nil, "", "the manifest is an index too"},
		{"image that says it is an index", func(t *testing.T) *testImage {
			i := second(t)
			i.extra = map[string]any{"mediaType": string(types.OCIImageIndex)}
			return i
		}, nil, "", "but it says that it is"},
		{"schema 1", func(t *testing.T) *testImage {
			i := second(t)
			i.extra = map[string]any{"fsLayers": []any{}}
			return i
		}, nil, "", "schema 1"},
		{"encrypted layer", func(t *testing.T) *testImage {
			i := second(t)
			i.manifest.Layers[1].MediaType += "+encrypted"
			return i
		}, nil, "", "layer 2 is of type"},
		{"layer that is no tar", func(t *testing.T) *testImage {
			return makeImage(t, [][]byte{bytes.Repeat([]byte("not a tar "), 200)})
		}, nil, "", "not a tar archive"},
		{"truncated tar", func(t *testing.T) *testImage {
			b := tarOf(t, reg("a", strings.Repeat("x", 5000)))
			return makeImage(t, [][]byte{b[:2000]})
		}, nil, "", "truncated after 2000 bytes"},
		{"truncated gzip", func(t *testing.T) *testImage {
			i := makeImage(t, [][]byte{tarOf(t, reg("a", strings.Repeat("x", 5000)))})
			blob := i.blobs[0][:len(i.blobs[0])-9]
			i.blobs[0] = blob
			i.manifest.Layers[0].Digest, i.manifest.Layers[0].Size = digest.FromBytes(blob), int64(len(blob))
			return i
		}, nil, "", "truncated"},
		{"layers that don't merge", func(t *testing.T) *testImage {
			return makeImage(t, [][]byte{tarOf(t, reg("a", "")), tarOf(t, link("b", "nowhere"))})
		}, nil, "", `its target "nowhere" is neither in the layer nor in those below`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			l := &liar{lie: c.lie}
			host := testRegistry(t, l.handle)
			make := c.image
			if make == nil {
				make = second
			}
			i := make(t)
			i.push(t, host+"/lies:1")
			if c.lie != nil {
				d := i.manifest.Config.Digest
				if l.data, _ = json.Marshal(i.config); c.of == "" {
					d, l.data = i.manifest.Layers[0].Digest, i.blobs[0]
				}
				l.blob.Store(&d)
			}
			s := openStore(t)
			_, err := s.Pull(context.Background(), host+"/lies:1", PullOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, expected one with %q", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), "\n") {
				t.Errorf("the error has more than one line: %v", err)
			}
			if resumable(err) {
				checkPruned(t, s)
			}
			checkEmpty(t, s)
		})
	}
}

// TestPullResumes breaks every connection after some bytes.
func TestPullResumes(t *testing.T) {
	for _, ranges := range []bool{true, false} {
		t.Run(fmt.Sprintf("ranges %v", ranges), func(t *testing.T) {
			tars := someTars(t)
			i := makeImage(t, tars, compressions()[2])
			var requests, good atomic.Int32
			l := &liar{data: i.blobs[0]}
			l.lie = func(w http.ResponseWriter, r *http.Request, b []byte) {
				const part = 100_000
				n := requests.Add(1)
				from := 0
				fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &from)
				if ranges && from > 0 {
					good.Add(1)
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b)-1, len(b)))
					w.Header().Set("Content-Length", strconv.Itoa(len(b)-from))
					w.WriteHeader(http.StatusPartialContent)
				} else {
					from = 0
					w.Header().Set("Content-Length", strconv.Itoa(len(b)))
				}
				to := min(from+part, len(b))
				if !ranges {
					to = min(int(n)*part, len(b))
				}
				w.Write(b[from:to])
				if to < len(b) {
					w.(http.Flusher).Flush()
					panic(http.ErrAbortHandler)
				}
			}
			host := testRegistry(t, l.handle)
			i.push(t, host+"/r:1")
			l.blob.Store(&i.manifest.Layers[0].Digest)
			got := mustPull(t, openStore(t), host+"/r:1", PullOptions{})
			if d := diffSnapshots(imageSnapshot(t, got), stacked(t, tars)); d != "" {
				t.Error(d)
			}
			if requests.Load() < 4 || ranges && good.Load() < 3 {
				t.Errorf("the layer took %d requests, %d of them for a range", requests.Load(), good.Load())
			}
		})
	}
}

func TestPullErrors(t *testing.T) {
	host := testRegistry(t, nil)
	s := openStore(t)
	makeImage(t, someTars(t)).push(t, host+"/there:1")
	cancelled, cancel := context.WithCancel(context.Background())
	cancel()
	cases := []struct {
		name string
		ctx  context.Context
		ref  string
		o    PullOptions
		want string
		is   error
	}{
		{"no such tag", nil, host + "/there:2", PullOptions{}, "fetching its manifest", nil},
		{"no such repository", nil, host + "/absent", PullOptions{}, "fetching its manifest", nil},
		{"no registry", nil, "127.0.0.1:1/x", PullOptions{}, "connecting to the registry 127.0.0.1:1", nil},
		{"no reference", nil, "UPPER CASE", PullOptions{}, "is no image reference", nil},
		{"reserved name", nil, "host", PullOptions{}, "", ErrReserved},
		{"reserved new name", nil, host + "/there:1", PullOptions{As: "host:1"}, "", ErrReserved},
		{"digest as a new name", nil, host + "/there:1", PullOptions{As: "x@sha256:" + strings.Repeat("0", 64)}, "not by digest", nil},
		{"cancelled", cancelled, host + "/there:1", PullOptions{}, "", context.Canceled},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			ctx := c.ctx
			if ctx == nil {
				ctx = context.Background()
			}
			_, err := s.Pull(ctx, c.ref, c.o)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error is %v", err)
			}
			checkEmpty(t, s)
		})
	}
}
