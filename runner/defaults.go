package runner

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// DefaultPath is the PATH of a container whose image sets none: Docker's.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// DefaultCapabilities returns the capabilities that Docker gives a container's root by default.
func DefaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// DefaultSpec returns the specification of a container as Docker would run it: its namespaces (with no network but the
// loopback), capabilities, mounts, masked and read-only paths and environment. The caller fills in Process.Args and what
// the image and the person ask for.
//
// Network: a network namespace in Linux.Namespaces means a new one with the loopback up; take the entry out
// ([ShareHostNetwork]) for the host's network.
func DefaultSpec() *specs.Spec {
	caps := DefaultCapabilities()
	return &specs.Spec{
		Version: specs.Version,
		Root:    &specs.Root{Path: "rootfs"},
		Process: &specs.Process{
			Cwd: "/",
			Env: []string{"PATH=" + DefaultPath},
			Capabilities: &specs.LinuxCapabilities{
				Bounding: caps, Permitted: slices.Clone(caps), Effective: slices.Clone(caps),
			},
		},
		Mounts: []specs.Mount{
			{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
			{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
			{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=65536k"}},
			{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
			{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
			{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"nosuid", "noexec", "nodev", "relatime", "ro"}},
		},
		Linux: &specs.Linux{
			Namespaces: usualNamespaces(),
			MaskedPaths: []string{
				"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
				"/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
			},
			ReadonlyPaths: []string{
				"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
			},
		},
	}
}

// ShareHostNetwork makes the container use the host's network instead of its own.
func ShareHostNetwork(spec *specs.Spec) {
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == specs.NetworkNamespace
	})
}

// usualNamespaces are those of a container that shares none.
func usualNamespaces() []specs.LinuxNamespace {
	return []specs.LinuxNamespace{
		{Type: specs.UserNamespace}, {Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.UTSNamespace},
		{Type: specs.IPCNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.CgroupNamespace}, {Type: specs.TimeNamespace},
	}
}

// hasNewNamespace reports whether the container gets a namespace of its own of the kind.
func hasNewNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
		return ns.Type == kind && ns.Path == ""
	})
}

// separateNamespace reports whether the container has a namespace of the kind that is not this process's: a new one, or an
// existing one that it joins.
func separateNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType) bool {
	return spec.Linux != nil && slices.ContainsFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
}

// checkSpec refuses, before anything is made, what this runner can't do.
func checkSpec(spec *specs.Spec) error {
	switch {
	case spec.Process == nil || len(spec.Process.Args) == 0:
		return errors.New("no command was given, and the image has none")
	case spec.Linux == nil || !hasNewNamespace(spec, specs.MountNamespace):
		return errors.New("the specification must ask for a new mount namespace")
	case spec.Annotations[AnnotationRuntime] != "" && slices.ContainsFunc(sharedKinds(), func(s sharedKind) bool { return spec.Annotations[s.annotation] != "" }):
		return errors.New("where another runtime makes the container, it can't share another one's PID, IPC, UTS or cgroup namespace: leave out --runtime or container:NAME")
	case guarded(spec) && spec.Annotations[AnnotationRuntime] != "" && NeedsUserNamespace():
		return errors.New("--pid host needs a cgroup that all processes of the container are found by, which another runtime has only if root calls it: leave out --runtime or --pid, or run unionfs as root")
	case guarded(spec) && !hasNewNamespace(spec, specs.CgroupNamespace) && slices.ContainsFunc(spec.Mounts, func(m specs.Mount) bool {
		return m.Type == "cgroup" && !slices.Contains(m.Options, "ro")
	}):
		return errors.New("with a shared PID namespace (--pid), a privileged container needs a cgroup namespace of its own: its command could leave the cgroup by which it is ended")
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Path != "" {
			return fmt.Errorf("joining an existing %s namespace (%s) is not supported", ns.Type, ns.Path)
		}
	}
	if len(spec.Linux.TimeOffsets) > 0 {
		return errors.New("other clocks in the time namespace are not supported")
	}
	for key := range spec.Linux.Sysctl {
		if err := checkSysctl(spec, key); err != nil {
			return err
		}
	}
	for _, m := range spec.Mounts {
		if !path.IsAbs(m.Destination) {
			return fmt.Errorf("mounting at %q: give an absolute path", m.Destination)
		}
		if o := parseMountOptions(m.Options); (o.bind || m.Type == "bind") && !path.IsAbs(m.Source) {
			return fmt.Errorf("mounting %q at %s: give an absolute path", m.Source, m.Destination)
		}
	}
	if _, err := limitsOf(spec.Linux.Resources, false); err != nil {
		return err
	}
	if _, err := capabilityMask(spec.Process.Capabilities); err != nil {
		return err
	}
	return nil
}
