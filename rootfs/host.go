package rootfs

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// HostImage is the reserved image reference for the machine's own root.
const HostImage = "host"

// hostTree are all mounts that this process can see, as they are now, cloned to a tree of their own, detached from any mount
// namespace, so that no mount made later, such as a union's own, appears in it.
func hostTree() (*os.File, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("cloning this machine's mounts: %w", err)
	}
	return os.NewFile(uintptr(tree), "/"), nil
}

// hostBranch is the machine's own root as a lower branch. What is no file to copy (the kernel's own file systems) and our own
// state are hidden. The tree stays the caller's.
func hostBranch(stateRoot string, tree *os.File, asRoot bool) (cow.Branch, error) {
	own, err := unix.FcntlInt(tree.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	o := cow.DirOptions{Root: own, Hidden: []string{"/proc", "/sys", "/dev", stateRoot}}
	if !asRoot {
		// The owners of most files have no ID in an ordinary user's namespace. Shown as nobody's, what belongs to
		// root could not be worked with.
		o.UnmappedAs = &cow.Owner{}
	}
	return cow.OpenDirBranch("/", o)
}
