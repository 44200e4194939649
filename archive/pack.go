package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// xattrPrefix is that of the PAX records that hold extended attributes, as GNU tar and star name them.
const xattrPrefix = "SCHILY.xattr."

// Owner is who a file belongs to.
type Owner struct{ UID, GID int }

// PackOptions is how [Pack] writes a tar.
type PackOptions struct {
	// Owner, if not nil, is written in place of every file's own.
	Owner *Owner

	// Skipped, if not nil, is told of what a tar can't hold: sockets.
	Skipped func(name string)
}

// Pack writes the file that fd (it may be O_PATH) is open on as a tar, and if that is a directory all that is in it, sorted by
// name. The tar's names start with name; if it is empty, fd must be a directory, which is then "./". Links are written as such.
// A file that becomes shorter while it is read is an error. If fd is a file that says it is empty, what can be read of it is written, as of those of
// proc(5); more than 1 MiB is an error.
func Pack(w io.Writer, fd int, name string, o PackOptions) error {
	p := &packer{tw: tar.NewWriter(w), options: o, asked: fd, linked: map[fileID]string{}}
	if err := p.file(fd, name); err != nil {
		return err
	}
	return p.tw.Close()
}

// fileID tells files apart.
type fileID struct{ dev, ino uint64 }

type packer struct {
	tw      *tar.Writer
	options PackOptions
	asked   int               // the file that is to be packed, with all that is in it
	linked  map[fileID]string // the first name of those with several
}

// file writes what fd is open on.
func (p *packer) file(fd int, name string) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	h := p.header(name, &st)
	if h == nil {
		if p.options.Skipped != nil {
			p.options.Skipped(name)
		}
		return nil
	}
	if h.Typeflag != tar.TypeDir && st.Nlink > 1 {
		id := fileID{st.Dev, st.Ino}
		if first, ok := p.linked[id]; ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeLink, first, 0
			return p.tw.WriteHeader(h)
		}
		p.linked[id] = name
	}
	if err := addXattrs(h, fd); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	var err error
	switch h.Typeflag {
	case tar.TypeReg:
		err = p.regular(fd, h)
	case tar.TypeDir:
		err = p.directory(fd, name, h)
	case tar.TypeSymlink:
		buf := make([]byte, unix.PathMax)
		var n int
		if n, err = unix.Readlinkat(fd, "", buf); err == nil {
			h.Linkname = string(buf[:n])
			err = p.tw.WriteHeader(h)
		}
	default:
		err = p.tw.WriteHeader(h)
	}
	if err != nil && h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%s: %w", name, err)
	}
	return err
}

// header is what the tar says of a file; nil of one that it can't hold.
func (p *packer) header(name string, st *unix.Stat_t) *tar.Header {
	h := &tar.Header{
		Name: name, Mode: int64(st.Mode & 0o7777), Uid: int(st.Uid), Gid: int(st.Gid),
		ModTime: time.Unix(st.Mtim.Unix()), Format: tar.FormatPAX,
	}
	if p.options.Owner != nil {
		h.Uid, h.Gid = p.options.Owner.UID, p.options.Owner.GID
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		h.Typeflag, h.Size = tar.TypeReg, st.Size
	case unix.S_IFDIR:
		h.Typeflag = tar.TypeDir
		if h.Name += "/"; name == "" {
			h.Name = "./"
		}
	case unix.S_IFLNK:
		h.Typeflag = tar.TypeSymlink
	case unix.S_IFIFO:
		h.Typeflag = tar.TypeFifo
	case unix.S_IFCHR:
		h.Typeflag = tar.TypeChar
	case unix.S_IFBLK:
		h.Typeflag = tar.TypeBlock
	default:
		return nil
	}
	if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
		h.Devmajor, h.Devminor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	}
	return h
}

// regular writes a regular file. It is opened again by its descriptor: by name, it could be a pipe by now, or a device.
func (p *packer) regular(fd int, h *tar.Header) error {
	f, err := os.Open(procPath(fd))
	if err != nil {
		return unwrapPath(err)
	}
	defer f.Close()
	var content io.Reader = f
	if h.Size == 0 && fd == p.asked {
		data, err := readSizeless(fd)
		if err != nil {
			return err
		}
		h.Size, content = int64(len(data)), bytes.NewReader(data)
	}
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(p.tw, io.LimitReader(content, h.Size))
	if err == nil && n < h.Size {
		err = errors.New("it became shorter while it was read")
	}
	return err
}

// maxSizeless is how long a file may be that says it is empty, in bytes.
const maxSizeless = 1 << 20

// readSizeless reads a file that says it is empty: those of proc(5) do. Among many such files there are some that have no end or wait,
// so only one that was asked for by its name is read.
func readSizeless(fd int) ([]byte, error) {
	// Go would wait for what says that there is nothing yet.
	in, err := unix.Open(procPath(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(in)
	data := make([]byte, 0, 4096)
	for {
		n, err := unix.Read(in, data[len(data):cap(data)])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return nil, err
		case n == 0:
			return data, nil
		default:
			data = slices.Grow(data[:len(data)+n], 4096)
		}
		if len(data) > maxSizeless {
			return nil, fmt.Errorf("it doesn't say how long it is, and is longer than %d MiB", maxSizeless>>20)
		}
	}
}

// directory writes a directory and all that is in it.
func (p *packer) directory(fd int, name string, h *tar.Header) error {
	if err := p.tw.WriteHeader(h); err != nil {
		return err
	}
	names, err := namesIn(fd)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for _, n := range names {
		full := strings.TrimPrefix(name+"/"+n, "/")
		child, err := unix.Openat(fd, n, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			continue // removed since
		}
		if err != nil {
			return fmt.Errorf("%s: %w", full, err)
		}
		err = p.file(child, full)
		unix.Close(child)
		if err != nil {
			return err
		}
	}
	return nil
}

func namesIn(fd int) ([]string, error) {
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(again), "directory")
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	slices.Sort(names)
	return names, unwrapPath(err)
}

// procPath names an open file, also one that is O_PATH.
func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// unwrapPath takes a name that says nothing to the user out of an error.
func unwrapPath(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// hostsOwn reports whether an xattr is one that a host gives to its files, or that a union keeps for itself.
func hostsOwn(name string) bool {
	for _, prefix := range []string{"trusted.", "user.overlay.", "user.fuseoverlayfs.", "user.unionfs."} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return slices.Contains([]string{"security.selinux", "security.ima", "security.evm"}, name)
}

// addXattrs writes the extended attributes of an open file to the header. A file system without any has none.
func addXattrs(h *tar.Header, fd int) error {
	// An O_PATH descriptor of a link has no way to them (xattr(7)).
	if h.Typeflag == tar.TypeSymlink {
		return nil
	}
	file := procPath(fd)
	names, err := listXattrs(file)
	if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if hostsOwn(name) || strings.Contains(name, "=") {
			continue
		}
		value, err := xattr(file, name)
		if err != nil {
			continue // gone since, or not for us
		}
		if h.PAXRecords == nil {
			h.PAXRecords = map[string]string{}
		}
		h.PAXRecords[xattrPrefix+name] = string(value)
	}
	return nil
}

func listXattrs(file string) ([]string, error) {
	for {
		size, err := unix.Listxattr(file, nil)
		if err != nil || size == 0 {
			return nil, err
		}
		buf := make([]byte, size)
		n, err := unix.Listxattr(file, buf)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

func xattr(file, name string) ([]byte, error) {
	for {
		size, err := unix.Getxattr(file, name, nil)
		if err != nil || size == 0 {
			return nil, err
		}
		buf := make([]byte, size)
		n, err := unix.Getxattr(file, name, buf)
		if errors.Is(err, unix.ERANGE) {
			continue
		}
		return buf[:max(n, 0)], err
	}
}
