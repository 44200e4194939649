package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// stock keeps branches that several benchmarks of one Full use, so that a million files are made and removed once. Nobody writes to
// them. Nil keeps nothing.
type stock struct {
	dir   string
	empty map[string]stocked
}

type stocked struct {
	stack *stack
	tree  *catalogue
}

// newStock returns an empty one below dir. close removes what it got.
func newStock(dir string) (*stock, error) {
	dir, err := os.MkdirTemp(dir, "unionfs-bench-")
	if err != nil {
		return nil, fmt.Errorf("making a directory for the branches: %w", err)
	}
	return &stock{dir: dir, empty: map[string]stocked{}}, nil
}

func (k *stock) close() error { return removeScratch(k.dir) }

// emptyFiles returns what [emptyFiles] makes, in scratch if there is no stock.
func (k *stock) emptyFiles(ctx context.Context, scratch string, entries, inDirectory int) (*stack, *catalogue, error) {
	if k == nil {
		return emptyFiles(ctx, filepath.Join(scratch, "branches"), entries, inDirectory)
	}
	name := fmt.Sprintf("%d-of-%d", entries, inDirectory)
	if have, ok := k.empty[name]; ok {
		return have.stack, have.tree, nil
	}
	s, tree, err := emptyFiles(ctx, filepath.Join(k.dir, name), entries, inDirectory)
	if err != nil {
		return nil, nil, errors.Join(err, removeTree(filepath.Join(k.dir, name)))
	}
	k.empty[name] = stocked{s, tree}
	return s, tree, nil
}
