package layerstore

import (
	"context"
	"errors"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
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

// Pull fetches an image from a registry. Only layers that the store hasn't are fetched, and a layer that another process is
// fetching is waited for. The image is visible once all digests, sizes and diff IDs are found right. What a pull has
// downloaded when it is interrupted, the next one goes on with.
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
	repo, err := openRepository(ctx, parsed.Context(), access{o.Insecure, o.Keychain, transport.PullScope})
	if err != nil {
		return nil, err
	}
	f := &fetcher{s: s, source: repo, platform: o.Platform, jobs: o.Jobs, observe: o.Progress}
	var want digest.Digest
	if d, ok := parsed.(name.Digest); ok {
		want = digest.Digest(d.DigestStr())
	}
	if err := f.resolve(ctx, parsed.Identifier(), want); err != nil {
		return nil, err
	}
	if o.As == "" {
		as.Digest = f.resolved // of another repository, it would name nothing
	}
	return f.store(ctx, []refRecord{as})
}
