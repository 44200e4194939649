package runner

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// copyUpInto copies what the root has at a place into the mount that will hide it (the mount option "tmpcopyup").
func (r *rootfs) copyUpInto(mnt int, destination string) error {
	from, err := openInRoot(r.root, destination, unix.O_RDONLY|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	to, err := unix.Openat(mnt, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(from)
		return err
	}
	source, target := os.NewFile(uintptr(from), destination), os.NewFile(uintptr(to), destination)
	defer source.Close()
	defer target.Close()
	return copyDirectory(source, target)
}

// copyDirectory copies the content of a directory and the directory's attributes: directories, regular files and symbolic
// links; devices, pipes and sockets are left out. No link is followed.
func copyDirectory(from, to *os.File) error {
	names, err := from.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := copyEntry(from, to, name); err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(from.Fd()), &st); err != nil {
		return err
	}
	return copyAttributes(int(to.Fd()), &st)
}

func copyAttributes(fd int, st *unix.Stat_t) error {
	if err := unix.Fchown(fd, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, st.Mode&0o7777); err != nil {
		return err
	}
	times := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(fd, "", times, unix.AT_EMPTY_PATH)
}

func copyEntry(from, to *os.File, name string) error {
	in, out := int(from.Fd()), int(to.Fd())
	var st unix.Stat_t
	if err := unix.Fstatat(in, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	switch kind {
	case unix.S_IFLNK:
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(in, name, buf)
		if err != nil {
			return err
		}
		if err := unix.Symlinkat(string(buf[:n]), out, name); err != nil {
			return err
		}
		return unix.Fchownat(out, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW)
	case unix.S_IFDIR:
		if err := unix.Mkdirat(out, name, 0o700); err != nil {
			return err
		}
	case unix.S_IFREG:
	default:
		return nil
	}
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NONBLOCK
	fd, err := unix.Openat(in, name, flags, 0)
	if err != nil {
		return err
	}
	source := os.NewFile(uintptr(fd), name)
	defer source.Close()
	if kind == unix.S_IFREG {
		flags = unix.O_WRONLY | unix.O_CREAT | unix.O_EXCL | unix.O_NOFOLLOW | unix.O_CLOEXEC
	}
	if fd, err = unix.Openat(out, name, flags, 0o600); err != nil {
		return err
	}
	target := os.NewFile(uintptr(fd), name)
	defer target.Close()
	if kind == unix.S_IFDIR {
		return copyDirectory(source, target)
	}
	if _, err := io.Copy(target, source); err != nil {
		return err
	}
	return copyAttributes(int(target.Fd()), &st)
}
