package fs

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"

	"unionfs/internal/mountpoint"
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

func unmount(target string, lazy bool) error {
	path, err := mountpoint.Resolve(target)
	if err != nil {
		return err
	}
	switch found, err := mountpoint.On(path); {
	case err != nil:
		return err
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
