package bench

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/types"
	"github.com/klauspost/compress/gzip"
	"golang.org/x/sys/unix"
)

// imageServer is a registry on loopback, from which unionfs and its peers pull what is measured.
type imageServer struct {
	address string
	blobs   string // directory
	server  *http.Server
}

func startImageServer(dir string) (*imageServer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &imageServer{address: listener.Addr().String(), blobs: filepath.Join(dir, "blobs")}
	if err := os.MkdirAll(filepath.Join(s.blobs, "sha256"), 0o755); err != nil {
		listener.Close()
		return nil, err
	}
	handler := registry.New(
		registry.WithBlobHandler(registry.NewDiskBlobHandler(s.blobs)),
		registry.Logger(log.New(io.Discard, "", 0)),
	)
	s.server = &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
	go s.server.Serve(listener)
	return s, nil
}

func (s *imageServer) close() error {
	return errors.Join(s.server.Close(), os.RemoveAll(s.blobs))
}

// publish makes an image of the branches, each one a layer, and returns its reference. Layers are compressed only if told
// so: most benchmarks are about what is done with layers, not about gzip.
func (s *imageServer) publish(ctx context.Context, branches *stack, repository string, config v1.Config, compress bool) (string, error) {
	names := branches.absolute()
	var layers []v1.Layer
	for i := len(names) - 1; i >= 0; i-- {
		layer, err := s.addLayer(compress, func(out *tar.Writer) error { return writeBranch(ctx, out, names[i]) })
		if err != nil {
			return "", fmt.Errorf("making a layer of %s: %w", names[i], err)
		}
		layers = append(layers, layer)
	}
	return s.publishLayers(ctx, layers, repository, config)
}

// publishLayers makes an image of layers, the lowest first, and returns its reference.
func (s *imageServer) publishLayers(ctx context.Context, layers []v1.Layer, repository string, config v1.Config) (string, error) {
	base := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	// All at once: one after the other takes a time that grows with the square of their number.
	image, err := mutate.AppendLayers(base, layers...)
	if err != nil {
		return "", err
	}
	image, err = mutate.ConfigFile(image, platformConfig(image, config))
	if err != nil {
		return "", err
	}
	reference := fmt.Sprintf("%s/%s:latest", s.address, repository)
	parsed, err := name.ParseReference(reference, name.Insecure)
	if err != nil {
		return "", err
	}
	if err := remote.Write(parsed, image, remote.WithContext(ctx)); err != nil {
		return "", fmt.Errorf("publishing %s: %w", reference, err)
	}
	return reference, nil
}

// forget removes all blobs, so that they don't take up disk space any longer.
func (s *imageServer) forget() error {
	dir := filepath.Join(s.blobs, "sha256")
	return errors.Join(os.RemoveAll(dir), os.MkdirAll(dir, 0o755))
}

// platformConfig returns the image's configuration, with the platform that container tools ask for.
func platformConfig(image v1.Image, config v1.Config) *v1.ConfigFile {
	file, err := image.ConfigFile()
	if err != nil { // it was made in memory
		panic(err)
	}
	file = file.DeepCopy()
	file.OS, file.Architecture, file.Config = "linux", runtime.GOARCH, config
	return file
}

// addLayer writes a layer to where the registry keeps its blobs, so that it need not be uploaded.
func (s *imageServer) addLayer(compress bool, write func(*tar.Writer) error) (v1.Layer, error) {
	file, err := os.CreateTemp(s.blobs, "layer-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(file.Name()) // does nothing once it is renamed
	defer file.Close()
	blobSum, tarSum := sha256.New(), sha256.New()
	buffered := bufio.NewWriterSize(io.MultiWriter(file, blobSum), 1<<20)
	layer := &layerFile{mediaType: types.OCIUncompressedLayer}
	if compress {
		layer.mediaType = types.OCILayer
		compressor := gzip.NewWriter(buffered)
		if err := writeTar(io.MultiWriter(compressor, tarSum), write); err != nil {
			return nil, err
		}
		if err := compressor.Close(); err != nil {
			return nil, err
		}
	} else if err := writeTar(io.MultiWriter(buffered, tarSum), write); err != nil {
		return nil, err
	}
	if err := buffered.Flush(); err != nil {
		return nil, err
	}
	if layer.size, err = file.Seek(0, io.SeekCurrent); err != nil {
		return nil, err
	}
	layer.digest = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(blobSum.Sum(nil))}
	layer.diffID = v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(tarSum.Sum(nil))}
	layer.name = filepath.Join(s.blobs, "sha256", layer.digest.Hex)
	return layer, os.Rename(file.Name(), layer.name)
}

// layerFile is a layer in a file.
type layerFile struct {
	name           string
	digest, diffID v1.Hash
	size           int64
	mediaType      types.MediaType
}

func (l *layerFile) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l *layerFile) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l *layerFile) Size() (int64, error)                { return l.size, nil }
func (l *layerFile) MediaType() (types.MediaType, error) { return l.mediaType, nil }
func (l *layerFile) Compressed() (io.ReadCloser, error)  { return os.Open(l.name) }
func (l *layerFile) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("only its blob is wanted of a layer that is published")
}

func writeTar(w io.Writer, write func(*tar.Writer) error) error {
	out := tar.NewWriter(w)
	if err := write(out); err != nil {
		return err
	}
	return out.Close()
}

// writeBranch writes what is in a branch in overlay format as an OCI layer.
func writeBranch(ctx context.Context, out *tar.Writer, branch string) error {
	return filepath.WalkDir(branch, func(file string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rel, err := filepath.Rel(branch, file)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(file, &st); err != nil {
			return &os.PathError{Op: "lstat", Path: file, Err: err}
		}
		h, err := layerHeader(file, rel, &st)
		if err != nil || h == nil {
			return err
		}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		switch {
		case h.Typeflag == tar.TypeReg && h.Size > 0:
			return copyInto(out, file)
		case h.Typeflag == tar.TypeDir && isOpaque(file):
			return out.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: path.Join(rel, ".wh..wh..opq"), Mode: 0o600})
		}
		return nil
	})
}

// layerHeader returns nil for what layers don't hold.
func layerHeader(file, rel string, st *unix.Stat_t) (*tar.Header, error) {
	h := &tar.Header{
		Name: rel, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		h.Typeflag, h.Name = tar.TypeDir, rel+"/"
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFLNK:
		target, err := os.Readlink(file)
		if err != nil {
			return nil, err
		}
		h.Typeflag, h.Linkname = tar.TypeSymlink, target
	case unix.S_IFCHR:
		if st.Rdev == 0 { // a whiteout
			return &tar.Header{Typeflag: tar.TypeReg, Name: path.Join(path.Dir(rel), ".wh."+path.Base(rel)), Mode: 0o600}, nil
		}
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	default:
		return nil, nil
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return h, nil
}

func isOpaque(dir string) bool {
	value := make([]byte, 8)
	for _, attribute := range []string{"trusted.overlay.opaque", "user.overlay.opaque", "user.fuseoverlayfs.opaque"} {
		if n, err := unix.Lgetxattr(dir, attribute, value); err == nil && string(value[:n]) == "y" {
			return true
		}
	}
	return false
}

func copyInto(w io.Writer, file string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	_, err = io.Copy(w, in)
	return err
}

// run runs a program to its end. An error has the last line of what it printed.
func run(ctx context.Context, program string, args ...string) error {
	command := exec.CommandContext(ctx, program, args...)
	output, err := command.CombinedOutput()
	if err != nil && ctx.Err() == nil {
		lines := bytes.Split(bytes.TrimSpace(output), []byte("\n"))
		return fmt.Errorf("%s %s: %w: %s", filepath.Base(program), strings.Join(args, " "), err, lines[len(lines)-1])
	}
	return errors.Join(err, ctx.Err())
}
