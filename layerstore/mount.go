package layerstore

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/go-digest"

	"unionfs/cow"
)

// Branch opens the image as one branch. Until the branch is closed, the image is in use (see Acquire). If its merged
// index is missing, damaged or of another version, it is made again first.
func (i *Image) Branch() (cow.Branch, error) { return i.s.branch(i.id, i.config.RootFS.DiffIDs) }

func (s *Store) branch(id digest.Digest, diffIDs []digest.Digest) (cow.Branch, error) {
	release, err := s.acquire(id)
	if err != nil {
		return nil, err
	}
	ix, err := s.openMerged(diffIDs)
	if err != nil {
		release()
		return nil, fmt.Errorf("opening image %s: %w", id, err)
	}
	return newIndexBranch(ix, s.path(layersDir), string(id), release)
}

// OpenBranch opens the image with this ID, given in full, as [Image.Branch] does, in a store that has been opened before. It is for a
// container's start, which waits for it: nothing is swept, and of the image's configuration only what its layers are is read. The error
// is ErrNotFound if there is no such image.
func OpenBranch(root string, id digest.Digest) (cow.Branch, error) {
	if err := checkDigest(id); err != nil {
		return nil, err
	}
	s := &Store{root: root}
	r, err := s.readRecordOnly(id.Encoded())
	if errors.Is(err, os.ErrNotExist) {
		err = ErrNotFound
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", id, err)
	}
	var config struct {
		RootFS struct {
			DiffIDs []digest.Digest `json:"diff_ids"`
		} `json:"rootfs"`
	}
	if err := json.Unmarshal(r.Config, &config); err != nil {
		return nil, fmt.Errorf("image %s: its configuration: %w", id, err)
	}
	for n, d := range config.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, fmt.Errorf("image %s: layer %d: %w", id, n, err)
		}
	}
	return s.branch(id, config.RootFS.DiffIDs)
}

// LayerBranches opens every layer of the image as a branch of its own, the top one first, with its whiteouts and opaque
// directories. Hard links to files of lower layers are listed, but using them is ENOENT.
func (i *Image) LayerBranches() (_ []cow.Branch, err error) {
	var all []cow.Branch
	defer func() {
		if err != nil {
			for _, b := range all {
				err = errors.Join(err, b.Close())
			}
		}
	}()
	diffIDs := i.config.RootFS.DiffIDs
	for n := len(diffIDs) - 1; n >= 0; n-- {
		release, err := i.Acquire()
		if err != nil {
			return nil, err
		}
		ix, err := i.s.openLayer(diffIDs[n], "")
		if err != nil {
			release()
			return nil, fmt.Errorf("opening layer %s of image %s: %w", diffIDs[n], i.id, err)
		}
		b, err := newIndexBranch(ix, i.s.path(layersDir), string(diffIDs[n]), release)
		if err != nil {
			return nil, err
		}
		all = append(all, b)
	}
	return all, nil
}

// openMerged opens the merged index of a stack of layers that are in the store, bottom first, making it if need be.
func (s *Store) openMerged(diffIDs []digest.Digest) (*index, error) {
	chain := chainID(diffIDs)
	ix, err := s.openChecked(s.path(mergedDir, chain.Encoded()), kindMerged, diffIDs)
	if err == nil || !rebuildable(err) {
		return ix, err
	}
	a, err := s.newAttempt(nil)
	if err != nil {
		return nil, err
	}
	defer a.close()
	if err := s.mergeInto(a, diffIDs); err != nil {
		return nil, err
	}
	return s.openChecked(s.path(mergedDir, chain.Encoded()), kindMerged, diffIDs)
}

// openChecked opens an index and checks that it is of these layers.
func (s *Store) openChecked(path string, kind uint32, diffIDs []digest.Digest) (*index, error) {
	ix, err := openIndex(path)
	if err != nil {
		return nil, err
	}
	ok := ix.kind == kind && ix.layerCount() == len(diffIDs)
	for n := 0; ok && n < len(diffIDs); n++ {
		id, err := ix.layer(uint16(n))
		ok = err == nil && id == diffIDs[n]
	}
	if !ok {
		ix.close()
		return nil, fmt.Errorf("%s: %w: it is of other layers", path, errDamaged)
	}
	return ix, nil
}

// mergeInto makes the merged index of a stack of layers that are in the store, and publishes it.
func (s *Store) mergeInto(a *attempt, diffIDs []digest.Digest) error {
	w, err := s.mergeStack(diffIDs, nil)
	if err != nil {
		return err
	}
	if err := w.write(a.path(mergedDir)); err != nil {
		return fmt.Errorf("writing the image's index: %w", err)
	}
	return a.publish(mergedDir, mergedDir, chainID(diffIDs).Encoded())
}

// mergeStack merges a stack of layers, bottom first. Those that aren't in the store yet are in the directories of fresh.
// It starts from the longest part of the stack that has a merged index already.
func (s *Store) mergeStack(diffIDs []digest.Digest, fresh map[digest.Digest]string) (_ *indexWriter, err error) {
	var sources []*index
	defer func() {
		for _, ix := range sources {
			err = errors.Join(err, ix.close())
		}
	}()
	from := 0
	for n := len(diffIDs) - 1; n > 0; n-- {
		ix, err := s.openChecked(s.path(mergedDir, chainID(diffIDs[:n]).Encoded()), kindMerged, diffIDs[:n])
		if err != nil {
			continue
		}
		// The index is built on: damage would spread.
		if ix.verify() != nil {
			ix.close()
			continue
		}
		sources, from = append(sources, ix), n
		break
	}
	for _, d := range diffIDs[from:] {
		ix, err := s.openLayer(d, fresh[d])
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", d, err)
		}
		sources = append(sources, ix)
	}
	return mergeIndexes(sources, diffIDs)
}

// openLayer opens and verifies the index of one layer, in the directory dir if that isn't empty, else in the store. An
// index of the store that is damaged is made again from the tar.
func (s *Store) openLayer(diffID digest.Digest, dir string) (*index, error) {
	path := dir + "/" + indexName
	if dir == "" {
		path = s.layerPath(diffID, indexName)
	}
	open := func() (*index, error) {
		ix, err := s.openChecked(path, kindLayer, []digest.Digest{diffID})
		if err == nil {
			if err = ix.verify(); err != nil {
				ix.close()
			}
		}
		return ix, err
	}
	ix, err := open()
	if err == nil || dir != "" || !rebuildable(err) {
		return ix, err
	}
	if err := s.reindex(diffID); err != nil {
		return nil, err
	}
	return open()
}
