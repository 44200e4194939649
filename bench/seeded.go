package bench

import (
	"archive/tar"
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"path"
	"slices"
)

// seededImage is an image like that of an operating system, made from a seed alone, so that it is the same everywhere: files of
// some kilobytes, a dozen entries a directory, content that gzip shrinks to a third. Its layers are written as they are made:
// as files, they would take longer than what is measured with them.
type seededImage struct {
	text    []byte // files are pieces of it
	entries []seededEntry
	layers  int
}

type seededEntry struct {
	name   string // relative to the root
	parent int    // of entries; -1 for the root
	layer  int    // bottom first
	mode   int64
	link   string // not "" for a symbolic link
	dir    bool
	offset int // of a regular file in the text
	size   int // bytes
}

// newSeededImage decides what is in an image of that many entries and layers.
func newSeededImage(seed uint64, entries, layers int) *seededImage {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &seededImage{text: seededText(rng, 8<<20), layers: layers}
	dirs := []int{-1}
	depth := map[int]int{-1: 0}
	for n := range entries {
		at := rng.Float64() // as in makeTree
		parent := dirs[int(at*at*float64(len(dirs)))]
		e := seededEntry{parent: parent, mode: 0o644}
		switch kind := rng.IntN(48); {
		case kind < 4 && depth[parent] < 7:
			e.name, e.dir, e.mode = fmt.Sprintf("dir-%d", n), true, 0o755
			dirs = append(dirs, n)
			depth[n] = depth[parent] + 1
		case kind < 7:
			e.name, e.link = fmt.Sprintf("link-%d", n), fmt.Sprintf("../target-of-%d", n)
		default:
			e.name = fmt.Sprintf("file-%d", n)
			e.size = min(int(math.Exp(rng.NormFloat64()*1.6+math.Log(1600))), 1<<20)
			e.offset = rng.IntN(len(s.text) - e.size)
			if rng.IntN(8) == 0 {
				e.mode = 0o755
			}
		}
		if parent >= 0 {
			e.name = path.Join(s.entries[parent].name, e.name)
		}
		e.layer = layers - 1 - pick(e.name, "branch", layers)
		s.entries = append(s.entries, e)
	}
	return s
}

// seededText makes text of words, of which some are far more common than others.
func seededText(rng *rand.Rand, size int) []byte {
	words := make([][]byte, 6000)
	for n := range words {
		word := make([]byte, 2+rng.IntN(9))
		for i := range word {
			word[i] = byte('a' + rng.IntN(26))
		}
		words[n] = append(word, ' ')
	}
	common := rand.NewZipf(rng, 1.05, 4, uint64(len(words)-1))
	text := make([]byte, 0, size+16)
	for len(text) < size {
		text = append(text, words[common.Uint64()]...)
	}
	return text[:size]
}

// files returns the names of the regular files.
func (s *seededImage) files() []string {
	var names []string
	for _, e := range s.entries {
		if !e.dir && e.link == "" {
			names = append(names, e.name)
		}
	}
	return names
}

// writeLayer writes one layer, the lowest having number 0.
func (s *seededImage) writeLayer(ctx context.Context, out *tar.Writer, layer int) error {
	made := map[int]bool{-1: true}
	for n, e := range s.entries {
		if n%1000 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		// One file in ten has an older version below.
		old := e.layer-1 == layer && !e.dir && e.link == "" && pick(e.name, "old", 10) == 0
		if e.layer != layer && !old {
			continue
		}
		if err := s.writeDirs(out, e.parent, made); err != nil {
			return err
		}
		var err error
		switch {
		case e.dir:
			err = s.writeDirs(out, n, made)
		case e.link != "":
			err = out.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: e.name, Linkname: e.link, Mode: 0o777, ModTime: treeTime})
		case old:
			err = writeSeeded(out, e.name, 0o644, []byte("an older version of "+e.name+"\n"))
		default:
			err = writeSeeded(out, e.name, e.mode, s.text[e.offset:e.offset+e.size])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// writeDirs writes a directory and those above it, unless the layer has them.
func (s *seededImage) writeDirs(out *tar.Writer, n int, made map[int]bool) error {
	var missing []int
	for ; !made[n]; n = s.entries[n].parent {
		missing, made[n] = append(missing, n), true
	}
	for _, n := range slices.Backward(missing) {
		e := &s.entries[n]
		if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: e.name + "/", Mode: e.mode, ModTime: treeTime}); err != nil {
			return err
		}
	}
	return nil
}

func writeSeeded(out *tar.Writer, name string, mode int64, content []byte) error {
	if err := out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(content)), ModTime: treeTime}); err != nil {
		return err
	}
	_, err := out.Write(content)
	return err
}
