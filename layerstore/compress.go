package layerstore

import (
	"io"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// compressionOf returns what compresses a layer of a media type; nil for one that isn't compressed. The same version of this
// program makes the same bytes of the same tar, on every machine.
func compressionOf(mediaType string) func(io.Writer) (io.WriteCloser, error) {
	switch {
	case strings.HasSuffix(mediaType, "gzip"):
		return func(w io.Writer) (io.WriteCloser, error) { return gzip.NewWriter(w), nil }
	case strings.HasSuffix(mediaType, "zstd"):
		return func(w io.Writer) (io.WriteCloser, error) {
			return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1)) // blocks don't depend on how many cores there are
		}
	}
	return nil
}

// countingWriter counts what passes.
type countingWriter struct {
	w io.Writer
	n int64
}

// Write implements io.Writer.
func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
