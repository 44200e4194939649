package layerstore

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// TestBombs imports what is small here and would be huge when it is read: the memory stays small, and the disk is given back.
func TestBombs(t *testing.T) {
	const huge = 64 << 30
	var head bytes.Buffer
	w := tar.NewWriter(&head)
	if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "zeros", Size: huge, Mode: 0o644}); err != nil {
		t.Fatal(err)
	}
	zeros := make([]byte, 16<<20)
	endless := func(pack func(testing.TB, []byte) []byte) io.Reader {
		member := pack(t, zeros)
		parts := []io.Reader{bytes.NewReader(pack(t, head.Bytes()))}
		for range huge / len(zeros) {
			parts = append(parts, bytes.NewReader(member))
		}
		return io.MultiReader(parts...)
	}
	for _, c := range []struct {
		name string
		from io.Reader
		is   error
		says string
	}{
		{"gzip", endless(packGzip), unix.ENOSPC, "--root"},
		{"zstd", endless(packZstd), unix.ENOSPC, "--root"},
		{"plain", io.MultiReader(&head, zeroReader{}), unix.ENOSPC, "--root"},
		// RFC 8878, 3.1.1.1.2: a window of 2 GiB, which a decoder would have to keep.
		{"zstd's window", strings.NewReader("\x28\xb5\x2f\xfd\x00\xa8\x01\x00\x00"), nil, "window"},
	} {
		t.Run(c.name, func(t *testing.T) {
			disk := t.TempDir()
			if err := unix.Mount("tmpfs", disk, "tmpfs", 0, "size=20m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { modeltest.Unmount(t, disk) })
			s, err := Open(filepath.Join(disk, "store"))
			if err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = s.Import(t.Context(), c.from, "bomb", ImportOptions{})
			runtime.ReadMemStats(&after)
			if err == nil || !strings.Contains(err.Error(), c.says) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error is %v, expected one with %q", err, c.says)
			}
			if took := after.TotalAlloc - before.TotalAlloc; took > 64<<20 {
				t.Errorf("%d bytes of memory were taken", took)
			}
			checkEmpty(t, s)
		})
	}
}

// TestMostNames adds names to a layer that has nearly as many as it may, by paths that imply some. A real one with as many takes a minute.
func TestMostNames(t *testing.T) {
	tree := newLayerTree()
	tree.nodes = maxNodes - 3
	add := func(name string) error {
		return tree.entry(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, 0)
	}
	if err := add("one/two/three"); err != nil {
		t.Error(err)
	}
	if err := add("one/two/three"); err != nil {
		t.Errorf("a name that is there: %v", err)
	}
	want := fmt.Sprintf("more than %d files", maxNodes)
	for _, name := range []string{"four", "one/two/four", "one/four/five"} {
		if err := add(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error is %v, expected one with %q", name, err, want)
		}
	}
}

// zeroReader has zeros without end.
type zeroReader struct{}

// Read implements io.Reader.
func (zeroReader) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}
