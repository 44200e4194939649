package layerstore

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Usage is what the store takes up on disk: blocks, as du(1) counts them.
type Usage struct {
	Images      []ImageUsage // the newest first
	Layers      int
	Stored      int64 // bytes of images, layers, indexes and names
	Unfinished  int64 // bytes of what running commands have not published, and of interrupted downloads
	Reclaimable int64 // bytes that would be free if the images that nothing uses were removed
}

// ImageUsage is an image's part of it. Size is that of its layers and merged index here, Shared the part of it that other
// images need too.
type ImageUsage struct {
	ImageInfo
	Shared int64 // bytes
	Active bool  // something uses it now, or it was named as active
}

// Usage adds up what the store takes up. The cost depends on how many images and layers there are, not on what is in them.
// Images that are named as active count as used. If some images can't be read, the error says which, and their layers count
// as reclaimable.
func (s *Store) Usage(active []digest.Digest) (*Usage, error) {
	images, badImages := s.Images()
	u := &Usage{}
	users := make(map[piece]int) // images that need it
	used := make(map[piece]bool) // by an active image
	needs := make([][]piece, len(images))
	for n, i := range images {
		idle, err := s.unused(i.ID)
		if err != nil {
			return nil, fmt.Errorf("adding up the image store: %w", err)
		}
		iu := ImageUsage{ImageInfo: i, Active: !idle || slices.Contains(active, i.ID)}
		if needs[n], err = s.pieces(i.ID); err != nil {
			return nil, fmt.Errorf("adding up the image store: %w", err)
		}
		for _, p := range needs[n] {
			users[p]++
			used[p] = used[p] || iu.Active
		}
		u.Images = append(u.Images, iu)
	}
	sizes := make(map[piece]int64)
	for _, dir := range []string{layersDir, mergedDir} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			return nil, fmt.Errorf("adding up the image store: %w", err)
		}
		for _, e := range entries {
			p := piece{dir, e.Name()}
			sizes[p] = diskBlocks(s.path(dir, e.Name()))
			u.Stored += sizes[p]
			if dir == layersDir {
				u.Layers++
			}
			if !used[p] {
				u.Reclaimable += sizes[p]
			}
		}
		u.Stored += ownBlocks(s.path(dir))
	}
	for n := range u.Images {
		i := &u.Images[n]
		i.Size = 0
		for _, p := range needs[n] {
			i.Size += sizes[p]
			if users[p] > 1 {
				i.Shared += sizes[p]
			}
		}
	}
	for _, dir := range []string{imagesDir, refsDir, inuseDir, lockName} {
		u.Stored += diskBlocks(s.path(dir))
	}
	entries, err := os.ReadDir(s.path(stagingDir))
	if err != nil {
		return nil, fmt.Errorf("adding up the image store: %w", err)
	}
	u.Unfinished = ownBlocks(s.path(stagingDir)) + diskBlocks(s.path(downloadsDir))
	for _, e := range entries {
		u.Unfinished += treeBlocks(s.path(stagingDir, e.Name()))
	}
	return u, badImages
}

// pieces returns what an image needs besides its own record, each once. None if it is gone.
func (s *Store) pieces(id digest.Digest) ([]piece, error) {
	_, c, err := s.readRecord(id.Encoded())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []piece
	for _, d := range c.RootFS.DiffIDs {
		if p := (piece{layersDir, d.Encoded()}); !slices.Contains(all, p) {
			all = append(all, p)
		}
	}
	return append(all, piece{mergedDir, chainID(c.RootFS.DiffIDs).Encoded()}), nil
}

// ownBlocks is what a file or a directory takes up, without what is in it; 0 if it is gone.
func ownBlocks(path string) int64 {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return 0
	}
	return st.Blocks * 512
}

// diskBlocks is what a file, or a directory and the files in it, takes up.
func diskBlocks(path string) int64 {
	sum := ownBlocks(path)
	entries, err := os.ReadDir(path)
	if err != nil {
		return sum // a file
	}
	for _, e := range entries {
		sum += ownBlocks(path + "/" + e.Name())
	}
	return sum
}

// treeBlocks is the same for directories in it.
func treeBlocks(path string) int64 {
	sum := ownBlocks(path)
	entries, err := os.ReadDir(path)
	if err != nil {
		return sum
	}
	for _, e := range entries {
		sum += treeBlocks(path + "/" + e.Name())
	}
	return sum
}
