package archive

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// UnpackOptions is how [Unpack] puts a tar into a directory.
type UnpackOptions struct {
	// InRoot follows symbolic links on the way to a file's directory, as a process would whose root directory is the given
	// one. Without, a link on the way is an error: nothing that is in the tar can lead out of Base.
	InRoot bool

	// Base is where in the directory the tar's names start; it must be there.
	Base string

	// Owners gives each file the owner that the tar says. Without, all belong to the calling process.
	Owners bool

	// OneID says that this process has only one user and group ID that it could give: others are not tried.
	OneID bool

	// NoDevices leaves out device nodes.
	NoDevices bool

	// Skipped, if not nil, is told of what was left out: device nodes and attributes that can't be had here.
	Skipped func(name, why string)
}

// Unpack puts a tar into the directory that root is open on. What is there already is replaced, but a directory by nothing but
// a directory, whose content stays. It returns the number of bytes of the regular files. Names are taken as below Base, however
// many ".." they have.
func Unpack(r io.Reader, root int, o UnpackOptions) (int64, error) {
	u := &unpacker{root: root, options: o, parent: -1}
	defer u.forgetParent()
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.bytes, fmt.Errorf("reading the tar: %w", err)
		}
		if err := u.entry(h, tr); err != nil {
			return u.bytes, fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	if err := u.finishDirectories(); err != nil {
		return u.bytes, err
	}
	// The padding after the end is read too, so that the one who writes it isn't cut off.
	_, err := io.Copy(io.Discard, r)
	return u.bytes, err
}

type unpacker struct {
	root    int
	options UnpackOptions
	bytes   int64

	parent     int    // the directory of the file before, or -1
	parentName string // its name

	directories []*tar.Header // those whose modes and times are to be set in the end
}

func (u *unpacker) forgetParent() {
	if u.parent >= 0 {
		unix.Close(u.parent)
		u.parent = -1
	}
}

// clean is a tar's name as a path below Base, without leading slash; "." for Base itself.
func clean(name string) string {
	if name = strings.TrimPrefix(path.Clean("/"+name), "/"); name == "" {
		return "."
	}
	return name
}

// open opens what is below Base.
func (u *unpacker) open(name string, flags uint64) (int, error) {
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS}
	if u.options.InRoot {
		how.Resolve = unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS
	}
	for {
		// Not cleaned as a string: ".." after a link is the link's target's.
		fd, err := unix.Openat2(u.root, u.options.Base+"/"+name, &how)
		if err == unix.ELOOP && !u.options.InRoot {
			err = errors.New("a directory on the way is a symbolic link, which is not followed")
		}
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// directoryOf opens the directory that name is in, which it makes if the tar doesn't say it.
func (u *unpacker) directoryOf(name string) (dir int, base string, err error) {
	parent, base := path.Split(name)
	parent = clean(parent)
	if u.parent >= 0 && u.parentName == parent {
		return u.parent, base, nil
	}
	fd, err := u.open(parent, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) && parent != "." {
		above, last, aerr := u.directoryOf(parent)
		if aerr != nil {
			return -1, "", aerr
		}
		if err := unix.Mkdirat(above, last, 0o755); err != nil {
			return -1, "", err
		}
		fd, err = u.open(parent, unix.O_PATH|unix.O_DIRECTORY)
	}
	if err != nil {
		return -1, "", err
	}
	u.forgetParent()
	u.parent, u.parentName = fd, parent
	return fd, base, nil
}

// entry makes what one header says.
func (u *unpacker) entry(h *tar.Header, r io.Reader) error {
	name := clean(h.Name)
	switch h.Typeflag {
	case tar.TypeXGlobalHeader:
		return nil
	case tar.TypeChar, tar.TypeBlock:
		if u.options.NoDevices {
			u.skip(h.Name, "it is a device")
			return nil
		}
	}
	if name == "." {
		if h.Typeflag != tar.TypeDir {
			return errors.New("only a directory can stand for the tar's top")
		}
		u.later(h, name)
		return nil
	}
	dir, base, err := u.directoryOf(name)
	if err != nil {
		return err
	}
	if h.Typeflag == tar.TypeDir {
		return u.makeDirectory(h, name, dir, base)
	}
	inPlace, err := removeOld(dir, base, h)
	if err != nil {
		return err
	}
	mode := uint32(h.Mode & 0o777)
	switch h.Typeflag {
	case tar.TypeReg:
		return u.regular(h, r, dir, base, inPlace)
	case tar.TypeLink:
		return u.link(h, dir, base)
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, dir, base)
	case tar.TypeFifo:
		err = unix.Mknodat(dir, base, unix.S_IFIFO|mode, 0)
	case tar.TypeChar:
		err = unix.Mknodat(dir, base, unix.S_IFCHR|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	case tar.TypeBlock:
		err = unix.Mknodat(dir, base, unix.S_IFBLK|mode, int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor))))
	default:
		return fmt.Errorf("a file of type %q is not supported", h.Typeflag)
	}
	if errors.Is(err, unix.EPERM) && (h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock) {
		u.skip(h.Name, "you may not make devices")
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(dir, base, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := u.attributes(h, fd); err != nil || h.Typeflag != tar.TypeSymlink {
		return err
	}
	return unix.UtimesNanoAt(dir, base, timesOf(h), unix.AT_SYMLINK_NOFOLLOW)
}

func timesOf(h *tar.Header) []unix.Timespec {
	mtime := unix.NsecToTimespec(h.ModTime.UnixNano())
	return []unix.Timespec{mtime, mtime}
}

func (u *unpacker) skip(name, why string) {
	if u.options.Skipped != nil {
		u.options.Skipped(name, why)
	}
}

// later notes a directory's header for the end, when nothing is put into it any more.
func (u *unpacker) later(h *tar.Header, name string) {
	h.Name = name
	u.directories = append(u.directories, h)
}

func (u *unpacker) makeDirectory(h *tar.Header, name string, dir int, base string) error {
	err := unix.Mkdirat(dir, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		// A link to a directory counts as one where links are followed.
		fd, err := u.open(name, unix.O_PATH|unix.O_DIRECTORY)
		if errors.Is(err, unix.ENOTDIR) {
			return errors.New("a directory can't replace what is no directory")
		}
		if err != nil {
			return err
		}
		unix.Close(fd)
	} else if err != nil {
		return err
	}
	u.later(h, name)
	return nil
}

// removeOld makes room. A file that something is mounted on can't be removed; then inPlace says to write into it.
func removeOld(dir int, base string, h *tar.Header) (inPlace bool, err error) {
	err = unix.Unlinkat(dir, base, 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOENT):
		return false, nil
	case errors.Is(err, unix.EBUSY) && h.Typeflag == tar.TypeReg:
		return true, nil
	case errors.Is(err, unix.EISDIR):
		return false, errors.New("a directory is there, which can't be replaced by what is none")
	}
	return false, err
}

// regular writes a regular file. Blocks of zeroes become holes.
func (u *unpacker) regular(h *tar.Header, r io.Reader, dir int, base string, inPlace bool) error {
	flags := unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	if inPlace {
		flags = unix.O_WRONLY | unix.O_TRUNC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC
	}
	fd, err := unix.Openat(dir, base, flags, 0o600)
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), base)
	defer f.Close()
	buf := make([]byte, 64<<10)
	var size int64
	hole := false
	for {
		n, err := io.ReadFull(r, buf)
		if n > 0 {
			if hole = isZero(buf[:n]); !hole {
				if _, err := f.WriteAt(buf[:n], size); err != nil {
					return unwrapPath(err)
				}
			}
			size += int64(n)
			u.bytes += int64(n)
		}
		if err == io.EOF || err == io.ErrUnexpectedEOF && size == h.Size {
			break
		}
		if err != nil {
			return fmt.Errorf("reading the tar: %w", err)
		}
	}
	if hole {
		if err := f.Truncate(size); err != nil {
			return unwrapPath(err)
		}
	}
	if err := u.attributes(h, fd); err != nil {
		return err
	}
	return unwrapPath(f.Close())
}

func isZero(b []byte) bool {
	return !slices.ContainsFunc(b, func(c byte) bool { return c != 0 })
}

// link makes a hard link to an entry of the tar, or to what was there before.
func (u *unpacker) link(h *tar.Header, dir int, base string) error {
	parent, last := path.Split(clean(h.Linkname))
	from, err := u.open(clean(parent), unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return fmt.Errorf("linking to %s: %w", h.Linkname, err)
	}
	defer unix.Close(from)
	if err := unix.Linkat(from, last, dir, base, 0); err != nil {
		return fmt.Errorf("linking to %s: %w", h.Linkname, err)
	}
	return nil
}

// finishDirectories sets modes, owners and times of the directories, the innermost first.
func (u *unpacker) finishDirectories() error {
	slices.SortStableFunc(u.directories, func(a, b *tar.Header) int { return strings.Count(b.Name, "/") - strings.Count(a.Name, "/") })
	for _, h := range u.directories {
		fd, err := u.open(h.Name, unix.O_PATH|unix.O_DIRECTORY)
		if err == nil {
			err = u.attributes(h, fd)
			unix.Close(fd)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
	return nil
}

// attributes gives an open file (it may be O_PATH) owner, mode, xattrs and time, in the order in which one doesn't undo the
// other: a change of owner clears set-user-ID and capabilities.
func (u *unpacker) attributes(h *tar.Header, fd int) error {
	if err := u.own(h, fd); err != nil {
		return err
	}
	file := procPath(fd)
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Chmod(file, uint32(h.Mode&0o7777)); err != nil {
			return fmt.Errorf("setting the mode: %w", err)
		}
		for key, value := range h.PAXRecords {
			name, ok := strings.CutPrefix(key, xattrPrefix)
			if !ok || hostsOwn(name) {
				continue
			}
			err := unix.Setxattr(file, name, []byte(value), 0)
			if errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EINVAL) {
				u.skip(h.Name, fmt.Sprintf("its attribute %s can't be set here: %v", name, err))
				continue
			}
			if err != nil {
				return fmt.Errorf("setting the attribute %s: %w", name, err)
			}
		}
	}
	if h.Typeflag == tar.TypeSymlink {
		return nil // an O_PATH descriptor of a link has no way to its times
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, file, timesOf(h), 0)
}

func (u *unpacker) own(h *tar.Header, fd int) error {
	if !u.options.Owners || u.options.OneID {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if int(st.Uid) == h.Uid && int(st.Gid) == h.Gid {
		return nil
	}
	err := unix.Fchownat(fd, "", h.Uid, h.Gid, unix.AT_EMPTY_PATH)
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("owner %d:%d is not among the IDs here: larger ranges in /etc/subuid and /etc/subgid have it", h.Uid, h.Gid)
	}
	if err != nil {
		return fmt.Errorf("giving it to %d:%d: %w", h.Uid, h.Gid, err)
	}
	return nil
}
