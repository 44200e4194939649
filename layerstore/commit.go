package layerstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CommitOptions say what a layer can't.
type CommitOptions struct {
	Changes   []string  // instructions of a Dockerfile that change the configuration: "CMD /bin/sh", "ENV A=b", …; see ConfigChange
	Author    string    // default: that of the image below
	Message   string    // comment in the image's history
	CreatedBy string    // command that made the layer, in the image's history
	Created   time.Time // default: now; set it for an image ID that can be reproduced
}

// Commit makes an image of another one, with one more layer on top that is read from r, and gives it a name unless ref is
// empty. Of the configuration all is kept that isn't changed, also what this program doesn't know.
func (s *Store) Commit(ctx context.Context, base *Image, r io.Reader, ref string, o CommitOptions) (*Image, error) {
	i, err := s.commit(ctx, base, r, ref, &o)
	if err != nil {
		return nil, fmt.Errorf("committing a layer on image %s: %w", base.id, s.explain(err))
	}
	return i, nil
}

func (s *Store) commit(ctx context.Context, base *Image, r io.Reader, ref string, o *CommitOptions) (*Image, error) {
	names, err := localNames(ref)
	if err != nil {
		return nil, err
	}
	// The layers below must stay until the new image needs them.
	release, err := base.Acquire()
	if err != nil {
		return nil, err
	}
	defer release()
	return s.makeImage(ctx, r, names, func(diffID digest.Digest, size int64) (*imageRecord, error) {
		return committedRecord(base, diffID, size, o)
	})
}

// localNames is the name of an image that is made here; none for an empty one.
func localNames(ref string) ([]refRecord, error) {
	if ref == "" {
		return nil, nil
	}
	if err := CheckName(ref); err != nil {
		return nil, err
	}
	parsed, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	return []refRecord{{Version: recordVersion, Name: parsed.Name()}}, nil
}

// committedRecord makes the configuration and manifest of an image with one more layer, which the manifest names
// uncompressed.
func committedRecord(base *Image, diffID digest.Digest, size int64, o *CommitOptions) (*imageRecord, error) {
	config, err := committedConfig(base, diffID, o)
	if err != nil {
		return nil, err
	}
	if _, err := parseConfig(config); err != nil {
		return nil, err
	}
	layers := append(slices.Clone(base.record.Layers), layerRecord{DiffID: diffID, Digest: diffID, Size: size, MediaType: ocispec.MediaTypeImageLayer, Local: true})
	r, err := ociRecord(config, layers)
	if err != nil {
		return nil, err
	}
	return r, nil
}

// ociRecord makes the record of an image that was made here, with an OCI manifest.
func ociRecord(config []byte, layers []layerRecord) (*imageRecord, error) {
	m := ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
	}
	for n := range layers {
		layers[n].MediaType = ociLayerType(layers[n].MediaType)
		m.Layers = append(m.Layers, ocispec.Descriptor{MediaType: layers[n].MediaType, Digest: layers[n].Digest, Size: layers[n].Size})
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &imageRecord{
		Version: recordVersion, Config: config, Manifest: raw, ManifestType: m.MediaType, Layers: layers, Stored: time.Now().UTC(),
	}, nil
}

// ociLayerType is the OCI media type for one of Docker's: a manifest has either the one kind or the other.
func ociLayerType(mt string) string {
	switch {
	case strings.HasSuffix(mt, "gzip"):
		return ocispec.MediaTypeImageLayerGzip
	case strings.HasSuffix(mt, "zstd"):
		return ocispec.MediaTypeImageLayerZstd
	case mt == string(types.DockerUncompressedLayer):
		return ocispec.MediaTypeImageLayer
	}
	return mt
}

// committedConfig extends the configuration of an image. It is changed as JSON, so that what ocispec.Image doesn't have
// stays.
func committedConfig(base *Image, diffID digest.Digest, o *CommitOptions) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(base.record.Config, &all); err != nil {
		return nil, err
	}
	created := o.Created
	if created.IsZero() {
		created = time.Now()
	}
	created = created.UTC()
	author := o.Author
	if author == "" {
		author = base.config.Author
	}
	history := slices.Clone(base.config.History)
	history = append(history, ocispec.History{Created: &created, CreatedBy: o.CreatedBy, Author: o.Author, Comment: o.Message})
	container := map[string]json.RawMessage{}
	if raw := all["config"]; len(raw) > 0 && string(raw) != "null" {
		if err := json.Unmarshal(raw, &container); err != nil {
			return nil, fmt.Errorf("the image's configuration can't be read: %w", err)
		}
	}
	for _, change := range o.Changes {
		if err := changeConfig(container, change); err != nil {
			return nil, err
		}
	}
	var errs []error
	set := func(key string, v any) {
		b, err := json.Marshal(v)
		errs = append(errs, err)
		all[key] = b
	}
	set("created", created)
	set("config", container)
	set("rootfs", ocispec.RootFS{Type: "layers", DiffIDs: append(slices.Clone(base.config.RootFS.DiffIDs), diffID)})
	set("history", history)
	if author != "" {
		set("author", author)
	}
	// What Docker's classic builder said of its container for the last layer.
	for _, key := range []string{"container", "container_config", "docker_version", "comment"} {
		delete(all, key)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}
