package layerstore

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/opencontainers/go-digest"
)

// reindex makes the index of a layer again from its tar, and checks the tar's digest on the way.
func (s *Store) reindex(diffID digest.Digest) error {
	f, err := os.Open(s.layerPath(diffID, tarName))
	if err != nil {
		return err
	}
	defer f.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	src := newTarSource(ctx, f, io.Discard)
	tree, err := readTree(src)
	if err == nil {
		err = src.drain()
	}
	if err != nil {
		return err
	}
	if got := src.digest(); got != diffID {
		return fmt.Errorf("the layer's tar is damaged: it has the digest %s; remove the image and pull it again", got)
	}
	w, err := tree.index(diffID, src.total)
	if err != nil {
		return err
	}
	a, err := s.newAttempt(nil)
	if err != nil {
		return err
	}
	defer a.close()
	if err := w.write(a.path(indexName)); err != nil {
		return err
	}
	return a.publish(indexName, layersDir, diffID.Encoded(), indexName)
}
