package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"slices"
	"strings"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// manifestTypes returns the media types of what can be pulled.
func manifestTypes() []string {
	return append(indexTypes(), string(types.OCIManifestSchema1), string(types.DockerManifestSchema2))
}

func indexTypes() []string {
	return []string{string(types.OCIImageIndex), string(types.DockerManifestList)}
}

// manifest is a manifest or an index of manifests: exactly one of Layers and Manifests is used.
type manifest struct {
	SchemaVersion int                  `json:"schemaVersion"`
	MediaType     string               `json:"mediaType"`
	Config        *ocispec.Descriptor  `json:"config"`
	Layers        []ocispec.Descriptor `json:"layers"`
	Manifests     []ocispec.Descriptor `json:"manifests"`
	FSLayers      json.RawMessage      `json:"fsLayers"` // of schema 1

	index bool
}

// parseManifest reads a manifest or index that was sent with a Content-Type.
func parseManifest(b []byte, contentType string) (*manifest, error) {
	var m manifest
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, fmt.Errorf("the manifest can't be read: %w", err)
	}
	sent, _, err := mime.ParseMediaType(contentType)
	if err != nil {
		sent = ""
	}
	if m.FSLayers != nil || m.SchemaVersion == 1 {
		return nil, errors.New("the image has a manifest of schema 1, which registries gave up in 2020: push it again with a newer program")
	}
	// Something that is both would be one image for us and another for others: CVE-2021-41190.
	if m.Manifests != nil && (m.Layers != nil || m.Config != nil) {
		return nil, errors.New("the manifest is an index too: that is never right, and it is refused")
	}
	m.index = m.Manifests != nil
	known := slices.Contains(manifestTypes(), sent)
	if m.MediaType != "" && known && m.MediaType != sent {
		return nil, fmt.Errorf("the registry sent the manifest as %s, but it says that it is %s", sent, clip(m.MediaType))
	}
	if known || m.MediaType != "" {
		kind := m.MediaType
		if kind == "" {
			kind = sent
		}
		if !slices.Contains(manifestTypes(), kind) {
			return nil, fmt.Errorf("%w: its manifest is of type %s", ErrNotImage, clip(kind))
		}
		if slices.Contains(indexTypes(), kind) != m.index {
			return nil, fmt.Errorf("the manifest says that it is %s, but it has the content of something else", clip(kind))
		}
		m.MediaType = kind
	}
	if m.MediaType == "" {
		m.MediaType = ocispec.MediaTypeImageManifest
	}
	if m.index {
		return &m, checkDescriptors("manifest", m.Manifests)
	}
	return &m, m.checkImage()
}

// checkImage checks the manifest of one image.
func (m *manifest) checkImage() error {
	if m.Config == nil {
		return fmt.Errorf("%w: its manifest has no configuration", ErrNotImage)
	}
	if err := checkDescriptors("configuration", []ocispec.Descriptor{*m.Config}); err != nil {
		return err
	}
	if t := m.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != string(types.DockerConfigJSON) {
		return fmt.Errorf("%w: its configuration is of type %s", ErrNotImage, clip(t))
	}
	if len(m.Layers) > maxLayers {
		return fmt.Errorf("the image has %d layers, at most %d are possible", len(m.Layers), maxLayers)
	}
	for i, l := range m.Layers {
		if !strings.Contains(l.MediaType, "tar") || strings.HasSuffix(l.MediaType, "+encrypted") {
			return fmt.Errorf("layer %d is of type %s, which unionfs doesn't read", i+1, clip(l.MediaType))
		}
	}
	return checkDescriptors("layer", m.Layers)
}

func checkDescriptors(what string, all []ocispec.Descriptor) error {
	for i, d := range all {
		if err := checkDigest(d.Digest); err != nil {
			return fmt.Errorf("%s %d of the manifest: %w", what, i+1, err)
		}
		if d.Size < 0 || d.Size > maxLayer {
			return fmt.Errorf("%s %d of the manifest has a size of %d bytes", what, i+1, d.Size)
		}
	}
	return nil
}

// choose returns the manifest of an index that is for a platform: the one that says exactly so, else the first whose variant isn't
// one that was asked against. What names no platform is, as for crane, for linux/amd64; alone, it is for any.
func (m *manifest) choose(want ocispec.Platform) (ocispec.Descriptor, error) {
	if len(m.Manifests) == 1 && m.Manifests[0].Platform == nil {
		return m.Manifests[0], nil
	}
	var have []string
	var near, silent []ocispec.Descriptor
	for _, d := range m.Manifests {
		switch {
		case d.Platform == nil:
			silent = append(silent, d)
		case platformMatches(want, *d.Platform):
			if variantOf(want) == variantOf(*d.Platform) {
				return d, nil
			}
			near = append(near, d)
		case d.Platform.OS != "unknown": // BuildKit keeps attestations under that one
			have = append(have, clip(platformString(*d.Platform)))
		}
	}
	if len(near) == 0 && platformMatches(want, ocispec.Platform{OS: "linux", Architecture: "amd64"}) {
		near = silent
	}
	if len(near) > 0 {
		return near[0], nil
	}
	const most = 20
	if len(have) > most {
		have = append(have[:most], "…")
	}
	return ocispec.Descriptor{}, fmt.Errorf("the image is not available for %s, only for %s", platformString(want), strings.Join(have, ", "))
}

// platformMatches reports whether an image for has runs where want is wanted.
func platformMatches(want, has ocispec.Platform) bool {
	return want.OS == has.OS && want.Architecture == has.Architecture &&
		(variantOf(want) == "" || variantOf(want) == variantOf(has))
}

// variantOf is a platform's variant. arm64 has one that goes without saying.
func variantOf(p ocispec.Platform) string {
	if p.Architecture == "arm64" && p.Variant == "v8" {
		return ""
	}
	return p.Variant
}

func platformString(p ocispec.Platform) string {
	s := p.OS + "/" + p.Architecture
	if p.Variant != "" {
		s += "/" + p.Variant
	}
	return s
}

// ParsePlatform reads OS/ARCH[/VARIANT].
func ParsePlatform(s string) (*ocispec.Platform, error) {
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return nil, fmt.Errorf("%q is no platform: write OS/ARCH[/VARIANT], such as linux/arm64", clip(s))
	}
	p := &ocispec.Platform{OS: parts[0], Architecture: parts[1]}
	if len(parts) == 3 {
		p.Variant = parts[2]
	}
	return p, nil
}

// checkBytes checks something small that was fetched by its descriptor.
func checkBytes(b []byte, d ocispec.Descriptor) error {
	if int64(len(b)) != d.Size {
		return &sizeError{want: d.Size, got: int64(len(b))}
	}
	if got := digest.FromBytes(b); got != d.Digest {
		return &digestError{want: d.Digest, got: got}
	}
	return nil
}

// digestError says that a blob has another digest than its descriptor.
type digestError struct{ want, got digest.Digest }

func (e *digestError) Error() string {
	return fmt.Sprintf("the registry sent something with the digest %s, expected %s", e.got, e.want)
}
