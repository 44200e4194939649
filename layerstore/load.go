package layerstore

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// LoadOptions change what Load does. The zero value is what a user expects.
type LoadOptions struct {
	Platform *ocispec.Platform // of the image to choose, where there are several under one name; default: as for Pull
	BaseName string            // repository for images that have only a tag, or no name at all
	Jobs     int               // layers at once; default 3

	// Progress, if set, is told how each layer gets on. Calls come one at a time.
	Progress func(LayerProgress)
}

// Loaded is an image that was loaded.
type Loaded struct {
	Image *Image
	Names []string // that it was given, as Docker writes them
}

var errNoBundle = errors.New("it is neither a docker-archive, nor an OCI layout, nor a directory that skopeo made: the tar of a root file system is for import")

// Load stores all images that were saved in a file or directory: a docker-archive, an OCI layout (both as a tar, also
// compressed, or as a directory), or the directory of skopeo's "dir:". Everything is checked as in Pull. The images that were
// loaded before an error stay.
func (s *Store) Load(ctx context.Context, path string, o LoadOptions) ([]Loaded, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("loading images: %w", err)
	}
	defer f.Close()
	all, err := s.loadFrom(ctx, f, &o)
	if err != nil {
		err = fmt.Errorf("loading images from %s: %w", path, s.explain(err))
	}
	return all, err
}

// LoadStream is Load of what r has, such as standard input.
func (s *Store) LoadStream(ctx context.Context, r io.Reader, o LoadOptions) ([]Loaded, error) {
	all, err := s.loadFrom(ctx, r, &o)
	if err != nil {
		err = fmt.Errorf("loading images: %w", s.explain(err))
	}
	return all, err
}

func (s *Store) loadFrom(ctx context.Context, r io.Reader, o *LoadOptions) (all []Loaded, err error) {
	if o.BaseName != "" {
		if err := CheckName(o.BaseName); err != nil {
			return nil, err
		}
	}
	if err := s.sweep(); err != nil {
		return nil, err
	}
	err = s.attempt(func(a *attempt) error {
		b, err := openBundle(ctx, a, r)
		if err != nil {
			return err
		}
		defer b.close()
		images, err := bundledImages(b, o)
		if err != nil {
			return err
		}
		none := errors.New("there is no image in it")
		for _, i := range images {
			loaded, err := s.loadImage(ctx, i, o)
			if errors.Is(err, ErrNotImage) {
				none = err // a signature, or another artifact beside the images
				continue
			}
			if err != nil {
				return err
			}
			all = append(all, *loaded)
		}
		if len(all) == 0 {
			return none
		}
		return nil
	})
	return all, err
}

// openBundle opens a directory, an uncompressed archive that can be read in any order as it is, and else an uncompressed copy
// of it in the attempt.
func openBundle(ctx context.Context, a *attempt, r io.Reader) (bundle, error) {
	if f, ok := r.(*os.File); ok {
		fi, err := f.Stat()
		if err != nil {
			return nil, err
		}
		if fi.IsDir() {
			root, err := os.OpenRoot(f.Name())
			return dirBundle{root}, err
		}
		if fi.Mode().IsRegular() {
			packed, err := isPacked(f)
			if err != nil {
				return nil, err
			}
			if !packed {
				own, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
				if err != nil {
					return nil, err
				}
				return openTarBundle(os.NewFile(uintptr(own), f.Name()))
			}
		}
	}
	plain, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer plain.Close()
	copied, err := os.OpenFile(a.path("archive"), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	n, err := io.Copy(copied, io.LimitReader(&cancelledReader{ctx, plain}, maxLayer))
	if err == nil && n == 0 {
		err = errors.New("it is empty")
	}
	if err != nil {
		copied.Close()
		return nil, fmt.Errorf("reading it: %w", err)
	}
	return openTarBundle(copied)
}

// isPacked reports whether a file is compressed, and leaves it at its start.
func isPacked(f *os.File) (bool, error) {
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	magic, err := bufio.NewReaderSize(f, 16).Peek(8)
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	return compressionKind(magic) != "", nil
}

// cancelledReader ends with the context.
type cancelledReader struct {
	ctx context.Context
	r   io.Reader
}

// Read implements io.Reader.
func (c *cancelledReader) Read(p []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(p)
}

// bundledImage is one image of a bundle.
type bundledImage struct {
	names  []string // as they are written there
	source imageSource
	id     digest.Digest // of its manifest or index; empty if it has none, as in a docker-archive
	docker *dockerArchiveImage
}

// bundledImages finds out what kind of bundle it is, and what is in it. A bundle of Docker 25 is of both kinds.
func bundledImages(b bundle, o *LoadOptions) ([]bundledImage, error) {
	layout, err := readLayout(b, o)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return layout, err
	}
	raw, err := readBundle(b, "manifest.json", maxManifest)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errNoBundle
	}
	if err != nil {
		return nil, err
	}
	if looksLikeObject(raw) {
		source := &layoutSource{b: b, blob: func(d digest.Digest) string { return d.Encoded() }, manifests: map[digest.Digest][]byte{digest.FromBytes(raw): raw}}
		return []bundledImage{{source: source, id: digest.FromBytes(raw)}}, nil
	}
	return readDockerArchive(b, raw)
}

// loadImage stores one image under its names.
func (s *Store) loadImage(ctx context.Context, i bundledImage, o *LoadOptions) (*Loaded, error) {
	loaded := &Loaded{}
	var names []refRecord
	for _, n := range i.names {
		parsed, err := bundledName(n, o.BaseName)
		if err != nil {
			return nil, err
		}
		names = append(names, refRecord{Version: recordVersion, Name: parsed.Name()})
		loaded.Names = append(loaded.Names, familiarName(parsed))
	}
	if len(names) == 0 && o.BaseName != "" {
		parsed, err := parseName(o.BaseName)
		if err != nil {
			return nil, err
		}
		names = append(names, refRecord{Version: recordVersion, Name: parsed.Name()})
		loaded.Names = append(loaded.Names, familiarName(parsed))
	}
	f := &fetcher{s: s, source: i.source, platform: o.Platform, jobs: o.Jobs, observe: o.Progress}
	what := cmp.Or(append(i.names, string(i.id))...)
	var err error
	if i.docker != nil {
		loaded.Image, err = f.storeDocker(ctx, i.docker, names)
	} else if err = f.resolve(ctx, string(i.id), i.id); err == nil {
		loaded.Image, err = f.store(ctx, names)
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", clip(what), err)
	}
	return loaded, nil
}
