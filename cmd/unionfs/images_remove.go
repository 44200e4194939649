package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"unionfs/layerstore"
	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

func rmiCommand() *cli.Command {
	return &cli.Command{
		Name:      "rmi",
		Usage:     "remove images",
		ArgsUsage: "IMAGE...",
		Description: `Takes a name away from its image. With its last name the image is deleted, with the layers that no other image has. An
image that a container was made from stays until the container is removed.

Examples:
   unionfs rmi alpine
   unionfs rmi -f 0123456789ab         # with all its names`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "of an image that is named by its ID, take all names away; no error if it isn't there"},
			&cli.BoolFlag{Name: "no-prune", Usage: "an image without a name has no parents here", Hidden: true},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "IMAGE..."); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			store.Sweep = func() error { return startSweep(c) }
			var failed []error
			for _, ref := range c.Args().Slice() {
				if err := removeImage(c, store, ref); err != nil {
					failed = append(failed, err)
				}
			}
			return errors.Join(failed...)
		},
	}
}

func removeImage(c *cli.Context, store *layerstore.Store, ref string) error {
	image, err := store.Image(ref)
	if c.Bool("force") && errors.Is(err, layerstore.ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	state, err := runner.OpenState(store.Root())
	if err != nil {
		return err
	}
	containers, err := state.List()
	if err != nil {
		return err
	}
	for _, container := range containers {
		if container.Spec.Annotations[rootfs.AnnotationImageID] == string(image.ID()) {
			return fmt.Errorf("removing image %s: container %s was made from it; remove that first (unionfs rm %[2]s)", ref, container.Name)
		}
		if slices.ContainsFunc(supervisor.VolumesOf(container), func(v volumes.Volume) bool { return v.Image == string(image.ID()) }) {
			return fmt.Errorf("removing image %s: container %s mounts it; remove that first (unionfs rm %[2]s)", ref, container.Name)
		}
	}
	if c.Bool("force") {
		if err := removeNames(c, store, image, ref); err != nil {
			return err
		}
	}
	removed, err := store.Remove(ref)
	if err != nil {
		return err
	}
	printRemoved(c, ref, removed)
	return nil
}

// removeNames takes all names but one away from an image that ref names by its ID.
func removeNames(c *cli.Context, store *layerstore.Store, image *layerstore.Image, ref string) error {
	info, err := image.Info()
	if err != nil || len(info.Names) < 2 || slices.Contains(info.Names, ref) || slices.Contains(info.Names, ref+":latest") ||
		!strings.HasPrefix(string(image.ID()), ref) && !strings.HasPrefix(image.ID().Encoded(), ref) {
		return err
	}
	for _, name := range info.Names[1:] {
		removed, err := store.Remove(name)
		if err != nil {
			return err
		}
		printRemoved(c, name, removed)
	}
	return nil
}

func printRemoved(c *cli.Context, ref string, removed *layerstore.Removed) {
	for _, name := range removed.Untagged {
		fmt.Fprintln(c.App.Writer, "Untagged:", name)
	}
	switch {
	case removed.Deleted != "":
		fmt.Fprintf(c.App.Writer, "Deleted: %s (%s freed)\n", removed.Deleted, units.HumanSize(float64(removed.Bytes)))
	case removed.InUse:
		fmt.Fprintf(c.App.ErrWriter, "unionfs: image %s is mounted; its space is freed by the next rmi after that\n", ref)
	}
}
