package main

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"unionfs/layerstore"
)

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name:      "images",
		Usage:     "list images",
		ArgsUsage: "[NAME[:TAG]]",
		Description: `Lists the images that are stored, the newest first, or those of one name. SIZE is what an image's layers take up; layers
that images share are stored once.

Examples:
   unionfs images
   unionfs images --digests debian
   unionfs images --filter dangling=true -q
   unionfs images --filter 'reference=team/*' --format '{{.Repository}}:{{.Tag}}'`,
		Flags: []cli.Flag{
			quietFlag("IDs"),
			&cli.BoolFlag{Name: "digests", Usage: "list the digests in the registry too"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "don't cut what is long"},
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "all of them, as ever", Hidden: true},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "list only those with `NAME=VALUE`: dangling, reference, label, until, before, since"},
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 1, "[NAME[:TAG]]"); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			images, err := store.Images()
			if err != nil {
				return err
			}
			rows := imageRows(images)
			for _, filter := range c.StringSlice("filter") {
				matches, err := imageFilter(store, filter)
				if err != nil {
					return err
				}
				rows = slices.DeleteFunc(rows, func(r imageRow) bool { return !matches(r) })
			}
			if name := c.Args().First(); name != "" {
				rows = slices.DeleteFunc(rows, func(r imageRow) bool { return r.Repository != name && r.Repository+":"+r.Tag != name })
			}
			header := []string{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"}
			if c.Bool("digests") {
				header = slices.Insert(header, 2, "DIGEST")
			}
			for n := range rows {
				rows[n].digests = c.Bool("digests")
				if !c.Bool("no-trunc") {
					rows[n].ID = shortID(rows[n].ID)
				}
			}
			if !c.Bool("quiet") {
				return printRows(c, header, rows)
			}
			seen := map[string]bool{}
			for _, r := range rows {
				if !seen[r.ID] {
					fmt.Fprintln(c.App.Writer, r.ID)
				}
				seen[r.ID] = true
			}
			return nil
		},
	}
}

// imageFilter reads a value of --filter, with Docker's meaning.
func imageFilter(store *layerstore.Store, filter string) (matches func(imageRow) bool, err error) {
	name, value, _ := strings.Cut(filter, "=")
	switch name {
	case "dangling":
		want, err := strconv.ParseBool(value)
		if err != nil {
			return nil, usageError("--filter %q: want dangling=true or dangling=false", filter)
		}
		return func(r imageRow) bool { return (r.Repository == noName) == want }, nil
	case "reference":
		if _, err := path.Match(value, ""); err != nil {
			return nil, usageError("--filter %q: %w", filter, err)
		}
		return func(r imageRow) bool {
			repo, _ := path.Match(value, r.Repository)
			full, _ := path.Match(value, r.Repository+":"+r.Tag)
			return repo || full
		}, nil
	case "label":
		key, want, exact := strings.Cut(value, "=")
		return func(r imageRow) bool {
			image, err := store.Image(r.ID)
			if err != nil {
				return false // removed since
			}
			has, ok := image.Config().Config.Labels[key]
			return ok && (!exact || has == want)
		}, nil
	case "until":
		limit, err := parseTime(value, time.Now())
		if err != nil {
			return nil, usageError("--filter %q: %w", filter, err)
		}
		return func(r imageRow) bool { return r.CreatedAt.Before(limit) }, nil
	case "before", "since":
		image, err := store.Image(value)
		if err != nil {
			return nil, err
		}
		info, err := image.Info()
		if err != nil {
			return nil, err
		}
		return func(r imageRow) bool {
			if name == "before" {
				return r.CreatedAt.Before(info.Created)
			}
			return r.CreatedAt.After(info.Created)
		}, nil
	}
	return nil, usageError("--filter %q: want dangling, reference, label, until, before or since, with =VALUE", filter)
}

// imageRow is a line of "images", with Docker's names in JSON.
type imageRow struct {
	Repository   string
	Tag          string
	ID           string   // its first twelve digits; all with --no-trunc
	Digest       string   `json:",omitempty"` // in the registry, under this name
	Digests      []string `json:",omitempty"`
	CreatedAt    time.Time
	CreatedSince string
	Size         int64 // bytes
	Layers       int
	Platform     string

	digests bool // --digests asks for them
}

// noName is what Docker calls the repository and tag of an image without a name.
const noName = "<none>"

// imageRows makes a row for each name; an image without one gets a row of its own.
func imageRows(images []layerstore.ImageInfo) []imageRow {
	var rows []imageRow
	for _, image := range images {
		names := image.Names
		if len(names) == 0 {
			names = []string{noName + ":" + noName}
		}
		for _, name := range names {
			// The tag follows the last colon; one before a slash belongs to a port.
			at := strings.LastIndexByte(name, ':')
			r := imageRow{
				Repository:   name[:at],
				Tag:          name[at+1:],
				ID:           string(image.ID),
				Digests:      image.Digests,
				CreatedAt:    image.Created,
				CreatedSince: "unknown",
				Size:         image.Size,
				Layers:       image.Layers,
				Platform:     image.Platform.OS + "/" + image.Platform.Architecture,
			}
			if !image.Created.IsZero() {
				r.CreatedSince = ago(image.Created)
			}
			for _, d := range image.Digests {
				if digest, ok := strings.CutPrefix(d, r.Repository+"@"); ok {
					r.Digest = digest
				}
			}
			rows = append(rows, r)
		}
	}
	return rows
}

func (r imageRow) columns() []string {
	columns := []string{r.Repository, r.Tag, r.ID, r.CreatedSince, units.HumanSize(float64(r.Size))}
	if r.digests {
		digest := r.Digest
		if digest == "" {
			digest = noName
		}
		columns = slices.Insert(columns, 2, digest)
	}
	return columns
}
