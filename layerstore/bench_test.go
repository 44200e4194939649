package layerstore

import (
	"fmt"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// syntheticLayer makes the index of a layer with dirs directories of files files each, the directory names starting at
// from.
func syntheticLayer(b *testing.B, name string, from, dirs, files int) (*index, digest.Digest) {
	b.Helper()
	t := newLayerTree()
	for d := range dirs {
		parent := fmt.Sprintf("usr/share/%d/directory-%d", (from+d)%100, from+d)
		for f := range files {
			n, err := t.at(parent, fmt.Sprintf("file-%d.conf", f))
			if err != nil {
				b.Fatal(err)
			}
			if err := t.put(n, &inode{mode: unix.S_IFREG | 0o644, sec: 1_700_000_000, offset: 512, size: 1000}); err != nil {
				b.Fatal(err)
			}
		}
	}
	id := digest.FromString(name)
	w, err := t.index(id, 1<<30)
	if err != nil {
		b.Fatal(err)
	}
	path := b.TempDir() + "/" + indexName
	if err := w.write(path); err != nil {
		b.Fatal(err)
	}
	ix, err := openIndex(path)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { ix.close() })
	return ix, id
}

func benchmarkMerge(b *testing.B, sources []*index, ids []digest.Digest) {
	path := b.TempDir() + "/merged"
	var entries int
	for b.Loop() {
		w, err := mergeIndexes(sources, ids)
		if err != nil {
			b.Fatal(err)
		}
		if err := w.write(path); err != nil {
			b.Fatal(err)
		}
		entries = len(w.records)
	}
	b.ReportMetric(float64(entries), "entries")
}

// BenchmarkMergeMillion merges ten layers, the lowest of a million entries, and writes the index with fsync.
func BenchmarkMergeMillion(b *testing.B) {
	var sources []*index
	var ids []digest.Digest
	add := func(ix *index, id digest.Digest) { sources, ids = append(sources, ix), append(ids, id) }
	add(syntheticLayer(b, "base", 0, 10_000, 100))
	for n := range 9 {
		add(syntheticLayer(b, fmt.Sprint(n), 9_995+n, 10, 100))
	}
	benchmarkMerge(b, sources, ids)
}

// BenchmarkMergeHundredLayers merges 100 layers of 14,000 entries that all replace each other.
func BenchmarkMergeHundredLayers(b *testing.B) {
	var sources []*index
	var ids []digest.Digest
	for n := range 100 {
		ix, id := syntheticLayer(b, fmt.Sprint(n), 0, 140, 100)
		sources, ids = append(sources, ix), append(ids, id)
	}
	benchmarkMerge(b, sources, ids)
}

// BenchmarkOpen opens a merged index of a million entries.
func BenchmarkOpen(b *testing.B) {
	ix, id := syntheticLayer(b, "base", 0, 10_000, 100)
	w, err := mergeIndexes([]*index{ix}, []digest.Digest{id})
	if err != nil {
		b.Fatal(err)
	}
	path := b.TempDir() + "/merged"
	if err := w.write(path); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		ix, err := openIndex(path)
		if err != nil {
			b.Fatal(err)
		}
		branch, err := newIndexBranch(ix, "/", "bench", nil)
		if err != nil {
			b.Fatal(err)
		}
		branch.Close()
	}
}

// BenchmarkLookup looks up names of a directory of 100 in an index of a million.
func BenchmarkLookup(b *testing.B) {
	ix, _ := syntheticLayer(b, "base", 0, 10_000, 100)
	branch, err := newIndexBranch(ix, "/", "bench", nil)
	if err != nil {
		b.Fatal(err)
	}
	d, err := branch.Root()
	if err != nil {
		b.Fatal(err)
	}
	for _, name := range []string{"usr", "share", "7", "directory-7"} {
		e, err := d.Lookup(name)
		if err != nil {
			b.Fatal(err)
		}
		if d, err = d.Sub(e); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := d.Lookup("file-57.conf"); err != nil {
			b.Fatal(err)
		}
	}
}
