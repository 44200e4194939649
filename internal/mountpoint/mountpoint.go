// Package mountpoint looks at what is mounted where without asking the mount, whose server may be gone, or be the one who looks.
package mountpoint

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/moby/sys/mountinfo"
)

// ErrNone says that a directory is no mount point.
var ErrNone = errors.New("nothing is mounted there")

// Resolve is the real path of a mount point. The last part is not looked at.
func Resolve(target string) (string, error) {
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

// On returns the topmost mount on exactly this path, which is a real one, or else [ErrNone].
func On(path string) (*mountinfo.Info, error) {
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(path))
	if err != nil {
		return nil, fmt.Errorf("reading the list of mounts: %w", err)
	}
	if len(infos) == 0 {
		return nil, ErrNone
	}
	return infos[len(infos)-1], nil
}

// DeviceNumber is the device number of the mount on target, which no other mount has while it lasts.
func DeviceNumber(target string) (major, minor int, err error) {
	path, err := Resolve(target)
	if err != nil {
		return 0, 0, err
	}
	m, err := On(path)
	if err != nil {
		return 0, 0, err
	}
	return m.Major, m.Minor, nil
}
