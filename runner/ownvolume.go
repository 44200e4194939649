package runner

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// OptionOwn is the option of a bind mount that gives all that is in its source to the container's user, as podman's "U" does.
const OptionOwn = "U"

// takeOwnership gives what the mount mnt, not yet attached, shows to the container's user. What is mounted below it is left alone.
func (r *rootfs) takeOwnership(mnt int) error {
	if r.cfg.Fixed {
		return nil // there is one ID, and all is that one's
	}
	who, err := lookupUser(r.root, r.cfg.User, r.cfg.Spec.Process.User)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstat(mnt, &st); err != nil {
		return err
	}
	return own(mnt, &st, st.Dev, int(who.UID), int(who.GID))
}

// own changes the owner of an open file (it may be O_PATH), and of all that is in it. Links are changed, not followed.
func own(fd int, st *unix.Stat_t, dev uint64, uid, gid int) error {
	if int(st.Uid) != uid || int(st.Gid) != gid {
		if err := unix.Fchownat(fd, "", uid, gid, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	again, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(again), "directory")
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := ownEntry(again, name, dev, uid, gid); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

func ownEntry(dir int, name string, dev uint64, uid, gid int) error {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil // removed since
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Dev != dev {
		return nil
	}
	return own(fd, &st, dev, uid, gid)
}

// wantsOwnership reports whether a mount has OptionOwn.
func wantsOwnership(options []string) bool { return slices.Contains(options, OptionOwn) }
