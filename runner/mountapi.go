package runner

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// The mounts of a container are made with the descriptor-based calls (fsopen, fsmount, open_tree, move_mount,
// mount_setattr; Linux 5.12) and never by path: a path in an image can be, or be turned into, a link to elsewhere
// (CVE-2019-16884, CVE-2021-30465, CVE-2025-31133, CVE-2025-52565, CVE-2025-52881).

// mountOptions are the options of an OCI mount, sorted by what they are for.
type mountOptions struct {
	set, clear  uint64 // MOUNT_ATTR_*
	propagation uint64 // MS_PRIVATE, MS_SLAVE, MS_SHARED, MS_UNBINDABLE; 0 for none
	bind        bool
	recursive   bool     // a bind takes what is mounted below along
	dev         bool     // device nodes were asked for
	data        []string // for the file system itself: KEY or KEY=VALUE
}

// mountAttributes are the options that say what may be done with a mount.
func mountAttributes() map[string]struct{ set, clear uint64 } {
	return map[string]struct{ set, clear uint64 }{
		"ro": {set: unix.MOUNT_ATTR_RDONLY}, "rw": {clear: unix.MOUNT_ATTR_RDONLY},
		"nosuid": {set: unix.MOUNT_ATTR_NOSUID}, "suid": {clear: unix.MOUNT_ATTR_NOSUID},
		"nodev": {set: unix.MOUNT_ATTR_NODEV}, "dev": {clear: unix.MOUNT_ATTR_NODEV},
		"noexec": {set: unix.MOUNT_ATTR_NOEXEC}, "exec": {clear: unix.MOUNT_ATTR_NOEXEC},
		"nodiratime": {set: unix.MOUNT_ATTR_NODIRATIME}, "diratime": {clear: unix.MOUNT_ATTR_NODIRATIME},
		"nosymfollow": {set: unix.MOUNT_ATTR_NOSYMFOLLOW}, "symfollow": {clear: unix.MOUNT_ATTR_NOSYMFOLLOW},
		"relatime":    {set: unix.MOUNT_ATTR_RELATIME, clear: unix.MOUNT_ATTR__ATIME},
		"noatime":     {set: unix.MOUNT_ATTR_NOATIME, clear: unix.MOUNT_ATTR__ATIME},
		"strictatime": {set: unix.MOUNT_ATTR_STRICTATIME, clear: unix.MOUNT_ATTR__ATIME},
	}
}

// mountPropagation are the options that say who sees mounts that are made below a mount.
func mountPropagation() map[string]uint64 {
	return map[string]uint64{
		"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE,
	}
}

// parseMountOptions sorts options as mount(8) and the OCI runtime specification name them. An option that it doesn't
// know is the file system's.
func parseMountOptions(options []string) mountOptions {
	attributes, propagation := mountAttributes(), mountPropagation()
	var o mountOptions
	for _, opt := range options {
		// rro, rnosuid, …: as the plain ones, which here hold for the whole of a bind anyway.
		plain := strings.TrimPrefix(opt, "r")
		if a, ok := attributes[opt]; ok {
			o.set, o.clear = o.set&^a.clear|a.set, o.clear&^a.set|a.clear
		} else if a, ok := attributes[plain]; ok {
			o.set, o.clear = o.set&^a.clear|a.set, o.clear&^a.set|a.clear
		} else if p, ok := propagation[plain]; ok {
			o.propagation = p
		} else if opt == "bind" || opt == "rbind" {
			o.bind, o.recursive = true, opt == "rbind"
		} else if !slices.Contains([]string{"defaults", "newinstance", "async", "auto", "noauto"}, opt) && opt != "" {
			o.data = append(o.data, opt)
		}
	}
	// "rw" undoes an "ro"; it doesn't make writable what is mounted read-only on the host.
	o.clear &^= unix.MOUNT_ATTR_RDONLY
	o.dev = slices.Contains(options, "dev") || slices.Contains(options, "rdev")
	return o
}

// newFileSystem makes a mount of a new file system instance, attached nowhere yet.
func newFileSystem(kind string, attributes uint64, data ...string) (int, error) {
	fd, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("opening file system %s: %w", kind, err)
	}
	defer unix.Close(fd)
	for _, opt := range data {
		if key, value, ok := strings.Cut(opt, "="); ok {
			err = unix.FsconfigSetString(fd, key, value)
		} else {
			err = unix.FsconfigSetFlag(fd, opt)
		}
		if err != nil {
			return -1, fmt.Errorf("mount option %q of %s: %w", opt, kind, contextError(fd, err))
		}
	}
	if err := unix.FsconfigCreate(fd); err != nil {
		return -1, fmt.Errorf("making a %s: %w", kind, contextError(fd, err))
	}
	mnt, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, int(attributes))
	if err != nil {
		return -1, fmt.Errorf("mounting a %s: %w", kind, contextError(fd, err))
	}
	return mnt, nil
}

// contextError adds what the kernel logged in the file system context, if anything ("e tmpfs: Bad value for 'size'").
func contextError(fd int, err error) error {
	buf := make([]byte, 1024)
	n, rerr := unix.Read(fd, buf)
	if rerr != nil || n <= 2 {
		return err
	}
	return fmt.Errorf("%w (%s)", err, strings.TrimSpace(string(buf[2:n])))
}

// cloneTree makes a bind mount of what path at dirFD names, attached nowhere yet. An empty path is dirFD itself.
func cloneTree(dirFD int, path string, recursive bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	return unix.OpenTree(dirFD, path, flags)
}

// changeMount sets and clears the attributes of the mount mnt, and of those below it if recursive.
func changeMount(mnt int, set, clear, propagation uint64, recursive bool) error {
	if set|clear|propagation == 0 {
		return nil
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	return unix.MountSetattr(mnt, "", flags, &unix.MountAttr{Attr_set: set, Attr_clr: clear, Propagation: propagation})
}

// attach puts the mount mnt on what target is open on.
func attach(mnt, target int) error {
	return unix.MoveMount(mnt, "", target, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH)
}

// openInRoot opens a path as a process with this root directory would, links included. Links into /proc/PID/fd and the
// like, that lead anywhere, are refused.
func openInRoot(rootFD int, name string, flags uint64) (int, error) {
	return openat2(rootFD, name, flags, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_MAGICLINKS)
}

// openPlain opens a path below dirFD that must have no link in it.
func openPlain(dirFD int, name string, flags uint64) (int, error) {
	return openat2(dirFD, strings.TrimLeft(name, "/"), flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
}

func openat2(dirFD int, name string, flags, resolve uint64) (int, error) {
	if name == "" {
		name = "."
	}
	how := unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: resolve}
	for {
		fd, err := unix.Openat2(dirFD, name, &how)
		// EAGAIN: something was renamed on the way, and the kernel can't tell that it stayed inside.
		if err != unix.EINTR && err != unix.EAGAIN {
			return fd, err
		}
	}
}

// maxLinks is how many symbolic links a path may have, as the kernel's.
const maxLinks = 40

// targetInRoot opens, as a place to mount on, what path names within the root. What is missing is made: directories up to
// it, and at its end a directory or an empty file. A link is followed as within the root, also one that points at what
// does not exist. It returns the paths that it made.
func targetInRoot(rootFD int, name string, dir bool) (fd int, made []string, err error) {
	rest := strings.Split(strings.Trim(path.Clean("/"+name), "/"), "/")
	at := "" // where we are: a path without links
	links := 0
	cur, err := openPlain(rootFD, ".", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, nil, err
	}
	for len(rest) > 0 {
		comp := rest[0]
		rest = rest[1:]
		switch comp {
		case "", ".":
			continue
		case "..":
			at = path.Dir("/" + at)[1:]
			next, err := openPlain(rootFD, at, unix.O_PATH|unix.O_DIRECTORY)
			unix.Close(cur)
			if err != nil {
				return -1, made, err
			}
			cur = next
			continue
		}
		last := !slices.ContainsFunc(rest, func(s string) bool { return s != "" && s != "." })
		next, err := unix.Openat(cur, comp, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if errors.Is(err, unix.ENOENT) {
			if last && !dir {
				var f int
				if f, err = unix.Openat(cur, comp, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0o644); err == nil {
					unix.Close(f)
				}
			} else {
				err = unix.Mkdirat(cur, comp, 0o755)
			}
			if err == nil {
				made = append(made, path.Join("/", at, comp))
				next, err = unix.Openat(cur, comp, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
			}
		}
		if err != nil {
			unix.Close(cur)
			return -1, made, err
		}
		var st unix.Stat_t
		if err := unix.Fstat(next, &st); err != nil {
			unix.Close(cur)
			unix.Close(next)
			return -1, made, err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			buf := make([]byte, unix.PathMax)
			n, err := unix.Readlinkat(next, "", buf)
			unix.Close(next)
			if links++; err == nil && links > maxLinks {
				err = unix.ELOOP
			}
			if err != nil {
				unix.Close(cur)
				return -1, made, err
			}
			to := string(buf[:n])
			if strings.HasPrefix(to, "/") {
				unix.Close(cur)
				at = ""
				if cur, err = openPlain(rootFD, ".", unix.O_PATH|unix.O_DIRECTORY); err != nil {
					return -1, made, err
				}
			}
			rest = append(strings.Split(to, "/"), rest...)
			continue
		}
		unix.Close(cur)
		cur, at = next, path.Join(at, comp)
		if !last && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			unix.Close(cur)
			return -1, made, unix.ENOTDIR
		}
	}
	return cur, made, nil
}
