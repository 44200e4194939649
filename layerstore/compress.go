package layerstore

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
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

// blob makes the blob of a layer from its tar, compressed as its media type says, in the file name of the attempt. Of a layer
// that isn't compressed it is the tar in the store.
func (a *attempt) blob(ctx context.Context, name string, l layerRecord) (made layerRecord, path string, err error) {
	tar := a.s.layerPath(l.DiffID, tarName)
	way := compressionOf(l.MediaType)
	if way == nil {
		fi, err := os.Stat(tar)
		if err != nil {
			return l, "", err
		}
		return layerRecord{DiffID: l.DiffID, Digest: l.DiffID, Size: fi.Size(), MediaType: l.MediaType}, tar, nil
	}
	in, err := os.Open(tar)
	if err != nil {
		return l, "", err
	}
	defer in.Close()
	path = a.path(name)
	out, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return l, "", err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	hash := digest.SHA256.Digester()
	counted := &countingWriter{w: io.MultiWriter(out, hash.Hash())}
	w, err := way(counted)
	if err != nil {
		return l, "", err
	}
	if _, err := io.Copy(w, &cancelledReader{ctx, in}); err != nil {
		return l, "", err
	}
	if err := w.Close(); err != nil {
		return l, "", err
	}
	return layerRecord{DiffID: l.DiffID, Digest: hash.Digest(), Size: counted.n, MediaType: l.MediaType}, path, nil
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
