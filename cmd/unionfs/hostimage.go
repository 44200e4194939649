package main

import (
	"fmt"
	"os"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// hostImage is the reserved image reference for the machine's own root.
const hostImage = "host"

// hostConfig is the image configuration of the machine's own root: what the caller has.
func hostConfig(directory string) imagespec.ImageConfig {
	return imagespec.ImageConfig{Env: os.Environ(), WorkingDir: directory}
}

// hostBranch is the machine's own root as a lower branch: all mounts that this process can see, as they are now. They
// are cloned to a tree of their own, detached from any mount namespace, so that no mount made later, such as the union's
// own, appears in it. What is no file to copy (the kernel's own file systems) and our own state are hidden.
func hostBranch(stateRoot string, asRoot bool) (cow.Branch, error) {
	tree, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err != nil {
		return nil, fmt.Errorf("cloning this machine's mounts: %w", err)
	}
	o := cow.DirOptions{Root: tree, Hidden: []string{"/proc", "/sys", "/dev", stateRoot}}
	if !asRoot {
		// The owners of most files have no ID in an ordinary user's namespace. Shown as nobody's, what belongs to
		// root could not be worked with.
		o.UnmappedAs = &cow.Owner{}
	}
	return cow.OpenDirBranch("/", o)
}
