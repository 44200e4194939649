package layerstore

import (
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// TestChoose chooses from indexes as crane and Docker do.
func TestChoose(t *testing.T) {
	for _, c := range []struct{ have, want, chosen string }{
		{"linux/amd64 linux/arm64/v8", "linux/arm64", "linux/arm64/v8"},
		{"linux/arm64 linux/amd64", "linux/arm64/v8", "linux/arm64"},
		{"linux/amd64/v3 linux/amd64", "linux/amd64", "linux/amd64"},
		{"linux/amd64/v3 linux/arm64", "linux/amd64", "linux/amd64/v3"},
		{"linux/arm/v6 linux/arm/v7", "linux/arm/v7", "linux/arm/v7"},
		{"linux/arm/v6 linux/arm/v7", "linux/arm", "linux/arm/v6"},
		{"linux/arm/v6", "linux/arm/v7", ""},
		{"windows/amd64 unknown/unknown linux/amd64", "linux/amd64", "linux/amd64"},
		{"-", "linux/riscv64", "-"}, // one image that says nothing
		{"- linux/arm64", "linux/amd64", "-"},
		{"- linux/amd64", "linux/amd64", "linux/amd64"},
		{"- linux/arm64", "linux/riscv64", ""},
	} {
		var m manifest
		digests := map[digest.Digest]string{}
		for text := range strings.FieldsSeq(c.have) {
			d := ocispec.Descriptor{Digest: digest.FromString(text)}
			if text != "-" {
				var err error
				if d.Platform, err = ParsePlatform(text); err != nil {
					t.Fatal(err)
				}
			}
			digests[d.Digest] = text
			m.Manifests = append(m.Manifests, d)
		}
		want, err := ParsePlatform(c.want)
		if err != nil {
			t.Fatal(err)
		}
		d, err := m.choose(*want)
		if got := digests[d.Digest]; got != c.chosen || (err == nil) != (c.chosen != "") {
			t.Errorf("of %s for %s: %q (%v), expected %q", c.have, c.want, got, err, c.chosen)
		}
	}
}
