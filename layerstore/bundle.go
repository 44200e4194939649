package layerstore

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// bundle is the files that images were saved in, an archive or a directory. Names are relative and have slashes. What isn't
// there is fs.ErrNotExist.
type bundle interface {
	open(name string) (r io.ReadCloser, size int64, err error)
	close() error
}

// dirBundle is a directory. No name leads out of it, through whatever links.
type dirBundle struct{ root *os.Root }

func (b dirBundle) close() error { return b.root.Close() }

func (b dirBundle) open(name string) (io.ReadCloser, int64, error) {
	// Of a FIFO, opening it would wait for its other end.
	f, err := b.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", clip(name))
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// tarBundle is an uncompressed archive, of which only the headers were read.
type tarBundle struct {
	f       *os.File
	entries map[string]bundleEntry
}

// bundleEntry is where the data of a file is; or, of a link, what it leads to.
type bundleEntry struct {
	off, size int64
	link      string
}

func (b *tarBundle) close() error { return b.f.Close() }

// openTarBundle reads the headers of an archive. The file is the bundle's from here on, also if there is an error.
func openTarBundle(f *os.File) (_ *tarBundle, err error) {
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	// Images have thousands of files at most: three for each layer.
	const most = 1 << 17
	b := &tarBundle{f: f, entries: make(map[string]bundleEntry)}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return nil, err
	}
	bounded := &boundedHeaders{f: f}
	tr := tar.NewReader(bounded)
	for n := 0; ; n++ {
		bounded.left = maxSpecial
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			at, _ := f.Seek(0, io.SeekCurrent)
			if errors.Is(err, tar.ErrHeader) && n == 0 {
				return nil, errNoBundle
			}
			return nil, fmt.Errorf("the archive is damaged or truncated at byte %d: %w", at, err)
		}
		if n >= most {
			return nil, fmt.Errorf("the archive has more than %d entries: it is not one of images", most)
		}
		name, err := cleanPath(h.Name)
		if err != nil {
			return nil, fmt.Errorf("entry %q of the archive: %w", clip(h.Name), err)
		}
		switch h.Typeflag {
		case tar.TypeReg:
			for k := range h.PAXRecords {
				if strings.HasPrefix(k, sparsePrefix) {
					return nil, fmt.Errorf("entry %q of the archive: %w", clip(h.Name), errSparse)
				}
			}
			off, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			b.entries[name] = bundleEntry{off: off, size: h.Size}
		case tar.TypeSymlink:
			b.entries[name] = bundleEntry{link: path.Join("/", path.Dir(name), h.Linkname)}
		case tar.TypeLink:
			b.entries[name] = bundleEntry{link: path.Join("/", h.Linkname)}
		}
	}
}

// boundedHeaders keeps headers without end from being read into memory. Data is skipped by seeking, which is free.
type boundedHeaders struct {
	f    *os.File
	left int64 // bytes, until the next entry
}

// Read implements io.Reader.
func (b *boundedHeaders) Read(p []byte) (int, error) {
	if b.left <= 0 {
		return 0, errHeaders
	}
	n, err := b.f.Read(p)
	b.left -= int64(n)
	return n, err
}

// Seek implements io.Seeker.
func (b *boundedHeaders) Seek(offset int64, whence int) (int64, error) {
	return b.f.Seek(offset, whence)
}

func (b *tarBundle) open(name string) (io.ReadCloser, int64, error) {
	const links = 8
	e, ok := b.entries[name]
	for n := 0; ok && e.link != "" && n < links; n++ {
		e, ok = b.entries[strings.TrimPrefix(e.link, "/")]
	}
	if !ok || e.link != "" {
		return nil, 0, &fs.PathError{Op: "open", Path: clip(name), Err: fs.ErrNotExist}
	}
	return io.NopCloser(io.NewSectionReader(b.f, e.off, e.size)), e.size, nil
}

// readBundle reads a small file of a bundle whole.
func readBundle(b bundle, name string, most int64) ([]byte, error) {
	r, _, err := b.open(name)
	if err != nil {
		return nil, err
	}
	raw, err := small(r, most)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", clip(name), err)
	}
	return raw, nil
}
