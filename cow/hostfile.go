package cow

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the union's view of the host: every call names a file by the descriptor of its directory and one name
// that is never followed if it is a symbolic link. An empty name means the directory itself (the xattr calls refuse
// AT_EMPTY_PATH on a descriptor that was opened with O_PATH, so they are given ".").

const xattrValueLimit = 64 << 10 // XATTR_SIZE_MAX, also XATTR_LIST_MAX: include/uapi/linux/limits.h

// statAt is lstat(2). It is the most frequent call of all, so unlike unix.Fstatat it allocates no memory.
func statAt(dir int, name string, st *unix.Stat_t) error {
	const flags = unix.AT_SYMLINK_NOFOLLOW | unix.AT_EMPTY_PATH
	var buf [unix.NAME_MAX + 1]byte
	if len(name) >= len(buf) || strings.IndexByte(name, 0) >= 0 {
		return unix.Fstatat(dir, name, st, flags)
	}
	copy(buf[:], name)
	_, _, e := unix.Syscall6(sysFstatat, uintptr(dir), uintptr(unsafe.Pointer(&buf[0])), uintptr(unsafe.Pointer(st)), flags, 0, 0)
	if e != 0 {
		return e
	}
	return nil
}

// openDirAt opens a directory as a place to start from (O_PATH): no permission to read it is needed.
func openDirAt(dir int, name string) (int, error) {
	return unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// dirent is what getdents64(2) says of a name.
type dirent struct {
	name string // for eachDirent's yield, only valid during the call
	raw  []byte // the same
	ino  uint64
	mode uint32 // S_IFMT bits; 0 if the file system doesn't say
}

// listAt calls yield for every name of a directory but "." and "..", until it returns false. The directory's access time stays
// where this process may ask for that: it is listed for the union, not for whoever lists the union.
func listAt(dir int, name string, yield func(dirent) bool) error {
	if name == "" {
		name = "."
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	fd, err := unix.Openat(dir, name, flags|unix.O_NOATIME, 0)
	if err == unix.EPERM {
		fd, err = unix.Openat(dir, name, flags, 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return eachDirent(fd, make([]byte, direntBuffer), func(d dirent) bool {
		d.name = strings.Clone(d.name)
		return yield(d)
	})
}

// direntBuffer is how much of a directory is read at once, in bytes.
const direntBuffer = 64 << 10

// eachDirent lists an open directory from where its offset is.
func eachDirent(fd int, buf []byte, yield func(dirent) bool) error {
	for {
		n, err := unix.Getdents(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n <= 0 {
			return nil
		}
		for rest := buf[:n]; len(rest) >= 19; {
			// struct linux_dirent64: d_ino, d_off (8 bytes each), d_reclen (2), d_type (1), d_name
			reclen := int(binary.NativeEndian.Uint16(rest[16:]))
			if reclen < 19 || reclen > len(rest) {
				return unix.EIO
			}
			raw := rest[19:reclen]
			if end := bytes.IndexByte(raw, 0); end >= 0 {
				raw = raw[:end]
			}
			d := dirent{raw: raw, ino: binary.NativeEndian.Uint64(rest), mode: uint32(rest[18]) << 12}
			rest = rest[reclen:]
			if string(raw) == "." || string(raw) == ".." {
				continue
			}
			d.name = unsafe.String(unsafe.SliceData(raw), len(raw))
			if !yield(d) {
				return nil
			}
		}
	}
}

// xattrArgs is struct xattr_args of include/uapi/linux/xattr.h, on the 64-bit machines that this program is built for. The
// first field is a pointer, not a number, so that the garbage collector sees it.
type xattrArgs struct {
	value unsafe.Pointer
	size  uint32
	flags uint32
}

// getxattrAt reads an extended attribute; ENODATA if there is none. getxattrat(2) came with Linux 6.13; before it, the way
// that works for every kind of file is an O_PATH descriptor seen through /proc.
func getxattrAt(dir int, name, attr string) ([]byte, error) {
	buf := make([]byte, 256)
	for {
		n, err := rawGetxattr(dir, name, attr, buf)
		if err == unix.ERANGE && len(buf) < xattrValueLimit {
			buf = make([]byte, xattrValueLimit)
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

func rawGetxattr(dir int, name, attr string, buf []byte) (int, error) {
	path, err := unix.BytePtrFromString(orDot(name))
	if err != nil {
		return 0, err
	}
	a, err := unix.BytePtrFromString(attr)
	if err != nil {
		return 0, err
	}
	args := xattrArgs{value: unsafe.Pointer(unsafe.SliceData(buf)), size: uint32(len(buf))}
	n, _, e := unix.Syscall6(unix.SYS_GETXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	if e == 0 {
		return int(n), nil
	}
	if e != unix.ENOSYS {
		return 0, e
	}
	err = viaProc(dir, name, func(p string) (err error) {
		var m int
		m, err = unix.Getxattr(p, attr, buf)
		n = uintptr(m)
		return err
	})
	return int(n), err
}

// listxattrAt returns the names of the extended attributes of a file, without system.posix_acl_* and their like hidden.
func listxattrAt(dir int, name string) ([]string, error) {
	path, err := unix.BytePtrFromString(orDot(name))
	if err != nil {
		return nil, err
	}
	for buf := make([]byte, 512); ; buf = make([]byte, xattrValueLimit) {
		n, _, e := unix.Syscall6(unix.SYS_LISTXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)),
			unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), 0)
		var err error
		if e != 0 {
			err = e
		}
		if e == unix.ENOSYS {
			err = viaProc(dir, name, func(p string) (err error) {
				var m int
				m, err = unix.Listxattr(p, buf)
				n = uintptr(m)
				return err
			})
		}
		if err == unix.ERANGE && len(buf) < xattrValueLimit {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return nil, nil
		}
		return strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00"), nil
	}
}

func setxattrAt(dir int, name, attr string, value []byte, flags int) error {
	path, err := unix.BytePtrFromString(orDot(name))
	if err != nil {
		return err
	}
	a, err := unix.BytePtrFromString(attr)
	if err != nil {
		return err
	}
	args := xattrArgs{value: unsafe.Pointer(unsafe.SliceData(value)), size: uint32(len(value)), flags: uint32(flags)}
	_, _, e := unix.Syscall6(unix.SYS_SETXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(a)), uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args))
	switch e {
	case 0:
		return nil
	case unix.ENOSYS:
		return viaProc(dir, name, func(p string) error { return unix.Setxattr(p, attr, value, flags) })
	}
	return e
}

func removexattrAt(dir int, name, attr string) error {
	path, err := unix.BytePtrFromString(orDot(name))
	if err != nil {
		return err
	}
	a, err := unix.BytePtrFromString(attr)
	if err != nil {
		return err
	}
	_, _, e := unix.Syscall6(unix.SYS_REMOVEXATTRAT, uintptr(dir), uintptr(unsafe.Pointer(path)),
		unix.AT_SYMLINK_NOFOLLOW, uintptr(unsafe.Pointer(a)), 0, 0)
	switch e {
	case 0:
		return nil
	case unix.ENOSYS:
		return viaProc(dir, name, func(p string) error { return unix.Removexattr(p, attr) })
	}
	return e
}

// viaProc calls f with a path that leads to the file itself, also if it is a symbolic link.
func viaProc(dir int, name string, f func(path string) error) error {
	fd, err := unix.Openat(dir, orDot(name), unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return f("/proc/self/fd/" + strconv.Itoa(fd))
}

func orDot(name string) string {
	if name == "" {
		return "."
	}
	return name
}

// noXattr reports whether an error says that a file has no such attribute or can't have any.
func noXattr(err error) bool {
	return errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP)
}

// removeAllAt deletes a name with everything beneath it.
func removeAllAt(dir int, name string) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	if err != unix.EISDIR && err != unix.EPERM {
		return err
	}
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == unix.EACCES {
		// Ours, but its owner took his own permission away; the kernel asks for it where we aren't privileged.
		if unix.Fchmodat(dir, name, 0o700, 0) == nil {
			fd, err = unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		}
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var names []string
	if err := listAt(fd, "", func(d dirent) bool { names = append(names, d.name); return true }); err != nil {
		return err
	}
	for _, n := range names {
		if err := removeAllAt(fd, n); err != nil {
			return err
		}
	}
	return unix.Unlinkat(dir, name, unix.AT_REMOVEDIR)
}

// fromStat fills an Attr; the caller decides on Ino and owners.
func (a *Attr) fromStat(st *unix.Stat_t) {
	*a = Attr{
		Ino: st.Ino, Size: uint64(st.Size), Blocks: uint64(st.Blocks), Atime: st.Atim, Mtime: st.Mtim, Ctime: st.Ctim,
		Mode: st.Mode, Nlink: uint32(st.Nlink), UID: st.Uid, GID: st.Gid, Rdev: uint32(st.Rdev), Blksize: uint32(st.Blksize),
	}
}
