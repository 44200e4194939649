package runner

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/sys/capability"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// SupportedCapabilities lists the names of all capabilities that this kernel has.
func SupportedCapabilities() ([]string, error) {
	list, err := capability.ListSupported()
	if err != nil {
		return nil, fmt.Errorf("asking the kernel for its capabilities: %w", err)
	}
	var names []string
	for _, c := range list {
		names = append(names, "CAP_"+strings.ToUpper(c.String()))
	}
	return names, nil
}

// HasSubordinateIDs reports whether the calling user has ranges in /etc/subuid and /etc/subgid. The error says what is
// wrong with those files.
func HasSubordinateIDs() (bool, error) {
	uids, _, err := subordinate()
	return len(uids) > 0, err
}

// LimitNumber translates a limit's name, RLIMIT_…, to its number (getrlimit(2)).
func LimitNumber(name string) (int, bool) { return limitNumber(name) }

// Unmask takes away what keeps a container from the kernel's own files: masked and read-only paths, and /sys and its
// cgroups mounted read-only. What its user may do there is the kernel's decision.
func Unmask(spec *specs.Spec) {
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	var st unix.Statfs_t
	hostsReadOnly := unix.Statfs("/sys", &st) == nil && st.Flags&unix.ST_RDONLY != 0
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if m.Type == "sysfs" && !hostsReadOnly || m.Type == "cgroup" {
			m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return o == "ro" })
		}
	}
}

// ShareHostNamespace makes the container use the host's namespace of the kind instead of one of its own, with the mounts
// that belong to it. Mount namespaces can't be shared. Without a PID namespace of its own, the container needs a cgroup of its own to be
// ended by, or can't be started.
func ShareHostNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) {
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
	if kind != specs.IPCNamespace {
		return
	}
	for _, dir := range []string{"/dev/shm", "/dev/mqueue"} {
		at := slices.IndexFunc(spec.Mounts, func(m specs.Mount) bool { return m.Destination == dir && m.Type != "bind" })
		if at < 0 {
			continue
		}
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			spec.Mounts = slices.Delete(spec.Mounts, at, at+1)
			continue
		}
		spec.Mounts[at] = specs.Mount{Destination: dir, Type: "bind", Source: dir, Options: []string{"rbind", "nosuid", "noexec", "nodev"}}
	}
}

// HostDevice describes the device node at path. It is false for what is no device, or is reached through a link.
func HostDevice(path string) (specs.LinuxDevice, bool) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, false
	}
	d := specs.LinuxDevice{Path: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev))}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return specs.LinuxDevice{}, false
	}
	return d, true
}

// HostDevices lists the device nodes in the host's /dev that the calling user may read or write, without terminals that
// belong to somebody's session and what a container has of its own.
func HostDevices() ([]specs.LinuxDevice, error) {
	own := map[string]bool{"/dev/console": true, "/dev/ptmx": true}
	for _, d := range standardDevices() {
		own[d.Path] = true
	}
	var out []specs.LinuxDevice
	err := filepath.WalkDir("/dev", func(path string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, os.ErrPermission) || errors.Is(err, os.ErrNotExist):
			return nil // not ours, or unplugged
		case err != nil:
			return err
		case e.IsDir() && (path == "/dev/pts" || path == "/dev/shm" || path == "/dev/mqueue" || path == "/dev/hugepages"):
			return fs.SkipDir
		case e.Type()&fs.ModeDevice == 0 || own[path]:
			return nil
		}
		d, ok := HostDevice(path)
		if ok && (unix.Access(path, unix.R_OK) == nil || unix.Access(path, unix.W_OK) == nil) {
			out = append(out, d)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the host's devices: %w", err)
	}
	return out, nil
}
