package layerstore

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// Image is an image of the store, as it was when it was looked up. It keeps nothing from being removed; see Acquire.
type Image struct {
	s      *Store
	id     digest.Digest
	record *imageRecord
	config *ocispec.Image
}

// ImageInfo is a line of a listing.
type ImageInfo struct {
	ID       digest.Digest
	Names    []string // as Docker writes them, debian:12; empty for an image without a name
	Digests  []string // as Docker writes them, debian@sha256:…; empty for an imported image
	Platform ocispec.Platform
	Created  time.Time // zero if the image doesn't say
	Size     int64     // bytes of the layers' tars
	Layers   int
}

// ID returns the digest of the image's configuration.
func (i *Image) ID() digest.Digest { return i.id }

// Config returns the image's configuration. The caller must not change it.
func (i *Image) Config() *ocispec.Image { return i.config }

// RawConfig and RawManifest return the configuration and manifest byte for byte.
func (i *Image) RawConfig() []byte { return i.record.Config }

// RawManifest returns the manifest byte for byte, and its media type.
func (i *Image) RawManifest() ([]byte, string) { return i.record.Manifest, i.record.ManifestType }

// ChainID names the merged content of the image's layers.
func (i *Image) ChainID() digest.Digest { return chainID(i.config.RootFS.DiffIDs) }

// Info returns the image's line of a listing.
func (i *Image) Info() (*ImageInfo, error) {
	refs, err := i.s.refs()
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.id, err)
	}
	info, err := i.s.info(i.id.Encoded(), refs)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", i.id, err)
	}
	return info, nil
}

// LayerSizes returns the sizes of the tars of the image's layers in bytes, bottom first.
func (i *Image) LayerSizes() ([]int64, error) {
	var sizes []int64
	for _, d := range i.config.RootFS.DiffIDs {
		fi, err := os.Stat(i.s.layerPath(d, tarName))
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", i.id, err)
		}
		sizes = append(sizes, fi.Size())
	}
	return sizes, nil
}

// Images lists the images, the newest first. If some can't be read, the error says which, and the others are listed all
// the same.
func (s *Store) Images() ([]ImageInfo, error) {
	entries, err := os.ReadDir(s.path(imagesDir))
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	refs, err := s.refs()
	if err != nil {
		return nil, fmt.Errorf("listing images: %w", err)
	}
	var all []ImageInfo
	var bad []error
	for _, e := range entries {
		info, err := s.info(e.Name(), refs)
		if errors.Is(err, os.ErrNotExist) {
			if _, gone := os.Lstat(s.path(imagesDir, e.Name())); gone != nil {
				continue // removed since
			}
		}
		if err != nil {
			bad = append(bad, fmt.Errorf("listing image %s: %w", e.Name(), err))
			continue
		}
		all = append(all, *info)
	}
	slices.SortFunc(all, func(x, y ImageInfo) int {
		return cmp.Or(y.Created.Compare(x.Created), strings.Compare(string(x.ID), string(y.ID)))
	})
	return all, errors.Join(bad...)
}

func (s *Store) info(hex string, refs []refRecord) (*ImageInfo, error) {
	_, c, err := s.readRecord(hex)
	if err != nil {
		return nil, err
	}
	info := &ImageInfo{
		ID:       digest.NewDigestFromEncoded(digest.SHA256, hex),
		Platform: c.Platform,
		Layers:   len(c.RootFS.DiffIDs),
	}
	if c.Created != nil {
		info.Created = *c.Created
	}
	counted := make(map[digest.Digest]bool)
	for _, d := range c.RootFS.DiffIDs {
		if counted[d] {
			continue
		}
		counted[d] = true
		fi, err := os.Stat(s.layerPath(d, tarName))
		if err != nil {
			return nil, err
		}
		info.Size += fi.Size()
	}
	for _, r := range refs {
		if r.Image != info.ID {
			continue
		}
		ref, err := r.reference()
		if err != nil {
			return nil, err
		}
		if _, ok := ref.(name.Tag); ok {
			info.Names = append(info.Names, familiarName(ref))
		}
		if r.Digest != "" {
			info.Digests = append(info.Digests, familiarRepo(ref.Context())+"@"+string(r.Digest))
		}
	}
	slices.Sort(info.Names)
	slices.Sort(info.Digests)
	info.Digests = slices.Compact(info.Digests)
	return info, nil
}

// Image finds an image by name[:tag], name@digest, ID, or the start of an ID that no other image's ID has. The error is
// ErrNotFound, ErrReserved for "host", or says what is wrong.
func (s *Store) Image(ref string) (*Image, error) {
	id, _, err := s.find(ref)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", clip(ref), err)
	}
	i, err := s.load(id)
	if errors.Is(err, os.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", clip(ref), err)
	}
	return i, nil
}

func (s *Store) load(id digest.Digest) (*Image, error) {
	r, c, err := s.readRecord(id.Encoded())
	if err != nil {
		return nil, err
	}
	return &Image{s: s, id: id, record: r, config: c}, nil
}

// find resolves what a user calls an image to its ID. found is the name, nil if it was an ID.
func (s *Store) find(ref string) (id digest.Digest, found name.Reference, err error) {
	digits, isID := isIDPrefix(ref)
	if !isID || !strings.HasPrefix(ref, "sha256:") {
		id, found, err = s.findName(ref)
		if !isID || !errors.Is(err, ErrNotFound) {
			return id, found, err
		}
	}
	entries, err := os.ReadDir(s.path(imagesDir))
	if err != nil {
		return "", nil, err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), digits) {
			continue
		}
		if id != "" {
			return "", nil, errors.New("more than one image has an ID that starts so: give more of it")
		}
		id = digest.NewDigestFromEncoded(digest.SHA256, e.Name())
	}
	if id == "" {
		return "", nil, ErrNotFound
	}
	return id, nil, nil
}

// findName resolves a name[:tag] or name@digest. A digest is found under any tag that was pulled with it.
func (s *Store) findName(ref string) (digest.Digest, name.Reference, error) {
	parsed, err := parseName(ref)
	if err != nil {
		return "", nil, err
	}
	r, err := s.readRef(refFile(parsed))
	if err == nil {
		return r.Image, parsed, nil
	}
	if !errors.Is(err, os.ErrNotExist) {
		return "", nil, err
	}
	want, ok := parsed.(name.Digest)
	if !ok {
		return "", nil, ErrNotFound
	}
	refs, err := s.refs()
	if err != nil {
		return "", nil, err
	}
	for _, r := range refs {
		has, err := r.reference()
		if err == nil && has.Context().Name() == want.Context().Name() && string(r.Digest) == want.DigestStr() {
			return r.Image, has, nil
		}
	}
	return "", nil, ErrNotFound
}

// Acquire marks the image as in use until the returned function is called or the process ends: Remove then takes away
// its names, but not its content. ErrNotFound if it was removed since it was looked up.
func (i *Image) Acquire() (release func(), err error) { return i.s.acquire(i.id) }

func (s *Store) acquire(id digest.Digest) (release func(), err error) {
	l, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return nil, err
	}
	defer l.close()
	if _, err := os.Lstat(s.path(imagesDir, id.Encoded())); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = ErrNotFound
		}
		return nil, fmt.Errorf("image %s: %w", id, err)
	}
	use, err := lockFile(s.path(inuseDir, id.Encoded()), true, unix.LOCK_SH)
	if err != nil {
		return nil, fmt.Errorf("image %s: marking it as in use: %w", id, err)
	}
	return use.close, nil
}

// Tag gives the image another name, taking it away from the image that has it now. ErrReserved for "host".
func (s *Store) Tag(ref, newName string) error {
	if err := CheckName(newName); err != nil {
		return fmt.Errorf("tagging %s as %s: %w", clip(ref), clip(newName), err)
	}
	i, err := s.Image(ref)
	if err != nil {
		return err
	}
	// In use, the image stays until the name is there.
	release, err := i.Acquire()
	if err != nil {
		return err
	}
	defer release()
	a, err := s.newAttempt(nil)
	if err != nil {
		return err
	}
	defer a.close()
	parsed, err := parseName(newName)
	if err != nil {
		return err
	}
	l, err := s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer l.close()
	if err := s.unmark(i.id); err != nil {
		return err
	}
	return a.publishJSON(refRecord{Version: recordVersion, Name: parsed.Name(), Image: i.id}, refsDir, refFile(parsed))
}
