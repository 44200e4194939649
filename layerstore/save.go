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
	"slices"
	"strconv"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// SaveFormat is how images are saved. The names are podman's.
type SaveFormat string

// The formats of Save; SaveDir writes only the last.
const (
	SaveDocker SaveFormat = "docker-archive" // what docker save writes; layers are not compressed
	SaveOCI    SaveFormat = "oci-archive"    // an OCI layout as a tar
	SaveOCIDir SaveFormat = "oci-dir"        // an OCI layout
)

// Saved is an image that was saved.
type Saved struct {
	Image  digest.Digest // its ID
	Names  []string      // under which it was saved, as Docker writes them
	Digest digest.Digest // of the manifest that was saved; empty for a docker-archive, which has none
	Same   bool          // that is the manifest which the image has
}

// Save writes images to one archive: the same images give the same bytes. An image that is given by a name is saved under
// that name. In an OCI layout, layers are compressed as the image's manifest says; as compressed blobs are not kept, those of a
// pulled image may get other digests by that, and its manifest with them (see Push). There, Docker's manifests become OCI's.
func (s *Store) Save(ctx context.Context, w io.Writer, refs []string, format SaveFormat) ([]Saved, error) {
	target := &savedTo{w: w}
	out := newTarBundleWriter(target)
	saved, err := s.save(ctx, out, refs, format)
	if err == nil {
		err = out.tw.Close()
	}
	if err != nil && !target.failed { // it may be another disk than the store's
		err = s.explain(err)
	}
	if err != nil {
		return nil, fmt.Errorf("saving images: %w", err)
	}
	return saved, nil
}

// savedTo is where an archive is written to, and remembers whether it could be.
type savedTo struct {
	w      io.Writer
	failed bool
}

func (t *savedTo) Write(p []byte) (int, error) {
	n, err := t.w.Write(p)
	t.failed = t.failed || err != nil
	return n, err
}

// SaveDir writes images to a directory as an OCI layout. The directory must be empty or not be there yet; it is there once it
// is whole.
func (s *Store) SaveDir(ctx context.Context, dir string, refs []string) (saved []Saved, err error) {
	if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
		return nil, fmt.Errorf("saving images: %s is not empty: name a directory that is not there yet", dir)
	}
	out, err := newDirBundleWriter(dir)
	if err == nil {
		if saved, err = s.save(ctx, out, refs, SaveOCIDir); err == nil {
			err = out.publish(dir)
		}
		err = errors.Join(err, out.discard())
	}
	if err != nil {
		return nil, fmt.Errorf("saving images: %w", err)
	}
	return saved, nil
}

// savedImage is an image that is being saved.
type savedImage struct {
	*Image
	names []name.Tag
}

// saver is one Save.
type saver struct {
	s       *Store
	a       *attempt
	out     bundleWriter
	written map[string]bool             // files, which images may share
	made    map[layerRecord]layerRecord // of the layers that were written: what was made of them
}

func (s *Store) save(ctx context.Context, out bundleWriter, refs []string, format SaveFormat) (saved []Saved, err error) {
	images, err := s.imagesToSave(refs)
	if err != nil {
		return nil, err
	}
	for _, i := range images {
		release, err := i.Acquire()
		if err != nil {
			return nil, err
		}
		defer release()
	}
	err = s.attempt(func(a *attempt) error {
		v := &saver{s: s, a: a, out: out, written: make(map[string]bool), made: make(map[layerRecord]layerRecord)}
		switch format {
		case SaveDocker:
			saved, err = v.docker(ctx, images)
		case SaveOCI, SaveOCIDir:
			saved, err = v.layout(ctx, images)
		default:
			err = fmt.Errorf("unknown format %q", clip(string(format)))
		}
		return err
	})
	return saved, err
}

// imagesToSave finds images, each once with all names by which it was asked for.
func (s *Store) imagesToSave(refs []string) ([]savedImage, error) {
	var all []savedImage
	for _, ref := range refs {
		id, found, err := s.find(ref)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", clip(ref), err)
		}
		n := slices.IndexFunc(all, func(i savedImage) bool { return i.id == id })
		if n < 0 {
			i, err := s.load(id)
			if err != nil {
				return nil, fmt.Errorf("image %s: %w", clip(ref), err)
			}
			n, all = len(all), append(all, savedImage{Image: i})
		}
		if tag, ok := found.(name.Tag); ok && !slices.Contains(all[n].names, tag) {
			all[n].names = append(all[n].names, tag)
		}
	}
	return all, nil
}

func (i *savedImage) saved() Saved {
	v := Saved{Image: i.id}
	for _, n := range i.names {
		v.Names = append(v.Names, familiarName(n))
	}
	return v
}

// bytes writes a file, unless another image has it too.
func (v *saver) bytes(name string, b []byte) error {
	if v.written[name] {
		return nil
	}
	v.written[name] = true
	return v.out.file(name, int64(len(b)), strings.NewReader(string(b)))
}

// copy writes a file of the store's, unless another image has it too.
func (v *saver) copy(ctx context.Context, name, path string) error {
	if v.written[name] {
		return nil
	}
	v.written[name] = true
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return v.out.file(name, fi.Size(), &cancelledReader{ctx, f})
}

// docker writes a docker-archive.
func (v *saver) docker(ctx context.Context, images []savedImage) ([]Saved, error) {
	var entries []dockerEntry
	var saved []Saved
	for _, i := range images {
		e := dockerEntry{Config: i.id.Encoded() + ".json", Layers: []string{}}
		one := i.saved()
		e.RepoTags = one.Names
		for _, id := range i.config.RootFS.DiffIDs {
			file := id.Encoded() + ".tar"
			if err := v.copy(ctx, file, v.s.layerPath(id, tarName)); err != nil {
				return nil, err
			}
			e.Layers = append(e.Layers, file)
		}
		if err := v.bytes(e.Config, i.record.Config); err != nil {
			return nil, err
		}
		entries, saved = append(entries, e), append(saved, one)
	}
	b, err := json.Marshal(entries)
	if err != nil {
		return nil, err
	}
	return saved, v.bytes("manifest.json", b)
}

// layout writes an OCI layout.
func (v *saver) layout(ctx context.Context, images []savedImage) ([]Saved, error) {
	mark, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return nil, err
	}
	if err := v.bytes(ocispec.ImageLayoutFile, mark); err != nil {
		return nil, err
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{}}
	var saved []Saved
	for _, i := range images {
		raw, err := v.layoutImage(ctx, i.Image)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", i.id, err)
		}
		one := i.saved()
		one.Digest, one.Same = digest.FromBytes(raw), string(raw) == string(i.record.Manifest)
		saved = append(saved, one)
		platform := i.config.Platform
		d := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: one.Digest, Size: int64(len(raw)), Platform: &platform}
		if len(i.names) == 0 {
			index.Manifests = append(index.Manifests, d)
		}
		for _, n := range i.names {
			full := strings.Replace(n.Name(), name.DefaultRegistry+"/", "docker.io/", 1)
			d.Annotations = map[string]string{annotationRefName: full, annotationContainerdName: full}
			index.Manifests = append(index.Manifests, d)
		}
	}
	b, err := json.Marshal(index)
	if err != nil {
		return nil, err
	}
	return saved, v.bytes(ocispec.ImageIndexFile, b)
}

func layoutBlob(d digest.Digest) string { return "blobs/" + d.Algorithm().String() + "/" + d.Encoded() }

// ociManifest makes an OCI manifest of Docker's: the media types are others, and the digest is.
func ociManifest(r *imageRecord, layers []layerRecord) ([]byte, error) {
	made, err := ociRecord(r.Config, slices.Clone(layers))
	if err != nil {
		return nil, err
	}
	return made.Manifest, nil
}

// layoutImage writes the blobs of one image and returns its manifest. Layers are compressed side by side and written in
// order.
func (v *saver) layoutImage(ctx context.Context, i *Image) ([]byte, error) {
	type made struct {
		layer layerRecord
		path  string
	}
	layers := slices.Clone(i.record.Layers)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0) + 1) // one is writing
	ready := make([]chan made, len(layers))
	for n := range ready {
		ready[n] = make(chan made, 1)
	}
	g.Go(func() error {
		for n := range layers {
			select {
			case m := <-ready[n]:
				layers[n] = m.layer
				if m.path == "" {
					continue
				}
				if err := v.copy(gctx, layoutBlob(m.layer.Digest), m.path); err != nil {
					return err
				}
				if filepath.Dir(m.path) == v.a.dir {
					os.Remove(m.path)
				}
			case <-gctx.Done():
				return gctx.Err()
			}
		}
		return nil
	})
	for n, l := range layers {
		if known, ok := v.made[l]; ok {
			ready[n] <- made{known, ""}
			continue
		}
		g.Go(func() error {
			if l.Local {
				// The manifest names it uncompressed.
				ready[n] <- made{l, v.s.layerPath(l.DiffID, tarName)}
				return nil
			}
			layer, path, err := v.a.blob(gctx, "blob-"+strconv.Itoa(n), l)
			if err == nil {
				ready[n] <- made{layer, path}
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for n, l := range i.record.Layers {
		v.made[l] = layers[n]
	}
	raw := i.record.Manifest
	if i.record.ManifestType != ocispec.MediaTypeImageManifest {
		// As in every program that writes OCI layouts: some of those that read them know no other manifest.
		var err error
		if raw, err = ociManifest(i.record, layers); err != nil {
			return nil, err
		}
	} else if !slices.Equal(layers, i.record.Layers) {
		var err error
		if raw, err = replaceLayers(raw, layers); err != nil {
			return nil, err
		}
	}
	if err := v.bytes(layoutBlob(i.id), i.record.Config); err != nil {
		return nil, err
	}
	return raw, v.bytes(layoutBlob(digest.FromBytes(raw)), raw)
}
