package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"unionfs/archive"
	"unionfs/runner"
	"unionfs/supervisor"
)

func cpCommand() *cli.Command {
	return &cli.Command{
		Name:      "cp",
		Usage:     "copy files between a container and this machine",
		UsageText: "unionfs cp [options] CONTAINER:PATH DEST|-\n   unionfs cp [options] SRC|- CONTAINER:PATH",
		Description: `Copies a file or a directory with all that is in it out of a container or into it, running or not, volumes included. A
path in the container starts at its root. "-" is a tar on standard input or output.

A directory is copied into DEST if that is there, else as DEST; with SRC/. it is the content that is copied. A file is
copied into DEST if that is a directory, else as DEST. The directory around DEST must be there. What is copied belongs
to you, in a container to its root, unless --archive keeps the owners.

Links in the container are followed within its own root only.

Examples:
   unionfs cp web:/etc/nginx/nginx.conf .
   unionfs cp ./site/. web:/usr/share/nginx/html
   unionfs cp web:/var/log - | tar -t`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "archive", Aliases: []string{"a"}, Usage: "keep owners and groups"},
			&cli.BoolFlag{Name: "follow-link", Aliases: []string{"L"}, Usage: "copy what the link SRC leads to"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "don't say what was copied"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, 2, "SRC and DEST, one of them as CONTAINER:PATH"); err != nil {
				return err
			}
			from, source := splitContainerPath(c.Args().Get(0))
			to, target := splitContainerPath(c.Args().Get(1))
			switch {
			case from != "" && to != "":
				return usageError("cp: copying between containers is not supported; pipe one into the other: unionfs cp %s:%s - | unionfs cp - %s:%s", from, source, to, target)
			case from == "" && to == "":
				return usageError("cp: neither %q nor %q is in a container; want CONTAINER:PATH for one of them", source, target)
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			container, err := findContainer(root, from+to)
			if err != nil {
				return err
			}
			files, err := container.OpenFiles(c.Context, runner.StartOptions{Supervisor: supervisor.Arguments(root, container.ID)})
			if err != nil {
				return err
			}
			x := transfer{c: c, files: files, container: container, archive: c.Bool("archive"), follow: c.Bool("follow-link")}
			if from != "" {
				err = x.out(source, target)
			} else {
				err = x.in(source, target)
			}
			return errors.Join(err, files.Close())
		},
	}
}

// splitContainerPath parts CONTAINER:PATH; the container is empty for a path of this machine, which starts with a dot or a slash or
// has no colon.
func splitContainerPath(arg string) (container, name string) {
	if strings.HasPrefix(arg, ".") || strings.HasPrefix(arg, "/") {
		return "", arg
	}
	container, name, found := strings.Cut(arg, ":")
	if !found {
		return "", arg
	}
	return container, name
}

// transfer is one call of cp.
type transfer struct {
	c         *cli.Context
	files     *runner.Files
	container *runner.Container
	archive   bool
	follow    bool
}

// placement says how what is copied is called and where it comes.
type placement struct {
	dir  string // must be there, or is made if make is set
	name string // within dir; empty for the content of a directory
	make bool
}

// place applies Docker's rules ("docker container cp", Description). base is the source's name, empty if only its content is wanted.
func place(sourceIsDir bool, base, target string, targetExists, targetIsDir bool) (placement, error) {
	slash := endsInSlash(target)
	switch {
	case targetIsDir:
		return placement{dir: target, name: base}, nil
	case sourceIsDir && targetExists:
		return placement{}, fmt.Errorf("%s is no directory, and a directory can't be copied to it", target)
	case sourceIsDir:
		return placement{dir: target, make: true}, nil
	case slash && targetExists:
		return placement{}, fmt.Errorf("%s is not a directory", target)
	case slash:
		return placement{}, fmt.Errorf("the directory %s does not exist; make it first", target)
	}
	dir, name := path.Split(target)
	if dir == "" {
		dir = "."
	}
	return placement{dir: dir, name: name}, nil
}

func endsInSlash(name string) bool {
	return strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") || name == "." || name == ".." || strings.HasSuffix(name, "/..")
}

// baseOf is the name under which a directory or file is copied; empty for the content only.
func baseOf(source string, isDir bool) string {
	if isDir && (strings.HasSuffix(source, "/.") || source == ".") {
		return ""
	}
	base := path.Base(path.Clean("/" + source))
	if base == "/" {
		return ""
	}
	return base
}

// out copies from the container.
func (x *transfer) out(source, target string) error {
	follow := x.follow || endsInSlash(source)
	info, err := x.files.Stat(source, follow)
	if err != nil {
		return fmt.Errorf("container %s: %w", x.container.Name, err)
	}
	if !info.Exists {
		return fmt.Errorf("container %s has no file %s", x.container.Name, source)
	}
	base := baseOf(source, info.IsDir())
	if target == "-" {
		if f, ok := x.c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errors.New("an archive is not for a terminal: redirect standard output")
		}
		return x.files.Read(source, follow, base, x.c.App.Writer)
	}
	there, terr := os.Stat(target)
	if terr != nil && !errors.Is(terr, os.ErrNotExist) {
		return terr
	}
	p, err := place(info.IsDir(), base, target, terr == nil, terr == nil && there.IsDir())
	if err != nil {
		return err
	}
	if p.make {
		if err := os.Mkdir(p.dir, 0o755); err != nil {
			return err
		}
	}
	dir, err := unix.Open(p.dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("opening %s: %w", p.dir, err)
	}
	defer unix.Close(dir)
	r, w := io.Pipe()
	read := make(chan error, 1)
	go func() {
		err := x.files.Read(source, follow, p.name, w)
		w.CloseWithError(err)
		read <- err
	}()
	unix.Umask(0)
	// A device of the container's would be one of this machine's.
	size, err := archive.Unpack(r, dir, archive.UnpackOptions{Base: ".", Owners: x.archive, NoDevices: true, Skipped: x.skipped})
	r.CloseWithError(errors.New("given up"))
	if rerr := <-read; rerr != nil && err == nil {
		err = rerr
	}
	if err != nil {
		return fmt.Errorf("copying %s from container %s: %w", source, x.container.Name, err)
	}
	x.done(size, target)
	return nil
}

func (x *transfer) skipped(name, why string) {
	fmt.Fprintf(x.c.App.ErrWriter, "unionfs: %s: %s, and is left out\n", name, why)
}

func (x *transfer) done(size int64, target string) {
	if !x.c.Bool("quiet") {
		fmt.Fprintf(x.c.App.ErrWriter, "Successfully copied %s to %s\n", units.HumanSizeWithPrecision(float64(size), 3), target)
	}
}

// in copies into the container.
func (x *transfer) in(source, target string) error {
	where := x.container.Name + ":" + target
	info, err := x.files.Stat(target, true)
	if err != nil {
		return fmt.Errorf("container %s: %w", x.container.Name, err)
	}
	if source == "-" {
		if !info.IsDir() {
			return fmt.Errorf("a tar is unpacked into a directory, and %s is none", where)
		}
		if err := x.files.Write(target, os.Stdin); err != nil {
			return fmt.Errorf("copying to %s: %w", where, err)
		}
		return nil
	}
	fd, isDir, err := openSource(source, x.follow || endsInSlash(source))
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	resolved := info.Path
	if endsInSlash(target) && !endsInSlash(resolved) {
		resolved += "/"
	}
	absolute, err := filepath.Abs(source)
	if err != nil {
		return err
	}
	base := filepath.Base(absolute)
	if baseOf(source, isDir) == "" {
		base = ""
	}
	p, err := place(isDir, base, resolved, info.Exists, info.IsDir())
	if err != nil {
		return fmt.Errorf("container %s: %w", x.container.Name, err)
	}
	if p.make {
		// The tar's first entry makes it, in the directory around it.
		above, name := path.Split(strings.TrimRight(p.dir, "/"))
		p = placement{dir: above, name: name}
	}
	options := archive.PackOptions{Skipped: func(name string) { x.skipped(name, "it is a socket") }}
	if !x.archive {
		options.Owner = &archive.Owner{}
	}
	r, w := io.Pipe()
	packed := make(chan error, 1)
	counted := &counter{w: w}
	go func() {
		err := archive.Pack(counted, fd, p.name, options)
		w.CloseWithError(err)
		packed <- err
	}()
	err = x.files.Write(p.dir, r)
	givenUp := errors.New("given up")
	r.CloseWithError(givenUp)
	if perr := <-packed; perr != nil && (err == nil || !errors.Is(perr, io.ErrClosedPipe)) && !errors.Is(perr, givenUp) {
		err = perr
	}
	if err != nil {
		return fmt.Errorf("copying %s to %s: %w", source, where, err)
	}
	x.done(counted.n, where)
	return nil
}

// openSource opens a file or directory of this machine.
func openSource(name string, follow bool) (fd int, isDir bool, err error) {
	flags := unix.O_PATH | unix.O_CLOEXEC
	if !follow {
		flags |= unix.O_NOFOLLOW
	}
	fd, err = unix.Open(name, flags, 0)
	if err != nil {
		return -1, false, &os.PathError{Op: "open", Path: name, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return -1, false, err
	}
	return fd, st.Mode&unix.S_IFMT == unix.S_IFDIR, nil
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}
