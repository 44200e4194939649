package layerstore

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// VerifyOptions say what Verify does about what it finds. The registry is asked only for layers whose tar is damaged.
type VerifyOptions struct {
	Repair   bool
	Insecure bool           // as for Pull
	Keychain authn.Keychain // as for Pull
}

// Verified is what Verify found.
type Verified struct {
	Images int
	Layers int
	Bytes  int64 // of the layers' tars
	Faults []Fault
}

// Fault is something in the store that is not as it should be.
type Fault struct {
	What     string // "layer sha256:…", "index of layer sha256:…", "merged index of image …", "image …", "name …"
	Problem  error
	Repaired bool
}

// Verify reads everything in the store: the SHA-256 of each layer's tar is compared with its diff ID, each layer's index with
// one that is made again from the tar, and all checksums are checked. With Repair, indexes are written again, damaged layers
// are fetched again from the registry that their image came from, and names that lead nowhere are deleted. The error is one
// of verifying, not a fault.
func (s *Store) Verify(ctx context.Context, o VerifyOptions) (*Verified, error) {
	v := &verification{s: s, o: &o, layers: make(map[digest.Digest][]layerSource)}
	if err := v.run(ctx); err != nil {
		return nil, fmt.Errorf("verifying the image store: %w", s.explain(err))
	}
	slices.SortFunc(v.found.Faults, func(a, b Fault) int { return cmp.Compare(a.What, b.What) })
	return &v.found, nil
}

// verification is one Verify.
type verification struct {
	s      *Store
	o      *VerifyOptions
	refs   []refRecord
	layers map[digest.Digest][]layerSource

	mu    sync.Mutex // guards found while layers are read side by side
	found Verified
}

// layerSource is where a layer may be fetched again.
type layerSource struct {
	repo name.Repository
	layerRecord
}

func (v *verification) fault(problem error, repaired bool, format string, args ...any) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.found.Faults = append(v.found.Faults, Fault{fmt.Sprintf(format, args...), problem, repaired})
}

func (v *verification) run(ctx context.Context) error {
	if err := v.names(); err != nil {
		return err
	}
	entries, err := os.ReadDir(v.s.path(imagesDir))
	if err != nil {
		return err
	}
	var images []*Image
	for _, e := range entries {
		i, release, err := v.image(e.Name())
		if err != nil {
			return err
		}
		if i != nil {
			defer release()
			images = append(images, i)
		}
	}
	v.found.Images = len(images)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for id := range v.layers {
		g.Go(func() error { return v.layer(gctx, id) })
	}
	if err := g.Wait(); err != nil {
		return err
	}
	for _, i := range images {
		v.merged(i)
	}
	return nil
}

// names reads all names.
func (v *verification) names() error {
	entries, err := os.ReadDir(v.s.path(refsDir))
	if err != nil {
		return err
	}
	for _, e := range entries {
		r, err := v.s.readRef(e.Name())
		if err == nil {
			if _, gone := os.Lstat(v.s.path(imagesDir, r.Image.Encoded())); gone != nil {
				err = fmt.Errorf("there is no image %s", r.Image)
			}
		}
		switch {
		case err == nil:
			v.refs = append(v.refs, *r)
		case errors.Is(err, os.ErrNotExist): // removed since
		case !v.o.Repair:
			v.fault(fmt.Errorf("%w; --repair deletes the name", err), false, "name %s", e.Name())
		default:
			problem := fmt.Errorf("%w; the name was deleted, pull or tag the image again", err)
			if err := os.Remove(v.s.path(refsDir, e.Name())); err != nil {
				return err
			}
			v.fault(problem, true, "name %s", e.Name())
		}
	}
	return nil
}

// image reads the record of an image and says which layers it needs. While it is checked, the image is in use. Nil if it
// is gone or damaged.
func (v *verification) image(hex string) (*Image, func(), error) {
	r, c, err := v.s.readRecord(hex)
	if err != nil {
		if _, gone := os.Lstat(v.s.path(imagesDir, hex)); gone != nil {
			return nil, nil, nil
		}
		v.fault(fmt.Errorf("%w; remove the image (unionfs rmi %s) and pull it again", err, hex[:min(12, len(hex))]), false, "image %s", hex)
		return nil, nil, nil
	}
	i := &Image{s: v.s, id: digest.NewDigestFromEncoded(digest.SHA256, hex), record: r, config: c}
	release, err := i.Acquire()
	if errors.Is(err, ErrNotFound) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	for _, l := range r.Layers {
		sources := v.layers[l.DiffID]
		for _, ref := range v.refs {
			if ref.Image != i.id || ref.Digest == "" {
				continue
			}
			if parsed, err := ref.reference(); err == nil {
				sources = append(sources, layerSource{parsed.Context(), l})
			}
		}
		v.layers[l.DiffID] = sources
	}
	return i, release, nil
}

// layer checks one layer, and repairs it.
func (v *verification) layer(ctx context.Context, id digest.Digest) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	w, size, err := v.s.readLayer(ctx, id)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	v.mu.Lock()
	v.found.Layers++
	v.found.Bytes += size
	v.mu.Unlock()
	if err != nil {
		repaired := false
		if v.o.Repair {
			var rerr error
			if repaired, rerr = v.refetch(ctx, id); rerr != nil {
				err = fmt.Errorf("%w; it can't be fetched again: %w", err, rerr)
			}
		}
		if !repaired {
			err = fmt.Errorf("%w; remove its images and pull them again", err)
		}
		v.fault(err, repaired, "layer %s", id)
		return ctx.Err()
	}
	problem := v.s.compareIndex(id, w)
	if problem == nil {
		return nil
	}
	if v.o.Repair {
		if err := v.s.replaceIndex(id, w); err != nil {
			return err
		}
	} else {
		problem = fmt.Errorf("%w; --repair makes it again from the layer's tar", problem)
	}
	v.fault(problem, v.o.Repair, "index of layer %s", id)
	return nil
}

// readLayer reads the tar of a layer that is in the store, checks its digest and makes the index of it.
func (s *Store) readLayer(ctx context.Context, id digest.Digest) (w *indexWriter, size int64, err error) {
	f, err := os.Open(s.layerPath(id, tarName))
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	src := newTarSource(ctx, f, io.Discard)
	tree, err := readTree(src)
	if err == nil {
		err = src.drain()
	}
	if err != nil {
		return nil, src.total, fmt.Errorf("its tar is damaged: %w", err)
	}
	if got := src.digest(); got != id {
		return nil, src.total, fmt.Errorf("its tar is damaged: it has the digest %s", got)
	}
	w, err = tree.index(id, src.total)
	return w, src.total, err
}

// compareIndex says how the index of a layer that is in the store differs from the one that it should be.
func (s *Store) compareIndex(id digest.Digest, want *indexWriter) error {
	ix, err := s.openChecked(s.layerPath(id, indexName), kindLayer, []digest.Digest{id})
	if err != nil {
		return err
	}
	defer ix.close()
	if err := ix.verify(); err != nil {
		return err
	}
	h := want.layout()
	sum := xxhash.New()
	if err := want.sectionsTo(func(b []byte) error { _, err := sum.Write(b); return err }); err != nil {
		return err
	}
	h.sum = sum.Sum64()
	if !bytes.Equal(h.encode(), ix.data[:headerSize]) {
		return ix.damage("it is not the index of its tar")
	}
	return nil
}

// replaceIndex puts the right index in place of that of a layer.
func (s *Store) replaceIndex(id digest.Digest, w *indexWriter) error {
	a, err := s.newAttempt(nil)
	if err != nil {
		return err
	}
	defer a.close()
	if err := w.write(a.path(indexName)); err != nil {
		return err
	}
	return a.publish(indexName, layersDir, id.Encoded(), indexName)
}

// refetch gets a layer again from one of the registries that its images came from.
func (v *verification) refetch(ctx context.Context, id digest.Digest) (bool, error) {
	err := errors.New("no image that was pulled has it")
	for n, from := range v.layers[id] {
		one := v.refetchFrom(ctx, from)
		if one == nil {
			return true, nil
		}
		if n == 0 {
			err = nil
		}
		err = errors.Join(err, one)
	}
	return false, err
}

func (v *verification) refetchFrom(ctx context.Context, from layerSource) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	repo := from.repo
	if isLoopback(repo.RegistryStr()) || v.o.Insecure {
		var err error
		if repo, err = name.NewRepository(repo.Name(), name.Insecure); err != nil {
			return err
		}
	}
	registry, err := openRepository(ctx, repo, access{v.o.Insecure, v.o.Keychain, transport.PullScope})
	if err != nil {
		return err
	}
	a, err := v.s.newAttempt(nil)
	if err != nil {
		return err
	}
	defer a.close()
	dir := a.path("layer")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	blob, err := openBlob(ctx, registry, from.Digest, from.Size)
	if err != nil {
		return err
	}
	check := newVerifier(blob, ocispec.Descriptor{Digest: from.Digest, Size: from.Size}, func(int64) {})
	defer func() {
		cancel()
		check.stop()
		blob.Close()
	}()
	diffID, _, err := ingest(ctx, check, dir)
	if err == nil {
		err = check.finish()
	}
	if err == nil && diffID != from.DiffID {
		err = fmt.Errorf("the registry's layer has the diff ID %s", diffID)
	}
	if err != nil {
		return err
	}
	return a.replaceLayer(dir, from.DiffID)
}

// replaceLayer puts a layer, in a directory of the attempt, in the place of a damaged one.
func (a *attempt) replaceLayer(dir string, id digest.Digest) error {
	l, err := a.s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer l.close()
	// At once where there is one: a mounted image may be reading it.
	err = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, a.s.layerPath(id), unix.RENAME_EXCHANGE)
	if err == nil {
		return syncDir(a.s.path(layersDir))
	}
	if err := os.Rename(a.s.layerPath(id), a.path("broken-"+id.Encoded())); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return a.publish(filepath.Base(dir), layersDir, id.Encoded())
}

// merged checks the merged index of an image. One that is missing is no fault: it is made when it is needed.
func (v *verification) merged(i *Image) {
	diffIDs := i.config.RootFS.DiffIDs
	ix, err := v.s.openChecked(v.s.path(mergedDir, i.ChainID().Encoded()), kindMerged, diffIDs)
	if err == nil {
		err = ix.verify()
		ix.close()
	}
	if err == nil || errors.Is(err, os.ErrNotExist) {
		return
	}
	if !v.o.Repair {
		v.fault(fmt.Errorf("%w; --repair makes it again", err), false, "merged index of image %s", i.id)
		return
	}
	a, aerr := v.s.newAttempt(nil)
	if aerr == nil {
		aerr = v.s.mergeInto(a, diffIDs)
		aerr = errors.Join(aerr, a.close())
	}
	v.fault(errors.Join(err, aerr), aerr == nil, "merged index of image %s", i.id)
}
