package runner

import (
	"bufio"
	"os"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mountCgroup shows the container its cgroups, with a cgroup namespace as the root of what it sees: the unified
// hierarchy where there is one only, or else a directory for each hierarchy of version 1 as on the host.
func (r *rootfs) mountCgroup(m specs.Mount, o mountOptions) error {
	var fs unix.Statfs_t
	unified := unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
	if !separateNamespace(r.cfg.Spec, specs.CgroupNamespace) {
		mnt, err := cloneTree(unix.AT_FDCWD, "/sys/fs/cgroup", true)
		if err == nil {
			defer unix.Close(mnt)
			err = changeMount(mnt, o.set, o.clear, unix.MS_PRIVATE, true)
		}
		if err != nil {
			return err
		}
		return r.attach(mnt, m.Destination, true)
	}
	if unified {
		mnt, err := newFileSystem("cgroup2", o.set, "source=cgroup")
		if err != nil {
			return err
		}
		defer unix.Close(mnt)
		return r.attach(mnt, m.Destination, true)
	}
	hierarchies, err := legacyHierarchies()
	if err != nil {
		return err
	}
	mnt, err := newFileSystem("tmpfs", o.set&^unix.MOUNT_ATTR_RDONLY, "mode=755", "size=64k", "source=cgroup")
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	if err := r.attach(mnt, m.Destination, true); err != nil {
		return err
	}
	for _, h := range hierarchies {
		// One that this host doesn't let us show is left out: a container can do without.
		_ = mountHierarchy(mnt, h, o.set)
	}
	return changeMount(mnt, o.set&unix.MOUNT_ATTR_RDONLY, 0, 0, false)
}

func mountHierarchy(dir int, controllers string, attributes uint64) error {
	name := strings.TrimPrefix(controllers, "name=")
	mnt, err := newFileSystem("cgroup", attributes, append(strings.Split(controllers, ","), "source=cgroup")...)
	if err != nil {
		return err
	}
	defer unix.Close(mnt)
	if err := unix.Mkdirat(dir, name, 0o755); err != nil {
		return err
	}
	target, err := openPlain(dir, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return err
	}
	defer unix.Close(target)
	return attach(mnt, target)
}

// legacyHierarchies lists the mounted cgroup hierarchies of version 1 by their controllers, as in /proc/self/cgroup
// (cgroups(7)): "cpu,cpuacct", "name=systemd".
func legacyHierarchies() ([]string, error) {
	f, err := os.Open("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []string
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 3)
		if len(fields) == 3 && fields[1] != "" {
			out = append(out, fields[1])
		}
	}
	return out, lines.Err()
}
