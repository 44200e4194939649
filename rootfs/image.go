package rootfs

import (
	"errors"
	"fmt"

	"unionfs/cow"
	"unionfs/layerstore"
)

// FindImage opens the store below root and finds an image, with a hint if there is none.
func FindImage(root, ref string) (*layerstore.Image, error) {
	store, err := layerstore.Open(root)
	if err != nil {
		return nil, err
	}
	image, err := store.Image(ref)
	if errors.Is(err, layerstore.ErrNotFound) {
		return nil, fmt.Errorf("%w; get it with \"unionfs pull %s\", or see what there is with \"unionfs images\"", err, ref)
	}
	return image, err
}

// OpenImage opens an image of the store below root as a branch.
func OpenImage(root, ref string) (cow.Branch, error) {
	image, err := FindImage(root, ref)
	if err != nil {
		return nil, err
	}
	return image.Branch()
}
