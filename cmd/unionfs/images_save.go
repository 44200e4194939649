package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"unionfs/layerstore"
)

// saveFormats are what --format of "save" may be.
var saveFormats = []string{string(layerstore.SaveDocker), string(layerstore.SaveOCI), string(layerstore.SaveOCIDir)}

func saveCommand() *cli.Command {
	return &cli.Command{
		Name:      "save",
		Usage:     "write images to an archive or a directory",
		ArgsUsage: "IMAGE...",
		Description: `Writes images, with their layers and names, to standard output, a file or a directory: as "docker save" does
(docker-archive), or as an OCI layout in a tar (oci-archive) or directory (oci-dir). "unionfs load", Docker, podman and
skopeo read them. A docker-archive is not compressed; an OCI layout has its layers as the image's manifest says.

Examples:
   unionfs save alpine | ssh elsewhere unionfs load
   unionfs save -o images.tar alpine debian:12
   unionfs save --format oci-dir -o layout alpine`,
		Flags: []cli.Flag{
			outputFlag(),
			&cli.StringFlag{Name: "format", Usage: "write as `FORMAT`: docker-archive, oci-archive, oci-dir", Value: saveFormats[0]},
			quietFlag("errors"),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "IMAGE..."); err != nil {
				return err
			}
			format := layerstore.SaveFormat(c.String("format"))
			if !slices.Contains(saveFormats, string(format)) {
				return usageError("unknown format %q; known are docker-archive, oci-archive and oci-dir", format)
			}
			if format == layerstore.SaveOCIDir && (c.String("output") == "" || c.String("output") == "-") {
				return usageError("oci-dir is a directory: give its name with -o")
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			var saved []layerstore.Saved
			if format == layerstore.SaveOCIDir {
				saved, err = store.SaveDir(c.Context, c.String("output"), c.Args().Slice())
			} else {
				err = toOutput(c, func(w io.Writer) (err error) {
					saved, err = store.Save(c.Context, w, c.Args().Slice(), format)
					return err
				})
			}
			for _, s := range saved {
				if s.Digest != "" && !s.Same && !c.Bool("quiet") {
					fmt.Fprintf(c.App.ErrWriter, "unionfs: the manifest of %s had to be changed for this format, so its digest there is a new one: %s\n", shortID(string(s.Image)), s.Digest)
				}
			}
			return err
		},
	}
}

func loadCommand() *cli.Command {
	return &cli.Command{
		Name:  "load",
		Usage: "read images from an archive or a directory",
		Description: `Stores the images of a docker-archive or an OCI layout, as a tar or a directory, from a file or from standard input. A
tar may be compressed with gzip, zstd or bzip2. What skopeo writes to "dir:" is read too. Every digest is checked.

Examples:
   unionfs load < images.tar.gz
   unionfs load -i layout
   unionfs load -i from-umoci --base-name team/app`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "input", Aliases: []string{"i"}, Usage: "read from `FILE`, or a directory, instead of standard input"},
			platformFlag("where a name has images for several platforms, load that for `OS/ARCH[/VARIANT]`"),
			&cli.StringFlag{Name: "base-name", Usage: "name images of which only a tag is known `NAME`:TAG, and those without a name NAME:latest"},
			quietFlag("names"),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments; name a file with -i"); err != nil {
				return err
			}
			platform, err := platformOf(c)
			if err != nil {
				return err
			}
			input := c.String("input")
			if input == "" && term.IsTerminal(int(os.Stdin.Fd())) {
				return errors.New("an archive is not typed: redirect standard input, or give -i FILE")
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			progress := newLayersProgress(c)
			o := layerstore.LoadOptions{Platform: platform, BaseName: c.String("base-name"), Progress: progress.tell}
			var loaded []layerstore.Loaded
			if input == "" || input == "-" {
				loaded, err = store.LoadStream(c.Context, os.Stdin, o)
			} else {
				loaded, err = store.Load(c.Context, input, o)
			}
			progress.end()
			for _, l := range loaded {
				for _, name := range l.Names {
					fmt.Fprintln(c.App.Writer, "Loaded image:", name)
				}
				if len(l.Names) == 0 {
					fmt.Fprintln(c.App.Writer, "Loaded image ID:", l.Image.ID())
				}
			}
			return err
		},
	}
}
