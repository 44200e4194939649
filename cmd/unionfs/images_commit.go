package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/google/renameio/v2"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"unionfs/cow"
	"unionfs/layerstore"
	"unionfs/rootfs"
	"unionfs/runner"
)

func commitCommand() *cli.Command {
	return &cli.Command{
		Name:      "commit",
		Usage:     "make an image of what a container changed",
		ArgsUsage: "CONTAINER [NAME[:TAG]]",
		Description: `Makes an image: the container's, and on top of it a layer with all that its command changed. What is in a volume is not
part of it. A running container is stopped while it is read. The configuration is the image's, with the changes that
--change asks for: CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR, as in a
Dockerfile.

Examples:
   unionfs commit web mine:1
   unionfs commit -m "with nginx" --change 'CMD ["nginx", "-g", "daemon off;"]' --change 'ENV LANG=C' web mine:2`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "change", Aliases: []string{"c"}, Usage: "apply a Dockerfile `INSTRUCTION` to the configuration; may be given several times"},
			&cli.StringFlag{Name: "message", Aliases: []string{"m"}, Usage: "put `TEXT` into the image's history"},
			&cli.StringFlag{Name: "author", Aliases: []string{"a"}, Usage: "name of the author, such as `\"Jo Doe <jo@example.com>\"`"},
			&cli.BoolFlag{Name: "pause", Aliases: []string{"p"}, Value: true, Usage: "stop the processes of a running container while it is read; --pause=false leaves them at it"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 2, "CONTAINER [NAME[:TAG]]"); err != nil {
				return err
			}
			// Before anything is read.
			for _, change := range c.StringSlice("change") {
				if err := layerstore.CheckConfigChange(change); err != nil {
					return usageError("%w", err)
				}
			}
			if name := c.Args().Get(1); name != "" {
				if err := layerstore.CheckName(name); err != nil {
					return fmt.Errorf("committing %s: %w", c.Args().First(), err)
				}
			}
			return withWhole(c, c.Bool("pause"), func(string, *runner.Container) error {
				return withDifference(c, func(container *runner.Container, d *cow.Difference) error { return commit(c, container, d) })
			})
		},
	}
}

func commit(c *cli.Context, container *runner.Container, d *cow.Difference) error {
	store, err := openStore(c)
	if err != nil {
		return err
	}
	base, err := store.Image(container.Spec.Annotations[rootfs.AnnotationImageID])
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	written := make(chan struct{})
	go func() {
		defer close(written)
		w.CloseWithError(writeArchive(c, w, d.Export))
	}()
	image, err := store.Commit(c.Context, base, r, c.Args().Get(1), layerstore.CommitOptions{
		Changes:   c.StringSlice("change"),
		Author:    c.String("author"),
		Message:   c.String("message"),
		CreatedBy: strings.Join(container.Spec.Process.Args, " "),
	})
	r.CloseWithError(errors.New("given up"))
	<-written
	if err != nil {
		return fmt.Errorf("container %s: %w", container.Name, err)
	}
	return printImageID(c, image)
}

// writeArchive writes a tar of what export hands out, and says what a tar can't hold.
func writeArchive(c *cli.Context, w io.Writer, export func(func(*cow.Exported) error) error) error {
	a := layerstore.NewArchive(w)
	a.Skipped = func(path string) {
		fmt.Fprintf(c.App.ErrWriter, "unionfs: /%s is a socket and is left out\n", path)
	}
	if err := export(a.Add); err != nil {
		return err
	}
	return a.Close()
}

func exportCommand() *cli.Command {
	return &cli.Command{
		Name:      "export",
		Usage:     "write the files of a container or an image as a tar",
		ArgsUsage: "CONTAINER|IMAGE",
		Description: `Writes everything that is in the root of a container, or in an image, as one tar to standard output or to a file. What
is in a volume is not part of it. "unionfs import" makes an image of one layer of such a tar.

Examples:
   unionfs export web > root.tar
   unionfs export -o root.tar alpine`,
		Flags: []cli.Flag{outputFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "CONTAINER|IMAGE"); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			if _, err := findContainer(root, c.Args().First()); !errors.Is(err, runner.ErrNotFound) {
				return withWhole(c, true, func(root string, container *runner.Container) error { return exportContainer(c, root, container) })
			}
			image, err := rootfs.FindImage(root, c.Args().First())
			if err != nil {
				return err
			}
			return toOutput(c, image.Export)
		},
	}
}

func exportContainer(c *cli.Context, root string, container *runner.Container) error {
	lower, err := new(rootfs.Serving).ContainerBranch(root, container)
	if err != nil {
		return err
	}
	defer lower.Close()
	recorded, err := cow.RecordsOwners(container.Upper())
	if err != nil {
		return err
	}
	upper, err := cow.OpenDirBranch(container.Upper(), cow.DirOptions{Override: recorded})
	if err != nil {
		return err
	}
	defer upper.Close()
	err = toOutput(c, func(w io.Writer) error {
		return writeArchive(c, w, func(yield func(*cow.Exported) error) error {
			return cow.ExportTree([]cow.Branch{upper, lower}, yield)
		})
	})
	if err != nil {
		return fmt.Errorf("exporting container %s: %w", container.Name, err)
	}
	return nil
}

// withWhole calls do with the container that the command line names, which is of an image, when its upper branch is whole and
// may be read by itself, also if its supervisor was killed. A running container is stopped for the time, with pause.
func withWhole(c *cli.Context, pause bool, do func(root string, container *runner.Container) error) error {
	root, container, err := namedContainer(c)
	if err != nil {
		return err
	}
	if container.Image() == rootfs.HostImage {
		return fmt.Errorf("container %s is of this machine's own root, not of an image: see what it changed with \"unionfs diff %[1]s\"", container.Name)
	}
	status, err := container.Status()
	if err != nil {
		return err
	}
	if status.State == runner.StateRunning {
		return stilled(container, pause && !status.Paused, func() error {
			if runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			return do(root, container)
		})
	}
	if runner.NeedsUserNamespace() {
		return againInNamespace(c, root)
	}
	// A union makes whole what an interrupted one left.
	union, err := new(rootfs.Serving).ContainerUnion(root, container)
	if err != nil {
		return err
	}
	if err := union.Close(); err != nil {
		return err
	}
	return do(root, container)
}

func diffImages(c *cli.Context) error {
	root, err := stateRoot(c)
	if err != nil {
		return err
	}
	was, err := rootfs.FindImage(root, c.Args().Get(0))
	if err != nil {
		return err
	}
	now, err := rootfs.FindImage(root, c.Args().Get(1))
	if err != nil {
		return err
	}
	changes, err := was.Diff(now)
	if err != nil {
		return err
	}
	return printChanges(c, changes)
}

func outputFlag() cli.Flag {
	return &cli.StringFlag{Name: "output", Aliases: []string{"o"}, Usage: "write to `FILE` instead of standard output"}
}

// toOutput calls write with the file that --output names, which is there only once it is whole, or with standard output if
// that is no terminal.
func toOutput(c *cli.Context, write func(io.Writer) error) error {
	name := c.String("output")
	if name == "" || name == "-" {
		if f, ok := c.App.Writer.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errors.New("an archive is not for a terminal: redirect standard output, or give -o FILE")
		}
		return write(c.App.Writer)
	}
	if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() {
		f, err := os.OpenFile(name, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := renameio.NewPendingFile(name, renameio.WithPermissions(0o600))
	if err != nil {
		return err
	}
	defer f.Cleanup()
	if err := write(f); err != nil {
		return err
	}
	return f.CloseAtomicallyReplace()
}
