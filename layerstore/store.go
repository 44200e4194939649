package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
)

// Errors that callers tell apart with errors.Is.
var (
	ErrNotFound = errors.New("no such image")
	ErrReserved = errors.New("the name \"host\" is reserved for this machine's own root")
	ErrNotImage = errors.New("not a container image")
)

// Store is a store of images and layers in one directory. All methods may be called by many goroutines, and many
// processes may have the same store open.
//
// Locks, in the order in which they are taken:
//   - ROOT/store.lock: shared while something is published, a lease is written or an image is marked as in use; exclusive
//     while garbage is chosen and moved away. Held for renames only, never for a download.
//   - ROOT/staging/X: exclusive for as long as the attempt X is alive. Who can take it may delete X.
//   - ROOT/inuse/ID: shared for as long as someone uses the image ID.
//   - ROOT/downloads/X.part: exclusive for as long as someone downloads the blob X, and for whole downloads. Nobody who has one
//     waits for another.
type Store struct {
	root string

	// Sweep, if set, has another process open this store, and is called instead of deleting what is large: file systems take
	// tenths of a second for that, and opening the store sweeps it. If it fails, the files are deleted all the same. It may only
	// be set before the store is used.
	Sweep func() error
}

// The directories and files of a store.
const (
	layersDir    = "layers"
	imagesDir    = "images"
	refsDir      = "refs"
	mergedDir    = "merged"
	stagingDir   = "staging"
	inuseDir     = "inuse"
	downloadsDir = "downloads"
	lockName     = "store.lock"

	tarName   = "layer.tar"
	indexName = "index"
)

// Open opens the store in the directory root and creates what of it is missing. What dead processes left behind is
// swept.
func Open(root string) (*Store, error) {
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", root, err)
	}
	s := &Store{root: abs}
	for _, d := range []string{layersDir, imagesDir, refsDir, mergedDir, stagingDir, inuseDir, downloadsDir} {
		if err := os.MkdirAll(s.path(d), 0o700); err != nil {
			return nil, fmt.Errorf("opening image store %s: %w", root, err)
		}
	}
	if err := s.sweep(); err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", root, err)
	}
	if err := s.reap(); err != nil {
		return nil, fmt.Errorf("opening image store %s: %w", root, err)
	}
	return s, nil
}

// Root returns the directory that the store is in.
func (s *Store) Root() string { return s.root }

func (s *Store) path(elem ...string) string {
	return filepath.Join(append([]string{s.root}, elem...)...)
}

func (s *Store) layerPath(diffID digest.Digest, elem ...string) string {
	return s.path(append([]string{layersDir, diffID.Encoded()}, elem...)...)
}

// lock takes the store's lock. Nothing slow may be done while it is held.
func (s *Store) lock(how int) (*fileLock, error) {
	return lockFile(s.path(lockName), true, how)
}

// hasLayer reports whether the layer is in the store. Layers are published whole, so that its directory exists says
// all.
func (s *Store) hasLayer(diffID digest.Digest) bool {
	_, err := os.Lstat(s.layerPath(diffID, tarName))
	return err == nil
}

// checkDigest returns an error unless d is a well-formed SHA-256 digest. Digests become file names, so nothing else may
// pass.
func checkDigest(d digest.Digest) error {
	if err := d.Validate(); err != nil {
		return fmt.Errorf("%q is not a digest: %w", clip(string(d)), err)
	}
	if d.Algorithm() != digest.SHA256 {
		return fmt.Errorf("digest %q: only sha256 is supported", clip(string(d)))
	}
	return nil
}

// clip shortens text from outside that goes into a message.
func clip(s string) string {
	const most = 120
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
