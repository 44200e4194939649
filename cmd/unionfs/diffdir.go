package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/rootfs"
)

// diffDirectory lists what an upper branch changes: that of a mount, or with --lower any.
func diffDirectory(c *cli.Context, path string) error {
	upper, lowers := path, c.StringSlice("lower")
	if len(lowers) == 0 {
		var err error
		if upper, lowers, err = branchesOf(path); err != nil {
			return fmt.Errorf("comparing %s: %w", path, err)
		}
	}
	var branches []cow.Branch
	defer func() {
		for _, b := range branches {
			b.Close()
		}
	}()
	for _, lower := range lowers {
		branch, err := openLower(c, lower)
		if err != nil {
			return fmt.Errorf("comparing %s: %w", path, err)
		}
		branches = append(branches, branch)
	}
	difference, err := cow.Compare(upper, branches)
	if err != nil {
		return err
	}
	defer difference.Close()
	return printChanges(c, difference.Changes)
}

// openLower opens what cow.Branch.Describe says of a lower branch: a directory, or an image's ID.
func openLower(c *cli.Context, lower string) (cow.Branch, error) {
	if id, ok := strings.CutPrefix(lower, "sha256:"); ok && !strings.Contains(id, "/") {
		root, err := stateRoot(c)
		if err != nil {
			return nil, err
		}
		return rootfs.OpenImage(root, lower)
	}
	return cow.OpenDirBranch(lower, cow.DirOptions{})
}

// branchesOf finds out what a mount is made of, from the mount itself.
func branchesOf(mount string) (upper string, lowers []string, err error) {
	absolute, err := filepath.Abs(mount)
	if err != nil {
		return "", nil, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(absolute, &st); err != nil {
		return "", nil, err
	}
	row, err := which(absolute)
	if err != nil {
		return "", nil, errors.New("it is neither a mounted union nor, without --lower, to be compared with anything; give the branches below it with --lower")
	}
	var here, above unix.Stat_t
	if err := errors.Join(unix.Stat(absolute, &here), unix.Stat(filepath.Dir(absolute), &above)); err != nil {
		return "", nil, err
	}
	if here.Dev == above.Dev {
		return "", nil, errors.New("it is inside a mounted union; give the directory that the union is mounted on")
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return "", nil, errors.New("it is mounted read only, so nothing is changed in it")
	}
	return row.From, row.Over, nil
}

// isDirectoryPath reports whether an argument is meant as a directory rather than as a container's name.
func isDirectoryPath(argument string) bool {
	if !strings.Contains(argument, "/") && argument != "." && argument != ".." {
		return false
	}
	fi, err := os.Stat(argument)
	return err == nil && fi.IsDir()
}
