package layerstore

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// PullOptions change what Pull does. The zero value is what a user expects.
type PullOptions struct {
	Platform *ocispec.Platform // of the image to choose; default: linux and this machine's architecture
	Insecure bool              // allow plain HTTP and certificates that nobody vouches for, with any host
	As       string            // name to keep the image under, instead of the reference
	Jobs     int               // layers at once; default 3
	Keychain authn.Keychain    // default: Docker's config.json and its credential helpers

	// Progress, if set, is told how each layer gets on. Calls come one at a time.
	Progress func(LayerProgress)
}

// LayerProgress is the state of one layer of a pull.
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

// The states of a layer, in the order in which they come. A layer that is Present goes through no other.
const (
	LayerPresent     LayerState = "present"
	LayerDownloading LayerState = "downloading"
	LayerVerified    LayerState = "verified"
)

// Pull fetches an image from a registry. Only layers that the store hasn't are fetched. Nothing is visible before all
// digests, sizes and diff IDs are found right.
func (s *Store) Pull(ctx context.Context, ref string, o PullOptions) (*Image, error) {
	i, err := s.pull(ctx, ref, &o)
	if err != nil {
		return nil, fmt.Errorf("pulling %s: %w", clip(ref), s.explain(err))
	}
	return i, nil
}

// explain says what to do about an error of the store's file system.
func (s *Store) explain(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return fmt.Errorf("the disk of the image store is full: free space on it, or choose another store than %s with --root: %w", s.root, err)
	}
	return err
}

func (s *Store) pull(ctx context.Context, ref string, o *PullOptions) (*Image, error) {
	parsed, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	if isLoopback(parsed.Context().RegistryStr()) || o.Insecure {
		if parsed, err = parseName(ref, name.Insecure); err != nil {
			return nil, err
		}
	}
	as := refRecord{Version: recordVersion, Name: parsed.Name()}
	if o.As != "" {
		if err := CheckName(o.As); err != nil {
			return nil, err
		}
		n, err := parseName(o.As)
		if err != nil {
			return nil, err
		}
		as.Name = n.Name()
	}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	repo, err := openRepository(ctx, parsed.Context(), o)
	if err != nil {
		return nil, err
	}
	p := &puller{s: s, o: o, repo: repo}
	if err := p.resolve(ctx, parsed); err != nil {
		return nil, err
	}
	if o.As == "" {
		as.Digest = p.resolved // of another repository, it would name nothing
	}
	a, err := s.newAttempt(nil)
	if err != nil {
		return nil, err
	}
	defer a.close()
	fresh, err := p.layers(ctx, a)
	if err != nil {
		return nil, err
	}
	return s.publishImage(a, newImage{record: p.record(), fresh: fresh, names: []refRecord{as}})
}

// puller is one pull.
type puller struct {
	s        *Store
	o        *PullOptions
	repo     *repository
	resolved digest.Digest // of what the reference names: a manifest or an index
	raw      []byte        // the manifest of the platform
	manifest *manifest
	config   []byte
	diffIDs  []digest.Digest

	progress sync.Mutex // held while o.Progress is called
}

// resolve fetches the manifest and the configuration of the image.
func (p *puller) resolve(ctx context.Context, ref name.Reference) error {
	raw, m, err := p.fetchManifest(ctx, ref.Identifier())
	if err != nil {
		return err
	}
	p.resolved = digest.FromBytes(raw)
	if d, ok := ref.(name.Digest); ok && d.DigestStr() != string(p.resolved) {
		return fmt.Errorf("manifest: %w", &digestError{want: digest.Digest(d.DigestStr()), got: p.resolved})
	}
	want := ocispec.Platform{OS: "linux", Architecture: runtime.GOARCH}
	if p.o.Platform != nil {
		want = *p.o.Platform
	}
	// An index may name another one, but not without end.
	const depth = 3
	for n := 0; m.index; n++ {
		if n >= depth {
			return errors.New("the image is an index of indexes of indexes")
		}
		d, err := m.choose(want)
		if err != nil {
			return err
		}
		if raw, m, err = p.fetchManifest(ctx, string(d.Digest)); err != nil {
			return err
		}
		if err := checkBytes(raw, d); err != nil {
			return fmt.Errorf("manifest for %s: %w", platformString(want), err)
		}
	}
	p.raw, p.manifest = raw, m
	return p.fetchConfig(ctx)
}

func (p *puller) fetchManifest(ctx context.Context, id string) ([]byte, *manifest, error) {
	resp, err := p.repo.get(ctx, "manifests", id, manifestTypes(), 0)
	if err != nil {
		return nil, nil, fmt.Errorf("fetching its manifest: %w", err)
	}
	raw, err := small(resp, maxManifest)
	if err != nil {
		return nil, nil, fmt.Errorf("fetching its manifest: %w", err)
	}
	// What the registry says the digest is, it must be: other programs go by it.
	if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); checkDigest(d) == nil && d != digest.FromBytes(raw) {
		return nil, nil, fmt.Errorf("manifest: %w", &digestError{want: d, got: digest.FromBytes(raw)})
	}
	m, err := parseManifest(raw, resp.Header.Get("Content-Type"))
	return raw, m, err
}

func (p *puller) fetchConfig(ctx context.Context) error {
	d := *p.manifest.Config
	if d.Size > maxConfig {
		return fmt.Errorf("its configuration has %d bytes, at most %d are allowed", d.Size, maxConfig)
	}
	resp, err := p.repo.get(ctx, "blobs", string(d.Digest), nil, 0)
	if err != nil {
		return fmt.Errorf("fetching its configuration: %w", err)
	}
	if p.config, err = small(resp, maxConfig); err != nil {
		return fmt.Errorf("fetching its configuration: %w", err)
	}
	if err := checkBytes(p.config, d); err != nil {
		return fmt.Errorf("configuration: %w", err)
	}
	c, err := parseConfig(p.config)
	if err != nil {
		return err
	}
	if len(c.RootFS.DiffIDs) != len(p.manifest.Layers) {
		return fmt.Errorf("its manifest has %d layers, its configuration %d", len(p.manifest.Layers), len(c.RootFS.DiffIDs))
	}
	if want := p.o.Platform; want != nil && !platformMatches(*want, c.Platform) {
		return fmt.Errorf("the image is for %s, not for %s", clip(platformString(c.Platform)), platformString(*want))
	}
	p.diffIDs = c.RootFS.DiffIDs
	return nil
}

// record is what is kept of the image.
func (p *puller) record() *imageRecord {
	r := &imageRecord{
		Version: recordVersion, Config: p.config, Manifest: p.raw, ManifestType: p.manifest.MediaType,
		Stored: time.Now().UTC(),
	}
	for i, d := range p.manifest.Layers {
		r.Layers = append(r.Layers, layerRecord{DiffID: p.diffIDs[i], Digest: d.Digest, Size: d.Size, MediaType: d.MediaType})
	}
	return r
}

// layers fetches the layers that the store hasn't into the attempt, several at once, and returns their directories.
func (p *puller) layers(ctx context.Context, a *attempt) (map[digest.Digest]string, error) {
	// Whatever is here now stays, and whatever isn't is ours to fetch.
	if err := a.lease(append([]digest.Digest{chainID(p.diffIDs)}, p.diffIDs...)...); err != nil {
		return nil, err
	}
	jobs := p.o.Jobs
	if jobs <= 0 {
		jobs = 3
	}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	fresh := make(map[digest.Digest]string)
	for i, id := range p.diffIDs {
		if fresh[id] != "" {
			continue
		}
		if p.s.hasLayer(id) {
			p.tell(i, p.manifest.Layers[i].Size, LayerPresent)
			continue
		}
		dir := a.path("layer-" + strconv.Itoa(i))
		fresh[id] = dir
		g.Go(func() error {
			if err := p.layer(ctx, i, dir); err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", i+1, len(p.diffIDs), p.manifest.Layers[i].Digest, err)
			}
			return nil
		})
	}
	return fresh, g.Wait()
}

// layer fetches, checks and indexes one layer.
func (p *puller) layer(ctx context.Context, i int, dir string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	d := p.manifest.Layers[i]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	blob, err := openBlob(ctx, p.repo, d.Digest, d.Size)
	if err != nil {
		return err
	}
	p.tell(i, 0, LayerDownloading)
	v := newVerifier(blob, d, func(done int64) { p.tell(i, done, LayerDownloading) })
	// The goroutine of ingest may be reading still: no more after this, and no progress either.
	defer func() {
		cancel()
		v.stop()
		blob.Close()
	}()
	diffID, _, err := ingest(ctx, v, dir)
	var own *storeError
	if errors.As(err, &own) || ctx.Err() != nil {
		return err
	}
	// If the blob isn't what was promised, that is the fault to report, whatever it looked like as an archive.
	if verr := v.finish(); verr != nil {
		return verr
	}
	if err != nil {
		return err
	}
	if diffID != p.diffIDs[i] {
		return fmt.Errorf("its content has the diff ID %s, the image's configuration says %s", diffID, p.diffIDs[i])
	}
	p.tell(i, d.Size, LayerVerified)
	return nil
}

func (p *puller) tell(i int, done int64, state LayerState) {
	if p.o.Progress == nil {
		return
	}
	p.progress.Lock()
	defer p.progress.Unlock()
	d := p.manifest.Layers[i]
	p.o.Progress(LayerProgress{Index: i, Layers: len(p.diffIDs), Digest: d.Digest, Done: done, Total: d.Size, State: state})
}
