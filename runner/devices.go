package runner

import (
	"fmt"
	"os"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// standardDevices are the device nodes that every container has (runtime-spec config-linux.md, "Default Devices").
func standardDevices() []specs.LinuxDevice {
	return []specs.LinuxDevice{
		{Path: "/dev/null", Type: "c", Major: 1, Minor: 3},
		{Path: "/dev/zero", Type: "c", Major: 1, Minor: 5},
		{Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
		{Path: "/dev/random", Type: "c", Major: 1, Minor: 8},
		{Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9},
		{Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
	}
}

// openDevices takes hold of the host's device nodes, while the host's /dev is in sight and nothing of the container is:
// mknod(2) makes no devices in a user namespace, so the host's own are bind-mounted. Each is checked to be the device
// that it is called.
func (r *rootfs) openDevices() error {
	r.devices = map[string]int{}
	for _, d := range slices.Concat(standardDevices(), r.cfg.Spec.Linux.Devices) {
		if _, ok := r.devices[d.Path]; ok {
			continue
		}
		fd, err := openDevice(d)
		if err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
		r.devices[d.Path] = fd
	}
	return nil
}

func openDevice(d specs.LinuxDevice) (int, error) {
	kinds := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK}
	kind, ok := kinds[d.Type]
	if !ok {
		return -1, fmt.Errorf("devices of type %q are not supported", d.Type)
	}
	fd, err := cloneTree(unix.AT_FDCWD, d.Path, false)
	if err != nil {
		return -1, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, err
	}
	if st.Mode&unix.S_IFMT != kind || st.Rdev != unix.Mkdev(uint32(d.Major), uint32(d.Minor)) {
		unix.Close(fd)
		return -1, fmt.Errorf("what the host has there is not the device %s %d:%d", d.Type, d.Major, d.Minor)
	}
	if err := changeMount(fd, unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSUID, 0, unix.MS_PRIVATE, false); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// fillDev puts the standard devices and links into the container's own /dev, an empty file system that no image can have
// prepared.
func (r *rootfs) fillDev(dev int) error {
	for _, d := range standardDevices() {
		if err := mountOnNewFile(r.devices[d.Path], dev, d.Path[len("/dev/"):]); err != nil {
			return fmt.Errorf("making %s: %w", d.Path, err)
		}
	}
	links := []struct{ name, target string }{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"}, {"stderr", "/proc/self/fd/2"},
		{"core", "/proc/kcore"}, {"ptmx", "pts/ptmx"},
	}
	for _, l := range links {
		if err := unix.Symlinkat(l.target, dev, l.name); err != nil {
			return fmt.Errorf("making /dev/%s: %w", l.name, err)
		}
	}
	return nil
}

// mountOnNewFile attaches mnt on a new empty file in dir.
func mountOnNewFile(mnt, dir int, name string) error {
	f, err := unix.Openat(dir, name, unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_RDONLY, 0o666)
	if err != nil {
		return err
	}
	defer unix.Close(f)
	return attach(mnt, f)
}

// addDevices adds the devices that the specification names besides.
func (r *rootfs) addDevices(devices []specs.LinuxDevice) error {
	standard := standardDevices()
	for _, d := range devices {
		if slices.ContainsFunc(standard, func(s specs.LinuxDevice) bool { return s.Path == d.Path }) {
			continue
		}
		if err := r.attach(r.devices[d.Path], d.Path, false); err != nil {
			return fmt.Errorf("device %s: %w", d.Path, err)
		}
	}
	return nil
}

// openTerminal makes the command's terminal out of the container's own devpts, whose root pts is open on: the master, the
// slave by descriptor from the master and not by its name, and /dev/console, which is the slave (CVE-2025-52565).
func (r *rootfs) openTerminal(pts int) error {
	var err error
	if r.master, r.slave, err = newTerminal(pts); err != nil {
		return err
	}
	if size := r.cfg.Spec.Process.ConsoleSize; size != nil {
		ws := unix.Winsize{Row: uint16(size.Height), Col: uint16(size.Width)}
		if err := unix.IoctlSetWinsize(int(r.master.Fd()), unix.TIOCSWINSZ, &ws); err != nil {
			return fmt.Errorf("setting the terminal's size: %w", err)
		}
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

// newTerminal opens a new terminal of the devpts whose root pts is open on.
func newTerminal(pts int) (master, slave *os.File, err error) {
	fd, err := unix.Openat(pts, "ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "terminal")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		master.Close()
		return nil, nil, fmt.Errorf("unlocking the terminal: %w", err)
	}
	// TIOCGPTPEER takes the flags by value.
	peer, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("opening the terminal's other side: %w", errno)
	}
	return master, os.NewFile(peer, "terminal"), nil
}
