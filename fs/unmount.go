package fs

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Unmount takes away the union that is mounted on target, be it served by this process, another or none any more. If
// files of it are in use the error is EBUSY, unless lazy: then it only disappears from the tree, and ends with the last
// use. Anything else than a union that is mounted there is left alone and an error.
func Unmount(target string, lazy bool) error {
	if err := unmount(target, lazy); err != nil {
		return fmt.Errorf("unmounting %s: %w", target, err)
	}
	return nil
}

var errNotMounted = errors.New("nothing is mounted there")

func unmount(target string, lazy bool) error {
	path, err := resolveMount(target)
	if err != nil {
		return err
	}
	switch found, err := mountOn(path); {
	case err != nil:
		return err
	case found == nil:
		return errNotMounted
	case found.FSType != fsType:
		return fmt.Errorf("what is mounted there is no union but %s", found.FSType)
	}

	if canMount() {
		flags := unix.UMOUNT_NOFOLLOW
		if lazy {
			flags |= unix.MNT_DETACH
		}
		err = unix.Unmount(path, flags)
	} else {
		args := []string{"-u"} // not -q: it would not say why it fails
		if lazy {
			args = append(args, "-z")
		}
		cmd, lookErr := helperCommand(append(args, "--", path)...)
		if lookErr != nil {
			return lookErr
		}
		err = runHelper(cmd)
	}
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("it is in use (a file of it is open, or somebody's working directory): %w", unix.EBUSY)
	}
	return err
}

// resolveMount is the real path of a mount point. The last part is not looked at: the server may be gone, and this
// process may be the server.
func resolveMount(target string) (string, error) {
	abs, err := filepath.Abs(target)
	if err != nil {
		return "", err
	}
	if abs == "/" {
		return abs, nil
	}
	dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(abs)), nil
}

// DeviceNumber is the device number of the mount on target, which no other mount has while it lasts. The mount is not asked.
func DeviceNumber(target string) (major, minor int, err error) {
	path, err := resolveMount(target)
	if err != nil {
		return 0, 0, err
	}
	m, err := mountOn(path)
	if err == nil && m == nil {
		err = errNotMounted
	}
	if err != nil {
		return 0, 0, err
	}
	return m.Major, m.Minor, nil
}

// mountOn returns the topmost mount on exactly this path, nil if there is none.
func mountOn(path string) (*mountinfo.Info, error) {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		return nil, fmt.Errorf("reading the list of mounts: %w", err)
	}
	if len(infos) == 0 {
		return nil, nil
	}
	return infos[len(infos)-1], nil
}
