package layerstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// dockerEntry is an image in the manifest.json of a docker-archive ("Combined Image JSON + Filesystem Changeset Format" in
// Docker's image specification 1.2).
type dockerEntry struct {
	Config   string   // name of a file
	RepoTags []string `json:",omitempty"`
	Layers   []string // names of files, bottom first
}

// dockerArchiveImage is an image of a docker-archive. It has no manifest; its layers are known by their diff IDs.
type dockerArchiveImage struct {
	b     bundle
	entry dockerEntry
}

var _ imageSource = (*dockerArchiveImage)(nil)

// readDockerArchive reads the manifest.json of a docker-archive.
func readDockerArchive(b bundle, raw []byte) ([]bundledImage, error) {
	var entries []dockerEntry
	if err := json.Unmarshal(raw, &entries); err != nil {
		return nil, fmt.Errorf("its manifest.json can't be read: %w", err)
	}
	var all []bundledImage
	for _, e := range entries {
		for n := range e.Layers {
			p, err := cleanPath(e.Layers[n])
			if err != nil {
				return nil, fmt.Errorf("layer %q in manifest.json: %w", clip(e.Layers[n]), err)
			}
			e.Layers[n] = p
		}
		p, err := cleanPath(e.Config)
		if err != nil {
			return nil, fmt.Errorf("configuration %q in manifest.json: %w", clip(e.Config), err)
		}
		e.Config = p
		i := &dockerArchiveImage{b, e}
		all = append(all, bundledImage{names: e.RepoTags, source: i, docker: i})
	}
	return all, nil
}

// manifest implements imageSource.
func (i *dockerArchiveImage) manifest(context.Context, string) ([]byte, string, error) {
	return nil, "", errors.New("a docker-archive has no manifests")
}

// config implements imageSource.
func (i *dockerArchiveImage) config(context.Context, ocispec.Descriptor) ([]byte, error) {
	return readBundle(i.b, i.entry.Config, maxConfig)
}

// layer implements imageSource.
func (i *dockerArchiveImage) layer(_ context.Context, n int, _ ocispec.Descriptor, _ *download) (io.ReadCloser, error) {
	r, _, err := i.b.open(i.entry.Layers[n])
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is not in the archive", clip(i.entry.Layers[n]))
	}
	return r, err
}

// storeDocker stores an image of a docker-archive. Its manifest is made here, as for an image that was imported.
func (f *fetcher) storeDocker(ctx context.Context, i *dockerArchiveImage, names []refRecord) (*Image, error) {
	config, err := i.config(ctx, ocispec.Descriptor{})
	if err != nil {
		return nil, fmt.Errorf("its configuration: %w", err)
	}
	if len(i.entry.Layers) > maxLayers {
		return nil, fmt.Errorf("the image has %d layers, at most %d are possible", len(i.entry.Layers), maxLayers)
	}
	f.manifest = &manifest{}
	for _, l := range i.entry.Layers {
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer}
		// A layer that the store has need not be there.
		if r, size, err := i.b.open(l); err == nil {
			r.Close()
			d.Size = size
		}
		f.manifest.Layers = append(f.manifest.Layers, d)
	}
	if err := f.useConfig(config); err != nil {
		return nil, err
	}
	return f.store(ctx, names)
}

// archivedRecord is the record of an image whose layers are in the store and that came without a manifest.
func (f *fetcher) archivedRecord() (*imageRecord, error) {
	var layers []layerRecord
	for _, id := range f.diffIDs {
		fi, err := os.Stat(f.s.layerPath(id, tarName))
		if err != nil {
			return nil, err
		}
		layers = append(layers, layerRecord{DiffID: id, Digest: digest.Digest(id), Size: fi.Size(), MediaType: ocispec.MediaTypeImageLayer, Local: true})
	}
	return ociRecord(f.config, layers)
}
