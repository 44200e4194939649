package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"unionfs/cow"
	"unionfs/rootfs"
	"unionfs/runner"
)

func diffCommand() *cli.Command {
	return &cli.Command{
		Name:      "diff",
		Usage:     "list what a container changed, or an upper branch",
		ArgsUsage: "CONTAINER | IMAGE IMAGE | MOUNT | --lower DIR... UPPER",
		Description: `Lists what the container's command has changed in its root so far: A for what it added, C for what it changed, D for
what it deleted. A directory in which something changed is listed too. What is in a volume is not part of it.

With two images, lists what the second one has other than the first. With the path of a mount (it has a slash: ./mnt),
what has been changed in it. With --lower, what an upper branch that is not mounted changes in the branches below it.

Examples:
   unionfs diff web
   unionfs diff /mnt
   unionfs diff --lower patched --lower original changes
   unionfs diff debian:12 debian:13
   unionfs diff --format json web`,
		Flags: []cli.Flag{
			&cli.StringSliceFlag{Name: "lower", Aliases: []string{"l"}, Usage: "a branch `DIR` below the upper one; may be given many times, the top one first"},
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 2, "CONTAINER, IMAGE IMAGE, or the path of a mount or an upper branch"); err != nil {
				return err
			}
			if c.NArg() == 1 && (c.IsSet("lower") || isDirectoryPath(c.Args().First())) {
				return diffDirectory(c, c.Args().First())
			}
			if c.NArg() == 2 {
				return diffImages(c)
			}
			return withDifference(c, func(_ *runner.Container, d *cow.Difference) error {
				return printChanges(c, d.Changes)
			})
		},
	}
}

func printChanges(c *cli.Context, changes []cow.Change) error {
	rows := make([]changeRow, len(changes))
	colors := newPainter(c.App.Writer)
	for i, change := range changes {
		rows[i] = changeRow{Kind: string(change.Kind), Path: change.Path, colors: colors}
	}
	if c.String("format") == "table" { // one column, and names are never cut
		for _, row := range rows {
			if _, err := fmt.Fprintln(c.App.Writer, row.line()); err != nil {
				return err
			}
		}
		return nil
	}
	return printRows(c, nil, rows)
}

// changeRow is a line of "diff".
type changeRow struct {
	Kind string // A, C or D
	Path string

	colors painter
}

func (r changeRow) columns() []string { return []string{changeLine(r.Kind, r.Path)} }

// line is the row in the colour of its kind, on terminals.
func (r changeRow) line() string {
	color := map[string]string{"A": green, "C": yellow, "D": red}[r.Kind]
	return r.colors.paint(color, changeLine(r.Kind, r.Path))
}

// changeLine writes a change as one line, whatever bytes are in the name.
func changeLine(kind, name string) string {
	if strings.ContainsFunc(name, unicode.IsControl) || !utf8.ValidString(name) {
		name = strconv.Quote(name)
	}
	return kind + " " + name
}

func applyCommand() *cli.Command {
	return &cli.Command{
		Name:      "apply",
		Usage:     "do to this machine what a \"try\" did to its copy",
		ArgsUsage: "CONTAINER",
		Description: `Puts what a container of the image "host" has changed onto the machine itself: what was added or changed is copied, what
was deleted is deleted. It lists the changes and asks first. The container stays as it is; "unionfs rm" removes it.

An ordinary user can apply only what they may change anyway.

Example:
   unionfs try --name motd sh -c 'echo welcome > /etc/motd' && unionfs apply motd`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "yes", Aliases: []string{"y"}, Usage: "don't list and ask"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "CONTAINER"); err != nil {
				return err
			}
			return withDifference(c, func(container *runner.Container, d *cow.Difference) error {
				if container.Image() != rootfs.HostImage {
					return fmt.Errorf("container %s was made from the image %s; only what was tried on this machine (the image %s) can be applied to it", container.Name, container.Image(), rootfs.HostImage)
				}
				status, err := container.Status()
				if err != nil {
					return err
				}
				if status.State == runner.StateRunning {
					return fmt.Errorf("container %s is running; wait for its end, so that its changes are complete", container.Name)
				}
				return apply(c, container, d)
			})
		},
	}
}

func apply(c *cli.Context, container *runner.Container, d *cow.Difference) error {
	if len(d.Changes) == 0 {
		fmt.Fprintf(c.App.ErrWriter, "unionfs: container %s has changed nothing\n", container.Name)
		return nil
	}
	if !c.Bool("yes") {
		for _, change := range d.Changes {
			fmt.Fprintln(c.App.Writer, changeLine(string(change.Kind), change.Path))
		}
		fmt.Fprintf(c.App.ErrWriter, "Make these %d changes to this machine? [y/N] ", len(d.Changes))
		answer, err := bufio.NewReader(os.Stdin).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return fmt.Errorf("reading the answer: %w", err)
		}
		answer = strings.ToLower(strings.TrimSpace(answer))
		if answer != "y" && answer != "yes" {
			return errors.New("nothing was applied; answer y, or give -y")
		}
	}
	if err := d.Apply("/"); err != nil {
		return fmt.Errorf("%w; what comes before it in the list has been applied, and a second \"unionfs apply\" goes on", err)
	}
	fmt.Fprintf(c.App.ErrWriter, "unionfs: %d changes applied; \"unionfs rm %s\" removes the container\n", len(d.Changes), container.Name)
	return nil
}

// withDifference calls do with the container that the command line names and what it has changed.
func withDifference(c *cli.Context, do func(*runner.Container, *cow.Difference) error) error {
	root, container, err := namedContainer(c)
	if err != nil {
		return err
	}
	if runner.NeedsUserNamespace() {
		return againInNamespace(c, root)
	}
	status, err := container.Status()
	if err != nil {
		return err
	}
	lower, err := new(rootfs.Serving).ContainerBranch(root, container)
	if err != nil {
		return err
	}
	defer lower.Close()
	difference, err := cow.Compare(container.Upper(), []cow.Branch{lower})
	if err != nil {
		return err
	}
	defer difference.Close()
	difference.Changes = withoutPlaceholders(difference.Changes, status.Placeholders)
	return do(container, difference)
}

// withoutPlaceholders leaves out the mount points that the runner made, which are not the command's doing, and the
// directories that count as changed for nothing else. A mount point in which the command made something stays.
func withoutPlaceholders(changes []cow.Change, placeholders []string) []cow.Change {
	parents := map[string]bool{} // of a placeholder
	for _, placeholder := range placeholders {
		for dir := path.Dir(placeholder); dir != "/"; dir = path.Dir(dir) {
			parents[dir] = true
		}
	}
	needed := map[string]bool{} // something in it is kept
	var kept []cow.Change
	// From the end: what is in a directory comes after it.
	for _, change := range slices.Backward(changes) {
		notTheirs := slices.Contains(placeholders, change.Path) || change.Kind == cow.Changed && parents[change.Path]
		if notTheirs && !needed[change.Path] {
			continue
		}
		needed[path.Dir(change.Path)] = true
		kept = append(kept, change)
	}
	slices.Reverse(kept)
	return kept
}
