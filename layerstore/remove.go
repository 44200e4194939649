package layerstore

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Removed says what Remove did.
type Removed struct {
	Untagged []string      // names that are gone
	Deleted  digest.Digest // image that is gone; empty if it has another name or is in use
	InUse    bool          // the image has no name left, but something uses it: it goes when the store is next used after that
	Bytes    int64         // that were freed
}

// Remove takes a name away from its image, or all names if ref is an ID and the image has no more than one. An image
// without a name is deleted, with the layers that no other image has, unless something uses it (Acquire).
func (s *Store) Remove(ref string) (*Removed, error) {
	r, err := s.remove(ref)
	if err != nil {
		return nil, fmt.Errorf("removing image %s: %w", clip(ref), err)
	}
	return r, nil
}

func (s *Store) remove(ref string) (removed *Removed, err error) {
	err = s.exclusively(0, func(trash *attempt) error {
		removed, err = s.removeInto(trash, ref)
		return err
	})
	return removed, err
}

// removeInto is Remove under the store's exclusive lock.
func (s *Store) removeInto(trash *attempt, ref string) (*Removed, error) {
	id, found, err := s.find(ref)
	if err != nil {
		return nil, err
	}
	refs, err := s.refs()
	if err != nil {
		return nil, err
	}
	removed := &Removed{}
	var names []name.Reference
	for _, r := range refs {
		if r.Image != id {
			continue
		}
		n, err := r.reference()
		if err != nil {
			return nil, err
		}
		names = append(names, n)
	}
	gone := names
	if found != nil {
		gone = []name.Reference{found}
	} else if len(names) > 1 {
		var list []string
		for _, n := range names {
			list = append(list, familiarName(n))
		}
		return nil, fmt.Errorf("it has %d names: remove them one by one: %s", len(names), strings.Join(list, " "))
	}
	if err := s.dropNames(gone); err != nil {
		return nil, err
	}
	for _, n := range gone {
		removed.Untagged = append(removed.Untagged, familiarName(n))
	}
	if len(names) > len(gone) {
		return removed, nil
	}
	deleted, err := s.deleteImage(id, trash)
	if err != nil {
		return nil, err
	}
	if !deleted {
		removed.InUse = true
		return removed, os.WriteFile(s.path(inuseDir, id.Encoded()), []byte(removedMark), 0o600)
	}
	if err := s.deleteMarked(trash); err != nil {
		return nil, err
	}
	removed.Deleted = id
	removed.Bytes, err = s.collect(trash)
	return removed, err
}

// deleteImage moves the file of an image away, unless something uses it. The caller holds the store's lock exclusively.
func (s *Store) deleteImage(id digest.Digest, trash *attempt) (bool, error) {
	use := s.path(inuseDir, id.Encoded())
	l, err := lockFile(use, false, unix.LOCK_EX|unix.LOCK_NB)
	switch {
	case errors.Is(err, errBusy):
		return false, nil
	case err == nil:
		// Nobody can be opening it: that takes the store's lock.
		defer l.close()
		if err := os.Remove(use); err != nil {
			return false, err
		}
	case !errors.Is(err, os.ErrNotExist):
		return false, err
	}
	// Its space comes back now, also that of layers that a pull which was interrupted had kept.
	if _, c, err := s.readRecord(id.Encoded()); err == nil {
		s.dropKept(c.RootFS.DiffIDs)
	}
	err = os.Rename(s.path(imagesDir, id.Encoded()), trash.path("image-"+id.Encoded()))
	if errors.Is(err, os.ErrNotExist) {
		err = nil // a name of nothing
	}
	if err != nil {
		return false, err
	}
	return true, syncDir(s.path(imagesDir))
}

// removedMark is written into the lock of an image that was removed while something used it.
const removedMark = "removed\n"

// marked returns the images that were removed while something used them.
func (s *Store) marked() ([]digest.Digest, error) {
	entries, err := os.ReadDir(s.path(inuseDir))
	if err != nil {
		return nil, err
	}
	var ids []digest.Digest
	for _, e := range entries {
		id := digest.NewDigestFromEncoded(digest.SHA256, e.Name())
		if fi, err := e.Info(); err == nil && fi.Size() > 0 && checkDigest(id) == nil {
			ids = append(ids, id)
		}
	}
	return ids, nil
}

// unmark takes the mark away from an image that gets a name again.
func (s *Store) unmark(id digest.Digest) error {
	err := os.Truncate(s.path(inuseDir, id.Encoded()), 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// deleteMarked deletes the marked images that nothing uses any more. The caller holds the store's lock exclusively.
func (s *Store) deleteMarked(trash *attempt) error {
	ids, err := s.marked()
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := s.deleteImage(id, trash); err != nil {
			return err
		}
	}
	return nil
}

// reap deletes the marked images that nothing uses any more, and frees their space. If another process is publishing just
// now, they are left for later.
func (s *Store) reap() error {
	ids, err := s.marked()
	if err != nil || len(ids) == 0 {
		return err
	}
	err = s.exclusively(unix.LOCK_NB, func(trash *attempt) error {
		if err := s.deleteMarked(trash); err != nil {
			return err
		}
		// As in bury, damage elsewhere must not keep the store from being used.
		s.collect(trash)
		return nil
	})
	if errors.Is(err, errBusy) {
		return nil
	}
	return err
}

// diskBytes is the length of a file, or of the files in a directory.
func diskBytes(path string) int64 {
	fi, err := os.Lstat(path)
	if err != nil {
		return 0
	}
	if !fi.IsDir() {
		return fi.Size()
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return 0
	}
	var sum int64
	for _, e := range entries {
		if fi, err := e.Info(); err == nil {
			sum += fi.Size()
		}
	}
	return sum
}
