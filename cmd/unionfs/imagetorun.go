package main

import (
	"errors"
	"fmt"
	"os"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
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

// imageToRun returns the image, which it pulls if --pull and --platform say so; nil for this machine's own root.
func imageToRun(c *cli.Context, root, ref string) (*layerstore.Image, error) {
	policy := c.String("pull")
	switch policy {
	case pullMissing, pullAlways, pullNever:
	case "": // a verb without the flag
		policy = pullNever
	default:
		return nil, usageError("--pull %q: want missing, always or never", policy)
	}
	platform, err := platformOf(c)
	if err != nil || ref == rootfs.HostImage {
		return nil, err
	}
	if policy == pullNever && platform == nil {
		return rootfs.FindImage(root, ref)
	}
	store, err := layerstore.Open(root)
	if err != nil {
		return nil, err
	}
	image, missing := store.Image(ref)
	switch {
	case missing != nil && !errors.Is(missing, layerstore.ErrNotFound):
		return nil, missing
	case missing == nil && policy != pullAlways && (platform == nil || image.Config().OS == platform.OS && image.Config().Architecture == platform.Architecture):
		return image, nil
	case policy == pullNever && missing == nil:
		return nil, fmt.Errorf("image %s is for %s/%s here, not for %s, and --pull never keeps from getting that one", ref, image.Config().OS, image.Config().Architecture, c.String("platform"))
	case policy == pullNever, missing != nil && layerstore.CheckName(ref) != nil: // the start of an ID, say: there is nothing to pull
		return rootfs.FindImage(root, ref) // which says that it is missing
	}
	if missing != nil && !c.Bool("quiet") {
		fmt.Fprintf(c.App.ErrWriter, "unionfs: image %s is not here: pulling it\n", ref)
	}
	progress := newLayersProgress(c)
	image, err = store.Pull(c.Context, ref, layerstore.PullOptions{Insecure: c.Bool("insecure"), Platform: platform, Progress: progress.tell})
	progress.end()
	if err != nil && missing != nil {
		return nil, fmt.Errorf("image %s is not here (\"unionfs images\" lists what is), and could not be had: %w", ref, err)
	}
	return image, err
}

// configToRun returns what an image says about the process to run, and its ID. Without an image it is what the caller has.
func configToRun(image *layerstore.Image, directory string) (imagespec.ImageConfig, string) {
	if image == nil {
		return imagespec.ImageConfig{Env: os.Environ(), WorkingDir: directory}, rootfs.HostImage
	}
	return image.Config().Config, string(image.ID())
}
