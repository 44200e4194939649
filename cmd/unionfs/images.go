package main

import (
	"fmt"
	"io"
	"os"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/urfave/cli/v2"

	"unionfs/cow"
	"unionfs/layerstore"
	"unionfs/rootfs"
)

func pullCommand() *cli.Command {
	return &cli.Command{
		Name:      "pull",
		Usage:     "get an image from a registry",
		ArgsUsage: "IMAGE",
		Description: `Downloads an image, of which it has only the layers that are missing, and checks every digest. Names are Docker's:
"alpine" is docker.io/library/alpine:latest. Credentials come from Docker's own configuration file. What has arrived
when a pull is interrupted, the next one within a day goes on with.

Examples:
   unionfs pull alpine
   unionfs pull --platform linux/arm64 debian:12
   unionfs pull localhost:5000/team/app:1.2
   unionfs pull --all-tags localhost:5000/team/app`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all-tags", Aliases: []string{"a"}, Usage: "get all images that the registry has of the name"},
			insecureFlag(),
			platformFlag("get the image for `OS/ARCH[/VARIANT]` instead of this machine's"),
			quietFlag("the image's ID"),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "IMAGE"); err != nil {
				return err
			}
			platform, err := platformOf(c)
			if err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			names := c.Args().Slice()
			if c.Bool("all-tags") {
				if names, err = layerstore.RemoteTags(c.Context, names[0], layerstore.TagsOptions{Insecure: c.Bool("insecure")}); err != nil {
					return err
				}
			}
			for _, name := range names {
				if err := pullImage(c, store, name, platform); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

func pullImage(c *cli.Context, store *layerstore.Store, name string, platform *imagespec.Platform) error {
	progress := newLayersProgress(c)
	image, err := store.Pull(c.Context, name, layerstore.PullOptions{
		Insecure: c.Bool("insecure"), Platform: platform, Progress: progress.tell,
	})
	progress.end()
	if err != nil {
		return err
	}
	return printImageID(c, image)
}

func platformFlag(usage string) cli.Flag { return &cli.StringFlag{Name: "platform", Usage: usage} }

// platformOf returns what --platform asks for; nil if it wasn't given.
func platformOf(c *cli.Context) (*imagespec.Platform, error) {
	s := c.String("platform")
	if s == "" {
		return nil, nil
	}
	platform, err := layerstore.ParsePlatform(s)
	if err != nil {
		return nil, usageError("%w", err)
	}
	return platform, nil
}

func insecureFlag() cli.Flag {
	return &cli.BoolFlag{Name: "insecure", Usage: "allow plain HTTP and certificates that nobody vouches for; loopback addresses may always use plain HTTP"}
}

func printImageID(c *cli.Context, image *layerstore.Image) error {
	_, err := fmt.Fprintln(c.App.Writer, image.ID())
	return err
}

func importCommand() *cli.Command {
	return &cli.Command{
		Name:      "import",
		Usage:     "make an image of one layer from the tar of a root file system",
		ArgsUsage: "ROOTFS.tar|- NAME[:TAG]",
		Description: `Reads the tar, which may be compressed with gzip, zstd or bzip2, from the file or from standard input, and stores it as
an image.

Examples:
   unionfs import rootfs.tar.gz mine:1
   mmdebstrap bookworm - | unionfs import - debian:local`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, 2, "ROOTFS.tar NAME[:TAG]"); err != nil {
				return err
			}
			source, name := c.Args().Get(0), c.Args().Get(1)
			// Before reading gigabytes.
			if err := layerstore.CheckName(name); err != nil {
				return fmt.Errorf("importing %s: %w", source, err)
			}
			var reader io.Reader = os.Stdin
			if source != "-" {
				file, err := os.Open(source)
				if err != nil {
					return fmt.Errorf("importing: %w", err)
				}
				defer file.Close()
				reader = file
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			image, err := store.Import(c.Context, reader, name, layerstore.ImportOptions{Message: "imported from " + source})
			if err != nil {
				return err
			}
			return printImageID(c, image)
		},
	}
}

func openStore(c *cli.Context) (*layerstore.Store, error) {
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	return layerstore.Open(root)
}

// imageBranch opens the image of that name as a branch for "mount".
func imageBranch(c *cli.Context, ref string) (cow.Branch, error) {
	if ref == rootfs.HostImage {
		return nil, fmt.Errorf("image %q is this machine's own root, which is there already; to work on a copy of it use unionfs try", rootfs.HostImage)
	}
	root, err := stateRoot(c)
	if err != nil {
		return nil, err
	}
	return rootfs.OpenImage(root, ref)
}
