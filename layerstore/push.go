package layerstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// PushOptions change what Push does. The zero value is what a user expects.
type PushOptions struct {
	Insecure bool           // as for Pull
	Keychain authn.Keychain // as for Pull
	Jobs     int            // layers at once; default 3

	// Progress, if set, is told what became of each layer. Calls come one at a time.
	Progress func(PushedLayer)
}

// PushedLayer is what became of a layer.
type PushedLayer struct {
	Index  int           // bottom first, from 0
	Layers int           // of the image
	Digest digest.Digest // of the blob in the registry
	State  PushState
}

// PushState says how a layer got into a repository.
type PushState string

// The states of a layer that was pushed.
const (
	PushExists  PushState = "exists"
	PushMounted PushState = "mounted" // from another repository of the registry
	PushSent    PushState = "pushed"
	PushForeign PushState = "foreign" // not distributable: it stays where it is
)

// Pushed says what Push did.
type Pushed struct {
	Digest digest.Digest // of the manifest in the registry
	Size   int64         // of the manifest, bytes
	Same   bool          // the manifest is the one that the image has
}

// Push sends an image to a registry, under the name by which it is found or, if as isn't empty, another. The registry gets
// the manifest that the image has, byte for byte, if it has the layers' blobs or they can be made with the same digests.
// Compressed blobs are not kept, so a layer that a registry lacks is compressed anew; if that gives another digest, the
// manifest that is sent names that, and Same is false. An image that was made here takes over the manifest of its first push.
func (s *Store) Push(ctx context.Context, ref, as string, o PushOptions) (*Pushed, error) {
	if as == "" {
		as = ref
	}
	p, err := s.push(ctx, ref, as, &o)
	if err != nil {
		return nil, fmt.Errorf("pushing %s: %w", clip(as), s.explain(err))
	}
	return p, nil
}

// pusher is one Push.
type pusher struct {
	s      *Store
	o      *PushOptions
	a      *attempt
	image  *Image
	target name.Reference
	from   map[digest.Digest][]name.Repository // by blob: repositories of the same registry that should have it
	repo   *repository
	pusher *remote.Pusher // for mounts, which need another repository's scope, and the manifest

	progress sync.Mutex // held while o.Progress is called
}

func (s *Store) push(ctx context.Context, ref, as string, o *PushOptions) (*Pushed, error) {
	target, err := parseRemote(as, o.Insecure)
	if err != nil {
		return nil, err
	}
	image, err := s.Image(ref)
	if err != nil {
		return nil, err
	}
	release, err := image.Acquire()
	if err != nil {
		return nil, err
	}
	defer release()
	var pushed *Pushed
	err = s.attempt(func(a *attempt) error {
		p := &pusher{s: s, o: o, a: a, image: image, target: target}
		if err := p.connect(ctx); err != nil {
			return err
		}
		if p.from, err = s.blobSources(target.Context()); err != nil {
			return err
		}
		if pushed, err = p.run(ctx); err != nil {
			return err
		}
		return p.remember(pushed)
	})
	return pushed, err
}

func (p *pusher) connect(ctx context.Context) (err error) {
	if p.pusher, err = remote.NewPusher(remoteOptions(ctx, p.o.Insecure, p.o.Keychain)...); err != nil {
		return err
	}
	p.repo, err = openRepository(ctx, p.target.Context(), access{p.o.Insecure, p.o.Keychain, transport.PushScope})
	return err
}

// blobSources says which repositories of a registry should have which blobs: those that images were pulled from or pushed to.
func (s *Store) blobSources(target name.Repository) (map[digest.Digest][]name.Repository, error) {
	refs, err := s.refs()
	if err != nil {
		return nil, err
	}
	from := make(map[digest.Digest][]name.Repository)
	for _, r := range refs {
		parsed, err := r.reference()
		if err != nil || r.Digest == "" || parsed.Context().RegistryStr() != target.RegistryStr() || parsed.Context().Name() == target.Name() {
			continue
		}
		record, _, err := s.readRecord(r.Image.Encoded())
		if err != nil {
			continue // as if we didn't know it
		}
		for _, l := range record.Layers {
			from[l.Digest] = append(from[l.Digest], parsed.Context())
		}
	}
	return from, nil
}

// run sends layers, configuration and manifest, in this order.
func (p *pusher) run(ctx context.Context) (*Pushed, error) {
	jobs := p.o.Jobs
	if jobs <= 0 {
		jobs = 3
	}
	layers := slices.Clone(p.image.record.Layers)
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(jobs)
	first := make(map[digest.Digest]int)
	for n, l := range layers {
		if _, ok := first[l.DiffID]; ok {
			continue
		}
		first[l.DiffID] = n
		g.Go(func() error {
			sent, state, err := p.layer(gctx, n, l)
			if err != nil {
				return fmt.Errorf("layer %d of %d (%s): %w", n+1, len(layers), l.Digest, err)
			}
			layers[n] = sent
			p.tell(PushedLayer{n, len(layers), sent.Digest, state})
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for n, l := range layers {
		layers[n] = layers[first[l.DiffID]] // the same layer twice
	}
	record := p.image.record
	if err := p.blob(ctx, digest.FromBytes(record.Config), int64(len(record.Config)), bytes.NewReader(record.Config)); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	raw := record.Manifest
	if !slices.Equal(layers, record.Layers) {
		var err error
		if raw, err = replaceLayers(raw, layers); err != nil {
			return nil, err
		}
	}
	if err := p.pusher.Put(ctx, p.target, manifestBytes{raw, types.MediaType(record.ManifestType)}); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	p.rewrite(raw, layers)
	return &Pushed{Digest: digest.FromBytes(raw), Size: int64(len(raw)), Same: bytes.Equal(raw, record.Manifest)}, nil
}

// manifestBytes is what [remote.Pusher.Put] sends.
type manifestBytes struct {
	raw []byte
	mt  types.MediaType
}

func (m manifestBytes) RawManifest() ([]byte, error)        { return m.raw, nil }
func (m manifestBytes) MediaType() (types.MediaType, error) { return m.mt, nil }

// rewrite takes over what was pushed, if the manifest was only ours so far.
func (p *pusher) rewrite(raw []byte, layers []layerRecord) {
	r := *p.image.record
	for n, l := range r.Layers {
		if !l.Local && l != layers[n] {
			return // the registry that it came from knows it by the other digest
		}
	}
	r.Manifest, r.Layers = raw, layers
	p.image.record = &r
}

// remember keeps the manifest and the digest that the name has now in the registry.
func (p *pusher) remember(pushed *Pushed) error {
	l, err := p.s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer l.close()
	if !pushed.Same && digest.FromBytes(p.image.record.Manifest) == pushed.Digest {
		if err := p.a.publishJSON(p.image.record, imagesDir, p.image.id.Encoded()); err != nil {
			return err
		}
	}
	file := refFile(p.target)
	r, err := p.s.readRef(file)
	if errors.Is(err, os.ErrNotExist) || err == nil && r.Image != p.image.id {
		return nil // pushed under a name that isn't kept
	}
	if err != nil {
		return err
	}
	if digest.FromBytes(p.image.record.Manifest) != pushed.Digest {
		return nil // another manifest than ours: the name would lie
	}
	r.Digest = pushed.Digest
	return p.a.publishJSON(*r, refsDir, file)
}

// layer brings one layer into the repository, and says how its manifest has to name it.
func (p *pusher) layer(ctx context.Context, n int, l layerRecord) (layerRecord, PushState, error) {
	if strings.Contains(l.MediaType, "foreign") || strings.Contains(l.MediaType, "nondistributable") {
		return l, PushForeign, nil
	}
	if !l.Local {
		if there, err := p.has(ctx, l.Digest); err != nil || there {
			return l, PushExists, err
		}
		if p.mount(ctx, l) {
			p.s.forgetUpload(p.repo, l.Digest)
			return l, PushMounted, nil
		}
	}
	if l.Local {
		l.MediaType = ocispec.MediaTypeImageLayerGzip
	}
	made, path, err := p.a.blob(ctx, "blob-"+strconv.Itoa(n), l)
	if err != nil {
		return l, "", err
	}
	blob, err := os.Open(path)
	if err != nil {
		return l, "", err
	}
	defer blob.Close()
	if made.Digest != l.Digest {
		// An earlier push of the same may have made the same.
		if there, err := p.has(ctx, made.Digest); err != nil || there {
			return made, PushExists, err
		}
	}
	return made, PushSent, p.send(ctx, made.Digest, made.Size, blob)
}

// has reports whether the repository has a blob. What was remembered of its upload is then of no more use: whoever sent it was killed
// before he heard that it had arrived.
func (p *pusher) has(ctx context.Context, d digest.Digest) (bool, error) {
	there, err := p.repo.has(ctx, d)
	if there {
		p.s.forgetUpload(p.repo, d)
	}
	return there, err
}

// blob sends what the repository may have.
func (p *pusher) blob(ctx context.Context, d digest.Digest, size int64, content io.ReaderAt) error {
	if there, err := p.has(ctx, d); err != nil || there {
		return err
	}
	return p.send(ctx, d, size, content)
}

// send sends a blob that the repository hasn't.
func (p *pusher) send(ctx context.Context, d digest.Digest, size int64, content io.ReaderAt) error {
	memory := p.s.rememberUpload(p.repo, d)
	defer memory.close()
	return newUpload(p.repo, d, size, content, memory).run(ctx)
}

// mount has the registry take the blob over from another of its repositories. If that doesn't work, it is sent.
func (p *pusher) mount(ctx context.Context, l layerRecord) bool {
	for _, from := range p.from[l.Digest] {
		source := &remote.MountableLayer{Layer: &blobLayer{l}, Reference: from.Tag("latest")}
		if p.pusher.Upload(ctx, p.target.Context(), source) == nil {
			return true
		}
	}
	return false
}

func (p *pusher) tell(l PushedLayer) {
	if p.o.Progress == nil {
		return
	}
	p.progress.Lock()
	defer p.progress.Unlock()
	p.o.Progress(l)
}

// replaceLayers makes a manifest name other blobs, and leaves all else of it as it is.
func replaceLayers(raw []byte, layers []layerRecord) ([]byte, error) {
	var all map[string]json.RawMessage
	if err := json.Unmarshal(raw, &all); err != nil {
		return nil, err
	}
	var descriptors []map[string]any
	if err := json.Unmarshal(all["layers"], &descriptors); err != nil {
		return nil, err
	}
	if len(descriptors) != len(layers) {
		return nil, fmt.Errorf("the manifest has %d layers, the image %d", len(descriptors), len(layers))
	}
	for n, l := range layers {
		descriptors[n]["digest"], descriptors[n]["size"], descriptors[n]["mediaType"] = l.Digest, l.Size, l.MediaType
	}
	var err error
	if all["layers"], err = json.Marshal(descriptors); err != nil {
		return nil, err
	}
	return json.Marshal(all)
}

// blobLayer is a blob that a registry must have, for go-containerregistry.
type blobLayer struct{ layerRecord }

var _ v1.Layer = (*blobLayer)(nil)

var errNoBlob = errors.New("the blob is not at hand")

// Digest implements [v1.Layer].
func (l *blobLayer) Digest() (v1.Hash, error) { return v1.NewHash(string(l.layerRecord.Digest)) }

// DiffID implements [v1.Layer].
func (l *blobLayer) DiffID() (v1.Hash, error) { return v1.NewHash(string(l.layerRecord.DiffID)) }

// Size implements [v1.Layer].
func (l *blobLayer) Size() (int64, error) { return l.layerRecord.Size, nil }

// MediaType implements [v1.Layer].
func (l *blobLayer) MediaType() (types.MediaType, error) {
	return types.MediaType(l.layerRecord.MediaType), nil
}

// Compressed implements [v1.Layer]. A registry that doesn't mount asks for it.
func (l *blobLayer) Compressed() (io.ReadCloser, error) { return nil, errNoBlob }

// Uncompressed implements [v1.Layer]. Nobody calls it for an upload.
func (l *blobLayer) Uncompressed() (io.ReadCloser, error) { return nil, errNoBlob }
