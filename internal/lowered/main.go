// Command lowered runs a command with the directory it is started in as the lower branch of a union: the command sees the
// directory through a mount, nothing of it in the upper branch; afterwards what the command changed is applied to the
// directory. A test suite that runs each of its system calls through it meets only files of a lower branch.
//
//	lowered ROOT COMMAND [ARGUMENT…]
//
// The working directory must be ROOT or beneath it.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"unionfs/cow"
	"unionfs/fs"
)

func main() {
	code, err := run(os.Args[1], os.Args[2:])
	if err != nil {
		fmt.Fprintln(os.Stderr, "lowered:", err)
		os.Exit(125)
	}
	os.Exit(code)
}

func run(root string, command []string) (code int, err error) {
	cwd, err := os.Getwd()
	if err != nil {
		return 0, err
	}
	rel, err := filepath.Rel(root, cwd)
	if err != nil {
		return 0, err
	}
	base, err := os.MkdirTemp(filepath.Dir(root), "lowered-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(base)
	upper, work, target := base+"/upper", base+"/work", base+"/mnt"
	if err := errors.Join(os.Chmod(base, 0o755), os.Mkdir(upper, 0o755), os.Mkdir(work, 0o700), os.Mkdir(target, 0o755)); err != nil {
		return 0, err
	}
	lower, err := cow.OpenDirBranch(root, cow.DirOptions{})
	if err != nil {
		return 0, err
	}
	u, err := cow.New(cow.Options{Lower: []cow.Branch{lower}, Upper: upper, Work: work})
	if err != nil {
		return 0, err
	}
	s, err := fs.Mount(u, target, fs.Options{AllowOther: true})
	if err != nil {
		return 0, err
	}
	// A shell changes the directory: this process would wait for itself.
	c := exec.Command("/bin/sh", append([]string{"-c", `umask 022; cd "$0" && exec "$@"`, filepath.Join(target, rel)}, command...)...)
	c.Stdin, c.Stdout, c.Stderr = os.Stdin, os.Stdout, os.Stderr
	runErr := c.Run()
	if err := s.Unmount(); err != nil {
		return 0, err
	}
	s.Wait()
	if err := u.Close(); err != nil {
		return 0, err
	}
	if exit := (*exec.ExitError)(nil); runErr != nil && !errors.As(runErr, &exit) {
		return 0, runErr
	}
	below, err := cow.OpenDirBranch(root, cow.DirOptions{})
	if err != nil {
		return 0, err
	}
	defer below.Close()
	d, err := cow.Compare(upper, []cow.Branch{below})
	if err != nil {
		return 0, err
	}
	defer d.Close()
	return c.ProcessState.ExitCode(), d.Apply(root)
}
