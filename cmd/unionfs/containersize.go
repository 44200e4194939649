package main

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"syscall"

	"github.com/docker/go-units"

	"unionfs/layerstore"
	"unionfs/rootfs"
	"unionfs/runner"
)

// addSizes looks how large the containers are.
func addSizes(root string, rows []containerRow) error {
	images := map[string]int64{}
	for i := range rows {
		written, image, err := sizesOf(root, rows[i].container, images)
		if err != nil {
			return err
		}
		rows[i].Size = fmt.Sprintf("%s (virtual %s)", units.HumanSize(float64(written)), units.HumanSize(float64(written+image)))
	}
	return nil
}

// sizesOf returns how many bytes a container wrote, and how many its image has; nothing of the latter if it is the machine's own
// root, or gone. images keeps the sizes that are known, by ID.
func sizesOf(root string, container *runner.Container, images map[string]int64) (written, image int64, err error) {
	if written, err = writtenBy(container); err != nil {
		return 0, 0, fmt.Errorf("looking how large container %s is: %w", container.Name, err)
	}
	id := container.Spec.Annotations[rootfs.AnnotationImageID]
	if id == rootfs.HostImage {
		return written, 0, nil
	}
	if known, ok := images[id]; ok {
		return written, known, nil
	}
	store, err := layerstore.Open(root)
	if err != nil {
		return 0, 0, err
	}
	found, err := store.Image(id)
	if errors.Is(err, layerstore.ErrNotFound) {
		return written, 0, nil
	}
	if err != nil {
		return 0, 0, err
	}
	sizes, err := found.LayerSizes()
	if err != nil {
		return 0, 0, err
	}
	for _, size := range sizes {
		image += size
	}
	images[id] = image
	return written, image, nil
}

// writtenBy adds up the files of a container's upper branch. Of a file that has holes, as one that is copied up block by block has,
// only what is there counts.
func writtenBy(container *runner.Container) (total int64, err error) {
	seen := map[uint64]bool{} // files with several names
	err = filepath.WalkDir(container.Upper(), func(_ string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it never ran, or a file is gone since
		}
		if err != nil || entry.IsDir() {
			return err
		}
		info, err := entry.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok || seen[st.Ino] {
			return nil
		}
		seen[st.Ino] = st.Nlink > 1
		total += min(st.Size, st.Blocks*512)
		return nil
	})
	return total, err
}
