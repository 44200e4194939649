package layerstore

import (
	"context"
	"fmt"

	"github.com/opencontainers/go-digest"
)

// reindex makes the index of a layer again from its tar, and checks the tar's digest on the way.
func (s *Store) reindex(diffID digest.Digest) error {
	w, _, err := s.readLayer(context.Background(), diffID)
	if err != nil {
		return fmt.Errorf("%w; remove the image and pull it again", err)
	}
	return s.replaceIndex(diffID, w)
}
