package layerstore

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// Archive writes files of a union as a tar, in PAX format: the same files give the same bytes. Add may be given to
// [cow.Difference.Export], which makes it an OCI layer, or to [cow.ExportTree].
type Archive struct {
	tw *tar.Writer

	// Skipped, if set, is told of what a tar can't hold: sockets.
	Skipped func(path string)
}

// NewArchive starts a tar on w.
func NewArchive(w io.Writer) *Archive { return &Archive{tw: tar.NewWriter(w)} }

// Close ends the tar. It doesn't close what it is written to.
func (a *Archive) Close() error { return a.tw.Close() }

// leftOut reports whether an xattr has no place in an image: labels that one host gives to its files, and the names that a
// union keeps for itself, by which a container could change what the union of another one shows.
func leftOut(xattr string) bool {
	for _, prefix := range []string{"trusted.overlay.", "user.overlay.", "user.fuseoverlayfs.", "user.unionfs."} {
		if strings.HasPrefix(xattr, prefix) {
			return true
		}
	}
	return slices.Contains([]string{"security.selinux", "security.ima", "security.evm"}, xattr)
}

// Add writes one file.
func (a *Archive) Add(x *cow.Exported) error {
	if x.Deleted {
		dir, base := splitLast(x.Path)
		return a.tw.WriteHeader(markHeader(dir + whiteoutPrefix + base))
	}
	h, err := archiveHeader(x)
	if err != nil {
		return err
	}
	if h == nil {
		if a.Skipped != nil {
			a.Skipped(x.Path)
		}
		return nil
	}
	if err := a.tw.WriteHeader(h); err != nil {
		return err
	}
	if h.Typeflag == tar.TypeReg {
		if _, err := x.WriteTo(a.tw); err != nil {
			return err
		}
	}
	if x.Opaque {
		return a.tw.WriteHeader(markHeader(strings.TrimPrefix(x.Path+"/", "/") + opaqueName))
	}
	return nil
}

// markHeader is the header of a whiteout, which is nothing but a name.
func markHeader(name string) *tar.Header {
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
}

func splitLast(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	return p[:i+1], p[i+1:]
}

// archiveHeader is the header of a file; nil for one that a tar can't hold.
func archiveHeader(x *cow.Exported) (*tar.Header, error) {
	attr := &x.Attr
	h := &tar.Header{
		Name: x.Path, Mode: int64(attr.Mode & 0o7777), Uid: int(attr.UID), Gid: int(attr.GID),
		ModTime: time.Unix(attr.Mtime.Sec, attr.Mtime.Nsec), Format: tar.FormatPAX,
	}
	if x.Link != "" {
		h.Typeflag, h.Linkname = tar.TypeLink, x.Link
		return h, nil
	}
	switch attr.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, int64(attr.Size)
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		if h.Name += "/"; x.Path == "" {
			h.Name = "./"
		}
	case unix.S_IFLNK:
		h.Typeflag, h.Linkname = tar.TypeSymlink, x.Target
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR, unix.S_IFBLK:
		h.Typeflag = tar.TypeChar
		if attr.Mode&unix.S_IFMT == unix.S_IFBLK {
			h.Typeflag = tar.TypeBlock
		}
		h.Devmajor, h.Devminor = int64(unix.Major(uint64(attr.Rdev))), int64(unix.Minor(uint64(attr.Rdev)))
	case unix.S_IFSOCK:
		return nil, nil
	default:
		return nil, fmt.Errorf("it is of type %#o, which a tar can't hold", attr.Mode&unix.S_IFMT)
	}
	for name, value := range x.Xattrs {
		if leftOut(name) {
			continue
		}
		if strings.IndexByte(name, '=') >= 0 || strings.IndexByte(name, 0) >= 0 {
			return nil, fmt.Errorf("the name of its xattr %q has a character that a tar can't hold", name)
		}
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords[xattrPrefix+name] = value
	}
	return h, nil
}

// Export writes everything in the image as one tar.
func (i *Image) Export(w io.Writer) error {
	b, err := i.Branch()
	if err != nil {
		return err
	}
	a := NewArchive(w)
	if err = cow.ExportTree([]cow.Branch{b}, a.Add); err == nil {
		err = a.Close()
	}
	if err != nil {
		err = fmt.Errorf("exporting image %s: %w", i.id, err)
	}
	return errors.Join(err, b.Close())
}
