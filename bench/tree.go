package bench

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"
)

// treeShape describes a tree to be made. The same shape always gives the same tree.
type treeShape struct {
	seed    uint64
	entries int // regular files, symbolic links and directories
}

// bigName is the large file's name in the root of a tree.
const bigName = "big.bin"

// treeTime is the modification time of all that is made, so that two trees of one shape are equal.
var treeTime = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// makeTree makes a tree like that of an operating system in dir, which must be empty: a dozen entries a directory, some
// directories large and most small, depths up to seven, one entry in sixteen a symbolic link, half of the files smaller
// than 2 KiB and a few of some hundred.
func makeTree(ctx context.Context, dir string, shape treeShape) error {
	rng := rand.New(rand.NewPCG(shape.seed, 0))
	content := randomBytes(rng, 1<<20)
	dirs := []string{dir}
	depth := map[string]int{dir: 0}
	for i := 0; i < shape.entries; i++ {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		// The square favours the directories that were made first, which so become the large ones.
		at := rng.Float64()
		parent := dirs[int(at*at*float64(len(dirs)))]
		switch kind := rng.IntN(48); {
		case kind < 4 && depth[parent] < 7:
			sub := filepath.Join(parent, fmt.Sprintf("dir-%d", i))
			if err := os.Mkdir(sub, 0o755); err != nil {
				return err
			}
			dirs = append(dirs, sub)
			depth[sub] = depth[parent] + 1
		case kind < 7:
			if err := os.Symlink(fmt.Sprintf("../target-of-%d", i), filepath.Join(parent, fmt.Sprintf("link-%d", i))); err != nil {
				return err
			}
		default:
			size := int(math.Exp(rng.NormFloat64()*1.6 + math.Log(2000)))
			size = min(size, 256<<10)
			offset := rng.IntN(len(content) - size)
			name := filepath.Join(parent, fmt.Sprintf("file-%d", i))
			if err := writeFile(name, content[offset:offset+size], fileMode(rng)); err != nil {
				return err
			}
		}
	}
	return nil
}

func fileMode(rng *rand.Rand) os.FileMode {
	if rng.IntN(8) == 0 {
		return 0o755
	}
	return 0o644
}

func randomBytes(rng *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := 0; i+8 <= n; i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			b[i+j] = byte(v >> (8 * j))
		}
	}
	return b
}

// makeBigFile fills a file with blocks that differ from each other, so that no layer below can store them once.
func makeBigFile(ctx context.Context, name string, size int64, block []byte) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer file.Close()
	for at := int64(0); at < size; at += int64(len(block)) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for i := range 8 {
			block[i] = byte(at >> (8 * i))
		}
		if _, err := file.Write(block[:min(int64(len(block)), size-at)]); err != nil {
			return err
		}
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Chtimes(name, treeTime, treeTime)
}

func writeFile(name string, content []byte, mode os.FileMode) error {
	file, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if err != nil {
		return err
	}
	if _, err := file.Write(content); err != nil {
		file.Close()
		return err
	}
	if err := file.Chmod(mode); err != nil { // whatever the umask
		file.Close()
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return os.Chtimes(name, treeTime, treeTime)
}
