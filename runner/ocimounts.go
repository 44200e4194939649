package runner

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// buildOCI makes the mounts of an OCI bundle to the letter of its specification, where build makes those of a container of
// ours: devices are not refused to the root and to volumes, binds take along what is below only if they say so, and so on.
func (r *rootfs) buildOCI(p *ociInit) error {
	spec := r.cfg.Spec
	null, err := openDevice(standardDevices()[0])
	if err != nil {
		return fmt.Errorf("device /dev/null: %w", err)
	}
	r.devices["/dev/null"] = null
	if !hasNewNamespace(spec, specs.MountNamespace) {
		// The mounts are made in a namespace that others see; Delete takes away those in ours.
		r.root, err = unix.Open(r.cfg.Rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	} else {
		err = r.mountOCIRoot()
	}
	if err != nil {
		return fmt.Errorf("mounting the root: %w", err)
	}
	bindsDev := false
	for i, m := range spec.Mounts {
		o := parseOCIOptions(m.Options)
		o.prepared = -1
		if fd, ok := p.files[fdMount+strconv.Itoa(i)]; ok {
			o.prepared = fd
		}
		if err := r.mountOCI(m, o); err != nil {
			return fmt.Errorf("mounting %s at %s: %w", describeMount(m), m.Destination, err)
		}
		bindsDev = bindsDev || (o.bind || m.Type == "bind") && path.Clean("/"+m.Destination) == "/dev"
	}
	if !bindsDev {
		if err := r.makeOCIDevices(); err != nil {
			return err
		}
	}
	if err := r.openOCITerminal(p); err != nil {
		return err
	}
	if err := r.writeSysctls(); err != nil {
		return err
	}
	if err := r.hide(); err != nil {
		return err
	}
	if spec.Root.Readonly {
		if err := changeMount(r.root, unix.MOUNT_ATTR_RDONLY, 0, 0, false); err != nil {
			return fmt.Errorf("making the root read-only: %w", err)
		}
	}
	return nil
}

// mountOCIRoot sets the propagation of the mounts that we came with, and binds the root onto itself.
func (r *rootfs) mountOCIRoot() error {
	flag := uintptr(unix.MS_SLAVE | unix.MS_REC)
	switch r.cfg.Spec.Linux.RootfsPropagation {
	case "shared", "rshared":
		// Mounts in the container shall come to be seen outside: the peers stay.
		flag = 0
	case "private", "rprivate":
		flag = unix.MS_PRIVATE | unix.MS_REC
	}
	if flag != 0 {
		if err := unix.Mount("", "/", "", flag, ""); err != nil {
			return fmt.Errorf("setting the mounts' propagation: %w", err)
		}
	} else if err := r.makeParentPrivate(); err != nil {
		return err
	}
	mnt, err := cloneTree(unix.AT_FDCWD, r.cfg.Rootfs, true)
	if err != nil {
		return err
	}
	target, err := unix.Open(r.cfg.Rootfs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		unix.Close(mnt)
		return err
	}
	defer unix.Close(target)
	r.root = mnt
	if err := attach(mnt, target); err != nil {
		return err
	}
	if flag != 0 {
		return nil
	}
	// pivot_root(2) wants a new root that is not shared; changeRoot sets what was asked for.
	return changeMount(mnt, 0, 0, unix.MS_PRIVATE, false)
}

// makeParentPrivate makes the mount private that the root directory is on, and that which the present root is mounted on,
// so that pivot_root(2) takes place for us only.
func (r *rootfs) makeParentPrivate() error {
	infos, err := mountinfo.GetMounts(mountinfo.ParentsFilter(r.cfg.Rootfs))
	if err != nil {
		return err
	}
	longest := ""
	for _, m := range infos {
		if len(m.Mountpoint) > len(longest) {
			longest = m.Mountpoint
		}
	}
	for _, place := range []string{longest, "/"} {
		if err := unix.Mount("", place, "", unix.MS_PRIVATE, ""); err != nil {
			return fmt.Errorf("making %s private: %w", place, err)
		}
	}
	return nil
}

// ociMountOptions are the options of a mount in a bundle. The recursive attributes hold for what is mounted below, too.
type ociMountOptions struct {
	set, clear             uint64
	recursiveSet, recClear uint64
	propagation            []ociPropagation
	bind, recursive        bool
	copyUp                 bool // tmpcopyup: a new file system begins with what the root has at that place
	data                   []string
	prepared               int // a mount with its IDs mapped, made outside; -1 for none
}

type ociPropagation struct {
	flag      uint64
	recursive bool
}

func parseOCIOptions(options []string) ociMountOptions {
	attributes := mountAttributes()
	propagation := mountPropagation()
	var o ociMountOptions
	for _, opt := range options {
		plain := strings.TrimPrefix(opt, "r")
		if a, ok := attributes[opt]; ok {
			o.set, o.clear = o.set&^a.clear|a.set, o.clear&^a.set|a.clear
		} else if p, ok := propagation[opt]; ok {
			o.propagation = append(o.propagation, ociPropagation{p, false})
		} else if p, ok := propagation[plain]; ok {
			o.propagation = append(o.propagation, ociPropagation{p, true})
		} else if a, ok := attributes[plain]; ok {
			o.recursiveSet, o.recClear = o.recursiveSet&^a.clear|a.set, o.recClear&^a.set|a.clear
		} else if opt == "bind" || opt == "rbind" {
			o.bind, o.recursive = true, opt == "rbind"
		} else if opt == "tmpcopyup" {
			o.copyUp = true
		} else if !slices.Contains([]string{"", "defaults", "async", "auto", "noauto", "idmap", "ridmap", "mand", "nomand", "loud", "silent", "iversion", "noiversion", "acl", "noacl", "user", "nouser"}, opt) {
			o.data = append(o.data, opt)
		}
	}
	// As of parseMountOptions.
	o.clear &^= unix.MOUNT_ATTR_RDONLY
	o.recClear &^= unix.MOUNT_ATTR_RDONLY
	return o
}

// mountOCI makes one mount.
func (r *rootfs) mountOCI(m specs.Mount, o ociMountOptions) error {
	dest := path.Clean("/" + m.Destination)
	var mnt int
	var err error
	dir := true
	switch {
	case o.prepared >= 0:
		mnt = o.prepared
	case o.bind || m.Type == "bind":
		mnt, err = cloneTree(unix.AT_FDCWD, m.Source, o.recursive)
		if err != nil {
			err = fmt.Errorf("opening the source: %w", err)
		}
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return r.mountOCICgroup(m, o)
	case m.Type == "sysfs" || m.Type == "proc":
		mnt, err = r.newKernelMount(m, o)
	default:
		mnt, err = r.newOCIFileSystem(m, o)
		if m.Type == "mqueue" && errors.Is(err, unix.ENODEV) {
			return nil // a kernel without message queues
		}
	}
	if err != nil {
		return err
	}
	if m.Type == "proc" && dest == "/proc" {
		r.proc = mnt // closed with the rest
	} else {
		defer unix.Close(mnt)
	}
	if o.bind || m.Type == "bind" || o.prepared >= 0 {
		var st unix.Stat_t
		if err := unix.Fstat(mnt, &st); err != nil {
			return err
		}
		dir = st.Mode&unix.S_IFMT == unix.S_IFDIR
		if err := changeAttributes(mnt, o.set, o.clear, false); err != nil {
			return fmt.Errorf("setting the options %s: %w", strings.Join(m.Options, ","), err)
		}
	}
	if err := changeAttributes(mnt, o.recursiveSet, o.recClear, true); err != nil {
		return fmt.Errorf("setting the options %s: %w", strings.Join(m.Options, ","), err)
	}
	if m.Type == "proc" || m.Type == "sysfs" {
		// What is masked later counts on it that these are where they seem to be.
		if fd, err := openPlain(r.root, dest, unix.O_PATH); err == nil {
			unix.Close(fd)
		} else if !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("%s in the root must be an ordinary directory: %w", dest, err)
		}
	}
	if o.copyUp {
		if err := r.copyUpInto(mnt, dest); err != nil {
			return fmt.Errorf("copying what is at %s: %w", dest, err)
		}
	}
	if err := r.attach(mnt, dest, dir); err != nil {
		return err
	}
	for _, p := range o.propagation {
		if err := changeMount(mnt, 0, 0, p.flag, p.recursive); err != nil {
			return fmt.Errorf("setting the propagation: %w", err)
		}
	}
	return nil
}

// changeAttributes sets and clears attributes of a mount. What a user namespace has locked on stays on.
func changeAttributes(mnt int, set, clear uint64, recursive bool) error {
	err := changeMount(mnt, set, clear, 0, recursive)
	if errors.Is(err, unix.EPERM) && clear != 0 {
		// A kind of access time is set by clearing the others.
		err = changeMount(mnt, set, clear&unix.MOUNT_ATTR__ATIME, 0, recursive)
	}
	return err
}

// newOCIFileSystem makes a mount of a new file system. Without a user namespace's caller having the group tty, devpts does
// without it.
func (r *rootfs) newOCIFileSystem(m specs.Mount, o ociMountOptions) (int, error) {
	data := slices.Clone(o.data)
	data = slices.DeleteFunc(data, func(s string) bool { return s == "newinstance" && m.Type == "devpts" })
	if m.Source != "" {
		data = append(data, "source="+m.Source)
	}
	mnt, err := newFileSystem(m.Type, o.set, data...)
	if m.Type == "devpts" && errors.Is(err, unix.EINVAL) && slices.Contains(data, "gid=5") {
		return newFileSystem(m.Type, o.set, without(data, "gid=5")...)
	}
	return mnt, err
}

// newKernelMount makes a proc or sysfs, or shows the host's sysfs where the kernel lets no new one be mounted, which is so in
// a user namespace that has no network namespace of its own.
func (r *rootfs) newKernelMount(m specs.Mount, o ociMountOptions) (int, error) {
	mnt, err := newFileSystem(m.Type, o.set, append(slices.Clone(o.data), "source="+m.Type)...)
	if !errors.Is(err, unix.EPERM) {
		return mnt, err
	}
	if m.Type == "proc" {
		return -1, fmt.Errorf("%w: the kernel allows it only where the proc outside is wholly visible; in an outer container, that must be run with its /proc unmasked", err)
	}
	if mnt, err = cloneTree(unix.AT_FDCWD, "/sys", true); err == nil {
		err = changeMount(mnt, o.set, 0, unix.MS_PRIVATE, true)
	}
	return mnt, err
}

// mountOCICgroup shows the container its cgroups: what mountCgroup does where it has a cgroup namespace; otherwise, of each
// hierarchy its own directory.
func (r *rootfs) mountOCICgroup(m specs.Mount, o ociMountOptions) error {
	var fs unix.Statfs_t
	unified := unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	if unified || separateNamespace(r.cfg.Spec, specs.CgroupNamespace) {
		return r.mountCgroup(m, mountOptions{set: o.set, clear: o.clear})
	}
	all, err := hierarchiesOf("/proc/self/cgroup", "/proc/self/mountinfo", true)
	if err != nil {
		return err
	}
	mnt, err := newFileSystem("tmpfs", o.set&^unix.MOUNT_ATTR_RDONLY, "mode=755", "size=64k", "source=tmpfs")
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	if err := r.attach(mnt, m.Destination, true); err != nil {
		return err
	}
	for _, h := range all {
		if err := bindHierarchy(mnt, h, o); err != nil {
			return err
		}
	}
	return changeMount(mnt, o.set&unix.MOUNT_ATTR_RDONLY, 0, 0, false)
}

func bindHierarchy(dir int, h hierarchy, o ociMountOptions) error {
	own, err := cloneTree(unix.AT_FDCWD, h.own, false)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(own)
	if err := changeMount(own, o.set, o.clear, 0, false); err != nil {
		return err
	}
	name := filepath.Base(h.top)
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return err
	}
	target, err := openPlain(dir, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	if err := attach(own, target); err != nil {
		return err
	}
	// A hierarchy of two controllers is found by the name of each.
	if !h.unified && len(h.controllers) > 1 {
		for _, controller := range h.controllers {
			if controller != name {
				_ = unix.Symlinkat(name, dir, controller)
			}
		}
	}
	return nil
}

// makeOCIDevices makes the standard devices and links in /dev, and the devices of the specification wherever they are:
// nodes where the kernel allows it, or else binds of the host's.
func (r *rootfs) makeOCIDevices() error {
	dev, _, err := targetInRoot(r.root, "/dev", true)
	if err != nil {
		return fmt.Errorf("opening /dev: %w", err)
	}
	defer unix.Close(dev)
	asked := r.cfg.Spec.Linux.Devices
	all := slices.Clone(asked)
	for _, d := range standardDevices() {
		if !slices.ContainsFunc(asked, func(a specs.LinuxDevice) bool { return path.Clean(a.Path) == d.Path }) {
			all = append(all, d)
		}
	}
	for _, d := range all {
		if err := r.makeOCIDevice(d); err != nil {
			return fmt.Errorf("making the device %s: %w", d.Path, err)
		}
	}
	for _, l := range []struct{ name, target string }{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
	} {
		if err := unix.Symlinkat(l.target, dev, l.name); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("making /dev/%s: %w", l.name, err)
		}
	}
	if _, err := os.Stat("/proc/kcore"); err == nil {
		_ = unix.Symlinkat("/proc/kcore", dev, "core")
	}
	// An image's own would be the host's.
	if err := unix.Unlinkat(dev, "ptmx", 0); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("making /dev/ptmx: %w", err)
	}
	if err := unix.Symlinkat("pts/ptmx", dev, "ptmx"); err != nil {
		return fmt.Errorf("making /dev/ptmx: %w", err)
	}
	return nil
}

func (r *rootfs) makeOCIDevice(d specs.LinuxDevice) error {
	kind, ok := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
	if !ok {
		return fmt.Errorf("%q is no type of device", d.Type)
	}
	parent, _, err := targetInRoot(r.root, path.Dir(path.Clean("/"+d.Path)), true)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	if err := notThroughLink(parent, path.Dir(path.Clean("/"+d.Path))+"/"); err != nil {
		return err
	}
	name := path.Base(d.Path)
	number := unix.Mkdev(uint32(d.Major), uint32(d.Minor))
	mode := uint32(0o666)
	if d.FileMode != nil {
		mode = uint32(*d.FileMode) & 0o7777
	}
	err = unix.Mknodat(parent, name, kind|mode, int(number))
	if errors.Is(err, unix.EPERM) && kind != unix.S_IFIFO {
		return r.bindOCIDevice(d, parent, name)
	}
	if err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	var st unix.Stat_t
	if serr := unix.Fstatat(parent, name, &st, unix.AT_SYMLINK_NOFOLLOW); serr != nil {
		return serr
	}
	if st.Mode&unix.S_IFMT != kind || kind != unix.S_IFIFO && st.Rdev != number {
		return errors.New("the root has something else there")
	}
	if err != nil {
		return nil // the root's own will do
	}
	var uid, gid uint32
	set(&uid, d.UID)
	set(&gid, d.GID)
	if err := unix.Fchownat(parent, name, int(uid), int(gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return nil
}

// bindOCIDevice puts the host's node in the place of one that can't be made, in a user namespace.
func (r *rootfs) bindOCIDevice(d specs.LinuxDevice, parent int, name string) error {
	mnt, err := cloneTree(unix.AT_FDCWD, d.Path, false)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	f, err := unix.Openat(parent, name, unix.O_CREAT|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY|unix.O_NONBLOCK, 0o666)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	return attach(mnt, f)
}

// openOCITerminal makes the command's terminal in the container's own devpts.
func (r *rootfs) openOCITerminal(p *ociInit) error {
	if !p.cfg.Process.Terminal {
		return nil
	}
	var err error
	if r.master, r.slave, err = containerTerminal(r.root); err != nil {
		return err
	}
	mnt, err := cloneTree(int(r.slave.Fd()), "", false)
	if err != nil {
		return fmt.Errorf("making /dev/console: %w", err)
	}
	defer unix.Close(mnt)
	if err := r.attach(mnt, "/dev/console", false); err != nil {
		return fmt.Errorf("making /dev/console: %w", err)
	}
	return nil
}
