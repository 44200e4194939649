package layerstore

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// TagsOptions is how [RemoteTags] speaks to the registry.
type TagsOptions struct {
	Insecure bool           // as of PullOptions
	Keychain authn.Keychain // Docker's configuration if nil
}

// RemoteTags lists what a repository has tags for in its registry (distribution-spec, "Listing Tags"), as names that can be pulled, sorted.
func RemoteTags(ctx context.Context, repository string, o TagsOptions) ([]string, error) {
	r, err := parseRepository(repository, o.Insecure)
	if err != nil {
		return nil, err
	}
	tags, err := remote.List(r, remoteOptions(ctx, o.Insecure, o.Keychain)...)
	if err != nil {
		return nil, fmt.Errorf("listing the tags of %s: %w", clip(repository), err)
	}
	slices.Sort(tags)
	for i, tag := range tags {
		tags[i] = familiarName(r.Tag(tag))
	}
	return tags, nil
}

// Tags lists the names that images of the store have in a repository, as they can be pushed, sorted.
func (s *Store) Tags(repository string) ([]string, error) {
	r, err := parseRepository(repository, false)
	if err != nil {
		return nil, err
	}
	refs, err := s.refs()
	if err != nil {
		return nil, err
	}
	var tags []string
	for _, ref := range refs {
		n, err := ref.reference()
		if err != nil {
			return nil, err
		}
		if tag, is := n.(name.Tag); is && tag.Context().Name() == r.Name() {
			tags = append(tags, familiarName(tag))
		}
	}
	slices.Sort(tags)
	return tags, nil
}

func parseRepository(repository string, insecure bool) (name.Repository, error) {
	r, err := name.NewRepository(repository, name.WeakValidation)
	if err == nil && (insecure || isLoopback(r.RegistryStr())) {
		r, err = name.NewRepository(repository, name.WeakValidation, name.Insecure)
	}
	if err != nil {
		return r, fmt.Errorf("%q is no name of images without a tag, such as debian or registry.example/team/app: %w", clip(repository), err)
	}
	return r, nil
}

// remoteOptions is how the library speaks to a registry.
func remoteOptions(ctx context.Context, insecure bool, keychain authn.Keychain) []remote.Option {
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	return []remote.Option{
		remote.WithContext(ctx), remote.WithAuthFromKeychain(keychain), remote.WithTransport(&guard{plainTransport(insecure), insecure}),
	}
}
