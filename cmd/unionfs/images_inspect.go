package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"unionfs/layerstore"
)

func tagCommand() *cli.Command {
	return &cli.Command{
		Name:      "tag",
		Usage:     "give an image another name",
		ArgsUsage: "IMAGE NAME[:TAG]",
		Description: `Gives an image a further name. An image that has the name loses it.

Example:
   unionfs tag alpine localhost:5000/team/base:1`,
		Action: func(c *cli.Context) error {
			if err := arguments(c, 2, 2, "IMAGE NAME[:TAG]"); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			return store.Tag(c.Args().Get(0), c.Args().Get(1))
		},
	}
}

// imageDetails is what Docker's API calls ImageInspect.
type imageDetails struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Parent       string
	Comment      string
	Created      *time.Time `json:",omitempty"`
	Author       string
	Config       json.RawMessage // as the image has it
	Architecture string
	Variant      string `json:",omitempty"`
	OS           string `json:"Os"`
	Size         int64  // bytes
	GraphDriver  struct {
		Data map[string]string
		Name string
	}
	RootFS struct {
		Type   string
		Layers []digest.Digest
	}
	Manifest json.RawMessage // of this platform, as it came from the registry
}

func inspectImage(store *layerstore.Store, ref string) (any, error) {
	image, err := store.Image(ref)
	if err != nil {
		return nil, err
	}
	info, err := image.Info()
	if err != nil {
		return nil, err
	}
	var raw struct {
		Config  json.RawMessage `json:"config"`
		Comment string          `json:"comment"` // Docker's
	}
	if err := json.Unmarshal(image.RawConfig(), &raw); err != nil {
		return nil, fmt.Errorf("image %s: %w", ref, err)
	}
	config := image.Config()
	manifest, _ := image.RawManifest()
	d := &imageDetails{
		ID:           string(image.ID()),
		RepoTags:     append([]string{}, info.Names...),
		RepoDigests:  append([]string{}, info.Digests...),
		Comment:      raw.Comment,
		Created:      config.Created,
		Author:       config.Author,
		Config:       raw.Config,
		Architecture: config.Architecture,
		Variant:      config.Variant,
		OS:           config.OS,
		Size:         info.Size,
		Manifest:     manifest,
	}
	if n := len(config.History); d.Comment == "" && n > 0 {
		d.Comment = config.History[n-1].Comment
	}
	if d.Config == nil {
		d.Config = json.RawMessage("{}")
	}
	d.GraphDriver.Name = "unionfs"
	d.GraphDriver.Data = map[string]string{"ChainID": string(image.ChainID())}
	d.RootFS.Type, d.RootFS.Layers = config.RootFS.Type, config.RootFS.DiffIDs
	return d, nil
}

func historyCommand() *cli.Command {
	return &cli.Command{
		Name:      "history",
		Usage:     "list how an image was made",
		ArgsUsage: "IMAGE",
		Description: `Lists the steps by which an image was made, the last one first, with the size of the layer that each added.

Examples:
   unionfs history alpine
   unionfs history --no-trunc --format json debian`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "no-trunc", Usage: "don't cut what is long"},
			&cli.BoolFlag{Name: "human", Aliases: []string{"H"}, Usage: "sizes and times for people, as ever", Hidden: true},
			quietFlag("IDs"),
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "IMAGE"); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			image, err := store.Image(c.Args().First())
			if err != nil {
				return err
			}
			rows, err := historyRows(image, c.Bool("no-trunc"))
			if err != nil {
				return err
			}
			if c.Bool("quiet") {
				for _, r := range rows {
					fmt.Fprintln(c.App.Writer, r.shownID())
				}
				return nil
			}
			return printRows(c, []string{"IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"}, rows)
		},
	}
}

// historyRow is a line of "history", with Docker's names in JSON.
type historyRow struct {
	ID        string // of the image, for the last step; nothing is kept of the images in between
	CreatedAt *time.Time
	CreatedBy string
	Size      int64         // bytes
	Layer     digest.Digest `json:",omitempty"` // diff ID
	Comment   string
	long      bool
}

// noImage is what Docker calls an image that isn't there.
const noImage = "<missing>"

// historyRows are the steps, the last one first. Layers that the history doesn't mention get a row without words.
func historyRows(image *layerstore.Image, long bool) ([]historyRow, error) {
	sizes, err := image.LayerSizes()
	if err != nil {
		return nil, err
	}
	config := image.Config()
	var rows []historyRow
	layer := 0
	add := func(r historyRow, empty bool) {
		r.ID, r.long = noImage, long
		if !empty && layer < len(sizes) {
			r.Size, r.Layer = sizes[layer], config.RootFS.DiffIDs[layer]
			layer++
		}
		rows = append(rows, r)
	}
	for _, h := range config.History {
		add(historyRow{CreatedAt: h.Created, CreatedBy: h.CreatedBy, Comment: h.Comment}, h.EmptyLayer)
	}
	for layer < len(sizes) {
		add(historyRow{}, false)
	}
	slices.Reverse(rows)
	rows[0].ID = string(image.ID())
	return rows, nil
}

// oneLine keeps text from an image on one line of a terminal.
func oneLine(s string) string {
	if strings.ContainsFunc(s, unicode.IsControl) || !utf8.ValidString(s) {
		return strconv.Quote(s)
	}
	return s
}

func (r historyRow) shownID() string {
	if r.long || r.ID == noImage {
		return r.ID
	}
	return shortID(r.ID)
}

func (r historyRow) columns() []string {
	const most = 45
	created := "unknown"
	if r.CreatedAt != nil {
		created = ago(*r.CreatedAt)
	}
	by := oneLine(r.CreatedBy)
	if runes := []rune(by); !r.long && len(runes) > most {
		by = string(runes[:most-1]) + "…"
	}
	return []string{r.shownID(), created, by, units.HumanSize(float64(r.Size)), oneLine(r.Comment)}
}
