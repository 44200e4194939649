package layerstore

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// PruneOptions say what Prune leaves.
type PruneOptions struct {
	All    bool            // images with names too
	Keep   []digest.Digest // images that stay, name or not: containers were made from them
	DryRun bool            // change nothing, only find out what would go
}

// Pruned says what Prune did, or would do.
type Pruned struct {
	Names  []string        // that are gone, as Docker writes them; with All
	Images []digest.Digest // that are gone
	Layers []digest.Digest // that are gone
	Bytes  int64           // that were freed, merged indexes included
}

// Prune deletes the images that have no name, or with All any, and that nothing uses, what interrupted pulls have downloaded, and
// what no image needs.
func (s *Store) Prune(o PruneOptions) (*Pruned, error) {
	p, err := s.prune(o)
	if err != nil {
		return nil, fmt.Errorf("pruning the image store: %w", err)
	}
	return p, nil
}

func (s *Store) prune(o PruneOptions) (p *Pruned, err error) {
	err = s.exclusively(0, func(trash *attempt) error {
		p, err = s.pruneInto(trash, o)
		return err
	})
	return p, err
}

// pruneInto is Prune under the store's exclusive lock.
func (s *Store) pruneInto(trash *attempt, o PruneOptions) (*Pruned, error) {
	images, names, err := s.imagesAndNames()
	if err != nil {
		return nil, err
	}
	p := &Pruned{}
	for _, id := range images {
		if len(names[id]) > 0 && !o.All || slices.Contains(o.Keep, id) {
			continue
		}
		gone, err := s.unused(id)
		if err == nil && gone && !o.DryRun {
			if err = s.dropNames(names[id]); err == nil {
				gone, err = s.deleteImage(id, trash)
			}
		}
		if err != nil {
			return nil, err
		}
		if gone {
			p.Images = append(p.Images, id)
			for _, n := range names[id] {
				p.Names = append(p.Names, familiarName(n))
			}
		}
	}
	freed, waiting, err := s.dropDownloads(time.Now().Add(time.Hour), o.DryRun) // all, also those of this very moment
	if err != nil {
		return nil, err
	}
	p.Bytes += freed
	garbage, err := s.garbage(p.Images, waiting)
	if err != nil {
		return nil, err
	}
	for _, g := range garbage {
		if g.dir == layersDir {
			p.Layers = append(p.Layers, digest.NewDigestFromEncoded(digest.SHA256, g.name))
		}
	}
	if o.DryRun {
		for _, g := range garbage {
			p.Bytes += diskBytes(s.path(g.dir, g.name))
		}
		return p, nil
	}
	freed, err = s.discard(garbage, trash)
	p.Bytes += freed
	return p, err
}

// imagesAndNames returns all images, and what they are called.
func (s *Store) imagesAndNames() ([]digest.Digest, map[digest.Digest][]name.Reference, error) {
	refs, err := s.refs()
	if err != nil {
		return nil, nil, err
	}
	names := make(map[digest.Digest][]name.Reference)
	for _, r := range refs {
		n, err := r.reference()
		if err != nil {
			return nil, nil, err
		}
		names[r.Image] = append(names[r.Image], n)
	}
	entries, err := os.ReadDir(s.path(imagesDir))
	if err != nil {
		return nil, nil, err
	}
	var images []digest.Digest
	for _, e := range entries {
		images = append(images, digest.NewDigestFromEncoded(digest.SHA256, e.Name()))
	}
	return images, names, nil
}

// dropNames takes names away, for good once it returns.
func (s *Store) dropNames(names []name.Reference) error {
	if len(names) == 0 {
		return nil
	}
	for _, n := range names {
		if err := os.Remove(s.path(refsDir, refFile(n))); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return syncDir(s.path(refsDir))
}

// unused reports whether nobody has acquired the image just now.
func (s *Store) unused(id digest.Digest) (bool, error) {
	l, err := lockFile(s.path(inuseDir, id.Encoded()), false, unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, errBusy):
		return false, nil
	case errors.Is(err, os.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	}
	l.close()
	return true, nil
}

// piece is a layer or a merged index: a directory or file of the store.
type piece struct{ dir, name string }

// garbage returns the layers and merged indexes that no lease names, no image but those of gone, and no interrupted pull but
// for the layers of dropped. The caller holds the store's lock exclusively. If any image can't be read, there is an error:
// what it needs isn't known.
func (s *Store) garbage(gone, dropped []digest.Digest) ([]piece, error) {
	keep, err := s.keptLayers()
	if err != nil {
		return nil, err
	}
	for _, id := range dropped {
		delete(keep, id.Encoded())
	}
	leased, err := s.leases()
	if err != nil {
		return nil, err
	}
	maps.Copy(keep, leased)
	images, err := os.ReadDir(s.path(imagesDir))
	if err != nil {
		return nil, err
	}
	for _, e := range images {
		if slices.Contains(gone, digest.NewDigestFromEncoded(digest.SHA256, e.Name())) {
			continue
		}
		_, c, err := s.readRecord(e.Name())
		if err != nil {
			return nil, fmt.Errorf("space can't be freed while an image is damaged: %w", err)
		}
		for _, d := range c.RootFS.DiffIDs {
			keep[d.Encoded()] = true
		}
		keep[chainID(c.RootFS.DiffIDs).Encoded()] = true
	}
	var all []piece
	for _, dir := range []string{layersDir, mergedDir} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if !keep[e.Name()] {
				all = append(all, piece{dir, e.Name()})
			}
		}
	}
	return all, nil
}

// discard moves pieces into the attempt and returns how many bytes that frees. The caller holds the store's lock
// exclusively.
func (s *Store) discard(all []piece, trash *attempt) (int64, error) {
	var freed int64
	for _, g := range all {
		path := s.path(g.dir, g.name)
		size := diskBytes(path)
		if err := os.Rename(path, trash.path(g.dir+"-"+g.name)); err != nil {
			return freed, err
		}
		freed += size
		trash.trash += size
	}
	return freed, nil
}

// collect moves every layer and merged index that no image and no lease names into the attempt, and returns how many
// bytes that frees. The caller holds the store's lock exclusively.
func (s *Store) collect(trash *attempt) (int64, error) {
	all, err := s.garbage(nil, nil)
	if err != nil {
		return 0, err
	}
	return s.discard(all, trash)
}
