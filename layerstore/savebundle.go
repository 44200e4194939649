package layerstore

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// bundleWriter makes a bundle of files, each given once, with slashes in their names.
type bundleWriter interface {
	file(name string, size int64, r io.Reader) error
}

// tarBundleWriter makes an archive. Nothing in it says when it was made.
type tarBundleWriter struct {
	tw   *tar.Writer
	dirs map[string]bool // that have an entry
}

func newTarBundleWriter(w io.Writer) *tarBundleWriter {
	return &tarBundleWriter{tar.NewWriter(w), make(map[string]bool)}
}

func (t *tarBundleWriter) file(name string, size int64, r io.Reader) error {
	for n := range name {
		if name[n] != '/' || t.dirs[name[:n]] {
			continue
		}
		t.dirs[name[:n]] = true
		if err := t.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name[:n+1], Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	if err := t.tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := io.Copy(t.tw, r)
	return err
}

// dirBundleWriter makes a directory, under another name beside it until it is whole.
type dirBundleWriter struct{ staging string }

func newDirBundleWriter(dir string) (*dirBundleWriter, error) {
	dir = filepath.Clean(dir)
	staging, err := os.MkdirTemp(filepath.Dir(dir), "."+filepath.Base(dir)+"-")
	if err != nil {
		return nil, err
	}
	return &dirBundleWriter{staging}, os.Chmod(staging, 0o755)
}

func (d *dirBundleWriter) file(name string, _ int64, r io.Reader) error {
	path := filepath.Join(d.staging, filepath.FromSlash(name))
	if strings.Contains(name, "/") {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	if _, err = io.Copy(f, r); err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// publish gives the directory its name.
func (d *dirBundleWriter) publish(dir string) error { return os.Rename(d.staging, dir) }

// discard deletes what was not published.
func (d *dirBundleWriter) discard() error { return os.RemoveAll(d.staging) }
