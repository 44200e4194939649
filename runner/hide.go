package runner

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// writeSysctls sets the specification's kernel parameters, in the container's own /proc and by descriptor, so that no
// other file can be written in their place (CVE-2025-52881).
func (r *rootfs) writeSysctls() error {
	for key, value := range r.cfg.Spec.Linux.Sysctl {
		if r.proc < 0 {
			return errors.New("kernel parameters need a /proc in the container")
		}
		// Again, since the description can have been changed on disk.
		if err := checkSysctl(r.cfg.Spec, key); err != nil {
			return err
		}
		name := path.Join("sys", path.Join("/", strings.ReplaceAll(key, ".", "/")))
		fd, err := openPlain(r.proc, name, unix.O_WRONLY)
		if err != nil {
			return fmt.Errorf("setting the kernel parameter %s: %w", key, err)
		}
		_, err = unix.Write(fd, []byte(value))
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("setting the kernel parameter %s to %q: %w", key, value, err)
		}
	}
	return nil
}

// checkSysctl refuses parameters that aren't the container's own. The kernel doesn't: where root runs the container, the
// whole host's are files that its root owns.
func checkSysctl(spec *specs.Spec, key string) error {
	key = strings.ReplaceAll(key, "/", ".")
	ofIPC := []string{"kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall", "kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced"}
	var kind specs.LinuxNamespaceType
	switch {
	case slices.Contains(ofIPC, key) || strings.HasPrefix(key, "fs.mqueue."):
		kind = specs.IPCNamespace
	case strings.HasPrefix(key, "net."):
		kind = specs.NetworkNamespace
	case key == "kernel.domainname" || key == "kernel.hostname":
		return fmt.Errorf("kernel parameter %s: set the host or domain name instead", key)
	default:
		return fmt.Errorf("kernel parameter %s is the whole host's, not a container's", key)
	}
	if !separateNamespace(spec, kind) {
		return fmt.Errorf("kernel parameter %s: the container shares the host's %s namespace", key, kind)
	}
	return nil
}

// hide makes the specification's read-only paths read-only, and covers its masked paths: a file by the host's /dev/null,
// a directory by an empty read-only file system. A path that is missing is no error; one that a link leads to is, since
// something else would be covered than was meant.
func (r *rootfs) hide() error {
	for _, p := range r.cfg.Spec.Linux.ReadonlyPaths {
		if err := r.makeReadOnly(p); err != nil {
			return fmt.Errorf("making %s read-only: %w", p, err)
		}
	}
	empty := -1
	defer func() {
		if empty >= 0 {
			unix.Close(empty)
		}
	}()
	for _, p := range r.cfg.Spec.Linux.MaskedPaths {
		target, st, err := r.openForHiding(p)
		if err != nil {
			return fmt.Errorf("masking %s: %w", p, err)
		}
		if target < 0 {
			continue
		}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR && empty < 0 {
			empty, err = newFileSystem("tmpfs", unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, "size=4k", "nr_inodes=1", "mode=555", "source=masked")
			if err != nil {
				unix.Close(target)
				return fmt.Errorf("masking %s: %w", p, err)
			}
		}
		err = r.mask(p, target, st, empty)
		unix.Close(target)
		if err != nil {
			return fmt.Errorf("masking %s: %w", p, err)
		}
	}
	return nil
}

// openForHiding opens a path to be masked or made read-only; -1 if there is no such thing.
func (r *rootfs) openForHiding(p string) (int, *unix.Stat_t, error) {
	fd, err := openPlain(r.root, path.Clean("/"+p), unix.O_PATH)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return -1, nil, nil
	}
	if errors.Is(err, unix.ELOOP) {
		return -1, nil, errors.New("it is reached through a symbolic link")
	}
	if err != nil {
		return -1, nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, nil, err
	}
	return fd, &st, nil
}

func (r *rootfs) makeReadOnly(p string) error {
	target, _, err := r.openForHiding(p)
	if err != nil || target < 0 {
		return err
	}
	defer unix.Close(target)
	mnt, err := cloneTree(target, "", true)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	if err := changeMount(mnt, unix.MOUNT_ATTR_RDONLY, 0, unix.MS_PRIVATE, true); err != nil {
		return err
	}
	return attach(mnt, target)
}

// mask covers target, and looks again by path whether the cover is what is seen there (CVE-2025-31133). empty is the mount
// to cover directories with.
func (r *rootfs) mask(p string, target int, st *unix.Stat_t, empty int) error {
	source := r.devices["/dev/null"]
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	if dir {
		source = empty
	}
	var cover unix.Stat_t
	if err := unix.Fstat(source, &cover); err != nil {
		return err
	}
	mnt, err := cloneTree(source, "", false)
	if err == nil {
		err = attach(mnt, target)
		unix.Close(mnt)
	} else if errors.Is(err, unix.EINVAL) {
		// Before Linux 6.15, a mount that is attached nowhere can't be cloned: this place is its own.
		err = attach(source, target)
	}
	if err != nil {
		return err
	}
	seen, sst, err := r.openForHiding(p)
	if err != nil {
		return err
	}
	if seen >= 0 {
		unix.Close(seen)
	}
	if seen < 0 || sst.Dev != cover.Dev || sst.Ino != cover.Ino {
		return errors.New("it is not what was masked that is seen there")
	}
	return nil
}
