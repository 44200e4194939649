package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// site is where a mount goes. The three directories exist and are empty, on one file system.
type site struct{ upper, work, target string }

// makeSite makes empty directories for a mount, below dir.
func makeSite(dir, name string) (site, error) {
	dir = filepath.Join(dir, "mounts", name)
	if err := os.RemoveAll(dir); err != nil {
		return site{}, err
	}
	return siteIn(dir)
}

func siteIn(dir string) (site, error) {
	at := site{upper: filepath.Join(dir, "upper"), work: filepath.Join(dir, "work"), target: filepath.Join(dir, "target")}
	for _, d := range []string{at.upper, at.work, at.target} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return site{}, err
		}
	}
	return at, nil
}

// mountFresh mounts a stack by a peer, with an upper branch on a file system of its own that nobody has used before, or, where
// that can't be had, on that of the scratch directory.
//
// ext4 gives no inode number away again for some time after its file was deleted, and looks at each such number before it
// takes another (fs/ext4/ialloc.c, recently_deleted): where thousands of files were just deleted, as every benchmark leaves
// it, making one took fifteen times as long as on an empty disk, whoever made it.
func mountFresh(ctx context.Context, scratch string, s *stack, p peer) (*mounted, error) {
	at, leave, err := freshSite(scratch, p.name())
	if err != nil {
		return nil, err
	}
	m, err := p.mount(ctx, s, at)
	if err != nil {
		return nil, errors.Join(err, leave())
	}
	m.leave = leave
	return m, nil
}

// freshBytes is how large a new file system is. Its file is sparse.
const freshBytes = 8 << 30

// canMakeDisks reports whether there can be new file systems.
func canMakeDisks() bool {
	_, err := exec.LookPath("mkfs.ext4")
	return err == nil && os.Geteuid() == 0
}

func freshSite(scratch, name string) (at site, leave func() error, err error) {
	at, err = makeSite(scratch, name)
	if err != nil || !canMakeDisks() {
		return at, func() error { return nil }, err
	}
	dir := filepath.Dir(at.upper)
	disk, err := mountDisk(dir)
	if err != nil {
		return site{}, nil, err
	}
	leave = func() error {
		// Who was mounted on it a moment ago may still hold it.
		return errors.Join(unix.Unmount(dir, unix.MNT_DETACH), os.Remove(disk))
	}
	if at, err = siteIn(dir); err != nil {
		return site{}, nil, errors.Join(err, leave())
	}
	return at, leave, nil
}

// mountDisk mounts a new file system on a directory, and returns the file that it is in.
func mountDisk(dir string) (disk string, err error) {
	disk = dir + ".ext4"
	if err := os.WriteFile(disk, nil, 0o600); err != nil {
		return "", err
	}
	if err := os.Truncate(disk, freshBytes); err != nil {
		return "", errors.Join(err, os.Remove(disk))
	}
	for _, command := range [][]string{
		{"mkfs.ext4", "-q", "-F", "-E", "nodiscard", disk},
		// What is left to be initialised is not done in the background, beside what is measured.
		{"mount", "-o", "loop,noinit_itable", disk, dir},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			return "", errors.Join(fmt.Errorf("making a file system in %s: %v: %w: %s", dir, command, err, out), os.Remove(disk))
		}
	}
	return disk, nil
}
