package layerstore

import (
	"context"
	"fmt"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// CopyOptions change what Copy does. The zero value is what a user expects.
type CopyOptions struct {
	Platform *ocispec.Platform // copy only the image for this one; default: all that the reference names
	Insecure bool              // as for Pull, for both registries
	Keychain authn.Keychain    // as for Pull
}

// Copy sends what a reference names in one registry, an image or an index with all its images, to another repository or
// registry, byte for byte. Nothing is stored here. Blobs that the target has are not sent, and within a registry they are
// mounted. It returns the digest of what the target's name is now.
func Copy(ctx context.Context, from, to string, o CopyOptions) (digest.Digest, error) {
	d, err := copyImage(ctx, from, to, &o)
	if err != nil {
		return "", fmt.Errorf("copying %s to %s: %w", clip(from), clip(to), err)
	}
	return d, nil
}

func copyImage(ctx context.Context, from, to string, o *CopyOptions) (digest.Digest, error) {
	source, err := parseRemote(from, o.Insecure)
	if err != nil {
		return "", err
	}
	target, err := parseRemote(to, o.Insecure)
	if err != nil {
		return "", err
	}
	options := remoteOptions(ctx, o.Insecure, o.Keychain)
	if o.Platform != nil {
		options = append(options, remote.WithPlatform(v1.Platform{OS: o.Platform.OS, Architecture: o.Platform.Architecture, Variant: o.Platform.Variant}))
	}
	puller, err := remote.NewPuller(options...)
	if err != nil {
		return "", err
	}
	pusher, err := remote.NewPusher(options...)
	if err != nil {
		return "", err
	}
	found, err := puller.Get(ctx, source)
	if err != nil {
		return "", err
	}
	if o.Platform == nil {
		return digest.Digest(found.Digest.String()), pusher.Push(ctx, target, found)
	}
	image, err := found.Image()
	if err != nil {
		return "", err
	}
	d, err := image.Digest()
	if err != nil {
		return "", err
	}
	return digest.Digest(d.String()), pusher.Push(ctx, target, image)
}

// parseRemote reads a reference to something in a registry, which is asked by plain HTTP only if that is allowed.
func parseRemote(ref string, insecure bool) (name.Reference, error) {
	r, err := parseName(ref)
	if err == nil && (insecure || isLoopback(r.Context().RegistryStr())) {
		return parseName(ref, name.Insecure)
	}
	return r, err
}
