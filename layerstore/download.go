package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// Files of the downloads directory, each named by a digest.
const (
	partSuffix  = ".part"  // what is here of a blob
	layerSuffix = ".layer" // empty: the layer of that diff ID was downloaded for an image that isn't here yet

	// uploadSuffix is of what is kept for pushes: where a registry has the beginning of a blob.
	uploadSuffix = ".upload"
)

// keepDownloads is how long what an interrupted pull has downloaded waits for the next one. containerd waits as long.
const keepDownloads = 24 * time.Hour

// download is the beginning of a blob, in a file that outlives the process: another pull goes on where this one was
// interrupted. Its holder has the file locked; who else wants the blob waits for the lock, and then mostly finds the layer
// in the store. The bytes are not trusted: they pass the verifier as those from the network do.
type download struct {
	path string
	lock *fileLock
	size int64 // bytes that are there
}

// openDownload locks the download of a blob, which is empty if it is new. waiting is called once if another process, or
// another goroutine, has it.
func (s *Store) openDownload(ctx context.Context, d digest.Digest, waiting func()) (*download, error) {
	const most = 200 * time.Millisecond
	path := s.path(downloadsDir, d.Encoded()+partSuffix)
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, most) {
		l, err := lockFile(path, true, unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			var here bool
			var size int64
			if here, size, err = l.stillAt(path); here {
				return &download{path: path, lock: l, size: size}, nil
			}
			l.close()
			if err == nil {
				continue // removed meanwhile: it was complete, or stale
			}
		}
		if !errors.Is(err, errBusy) {
			return nil, fmt.Errorf("keeping what is downloaded: %w", err)
		}
		if waiting != nil {
			waiting()
			waiting = nil
		}
		// Not flock(2) itself, which can't be given up.
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// stillAt reports whether the locked file has that name still, and its size.
func (l *fileLock) stillAt(path string) (bool, int64, error) {
	mine, err := l.f.Stat()
	if err != nil {
		return false, 0, err
	}
	named, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, 0, nil
	}
	if err != nil {
		return false, 0, err
	}
	return os.SameFile(mine, named), mine.Size(), nil
}

// begin returns a reader of what is there.
func (d *download) begin() io.Reader { return io.NewSectionReader(d.lock.f, 0, d.size) }

// Write implements io.Writer: it adds what follows.
func (d *download) Write(p []byte) (int, error) {
	n, err := d.lock.f.WriteAt(p, d.size)
	d.size += int64(n)
	if err != nil {
		return n, &storeError{err}
	}
	return n, nil
}

func (d *download) truncate() error {
	d.size = 0
	return d.lock.f.Truncate(0)
}

// remove deletes the file. Those who wait for its lock find out.
func (d *download) remove() { os.Remove(d.path) }

// close lets others go on. An empty file says nothing and is not left.
func (d *download) close() {
	if d.size == 0 {
		d.remove()
	}
	d.lock.close()
}

// dropDownload deletes what is left of the download of a layer that the store has, if its process died just before it would
// have.
func (s *Store) dropDownload(d digest.Digest) {
	path := s.path(downloadsDir, d.Encoded()+partSuffix)
	if l, err := lockFile(path, false, unix.LOCK_EX|unix.LOCK_NB); err == nil {
		os.Remove(path)
		l.close()
	}
}

// resumable reports whether what has arrived may be of use to another try: the network broke or the user did.
func resumable(err error) bool {
	var broken *brokenOffError
	var own *storeError
	var lie *sizeError
	if errors.As(err, &own) || errors.As(err, &lie) {
		return false
	}
	if errors.As(err, &broken) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		var status *transport.Error
		return !errors.As(err, &status) || status.StatusCode >= http.StatusInternalServerError || status.StatusCode == http.StatusTooManyRequests
	}
	return false
}

// keepLayer keeps a layer from being collected though no image has it, for keepDownloads.
func (s *Store) keepLayer(id digest.Digest) error {
	return os.WriteFile(s.path(downloadsDir, id.Encoded()+layerSuffix), nil, 0o600)
}

// dropKept ends what keepLayer does.
func (s *Store) dropKept(ids []digest.Digest) {
	for _, id := range ids {
		os.Remove(s.path(downloadsDir, id.Encoded()+layerSuffix))
	}
}

// keptLayers returns the encoded diff IDs that keepLayer keeps.
func (s *Store) keptLayers() (map[string]bool, error) {
	entries, err := os.ReadDir(s.path(downloadsDir))
	if err != nil {
		return nil, err
	}
	kept := make(map[string]bool)
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), layerSuffix); ok {
			kept[id] = true
		}
	}
	return kept, nil
}

// dropDownloads deletes the downloads that nobody has locked and that were last written before a time, or with dry only
// finds them. It returns how many bytes there were, and which layers no longer wait for an image.
func (s *Store) dropDownloads(before time.Time, dry bool) (freed int64, layers []digest.Digest, err error) {
	entries, err := os.ReadDir(s.path(downloadsDir))
	if err != nil {
		return 0, nil, err
	}
	for _, e := range entries {
		fi, err := e.Info()
		if errors.Is(err, os.ErrNotExist) || err == nil && !fi.ModTime().Before(before) {
			continue
		}
		if err != nil {
			return freed, layers, err
		}
		path := s.path(downloadsDir, e.Name())
		l, err := lockFile(path, false, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, errBusy) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return freed, layers, err
		}
		if !dry {
			err = os.Remove(path)
		}
		l.close()
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return freed, layers, err
		}
		freed += fi.Size()
		if id, ok := strings.CutSuffix(e.Name(), layerSuffix); ok {
			layers = append(layers, digest.NewDigestFromEncoded(digest.SHA256, id))
		}
	}
	return freed, layers, nil
}

// dropStale deletes the downloads that nobody has gone on with for keepDownloads.
func (s *Store) dropStale() error {
	_, layers, err := s.dropDownloads(time.Now().Add(-keepDownloads), false)
	if err == nil && len(layers) > 0 {
		err = s.exclusively(unix.LOCK_NB, func(trash *attempt) error {
			s.collect(trash) // as in bury
			return nil
		})
		if errors.Is(err, errBusy) {
			err = nil // the next command that frees something does this too
		}
	}
	return err
}
