package bench

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"io"
	"os"
	"testing"
)

// TestSeededImage makes the image of the benchmarks twice, smaller: it is the same, with every entry in its layer, and as
// compressible as real ones.
func TestSeededImage(t *testing.T) {
	const entries, layers = 3000, 4
	var sums [2][layers][32]byte
	for run := range sums {
		s := newSeededImage(1, entries, layers)
		seen := map[string]bool{}
		var plain, packed int64
		for n := range layers {
			server := &imageServer{blobs: t.TempDir()}
			if err := os.Mkdir(server.blobs+"/sha256", 0o755); err != nil {
				t.Fatal(err)
			}
			layer, err := server.addLayer(true, func(out *tar.Writer) error { return s.writeLayer(context.Background(), out, n) })
			if err != nil {
				t.Fatal(err)
			}
			blob, err := layer.Compressed()
			if err != nil {
				t.Fatal(err)
			}
			defer blob.Close()
			z, err := gzip.NewReader(blob)
			if err != nil {
				t.Fatal(err)
			}
			sum := sha256.New()
			in := tar.NewReader(io.TeeReader(z, sum))
			for {
				h, err := in.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				seen[h.Name] = true
				plain += h.Size + 512
			}
			size, err := layer.Size()
			if err != nil {
				t.Fatal(err)
			}
			packed += size
			copy(sums[run][n][:], sum.Sum(nil))
		}
		if len(seen) != entries {
			t.Errorf("the layers have %d names, want %d", len(seen), entries)
		}
		if ratio := float64(packed) / float64(plain); ratio < 0.3 || ratio > 0.42 {
			t.Errorf("gzip makes %.2f of it", ratio)
		}
		if len(s.files()) < entries/2 {
			t.Errorf("%d of %d entries are files", len(s.files()), entries)
		}
	}
	if sums[0] != sums[1] {
		t.Error("the same seed gave another image")
	}
}
