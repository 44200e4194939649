package fs

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

const devFuse = "/dev/fuse"

// canMount reports whether this process has CAP_SYS_ADMIN, be it in the user namespace that it is in.
func canMount() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return os.Geteuid() == 0
	}
	return data[unix.CAP_SYS_ADMIN/32].Effective&(1<<(unix.CAP_SYS_ADMIN%32)) != 0
}

// mountDirect opens the device and calls mount(2). The library would do it too, but leaves the descriptor open in child
// processes, which keep a dead mount alive.
func mountDirect(target string, o *Options, readOnly bool) (int, error) {
	fd, err := unix.Open(devFuse, unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, deviceError(err)
	}
	data := []string{
		fmt.Sprintf("fd=%d", fd),
		"rootmode=40000", // S_IFDIR
		fmt.Sprintf("user_id=%d", os.Geteuid()),
		fmt.Sprintf("group_id=%d", os.Getegid()),
	}
	data = append(data, fuseOptions(o)...)
	if err := unix.Mount(o.FsName, target, fsType, mountFlags(o, readOnly), strings.Join(data, ",")); err != nil {
		unix.Close(fd)
		switch err {
		case unix.EPERM:
			return -1, errors.New("the kernel doesn't allow this process to mount here " +
				"(it needs CAP_SYS_ADMIN in the user namespace that owns its mount namespace)")
		case unix.ENODEV:
			return -1, errors.New("the kernel has no FUSE; load it with \"modprobe fuse\"")
		}
		return -1, err
	}
	return fd, nil
}

// fuseOptions are the options that the FUSE driver itself knows.
func fuseOptions(o *Options) []string {
	opts := []string{"default_permissions", fmt.Sprintf("max_read=%d", o.MaxWrite)}
	if o.AllowOther {
		opts = append(opts, "allow_other")
	}
	if o.Context != "" {
		// The quotation marks are for the commas that a context may have (selinux_sb_eat_lsm_opts).
		opts = append(opts, `context="`+o.Context+`"`)
	}
	return opts
}

func mountFlags(o *Options, readOnly bool) uintptr {
	var flags uintptr
	for _, f := range []struct {
		on   bool
		flag uintptr
	}{
		{readOnly, unix.MS_RDONLY},
		{o.NoSuid, unix.MS_NOSUID},
		{o.NoDev, unix.MS_NODEV},
		{o.NoExec, unix.MS_NOEXEC},
		{o.NoAtime, unix.MS_NOATIME},
	} {
		if f.on {
			flags |= f.flag
		}
	}
	return flags
}

// deviceError says what to do when /dev/fuse can't be opened.
func deviceError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return errors.New("there is no " + devFuse + "; load the kernel's FUSE with \"modprobe fuse\", " +
			"or if this is a container, start it with \"--device " + devFuse + "\"")
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("user %d may not open %s; have an administrator run \"chmod 666 %s\"",
			os.Geteuid(), devFuse, devFuse)
	}
	return fmt.Errorf("opening %s: %w", devFuse, err)
}
