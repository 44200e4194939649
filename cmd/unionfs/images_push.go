package main

import (
	"fmt"

	"github.com/urfave/cli/v2"

	"unionfs/layerstore"
)

func pushCommand() *cli.Command {
	return &cli.Command{
		Name:      "push",
		Usage:     "send an image to a registry",
		ArgsUsage: "IMAGE [NAME[:TAG]]",
		Description: `Uploads an image to the registry that its name says, or under another name. Layers that the registry has are not sent.
What was pulled arrives with the same digest where the registry has the layers already; elsewhere they are compressed
anew, which gives them, and so the image, other digests. The image's ID is the same everywhere. A push that was
interrupted goes on where it broke, within a layer too, if the registry keeps what it has.

Examples:
   unionfs push localhost:5000/team/app:1.2
   unionfs push mine:1 registry.example/team/mine:1
   unionfs push --all-tags localhost:5000/team/app`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all-tags", Aliases: []string{"a"}, Usage: "send all images that have the name"},
			insecureFlag(), quietFlag("the digest"),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 2, "IMAGE [NAME[:TAG]]"); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			if !c.Bool("all-tags") {
				return pushImage(c, store, c.Args().Get(0), c.Args().Get(1))
			}
			if err := arguments(c, 1, 1, "one NAME with --all-tags"); err != nil {
				return err
			}
			names, err := store.Tags(c.Args().First())
			if err != nil {
				return err
			}
			if len(names) == 0 {
				return fmt.Errorf("pushing %s: there is no image of that name; \"unionfs images\" lists those that there are", c.Args().First())
			}
			for _, name := range names {
				if err := pushImage(c, store, name, ""); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// pushImage pushes one image, as another name if that isn't empty.
func pushImage(c *cli.Context, store *layerstore.Store, name, as string) error {
	o := layerstore.PushOptions{Insecure: c.Bool("insecure")}
	if !c.Bool("quiet") {
		o.Progress = func(l layerstore.PushedLayer) {
			fmt.Fprintf(c.App.Writer, "%s: %s\n", shortID(string(l.Digest)), describePushed(l.State))
		}
	}
	pushed, err := store.Push(c.Context, name, as, o)
	if err != nil {
		return err
	}
	if c.Bool("quiet") {
		_, err = fmt.Fprintln(c.App.Writer, pushed.Digest)
		return err
	}
	if !pushed.Same {
		fmt.Fprintln(c.App.ErrWriter, "unionfs: layers were compressed anew, so the image's digest in the registry is a new one")
	}
	_, err = fmt.Fprintf(c.App.Writer, "digest: %s size: %d\n", pushed.Digest, pushed.Size)
	return err
}

func copyCommand() *cli.Command {
	return &cli.Command{
		Name:      "copy",
		Usage:     "copy an image from one registry to another",
		ArgsUsage: "IMAGE NAME[:TAG]",
		Description: `Copies what the first name means in its registry, for all platforms, to the second name, and keeps every digest. Nothing
is stored on this machine. Prints the digest.

Examples:
   unionfs copy debian:12 localhost:5000/mirror/debian:12
   unionfs copy --platform linux/arm64 alpine localhost:5000/alpine`,
		Flags: []cli.Flag{
			insecureFlag(),
			platformFlag("copy only the image for `OS/ARCH[/VARIANT]`"),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, 2, "IMAGE NAME[:TAG]"); err != nil {
				return err
			}
			platform, err := platformOf(c)
			if err != nil {
				return err
			}
			copied, err := layerstore.Copy(c.Context, c.Args().Get(0), c.Args().Get(1), layerstore.CopyOptions{Insecure: c.Bool("insecure"), Platform: platform})
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(c.App.Writer, copied)
			return err
		},
	}
}

// describePushed is what Docker says.
func describePushed(s layerstore.PushState) string {
	switch s {
	case layerstore.PushExists:
		return "Layer already exists"
	case layerstore.PushMounted:
		return "Mounted from another repository"
	case layerstore.PushForeign:
		return "Skipped foreign layer"
	}
	return "Pushed"
}
