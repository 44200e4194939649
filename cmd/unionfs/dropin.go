package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"

	"unionfs/overlayopts"
)

// unionfs stands in for fuse-overlayfs and for the helpers that mount(8) calls: under their names, or where the arguments
// are theirs. podman, buildah and containerd then need no more than its path.

const (
	// dropInServer is the first argument of the process that serves a mount; what the user gave follows.
	dropInServer = "serve-overlay"

	// dropInLevel is the version of fuse-overlayfs whose options are understood. Some callers look for a version.
	dropInLevel = "1.13"
)

const dropInHelp = `usage: %s [-f] [-d] -o lowerdir=DIR[:DIR]...[,upperdir=DIR,workdir=DIR][,OPTION]... [SOURCE] TARGET

Merges the lower directories, the first one on top, and mounts the result on TARGET, as fuse-overlayfs does. With
upperdir every change is written there; without it the mount is read only. "\:" is a colon in a path, "\," a comma.

   -f             serve in the foreground
   -d, --debug    log every request, in the foreground
   -o OPTIONS     see below
   -V, --version  print the version
   -h, --help     print this

Options: uidmapping=INSIDE:OUTSIDE:SIZE[:...], gidmapping=..., squash_to_root, squash_to_uid=UID, squash_to_gid=GID,
xattr_permissions=0|1|2, volatile, fsync=0|1, noacl, timeout=SECONDS, writeback=0|1, redirect_dir=on|off, metacopy=on|off,
context=CONTEXT, fsname=NAME, allow_other, ro, nosuid, noexec, dev, atime, and the other generic ones of mount(8).

Examples:
   %[1]s -o lowerdir=patched:original,upperdir=changes,workdir=changes.work /mnt
   fusermount3 -u /mnt
`

// runDropIn does what fuse-overlayfs does, if that is what was called; ok is false if not.
func runDropIn(args []string, stdout, stderr io.Writer) (code int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	name := filepath.Base(args[0])
	if len(args) > 1 && args[1] == dropInServer {
		return serveDropIn(args[2:], stderr), true
	}
	if name == runtimeName {
		args = slices.Insert(slices.Clone(args), 1, "runtime")
		return runApp(args, stdout, stderr), true
	}
	if !isDropIn(name, args[1:]) {
		return 0, false
	}
	err := mountDropIn(name, args[1:], stdout, stderr)
	if err == nil {
		return 0, true
	}
	fmt.Fprintf(stderr, "%s: %v\n", name, err)
	return exitCode(err), true
}

// isDropIn reports whether a command line is one of fuse-overlayfs: by the program's name; or by arguments that begin with
// mount options, or with no verb of ours and have a lowerdir.
func isDropIn(name string, args []string) bool {
	switch name {
	case "fuse-overlayfs", "mount.unionfs", "mount.fuse.unionfs", "mount.fuse-overlayfs", "mount.fuse.fuse-overlayfs":
		return true
	}
	if len(args) == 0 {
		return false
	}
	if _, known := verbNamed(args[0]); known {
		return false
	}
	return overlayopts.IsMount(args)
}

func mountDropIn(name string, args []string, stdout, stderr io.Writer) error {
	line, err := overlayopts.ParseArgs(args)
	if err != nil {
		return &exitError{exitUsage, fmt.Errorf("%w; see %s --help", err, name)}
	}
	switch {
	case line.Help:
		_, err := fmt.Fprintf(stdout, dropInHelp, name)
		return err
	case line.Version:
		_, err := fmt.Fprintf(stdout, "fuse-overlayfs: version %s\nunionfs: version %s\n", dropInLevel, version)
		return err
	}
	for _, option := range line.Unknown {
		fmt.Fprintf(stderr, "%s: warning: the mount option %q is unknown and ignored\n", name, option)
	}
	target, err := filepath.Abs(line.Target)
	if err != nil {
		return err
	}
	if line.Foreground {
		return serveOverlay(line, target, stderr, nil)
	}
	return startDropInServer(args, target)
}

func exitCode(err error) int {
	var coded *exitError
	if errors.As(err, &coded) {
		return coded.code
	}
	return exitFailure
}

// checkDropInTarget refuses a target within a branch: a server that met its own mount in a branch would wait for itself.
func checkDropInTarget(line *overlayopts.CommandLine) error {
	target, err := realPath(line.Target)
	if err != nil {
		return nil // fs.Mount says what is wrong with it
	}
	for _, branch := range append([]string{line.Upper, line.Work}, line.Lower...) {
		if branch == "" {
			continue
		}
		if real, err := realPath(branch); err == nil && strings.HasPrefix(target+"/", strings.TrimSuffix(real, "/")+"/") {
			return fmt.Errorf("the target is inside the branch %s; take a directory outside of it", branch)
		}
	}
	return nil
}

func realPath(path string) (string, error) {
	absolute, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	return filepath.EvalSymlinks(absolute)
}
