package layerstore

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestCopy copies an index of two platforms within a registry and to another one, and one of its images.
func TestCopy(t *testing.T) {
	host := dockerRegistry(t)
	index := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex}
	index.SchemaVersion = 2
	for _, arch := range []string{"amd64", "arm64"} {
		i := makeImage(t, append(someTars(t), tarOf(t, reg("arch", arch))))
		i.config.Platform = ocispec.Platform{OS: "linux", Architecture: arch}
		raw := i.push(t, host+"/multi:"+arch)
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(raw), Size: int64(len(raw)), Platform: &i.config.Platform})
	}
	raw, err := json.Marshal(index)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := parseRemote(host+"/multi:1", false)
	if err != nil {
		t.Fatal(err)
	}
	putManifest(t, parsed, raw, index.MediaType)

	var uploads atomic.Int32
	far := testRegistry(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/blobs/uploads/") {
			uploads.Add(1)
		}
		return false
	})
	arm := &ocispec.Platform{OS: "linux", Architecture: "arm64"}
	for _, c := range []struct {
		from, to string
		platform *ocispec.Platform
		want     digest.Digest
	}{
		{host + "/multi:1", host + "/elsewhere/multi:2", nil, digest.FromBytes(raw)},
		{host + "/multi:1", far + "/multi:1", nil, digest.FromBytes(raw)},
		{host + "/multi@" + string(digest.FromBytes(raw)), far + "/multi:2", nil, digest.FromBytes(raw)},
		{host + "/multi:1", far + "/arm:1", arm, index.Manifests[1].Digest},
	} {
		got, err := Copy(context.Background(), c.from, c.to, CopyOptions{Platform: c.platform})
		if err != nil || got != c.want {
			t.Errorf("copying %s to %s: %s, %v, want %s", c.from, c.to, got, err, c.want)
			continue
		}
		i := mustPull(t, openStore(t), c.to, PullOptions{Platform: arm})
		if i.Config().Architecture != "arm64" {
			t.Errorf("%s is for %s", c.to, i.Config().Architecture)
		}
	}
	before := uploads.Load()
	if _, err := Copy(context.Background(), host+"/multi:1", far+"/multi:3", CopyOptions{}); err != nil || uploads.Load() != before || before == 0 {
		t.Errorf("copying again uploaded %d blobs after %d, %v", uploads.Load()-before, before, err)
	}
	for _, wrong := range [][2]string{{host + "/nowhere:1", far + "/x"}, {host + "/multi:1", "host"}, {"BAD NAME", far + "/x"}} {
		if _, err := Copy(context.Background(), wrong[0], wrong[1], CopyOptions{}); err == nil {
			t.Errorf("copied %s to %s", wrong[0], wrong[1])
		}
	}
}
