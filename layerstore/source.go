package layerstore

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
)

// decompress returns a reader of the tar in r, whatever r is compressed with, which the first bytes tell. Members and
// frames that follow each other are read as one stream.
func decompress(r io.Reader) (io.ReadCloser, error) {
	br := bufio.NewReaderSize(r, 1<<18)
	magic, err := br.Peek(8)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch compressionKind(magic) {
	case "gzip":
		return gzip.NewReader(br)
	case "zstd":
		zr, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return zr.IOReadCloser(), nil
	case "xz":
		return nil, errors.New("it is compressed with xz: decompress it first, with xz -d")
	case "bzip2":
		return io.NopCloser(bzip2.NewReader(br)), nil
	}
	return io.NopCloser(br), nil
}

// compressionKind tells by the first bytes what something is compressed with; empty if it isn't.
func compressionKind(magic []byte) string {
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		return "gzip"
	case isZstd(magic):
		return "zstd"
	case bytes.HasPrefix(magic, []byte("\xfd7zXZ\x00")):
		return "xz"
	case bytes.HasPrefix(magic, []byte("BZh")):
		return "bzip2"
	}
	return ""
}

// isZstd recognises a frame and a skippable frame (RFC 8878, 3.1.1 and 3.1.2).
func isZstd(magic []byte) bool {
	if len(magic) < 4 || magic[0] != 0x28 && magic[0]&0xf0 != 0x50 {
		return false
	}
	return bytes.Equal(magic[:4], []byte{0x28, 0xb5, 0x2f, 0xfd}) || bytes.Equal(magic[1:4], []byte{0x2a, 0x4d, 0x18})
}

// tarSource is the uncompressed stream of a layer, on its way into the tar reader: whatever passes is hashed and written
// to the layer's file. Decompressing happens in a goroutine of its own, which run starts.
//
// It reads no further ahead than it was asked to, as far as pos is concerned: after (*tar.Reader).Next, pos is the
// offset of the entry's data.
type tarSource struct {
	ctx    context.Context
	out    io.Writer
	hash   hash.Hash
	pos    int64 // bytes that the reader has consumed
	total  int64 // bytes that were written
	limit  int64 // pos beyond which Read fails; see allow
	chunks <-chan chunk
	free   chan<- []byte
	cur    []byte
	buf    []byte // what cur is part of
	err    error  // sticky; io.EOF at the end
}

type chunk struct {
	data []byte
	err  error
}

const chunkSize = 1 << 18

// newTarSource starts to read r. The goroutine ends at the end of r, or when ctx is done and r returns.
func newTarSource(ctx context.Context, r io.Reader, out io.Writer) *tarSource {
	const depth = 4
	chunks := make(chan chunk, depth)
	free := make(chan []byte, depth+2)
	for range depth + 1 {
		free <- make([]byte, chunkSize)
	}
	go func() {
		defer close(chunks)
		for {
			var buf []byte
			select {
			case buf = <-free:
			case <-ctx.Done():
				return
			}
			n, err := readFull(r, buf)
			select {
			case chunks <- chunk{buf[:n], err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return &tarSource{ctx: ctx, out: out, hash: sha256.New(), chunks: chunks, free: free, limit: maxSpecial}
}

// readFull is io.ReadFull, but the error is always the reader's own: a stream that is truncated must not look like one
// whose last chunk is short.
func readFull(r io.Reader, buf []byte) (n int, err error) {
	for idle := 0; n < len(buf) && err == nil; {
		var m int
		m, err = r.Read(buf[n:])
		n += m
		if m > 0 {
			idle = 0
		} else if idle++; idle > 100 && err == nil {
			err = io.ErrNoProgress
		}
	}
	return n, err
}

// fill makes sure that there is something in cur.
func (s *tarSource) fill() error {
	for len(s.cur) == 0 {
		if s.err != nil {
			return s.err
		}
		if s.buf != nil {
			s.free <- s.buf[:cap(s.buf)]
			s.buf = nil
		}
		c, ok := <-s.chunks
		if !ok {
			s.err = context.Cause(s.ctx)
			return s.err
		}
		s.hash.Write(c.data)
		if _, err := s.out.Write(c.data); err != nil {
			s.err = &storeError{err}
			return s.err
		}
		if c.data != nil {
			s.buf, s.cur = c.data[:0], c.data
		}
		s.err = c.err
		if s.total += int64(len(c.data)); s.total > maxLayer {
			s.err = fmt.Errorf("the layer has more than %d bytes", int64(maxLayer))
			return s.err
		}
	}
	return nil
}

// storeError is an error of writing to the store, as opposed to one of the image.
type storeError struct{ error }

func (e *storeError) Unwrap() error { return e.error }

var errHeaders = fmt.Errorf("more than %d MiB of headers before one entry", maxSpecial>>20)

// Read implements io.Reader.
func (s *tarSource) Read(p []byte) (int, error) {
	if s.pos >= s.limit {
		return 0, errHeaders
	}
	if err := s.fill(); err != nil {
		return 0, err
	}
	n := copy(p, s.cur)
	s.cur = s.cur[n:]
	s.pos += int64(n)
	return n, nil
}

// Seek skips forward, which is all that archive/tar does with it: it saves the copying of file data that nobody looks
// at.
func (s *tarSource) Seek(offset int64, whence int) (int64, error) {
	if whence != io.SeekCurrent || offset < 0 {
		return 0, errors.New("layer streams only go forward")
	}
	for offset > 0 {
		if err := s.fill(); err != nil {
			if errors.Is(err, io.EOF) {
				break // The read that follows says so.
			}
			return s.pos, err
		}
		n := min(offset, int64(len(s.cur)))
		s.cur = s.cur[n:]
		s.pos += n
		offset -= n
	}
	return s.pos, nil
}

// allow says that the next dataSize bytes are file data, so that the bound on headers counts from after them.
func (s *tarSource) allow(dataSize int64) { s.limit = s.pos + dataSize + 2*512 + maxSpecial }

// drain reads to the end of the stream: what is behind the end of the archive belongs to the layer too.
func (s *tarSource) drain() error {
	for {
		if err := s.fill(); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		s.pos += int64(len(s.cur))
		s.cur = nil
	}
}

// digest is the diff ID, once all is read.
func (s *tarSource) digest() digest.Digest { return digest.NewDigest(digest.SHA256, s.hash) }
