package archive

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestPackSizeless packs files of proc(5), which say that they are empty.
func TestPackSizeless(t *testing.T) {
	var packed bytes.Buffer
	must(t, Pack(&packed, open(t, "/proc/version"), "version", PackOptions{}))
	tr := tar.NewReader(&packed)
	h, err := tr.Next()
	must(t, err)
	got, err := io.ReadAll(tr)
	must(t, err)
	want, err := os.ReadFile("/proc/version")
	must(t, err)
	if h.Name != "version" || h.Size != int64(len(want)) || !bytes.Equal(got, want) {
		t.Errorf("%s of %d bytes: %q", h.Name, h.Size, got)
	}
	// One without an end.
	if err := Pack(io.Discard, open(t, "/proc/self/pagemap"), "map", PackOptions{}); err == nil || !strings.Contains(err.Error(), "map: it doesn't say how long") {
		t.Errorf("without an end: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	must(t, os.WriteFile(empty, nil, 0o600))
	packed.Reset()
	must(t, Pack(&packed, open(t, empty), "empty", PackOptions{}))
	if h, err := tar.NewReader(&packed).Next(); err != nil || h.Size != 0 {
		t.Errorf("an empty file: %+v, %v", h, err)
	}
}
