package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// imageSource is where the parts of an image come from: a repository of a registry, or an archive. What it hands out is
// not trusted: the fetcher checks it.
type imageSource interface {
	// manifest returns a manifest or an index, and its media type if that is known from elsewhere.
	manifest(ctx context.Context, id string) (raw []byte, mediaType string, err error)
	// config returns a configuration, of at most maxConfig bytes.
	config(ctx context.Context, d ocispec.Descriptor) ([]byte, error)
	// layer opens the blob of the n-th layer. What a source is slow to give it also writes to the download, and begins
	// with what is there of it.
	layer(ctx context.Context, n int, d ocispec.Descriptor, part *download) (io.ReadCloser, error)
}

// LayerProgress is the state of one layer of a pull or load.
type LayerProgress struct {
	Index  int // bottom first, from 0
	Layers int // of the image
	Digest digest.Digest
	Done   int64 // compressed bytes
	Total  int64 // compressed bytes, as the manifest says
	State  LayerState
}

// LayerState is what happens to a layer.
type LayerState string

// The states of a layer, in the order in which they come. A layer that is Present goes through no other, or has been
// Waiting. All that are missing are told as Pending before the first of them is begun.
const (
	LayerPresent     LayerState = "present"
	LayerPending     LayerState = "pending"
	LayerWaiting     LayerState = "waiting" // for another process, which is downloading it
	LayerDownloading LayerState = "downloading"
	LayerVerified    LayerState = "verified"
)

// fetcher brings one image from a source into the store.
type fetcher struct {
	s        *Store
	source   imageSource
	platform *ocispec.Platform   // to choose; nil for this machine's
	jobs     int                 // layers at once; default 3
	observe  func(LayerProgress) // may be nil

	resolved digest.Digest // of what was asked for: a manifest or an index
	raw      []byte        // the manifest of the platform
	manifest *manifest
	config   []byte
	diffIDs  []digest.Digest

	progress sync.Mutex // held while observe is called

	mu        sync.Mutex      // guards what is below
	left      []*download     // locked still, of layers that failed
	published []digest.Digest // layers that this fetch has put into the store
}

// resolve fetches the manifest and the configuration of the image. want, if not empty, is the digest that must be found.
func (f *fetcher) resolve(ctx context.Context, id string, want digest.Digest) error {
	raw, m, err := f.fetchManifest(ctx, id)
	if err != nil {
		return err
	}
	f.resolved = digest.FromBytes(raw)
	if want != "" && want != f.resolved {
		return fmt.Errorf("manifest: %w", &digestError{want: want, got: f.resolved})
	}
	platform := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if f.platform != nil {
		platform = *f.platform
	}
	// An index may name another one, but not without end.
	const depth = 3
	for n := 0; m.index; n++ {
		if n >= depth {
			return errors.New("the image is an index of indexes of indexes")
		}
		d, err := m.choose(platform)
		if err != nil {
			return err
		}
		if raw, m, err = f.fetchManifest(ctx, string(d.Digest)); err != nil {
			return err
		}
		if err := checkBytes(raw, d); err != nil {
			return fmt.Errorf("manifest for %s: %w", platformString(platform), err)
		}
	}
	f.raw, f.manifest = raw, m
	return f.fetchConfig(ctx)
}

func (f *fetcher) fetchManifest(ctx context.Context, id string) ([]byte, *manifest, error) {
	raw, mediaType, err := f.source.manifest(ctx, id)
	if err != nil {
		return nil, nil, fmt.Errorf("fetching its manifest: %w", err)
	}
	m, err := parseManifest(raw, mediaType)
	return raw, m, err
}

func (f *fetcher) fetchConfig(ctx context.Context) error {
	d := *f.manifest.Config
	if d.Size > maxConfig {
		return fmt.Errorf("its configuration has %d bytes, at most %d are allowed", d.Size, maxConfig)
	}
	config, err := f.source.config(ctx, d)
	if err != nil {
		return fmt.Errorf("fetching its configuration: %w", err)
	}
	if err := checkBytes(config, d); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	return f.useConfig(config)
}

// useConfig checks a configuration against the manifest and what was asked for.
func (f *fetcher) useConfig(config []byte) error {
	c, err := parseConfig(config)
	if err != nil {
		return err
	}
	if len(c.RootFS.DiffIDs) != len(f.manifest.Layers) {
		return fmt.Errorf("its manifest has %d layers, its configuration %d", len(f.manifest.Layers), len(c.RootFS.DiffIDs))
	}
	if want := f.platform; want != nil && !platformMatches(*want, c.Platform) {
		return fmt.Errorf("the image is for %s, not for %s", clip(platformString(c.Platform)), platformString(*want))
	}
	f.config, f.diffIDs = config, c.RootFS.DiffIDs
	return nil
}

// record is what is kept of the image.
func (f *fetcher) record() (*imageRecord, error) {
	if f.raw == nil {
		return f.archivedRecord()
	}
	r := &imageRecord{
		Version: recordVersion, Config: f.config, Manifest: f.raw, ManifestType: f.manifest.MediaType,
		Stored: time.Now().UTC(),
	}
	for i, d := range f.manifest.Layers {
		r.Layers = append(r.Layers, layerRecord{DiffID: f.diffIDs[i], Digest: d.Digest, Size: d.Size, MediaType: d.MediaType})
	}
	return r, nil
}

// layers brings the layers that the store hasn't into it, several at once. Until the image is published, the attempt's
// lease keeps them.
func (f *fetcher) layers(ctx context.Context, a *attempt) error {
	// Whatever is here now stays, and whatever isn't is ours to fetch.
	if err := a.lease(append([]digest.Digest{chainID(f.diffIDs)}, f.diffIDs...)...); err != nil {
		return err
	}
	jobs := f.jobs
	if jobs <= 0 {
		jobs = 3
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	seen := make(map[digest.Digest]bool)
	var missing []int
	for i, id := range f.diffIDs {
		switch {
		case seen[id]: // the same layer twice
		case f.s.hasLayer(id):
			f.tell(i, f.manifest.Layers[i].Size, LayerPresent)
		default:
			f.tell(i, 0, LayerPending)
			missing = append(missing, i)
		}
		seen[id] = true
	}
	for _, i := range missing {
		g.Go(func() error {
			if err := f.layer(ctx, i, a); err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(f.diffIDs), f.layerDigest(i), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// store brings the layers into the store, and then makes the image visible by its names.
func (f *fetcher) store(ctx context.Context, names []refRecord) (i *Image, err error) {
	err = f.s.attempt(func(a *attempt) error {
		if err := f.layers(ctx, a); err != nil {
			f.settle(err)
			return err
		}
		record, err := f.record()
		if err == nil {
			i, err = f.s.publishImage(a, newImage{record: record, names: names})
		}
		f.settle(err)
		return err
	})
	if err != nil && len(f.published) > 0 && !resumable(err) {
		f.s.reclaim() // what fails here is tried again by the next command that frees something
	}
	return i, err
}

// settle keeps what has arrived if another try may go on with it, and else deletes it.
func (f *fetcher) settle(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	keep := err == nil || resumable(err)
	for _, part := range f.left {
		if !keep {
			part.remove()
		}
		part.close()
	}
	if !keep {
		f.s.dropKept(f.published)
	}
	for i, id := range f.diffIDs {
		if f.s.hasLayer(id) {
			// Whoever brought it may have died before it tidied up.
			f.s.dropDownload(f.layerDigest(i))
		}
	}
}

// layerDigest names a layer: by its blob, or where that has no digest by its diff ID.
func (f *fetcher) layerDigest(i int) digest.Digest {
	if d := f.manifest.Layers[i].Digest; d != "" {
		return d
	}
	return f.diffIDs[i]
}

// layer brings one layer into the store, or waits until another process has.
func (f *fetcher) layer(ctx context.Context, i int, a *attempt) (err error) {
	if err := ctx.Err(); err != nil {
		return err
	}
	part, err := f.s.openDownload(ctx, f.layerDigest(i), func() { f.tell(i, 0, LayerWaiting) })
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			part.remove()
			part.close()
			return
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		f.left = append(f.left, part)
	}()
	if f.s.hasLayer(f.diffIDs[i]) {
		f.tell(i, f.manifest.Layers[i].Size, LayerPresent)
		return nil
	}
	f.tell(i, 0, LayerDownloading)
	resumed := part.size > 0
	dir, err := f.ingest(ctx, i, a, part)
	if err != nil && resumed && !resumable(err) {
		// What was here of it may be torn: power failed, or another registry sent it.
		if err := part.truncate(); err != nil {
			return err
		}
		dir, err = f.ingest(ctx, i, a, part)
	}
	if err != nil {
		return err
	}
	if err := f.publish(a, dir, f.diffIDs[i]); err != nil {
		return err
	}
	f.tell(i, f.manifest.Layers[i].Size, LayerVerified)
	return nil
}

// publish puts a verified layer into the store before its image is there, and keeps it for a while should it never come.
func (f *fetcher) publish(a *attempt, dir string, id digest.Digest) error {
	l, err := f.s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer l.close()
	if err := f.s.keepLayer(id); err != nil {
		return err
	}
	f.mu.Lock()
	f.published = append(f.published, id)
	f.mu.Unlock()
	return a.publishLayer(dir, id)
}

// ingest reads, checks and indexes one layer into a new directory of the attempt.
func (f *fetcher) ingest(ctx context.Context, i int, a *attempt, part *download) (dir string, err error) {
	dir, err = os.MkdirTemp(a.dir, "layer-"+strconv.Itoa(i)+"-")
	if err != nil {
		return "", err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d := f.manifest.Layers[i]
	blob, err := f.source.layer(ctx, i, d, part)
	if err != nil {
		return "", err
	}
	v := newVerifier(blob, d, func(done int64) { f.tell(i, done, LayerDownloading) })
	// The goroutine of ingest may be reading still: no more after this, and no progress either.
	defer func() {
		cancel()
		v.stop()
		blob.Close()
	}()
	diffID, _, err := ingest(ctx, v, dir)
	var own *storeError
	if cerr := context.Cause(ctx); cerr != nil {
		return "", fmt.Errorf("interrupted: %w", cerr)
	}
	if errors.As(err, &own) {
		return "", err
	}
	// If the blob isn't what was promised, that is the fault to report, whatever it looked like as an archive.
	if verr := v.finish(); verr != nil {
		return "", verr
	}
	if err != nil {
		return "", err
	}
	if diffID != f.diffIDs[i] {
		return "", fmt.Errorf("its content has the diff ID %s, the image's configuration says %s", diffID, f.diffIDs[i])
	}
	return dir, nil
}

func (f *fetcher) tell(i int, done int64, state LayerState) {
	if f.observe == nil {
		return
	}
	f.progress.Lock()
	defer f.progress.Unlock()
	f.observe(LayerProgress{Index: i, Layers: len(f.diffIDs), Digest: f.layerDigest(i), Done: done, Total: f.manifest.Layers[i].Size, State: state})
}
