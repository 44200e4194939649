package main

import (
	"errors"
	"fmt"

	"github.com/urfave/cli/v2"

	"unionfs/layerstore"
	"unionfs/rootfs"
)

// imageToRunFlags say where run and create get their image, with Docker's names.
func imageToRunFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "pull", Usage: "get the image from its registry: `WHEN` it is missing, always, or never", Value: pullMissing},
		&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "say nothing of how the image arrives"},
		insecureFlag(),
		platformFlag("run the image for `OS/ARCH[/VARIANT]` instead of this machine's"),
	}
}

// The values of --pull.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNever   = "never"
)

// getImageToRun sees to it that the image is in the store, as --pull and --platform say.
func getImageToRun(c *cli.Context, root, ref string) error {
	policy := c.String("pull")
	switch policy {
	case pullMissing, pullAlways, pullNever:
	case "": // a verb without the flag
		policy = pullNever
	default:
		return usageError("--pull %q: want missing, always or never", policy)
	}
	platform, err := platformOf(c)
	if err != nil {
		return err
	}
	if ref == rootfs.HostImage || policy == pullNever && platform == nil {
		return nil // what is missing is said by the one who looks for it
	}
	store, err := layerstore.Open(root)
	if err != nil {
		return err
	}
	image, missing := store.Image(ref)
	switch {
	case missing != nil && !errors.Is(missing, layerstore.ErrNotFound):
		return missing
	case missing == nil && policy != pullAlways && (platform == nil || image.Config().OS == platform.OS && image.Config().Architecture == platform.Architecture):
		return nil
	case policy == pullNever && missing == nil:
		return fmt.Errorf("image %s is for %s/%s here, not for %s, and --pull never keeps from getting that one", ref, image.Config().OS, image.Config().Architecture, c.String("platform"))
	case policy == pullNever:
		return nil
	}
	if missing != nil && layerstore.CheckName(ref) != nil {
		return nil // the start of an ID, say: there is nothing to pull
	}
	if missing != nil && !c.Bool("quiet") {
		fmt.Fprintf(c.App.ErrWriter, "unionfs: image %s is not here: pulling it\n", ref)
	}
	progress := newLayersProgress(c)
	_, err = store.Pull(c.Context, ref, layerstore.PullOptions{Insecure: c.Bool("insecure"), Platform: platform, Progress: progress.tell})
	progress.end()
	if err != nil && missing != nil {
		return fmt.Errorf("image %s is not here (\"unionfs images\" lists what is), and could not be had: %w", ref, err)
	}
	return err
}
