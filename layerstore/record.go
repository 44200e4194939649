package layerstore

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const recordVersion = 1

// imageRecord is the file of an image. What came from a registry is kept byte for byte, so that it can be pushed with the
// same digests.
type imageRecord struct {
	Version      int           `json:"version"`
	Config       []byte        `json:"config"`   // its SHA-256 is the image ID
	Manifest     []byte        `json:"manifest"` // of the platform; never an index
	ManifestType string        `json:"manifestMediaType"`
	Layers       []layerRecord `json:"layers"` // bottom first, as in the configuration
	Stored       time.Time     `json:"stored"`
}

// layerRecord is what an image says about one of its layers.
type layerRecord struct {
	DiffID    digest.Digest `json:"diffID"`
	Digest    digest.Digest `json:"digest"`          // of the blob in the registry, compressed or not
	Size      int64         `json:"size"`            // of the blob, bytes
	MediaType string        `json:"mediaType"`       // of the blob
	Local     bool          `json:"local,omitempty"` // the layer was made here and never pushed: its blob is the tar
}

// refRecord is the file of a name.
type refRecord struct {
	Version int           `json:"version"`
	Name    string        `json:"name"`             // in full, index.docker.io/library/debian:12
	Image   digest.Digest `json:"image"`            // image ID
	Digest  digest.Digest `json:"digest,omitempty"` // what the registry resolved the name to: a manifest or an index
}

// readJSON reads a file of the store of at most most bytes.
func readJSON(path string, most int64, into any) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err != nil {
		return err
	}
	if int64(len(b)) > most {
		return fmt.Errorf("%s has more than %d bytes", path, most)
	}
	if err := json.Unmarshal(b, into); err != nil {
		return fmt.Errorf("%s is damaged: %w", path, err)
	}
	return nil
}

// readRecordOnly reads the file of the image whose ID has these digits. Its configuration is the one that the ID is of, and isn't read.
func (s *Store) readRecordOnly(hex string) (*imageRecord, error) {
	var r imageRecord
	path := s.path(imagesDir, hex)
	if err := readJSON(path, maxRecord, &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%s is of version %d, this program knows %d", path, r.Version, recordVersion)
	}
	if got := digest.FromBytes(r.Config).Encoded(); got != hex {
		return nil, fmt.Errorf("%s is damaged: its configuration has the digest %s", path, got)
	}
	return &r, nil
}

// readRecord reads the file of the image whose ID has these digits, and checks it.
func (s *Store) readRecord(hex string) (*imageRecord, *ocispec.Image, error) {
	path := s.path(imagesDir, hex)
	r, err := s.readRecordOnly(hex)
	if err != nil {
		return nil, nil, err
	}
	c, err := parseConfig(r.Config)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	if len(c.RootFS.DiffIDs) != len(r.Layers) {
		return nil, nil, fmt.Errorf("%s is damaged: it lists %d layers for %d", path, len(r.Layers), len(c.RootFS.DiffIDs))
	}
	for i, l := range r.Layers {
		if l.DiffID != c.RootFS.DiffIDs[i] {
			return nil, nil, fmt.Errorf("%s is damaged: layer %d is %s in one place and %s in another", path, i, clip(string(l.DiffID)), c.RootFS.DiffIDs[i])
		}
	}
	return r, c, nil
}

// parseConfig reads the configuration of an image from outside.
func parseConfig(b []byte) (*ocispec.Image, error) {
	if len(b) > maxConfig {
		return nil, fmt.Errorf("the image's configuration has %d bytes, at most %d are allowed", len(b), maxConfig)
	}
	var c ocispec.Image
	if err := json.Unmarshal(b, &c); err != nil {
		return nil, fmt.Errorf("%w: its configuration can't be read: %w", ErrNotImage, err)
	}
	if c.RootFS.Type != "layers" {
		return nil, fmt.Errorf("%w: its configuration has rootfs type %q, expected \"layers\"", ErrNotImage, clip(c.RootFS.Type))
	}
	if n := len(c.RootFS.DiffIDs); n == 0 || n > maxLayers {
		return nil, fmt.Errorf("the image has %d layers: 1 to %d are possible", n, maxLayers)
	}
	for i, d := range c.RootFS.DiffIDs {
		if err := checkDigest(d); err != nil {
			return nil, fmt.Errorf("diff ID of layer %d: %w", i, err)
		}
	}
	return &c, nil
}

// chainID names what the layers are together (OCI image specification, "Layer ChainID").
func chainID(diffIDs []digest.Digest) digest.Digest {
	chain := diffIDs[0]
	for _, d := range diffIDs[1:] {
		chain = digest.FromString(string(chain) + " " + string(d))
	}
	return chain
}

// refs returns all names of the store.
func (s *Store) refs() ([]refRecord, error) {
	entries, err := os.ReadDir(s.path(refsDir))
	if err != nil {
		return nil, err
	}
	var all []refRecord
	for _, e := range entries {
		r, err := s.readRef(e.Name())
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		all = append(all, *r)
	}
	return all, nil
}

func (s *Store) readRef(file string) (*refRecord, error) {
	var r refRecord
	path := s.path(refsDir, file)
	if err := readJSON(path, maxManifest, &r); err != nil {
		return nil, err
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%s is of version %d, this program knows %d", path, r.Version, recordVersion)
	}
	if err := checkDigest(r.Image); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", path, err)
	}
	return &r, nil
}

// reference is the name of a ref record. The record was written from a parsed name.
func (r *refRecord) reference() (name.Reference, error) {
	return name.ParseReference(r.Name, name.WeakValidation)
}

// publishJSON writes a file of the store through the attempt.
func (a *attempt) publishJSON(v any, dest ...string) error {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return err
	}
	tmp := "json-" + strings.TrimPrefix(dest[0], "/")
	if err := a.write(tmp, b.Bytes()); err != nil {
		return err
	}
	return a.publish(tmp, dest...)
}
