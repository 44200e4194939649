package layerstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"runtime"
	"sync"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Annotations by which an index.json names its images. containerd's is always a full name.
const (
	annotationRefName        = ocispec.AnnotationRefName
	annotationContainerdName = "io.containerd.image.name"
)

// layoutSource is the blobs of an OCI layout, or of another bundle with a file for each digest.
type layoutSource struct {
	b         bundle
	blob      func(d digest.Digest) string // name of a file
	manifests map[digest.Digest][]byte     // that are elsewhere
}

// manifest implements imageSource.
func (l *layoutSource) manifest(_ context.Context, id string) ([]byte, string, error) {
	d := digest.Digest(id)
	if err := checkDigest(d); err != nil {
		return nil, "", err
	}
	if raw, ok := l.manifests[d]; ok {
		return raw, "", nil
	}
	raw, err := readBundle(l.b, l.blob(d), maxManifest)
	return raw, "", err
}

// config implements imageSource.
func (l *layoutSource) config(_ context.Context, d ocispec.Descriptor) ([]byte, error) {
	return readBundle(l.b, l.blob(d.Digest), maxConfig)
}

// layer implements imageSource.
func (l *layoutSource) layer(_ context.Context, _ int, d ocispec.Descriptor, _ *download) (io.ReadCloser, error) {
	r, size, err := l.b.open(l.blob(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("the layer is not in it")
	}
	if err == nil && size != d.Size {
		r.Close()
		return nil, &sizeError{want: d.Size, got: size}
	}
	return r, err
}

// readLayout reads the index of an OCI layout. The error is fs.ErrNotExist if it is none.
func readLayout(b bundle, o *LoadOptions) ([]bundledImage, error) {
	if _, err := readBundle(b, ocispec.ImageLayoutFile, maxManifest); err != nil {
		return nil, err
	}
	raw, err := readBundle(b, ocispec.ImageIndexFile, maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("the OCI layout is not whole: it has no index.json")
	}
	if err != nil {
		return nil, err
	}
	m, err := parseManifest(raw, ocispec.MediaTypeImageIndex)
	if err != nil {
		return nil, fmt.Errorf("index.json: %w", err)
	}
	source := &layoutSource{b: b, blob: func(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }}
	tags, err := dockerTags(b)
	if err != nil {
		return nil, err
	}
	// Under one name there may be an image for each platform, side by side.
	var order []string
	groups := make(map[string][]ocispec.Descriptor)
	for _, d := range m.Manifests {
		key := d.Annotations[annotationContainerdName]
		if key == "" {
			key = d.Annotations[annotationRefName]
		}
		if key == "" && d.Platform == nil {
			key = "@" + string(d.Digest) // one of its own
		}
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], d)
	}
	want := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if o.Platform != nil {
		want = *o.Platform
	}
	byDigest := make(map[digest.Digest]int)
	var all []bundledImage
	for _, key := range order {
		chosen := groups[key][len(groups[key])-1] // the last of a name wins, as skopeo and umoci leave old ones
		if len(groups[key]) > 1 && groups[key][0].Platform != nil {
			if chosen, err = (&manifest{Manifests: groups[key]}).choose(want); err != nil {
				return nil, err
			}
		}
		n, ok := byDigest[chosen.Digest]
		if !ok {
			n = len(all)
			byDigest[chosen.Digest] = n
			all = append(all, bundledImage{source: source, id: chosen.Digest})
		}
		if key != "" && key[0] != '@' {
			all[n].names = append(all[n].names, key)
		}
	}
	for n := range all {
		if len(all[n].names) == 0 {
			all[n].names = tags[configOf(source, all[n].id)]
		}
	}
	return all, nil
}

// configOf is the digest of the configuration of a manifest; empty if it is none.
func configOf(source *layoutSource, id digest.Digest) digest.Digest {
	raw, _, err := source.manifest(context.Background(), string(id))
	if err != nil {
		return ""
	}
	var m ocispec.Manifest
	if json.Unmarshal(raw, &m) != nil {
		return ""
	}
	return m.Config.Digest
}

// dockerTags returns the names that a manifest.json beside the layout gives to images, by their configurations: what podman
// and Docker write is sometimes both.
func dockerTags(b bundle) (map[digest.Digest][]string, error) {
	raw, err := readBundle(b, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []dockerEntry
	if json.Unmarshal(raw, &all) != nil {
		return nil, nil // something else of that name
	}
	tags := make(map[digest.Digest][]string)
	for _, e := range all {
		config, err := readBundle(b, e.Config, maxConfig)
		if err == nil {
			tags[digest.FromBytes(config)] = e.RepoTags
		}
	}
	return tags, nil
}

func looksLikeObject(raw []byte) bool { return bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) }

// bareTag is a tag by itself, as umoci names its images, and with which a repository goes.
// It is compiled when it is first asked for: a program starts without it.
var bareTag = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}$`) })

// bundledName reads the name of an image in a bundle, to which base is the repository if it is only a tag.
func bundledName(n, base string) (name.Reference, error) {
	if base != "" && bareTag().MatchString(n) {
		repo, err := parseName(base)
		if err != nil {
			return nil, err
		}
		n = repo.Context().Name() + ":" + n
	}
	if err := CheckName(n); err != nil {
		return nil, err
	}
	return parseName(n)
}
