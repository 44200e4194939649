package runner

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/moby/sys/user"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// rootfs builds the container's root out of mounts, in P2, before the root is changed to it. All it does inside goes by
// descriptors below root.
type rootfs struct {
	cfg  *initConfig
	root int // the root of the container's root mount

	devices map[string]int // the host's device nodes, as mounts not yet attached, by path
	proc    int            // the container's /proc, or -1

	master *os.File // the terminal's, if there is one
	slave  *os.File

	uids, gids []user.IDMap // what the container's user namespace maps

	made []string // mount points that the root lacked
}

// build makes all mounts, in the order of the OCI specification's, and leaves the root ready to change to.
func (r *rootfs) build() error {
	spec := r.cfg.Spec
	// P1's mounts and unmounts (and through it the host's) still come to us; none of ours goes out.
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SLAVE, ""); err != nil {
		return fmt.Errorf("making the mounts private: %w", err)
	}
	var err error
	if r.uids, err = user.CurrentProcessUIDMap(); err != nil {
		return err
	}
	if r.gids, err = user.CurrentProcessGIDMap(); err != nil {
		return err
	}
	if err := r.openDevices(); err != nil {
		return err
	}
	if err := r.mountRoot(); err != nil {
		return fmt.Errorf("mounting the root: %w", err)
	}
	for _, m := range spec.Mounts {
		if at := slices.Index(r.cfg.Shared, m.Destination); at >= 0 && m.Type != "proc" {
			if err := r.attach(initSharedFD+at, m.Destination, true); err != nil {
				return fmt.Errorf("mounting %s of the other container: %w", m.Destination, err)
			}
			unix.Close(initSharedFD + at)
			continue
		}
		if err := r.mount(m); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", describeMount(m), m.Destination, err)
		}
	}
	if r.cfg.AptConfig != "" {
		if err := r.mountAptConfig(); err != nil {
			return fmt.Errorf("adding to apt's configuration: %w", err)
		}
	}
	if spec.Process.Terminal && r.master == nil {
		return errors.New("a terminal needs a mount of type devpts at /dev/pts")
	}
	if err := r.addDevices(spec.Linux.Devices); err != nil {
		return err
	}
	if err := r.writeSysctls(); err != nil {
		return err
	}
	if err := r.hide(); err != nil {
		return err
	}
	if spec.Root != nil && spec.Root.Readonly {
		if err := changeMount(r.root, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
			return fmt.Errorf("making the root read-only: %w", err)
		}
	}
	return nil
}

// close lets go of every descriptor: nothing in PID 1 shall lead anywhere.
func (r *rootfs) close() {
	for _, fd := range r.devices {
		unix.Close(fd)
	}
	for _, fd := range []int{r.root, r.proc} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	for _, f := range []*os.File{r.master, r.slave} {
		if f != nil {
			f.Close()
		}
	}
}

func describeMount(m specs.Mount) string {
	if m.Type == "bind" || m.Source != "" && strings.HasPrefix(m.Source, "/") {
		return m.Source
	}
	return m.Type
}

// mountRoot binds the root directory onto itself: pivot_root wants a mount that is not locked to its parent. Device
// nodes in the image or in the upper branch are no way to the host's devices.
func (r *rootfs) mountRoot() error {
	mnt, err := cloneTree(unix.AT_FDCWD, r.cfg.Rootfs, true)
	if err != nil {
		return err
	}
	if err := changeMount(mnt, unix.MOUNT_ATTR_NODEV, 0, unix.MS_PRIVATE, true); err != nil {
		return err
	}
	target, err := unix.Open(r.cfg.Rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	r.root = mnt
	return attach(mnt, target)
}

// mount makes one of the specification's mounts.
func (r *rootfs) mount(m specs.Mount) error {
	o := parseMountOptions(m.Options)
	switch {
	case o.bind || m.Type == "bind":
		return r.bind(m, o)
	case m.Type == "proc" || m.Type == "sysfs":
		return r.mountKernel(m, o)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return r.mountCgroup(m, o)
	}
	data := o.data
	if m.Type == "devpts" && !r.mapped("gid", 5) {
		// The group tty, whom a user with one ID does not have.
		data = without(data, "gid=5")
	}
	if m.Source != "" {
		data = append(data, "source="+m.Source)
	}
	mnt, err := newFileSystem(m.Type, o.set, data...)
	if m.Type == "mqueue" && errors.Is(err, unix.ENODEV) {
		return nil // a kernel without message queues
	}
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	if err := r.attach(mnt, m.Destination, true); err != nil {
		return err
	}
	switch path.Clean(m.Destination) {
	case "/dev":
		if err := r.fillDev(mnt); err != nil {
			return err
		}
	case "/dev/pts":
		if m.Type == "devpts" && r.cfg.Spec.Process.Terminal {
			return r.openTerminal(mnt)
		}
	}
	return nil
}

// attach puts a mount on a place in the root, which it makes if it is missing.
func (r *rootfs) attach(mnt int, destination string, dir bool) error {
	target, made, err := targetInRoot(r.root, destination, dir)
	r.note(made)
	if err != nil {
		return fmt.Errorf("opening the mount point in the root: %w", err)
	}
	defer unix.Close(target)
	if err := notThroughLink(target, destination); err != nil {
		return err
	}
	if err := attach(mnt, target); err != nil {
		if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.EINVAL) {
			err = fmt.Errorf("a directory can be mounted only on a directory, and a file only on a file: %w", err)
		}
		return err
	}
	return nil
}

// note remembers those of the paths made that are in the root itself, rather than in what is mounted on it.
func (r *rootfs) note(made []string) {
	for _, p := range made {
		fd, err := openat2(r.root, p, unix.O_PATH, unix.RESOLVE_IN_ROOT|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
		if err == nil {
			unix.Close(fd)
			r.made = append(r.made, p)
		}
	}
}

// notThroughLink refuses a mount point on /proc or /sys that was not asked for as such: an image that has a link there
// could have files of the kernel replaced (CVE-2019-16884, CVE-2023-28642).
func notThroughLink(target int, destination string) error {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(target, &fs); err != nil {
		return err
	}
	dest := path.Clean(destination)
	if fs.Type == unix.PROC_SUPER_MAGIC && !strings.HasPrefix(dest, "/proc/") ||
		fs.Type == unix.SYSFS_MAGIC && !strings.HasPrefix(dest, "/sys/") {
		return errors.New("a link in the image leads into /proc or /sys")
	}
	return nil
}

// bind mounts a file or directory of the host. The source is looked up on the host's side, links and all.
func (r *rootfs) bind(m specs.Mount, o mountOptions) error {
	var st unix.Stat_t
	if err := unix.Stat(m.Source, &st); err != nil {
		return fmt.Errorf("opening the source: %w", err)
	}
	// What is mounted below the source comes along even without "rbind": in a user namespace it can't be left out,
	// lest something that it hides be uncovered.
	mnt, err := cloneTree(unix.AT_FDCWD, m.Source, true)
	if err != nil {
		return fmt.Errorf("opening the source: %w", err)
	}
	defer unix.Close(mnt)
	if wantsOwnership(m.Options) {
		if err := r.takeOwnership(mnt); err != nil {
			return fmt.Errorf("giving it to the container's user: %w", err)
		}
	}
	kind := st.Mode & unix.S_IFMT
	// There is no device cgroup to stop a device node in a volume.
	if !o.dev && kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		o.set |= unix.MOUNT_ATTR_NODEV
	}
	if o.propagation == 0 {
		o.propagation = unix.MS_PRIVATE
	}
	if err := changeMount(mnt, o.set, o.clear, o.propagation, true); err != nil {
		return fmt.Errorf("setting the options %s: %w", strings.Join(m.Options, ","), err)
	}
	return r.attach(mnt, m.Destination, kind == unix.S_IFDIR)
}

// mountKernel mounts a proc or sysfs. Their places must be plain directories: everything that is masked later counts on
// it.
func (r *rootfs) mountKernel(m specs.Mount, o mountOptions) error {
	dest := path.Clean(m.Destination)
	target, err := openPlain(r.root, dest, unix.O_PATH|unix.O_DIRECTORY)
	if errors.Is(err, unix.ENOENT) {
		var made []string
		target, made, err = targetInRoot(r.root, dest, true)
		r.note(made)
	}
	if err != nil {
		return fmt.Errorf("%s in the image is not a plain directory: %w", dest, err)
	}
	defer unix.Close(target)
	var mnt int
	if at := slices.Index(r.cfg.Shared, dest); at >= 0 {
		mnt = initSharedFD + at // only a container's own user namespace may make one of its PID namespace
	} else if m.Type == "proc" && guarded(r.cfg.Spec) {
		// The host's, for the same reason.
		if mnt, err = cloneTree(unix.AT_FDCWD, "/proc", true); err == nil {
			err = changeMount(mnt, o.set, 0, unix.MS_PRIVATE, true)
		}
	} else if m.Type == "sysfs" && !hasNewNamespace(r.cfg.Spec, specs.NetworkNamespace) {
		// A new sysfs shows a network namespace, which must be our own. Without, the host's own is shown.
		if mnt, err = cloneTree(unix.AT_FDCWD, "/sys", true); err == nil {
			err = changeMount(mnt, o.set|unix.MOUNT_ATTR_RDONLY, 0, unix.MS_PRIVATE, true)
		}
	} else {
		mnt, err = newFileSystem(m.Type, o.set, append(o.data, "source="+m.Type)...)
	}
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w: the kernel allows it only where the %s outside is wholly visible; in an outer container, that must be run with its /proc and /sys unmasked", err, m.Type)
	}
	if err != nil {
		return err
	}
	if m.Type == "proc" && dest == "/proc" {
		r.proc = mnt
	} else {
		defer unix.Close(mnt)
	}
	return attach(mnt, target)
}

// mapped reports whether an ID of the kind ("uid", "gid") exists in the container's user namespace.
func (r *rootfs) mapped(kind string, id uint32) bool {
	maps := r.uids
	if kind == "gid" {
		maps = r.gids
	}
	return slices.ContainsFunc(maps, func(m user.IDMap) bool {
		return int64(id) >= m.ID && int64(id)-m.ID < m.Count
	})
}

func without(list []string, item string) []string {
	var out []string
	for _, s := range list {
		if s != item {
			out = append(out, s)
		}
	}
	return out
}
