package layerstore

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

const (
	whiteoutPrefix = ".wh."
	whiteoutMeta   = ".wh..wh." // AUFS keeps its own files under such names
	opaqueName     = ".wh..wh..opq"
	xattrPrefix    = "SCHILY.xattr."
	sparsePrefix   = "GNU.sparse."
)

// ingest reads a layer, compressed or not, and writes its tar and its index into the directory dir, which exists. Both
// are flushed. It returns the diff ID and the size of the tar.
//
// The stream is read by another goroutine, which may be in a Read when ingest returns an error.
func ingest(ctx context.Context, r io.Reader, dir string) (diffID digest.Digest, size int64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f, err := os.OpenFile(dir+"/"+tarName, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return "", 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	plain, err := decompress(r)
	if err != nil {
		return "", 0, streamError(err, 0)
	}
	src := newTarSource(ctx, plain, &earlyWriter{f: f})
	tree, err := readTree(src)
	if err != nil {
		return "", 0, err
	}
	if err := src.drain(); err != nil {
		return "", 0, streamError(err, src.total)
	}
	diffID, size = src.digest(), src.total
	w, err := tree.index(diffID, size)
	if err != nil {
		return "", 0, err
	}
	if err := w.write(dir + "/" + indexName); err != nil {
		return "", 0, err
	}
	if err := f.Sync(); err != nil {
		return "", 0, err
	}
	return diffID, size, syncDir(dir)
}

// readTree reads an archive up to its end.
func readTree(src *tarSource) (*layerTree, error) {
	t := newLayerTree()
	tr := tar.NewReader(src)
	for headers := 0; ; headers++ {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return t, nil
		}
		if err != nil {
			return nil, streamError(err, src.pos)
		}
		if headers >= maxHeaders {
			return nil, fmt.Errorf("the layer has more than %d headers", maxHeaders)
		}
		if err := t.entry(h, src.pos); err != nil {
			return nil, fmt.Errorf("entry %q of the layer: %w", clip(h.Name), err)
		}
		if h.Typeflag == tar.TypeReg || h.Typeflag == tar.TypeCont {
			src.allow(h.Size)
		} else {
			src.allow(0)
		}
	}
}

// streamError says in the user's words what is wrong with a stream that failed at pos.
func streamError(err error, pos int64) error {
	var own *storeError
	switch {
	case errors.As(err, &own):
		return own
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("the layer is truncated after %d bytes: %w", pos, err)
	case errors.Is(err, tar.ErrHeader):
		return fmt.Errorf("the layer is not a tar archive, or damaged, at byte %d: %w", pos, err)
	}
	return fmt.Errorf("reading the layer at byte %d: %w", pos, err)
}

// cleanPath makes a path relative to the root of the image. A leading slash means nothing, as for every applier; a path
// that leads out of the image is an error.
func cleanPath(p string) (string, error) {
	if len(p) > maxPath {
		return "", fmt.Errorf("its path has %d bytes, at most %d are possible: %w", len(p), maxPath, unix.ENAMETOOLONG)
	}
	if strings.IndexByte(p, 0) >= 0 {
		return "", errors.New("its path has a zero byte in it")
	}
	p = path.Clean(strings.TrimLeft(p, "/"))
	if p == "." {
		return "", nil
	}
	if p == ".." || strings.HasPrefix(p, "../") {
		return "", errors.New("it leads out of the image")
	}
	for rest := p; rest != ""; {
		var name string
		name, rest, _ = strings.Cut(rest, "/")
		if len(name) > maxName {
			return "", fmt.Errorf("the name %q has %d bytes, at most %d are possible: %w", clip(name), len(name), maxName, unix.ENAMETOOLONG)
		}
	}
	return p, nil
}

// entry puts what one header says into the tree. offset is where its data starts.
func (t *layerTree) entry(h *tar.Header, offset int64) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil
	}
	p, err := cleanPath(h.Name)
	if err != nil {
		return err
	}
	parent, name := path.Split(p)
	parent = strings.TrimSuffix(parent, "/")
	if done, err := t.mark(parent, name); done || err != nil {
		return err
	}
	if h.Typeflag == tar.TypeLink {
		return t.linkEntry(h, parent, name)
	}
	i, err := headerInode(h, offset)
	if err != nil {
		return err
	}
	if name == "" {
		if h.Typeflag != tar.TypeDir {
			return fmt.Errorf("it would replace the root of the image by a %s", kindName(i.mode))
		}
		return t.put(t.root, i)
	}
	n, err := t.at(parent, name)
	if err != nil {
		return err
	}
	return t.put(n, i)
}

// at returns the node of an entry, making it and the directories above it.
func (t *layerTree) at(parent, name string) (*node, error) {
	d, err := t.dir(parent)
	if err != nil {
		return nil, err
	}
	return t.child(d, name)
}

// mark handles the names that aren't entries: whiteouts, the mark of an opaque directory, and AUFS's own files. done
// says that it was one.
func (t *layerTree) mark(parent, name string) (done bool, err error) {
	if strings.HasPrefix(parent, whiteoutPrefix) || strings.Contains(parent, "/"+whiteoutPrefix) {
		if strings.HasPrefix(parent, whiteoutMeta) || strings.Contains(parent, "/"+whiteoutMeta) {
			return true, nil
		}
		return false, errors.New("it lies beneath a whiteout")
	}
	switch {
	case name == opaqueName:
		d, err := t.dir(parent)
		if err != nil {
			return false, err
		}
		d.opaque = true
		return true, nil
	case strings.HasPrefix(name, whiteoutMeta):
		return true, nil
	case strings.HasPrefix(name, whiteoutPrefix):
		hidden := name[len(whiteoutPrefix):]
		if !validName([]byte(hidden)) {
			return false, errors.New("it is a whiteout of no name")
		}
		n, err := t.at(parent, hidden)
		if err != nil {
			return false, err
		}
		n.replaces = true
		return true, nil
	}
	return false, nil
}

// linkEntry handles a hard link. What the header says besides the target is ignored: the target has said it.
func (t *layerTree) linkEntry(h *tar.Header, parent, name string) error {
	target, err := cleanPath(h.Linkname)
	if err != nil {
		return fmt.Errorf("it is a hard link to %q: %w", clip(h.Linkname), err)
	}
	if target == "" || name == "" {
		return errors.New("it is a hard link to or from the root of the image")
	}
	n, err := t.at(parent, name)
	if err != nil {
		return err
	}
	return t.hardLink(n, target)
}

// headerInode makes the inode that a header describes.
func headerInode(h *tar.Header, offset int64) (*inode, error) {
	i := &inode{mode: uint32(h.Mode & 0o7777), sec: h.ModTime.Unix(), nsec: uint32(h.ModTime.Nanosecond())}
	// 0xffffffff is "no change" to chown(2) and never a file's owner.
	if h.Uid < 0 || h.Uid >= math.MaxUint32 || h.Gid < 0 || h.Gid >= math.MaxUint32 {
		return nil, fmt.Errorf("it belongs to %d:%d, which are no IDs", h.Uid, h.Gid)
	}
	i.uid, i.gid = uint32(h.Uid), uint32(h.Gid)
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont:
		i.mode |= unix.S_IFREG
		i.offset, i.size = uint64(offset), uint64(h.Size)
	case tar.TypeDir:
		i.mode |= unix.S_IFDIR
	case tar.TypeSymlink:
		i.mode |= unix.S_IFLNK
		if h.Linkname == "" || len(h.Linkname) > maxPath || strings.IndexByte(h.Linkname, 0) >= 0 {
			return nil, fmt.Errorf("it is a symbolic link with a target of %d bytes: 1 to %d, none of them zero, are possible", len(h.Linkname), maxPath)
		}
		i.target = h.Linkname
	case tar.TypeChar, tar.TypeBlock:
		i.mode |= unix.S_IFCHR
		if h.Typeflag == tar.TypeBlock {
			i.mode = i.mode&^unix.S_IFMT | unix.S_IFBLK
		}
		// The kernel's limits: 12 bits and 20 bits.
		if h.Devmajor < 0 || h.Devmajor >= 1<<12 || h.Devminor < 0 || h.Devminor >= 1<<20 {
			return nil, fmt.Errorf("it is the device %d:%d, which can't exist", h.Devmajor, h.Devminor)
		}
		i.rdev = uint32(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
	case tar.TypeFifo:
		i.mode |= unix.S_IFIFO
	case tar.TypeGNUSparse:
		return nil, errSparse
	default:
		return nil, fmt.Errorf("it is of type %q, which unionfs doesn't know", h.Typeflag)
	}
	x, err := headerXattrs(h)
	i.xattrs = x
	return i, err
}

var errSparse = errors.New("it is a sparse file in GNU tar's format, which unionfs doesn't read: make the archive without --sparse")

// headerXattrs returns the encoded xattrs of a header, and refuses what the kernel would.
func headerXattrs(h *tar.Header) ([]byte, error) {
	var set map[string]string
	names := 0
	for k, v := range h.PAXRecords {
		if strings.HasPrefix(k, sparsePrefix) {
			return nil, errSparse
		}
		name, ok := strings.CutPrefix(k, xattrPrefix)
		if !ok {
			continue
		}
		if name == "" || len(name) > maxXattrName || strings.IndexByte(name, 0) >= 0 {
			return nil, fmt.Errorf("the name of an xattr has %d bytes: 1 to %d are possible", len(name), maxXattrName)
		}
		if len(v) > maxXattrValue {
			return nil, fmt.Errorf("the xattr %s has %d bytes, at most %d are possible", name, len(v), maxXattrValue)
		}
		if names += len(name) + 1; names > maxXattrList {
			return nil, fmt.Errorf("the names of its xattrs have more than %d bytes", maxXattrList)
		}
		if set == nil {
			set = make(map[string]string)
		}
		set[name] = v
	}
	return encodeXattrs(set), nil
}
