package cow

import (
	"errors"
	"fmt"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks is how many symbolic links a path may have, as the kernel's.
const maxLinks = 40

// ExportDirectory calls yield for the directory dir and for every file in it, as [ExportTree] does for a whole union, with
// paths below dir. Symbolic links on the way to dir are followed within the union. It reports false if there is no such
// directory.
func (u *Union) ExportDirectory(dir string, yield func(*Exported) error) (bool, error) {
	n, err := u.walk(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("%s: %w", dir, err)
	}
	defer u.Forget(n, 1)
	if !n.isDir() {
		return false, nil
	}
	var a Attr
	if err := u.Getattr(n, &a); err != nil {
		return true, err
	}
	e := exporter{u: u, yield: yield, linked: map[uint64]string{}}
	if err := e.file("", n, &a, false); err != nil {
		return true, err
	}
	return true, e.inside("", n)
}

// walk finds a path in the union as a process with it as its root would, links included. The caller must forget the node once.
func (u *Union) walk(name string) (*Node, error) {
	rest := strings.Split(path.Clean("/" + name)[1:], "/")
	at := []*Node{u.root} // the directories from the root down to where we are; of the root, nothing is to be forgotten
	defer func() {
		for _, n := range at {
			u.Forget(n, 1)
		}
	}()
	for links := 0; len(rest) > 0; {
		component := rest[0]
		rest = rest[1:]
		here := at[len(at)-1]
		switch component {
		case "", ".":
			continue
		case "..":
			if len(at) > 1 {
				u.Forget(here, 1)
				at = at[:len(at)-1]
			}
			continue
		}
		if !here.isDir() {
			return nil, unix.ENOTDIR
		}
		var a Attr
		n, err := u.Lookup(here, component, &a)
		if err != nil {
			return nil, err
		}
		if n.kind != unix.S_IFLNK {
			at = append(at, n)
			continue
		}
		target, err := u.Readlink(n)
		u.Forget(n, 1)
		if err != nil {
			return nil, err
		}
		if links++; links > maxLinks {
			return nil, unix.ELOOP
		}
		if strings.HasPrefix(target, "/") {
			for _, n := range at[1:] {
				u.Forget(n, 1)
			}
			at = at[:1]
		}
		rest = append(strings.Split(target, "/"), rest...)
	}
	last := at[len(at)-1]
	at = at[:len(at)-1]
	return last, nil
}
