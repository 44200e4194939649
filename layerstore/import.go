package layerstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// ImportOptions say what an imported archive can't.
type ImportOptions struct {
	Config   ocispec.ImageConfig // Cmd, Entrypoint, Env, WorkingDir, User, …
	Platform *ocispec.Platform   // default: that of this machine
	Message  string              // comment in the image's history
	Created  time.Time           // default: now; set it for an image ID that can be reproduced
}

// Import makes an image of one layer of a root file system's tar, which may be compressed with gzip, zstd or bzip2, and
// gives it a name. An image that has the name loses it.
func (s *Store) Import(ctx context.Context, r io.Reader, ref string, o ImportOptions) (*Image, error) {
	i, err := s.importTar(ctx, r, ref, o)
	if err != nil {
		return nil, fmt.Errorf("importing %s: %w", clip(ref), s.explain(err))
	}
	return i, nil
}

func (s *Store) importTar(ctx context.Context, r io.Reader, ref string, o ImportOptions) (*Image, error) {
	if err := CheckName(ref); err != nil {
		return nil, err
	}
	parsed, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	return s.makeImage(ctx, r, []refRecord{{Version: recordVersion, Name: parsed.Name()}}, func(diffID digest.Digest, size int64) (*imageRecord, error) {
		return importedRecord(diffID, size, o)
	})
}

// makeImage makes an image with a layer that is read from r, which record then describes, and names it.
func (s *Store) makeImage(ctx context.Context, r io.Reader, names []refRecord, record func(diffID digest.Digest, size int64) (*imageRecord, error)) (i *Image, err error) {
	err = s.attempt(func(a *attempt) error {
		dir := a.path("layer")
		if err := os.Mkdir(dir, 0o700); err != nil {
			return err
		}
		diffID, size, err := ingest(ctx, r, dir)
		if err != nil {
			return err
		}
		made, err := record(diffID, size)
		if err != nil {
			return err
		}
		i, err = s.publishImage(a, newImage{record: made, fresh: map[digest.Digest]string{diffID: dir}, names: names})
		return err
	})
	return i, err
}

// importedRecord makes the configuration and manifest of an imported layer. The manifest names the layer uncompressed.
func importedRecord(diffID digest.Digest, size int64, o ImportOptions) (*imageRecord, error) {
	created := o.Created
	if created.IsZero() {
		created = time.Now()
	}
	created = created.UTC()
	platform := ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"}
	if o.Platform != nil {
		platform = *o.Platform
	}
	message := o.Message
	if message == "" {
		message = "imported by unionfs"
	}
	config, err := json.Marshal(ocispec.Image{
		Created:  &created,
		Platform: platform,
		Config:   o.Config,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{diffID}},
		History:  []ocispec.History{{Created: &created, Comment: message}},
	})
	if err != nil {
		return nil, err
	}
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: diffID, Size: size}
	manifest, err := json.Marshal(ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2},
		MediaType: ocispec.MediaTypeImageManifest,
		Config:    ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: digest.FromBytes(config), Size: int64(len(config))},
		Layers:    []ocispec.Descriptor{layer},
	})
	if err != nil {
		return nil, err
	}
	return &imageRecord{
		Version:      recordVersion,
		Config:       config,
		Manifest:     manifest,
		ManifestType: ocispec.MediaTypeImageManifest,
		Layers:       []layerRecord{{DiffID: diffID, Digest: diffID, Size: size, MediaType: layer.MediaType, Local: true}},
		Stored:       created,
	}, nil
}

// newImage is an image that is about to become visible.
type newImage struct {
	record *imageRecord
	fresh  map[digest.Digest]string // directories, in the attempt, of the layers that may not be in the store yet
	names  []refRecord              // to point at it; Image is filled in
}

// publishImage makes an image of verified layers visible, last of all by its names.
func (s *Store) publishImage(a *attempt, n newImage) (*Image, error) {
	config, err := parseConfig(n.record.Config)
	if err != nil {
		return nil, err
	}
	id := digest.FromBytes(n.record.Config)
	diffIDs := config.RootFS.DiffIDs
	// From here on, nobody collects what the image needs.
	if err := a.lease(append([]digest.Digest{chainID(diffIDs)}, diffIDs...)...); err != nil {
		return nil, err
	}
	// Merging finds the last faults of a layer, so it comes before anything of the image is visible.
	merged := true
	if ix, err := s.openChecked(s.path(mergedDir, chainID(diffIDs).Encoded()), kindMerged, diffIDs); err == nil {
		ix.close()
		merged = false
	}
	var w *indexWriter
	if merged {
		if w, err = s.mergeStack(diffIDs, n.fresh); err != nil {
			return nil, err
		}
		if err := w.write(a.path(mergedDir)); err != nil {
			return nil, err
		}
	}
	l, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer l.close()
	for d, dir := range n.fresh {
		if err := a.publishLayer(dir, d); err != nil {
			return nil, err
		}
	}
	if merged {
		if err := a.publish(mergedDir, mergedDir, chainID(diffIDs).Encoded()); err != nil {
			return nil, err
		}
	}
	if _, err := os.Lstat(s.path(imagesDir, id.Encoded())); err != nil {
		if err := a.write(pendingName, []byte(id)); err != nil {
			return nil, err
		}
	}
	if err := a.publishJSON(n.record, imagesDir, id.Encoded()); err != nil {
		return nil, err
	}
	if err := s.unmark(id); err != nil {
		return nil, err
	}
	for _, r := range n.names {
		r.Image = id
		parsed, err := r.reference()
		if err != nil {
			return nil, err
		}
		if err := a.publishJSON(r, refsDir, refFile(parsed)); err != nil {
			return nil, err
		}
	}
	s.dropKept(diffIDs) // the image keeps them now
	return &Image{s: s, id: id, record: n.record, config: config}, nil
}

// publishLayer puts a whole layer, in a directory of the attempt, into the store. The caller holds the store's lock.
func (a *attempt) publishLayer(dir string, id digest.Digest) error {
	// A directory without a tar is in the way: something else than this program was at it.
	if !a.s.hasLayer(id) {
		if err := os.Rename(a.s.layerPath(id), a.path("broken-"+id.Encoded())); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return a.publish(filepath.Base(dir), layersDir, id.Encoded())
}
