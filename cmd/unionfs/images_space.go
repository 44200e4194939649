package main

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"

	"github.com/docker/go-units"
	"github.com/opencontainers/go-digest"
	"github.com/urfave/cli/v2"

	"unionfs/layerstore"
	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
)

func pruneCommand() *cli.Command {
	return &cli.Command{
		Name:  "prune",
		Usage: "free the space of images without a name",
		Description: `Deletes the images that have lost their name to a newer one, unless a container was made from them or something uses
them, and layers that no image has. With --all it is images with names too, and it asks first.

Examples:
   unionfs prune --dry-run
   unionfs prune --all --force`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "delete all images that nothing uses, with their names"},
			&cli.BoolFlag{Name: "force", Aliases: []string{"f"}, Usage: "don't ask"},
			&cli.BoolFlag{Name: "dry-run", Usage: "only list what would be deleted"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			store.Sweep = func() error { return startSweep(c) }
			users, err := imageUsers(store.Root())
			if err != nil {
				return err
			}
			if c.Bool("all") && !c.Bool("force") && !c.Bool("dry-run") {
				if err := confirm(c, "Remove all images that no container was made from?"); err != nil {
					return err
				}
			}
			pruned, err := store.Prune(layerstore.PruneOptions{All: c.Bool("all"), DryRun: c.Bool("dry-run"), Keep: slices.Collect(maps.Keys(users))})
			if err != nil {
				return err
			}
			untagged, deleted, total := "Untagged", "Deleted", "Total reclaimed space"
			if c.Bool("dry-run") {
				untagged, deleted, total = "Would untag", "Would delete", "Total reclaimable space"
			}
			for _, name := range pruned.Names {
				fmt.Fprintf(c.App.Writer, "%s: %s\n", untagged, name)
			}
			for _, id := range pruned.Images {
				fmt.Fprintf(c.App.Writer, "%s: %s\n", deleted, id)
			}
			for _, id := range pruned.Layers {
				fmt.Fprintf(c.App.Writer, "%s layer: %s\n", deleted, id)
			}
			_, err = fmt.Fprintf(c.App.Writer, "%s: %s\n", total, units.HumanSize(float64(pruned.Bytes)))
			return err
		},
	}
}

// sweepName is the verb by which the program deletes, in a process of its own, what another one has thrown away.
const sweepName = "sweep-store"

// sweepCommand only opens the store: that sweeps it.
func sweepCommand() *cli.Command {
	return &cli.Command{
		Name:        sweepName,
		Hidden:      true,
		Usage:       "delete what was removed (for unionfs itself)",
		Description: "The process that \"unionfs rmi\" leaves to delete large files. Every other command that uses images does the same.\n\nExample:\n   unionfs sweep-store",
		Action: func(c *cli.Context) error {
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			// It comes late, and whoever removed the image may have removed the whole store by now. Opening would make one.
			if _, err := os.Stat(root); errors.Is(err, os.ErrNotExist) {
				return nil
			}
			_, err = openStore(c)
			return err
		},
	}
}

// startSweep starts a process that runs sweepCommand, and doesn't wait for it.
func startSweep(c *cli.Context) error {
	root, err := stateRoot(c)
	if err != nil {
		return err
	}
	sweep := exec.Command("/proc/self/exe", "--root", root, sweepName)
	sweep.Dir = "/"
	sweep.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := sweep.Start(); err != nil {
		return err
	}
	return sweep.Process.Release()
}

// imageUsers counts the containers that were made from each image.
func imageUsers(root string) (map[digest.Digest]int, error) {
	state, err := runner.OpenState(root)
	if err != nil {
		return nil, err
	}
	containers, err := state.List()
	if err != nil {
		return nil, err
	}
	users := map[digest.Digest]int{}
	for _, container := range containers {
		if id := digest.Digest(container.Spec.Annotations[rootfs.AnnotationImageID]); id.Validate() == nil {
			users[id]++
		}
		for _, v := range supervisor.VolumesOf(container) {
			if id := digest.Digest(v.Image); id.Validate() == nil {
				users[id]++
			}
		}
	}
	return users, nil
}

func dfCommand() *cli.Command {
	return &cli.Command{
		Name:  "df",
		Usage: "say what images take up on disk",
		Description: `Says what the stored images take up on disk, and how much of that could be freed by removing those that nothing uses.
What containers and volumes hold is not part of it.

Examples:
   unionfs df
   unionfs df --verbose --format json`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "verbose", Aliases: []string{"v"}, Usage: "list every image"},
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			users, err := imageUsers(store.Root())
			if err != nil {
				return err
			}
			usage, err := store.Usage(slices.Collect(maps.Keys(users)))
			if usage == nil {
				return err
			}
			if c.Bool("verbose") {
				header := []string{"REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE", "SHARED SIZE", "UNIQUE SIZE", "CONTAINERS"}
				return errors.Join(printRows(c, header, imageUsageRows(usage, users)), err)
			}
			return errors.Join(printRows(c, []string{"TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"}, usageRows(usage)), err)
		},
	}
}

// usageRow is a line of "df", with Docker's names in JSON. Sizes are in bytes.
type usageRow struct {
	Type        string
	TotalCount  int
	Active      int
	Size        int64
	Reclaimable int64
}

func usageRows(u *layerstore.Usage) []usageRow {
	images := usageRow{Type: "Images", TotalCount: len(u.Images), Size: u.Stored, Reclaimable: u.Reclaimable}
	for _, i := range u.Images {
		if i.Active {
			images.Active++
		}
	}
	return []usageRow{images, {Type: "Unfinished", Size: u.Unfinished}}
}

func (r usageRow) columns() []string {
	reclaimable := units.HumanSize(float64(r.Reclaimable))
	if r.Size > 0 {
		reclaimable += fmt.Sprintf(" (%d%%)", r.Reclaimable*100/r.Size)
	}
	return []string{r.Type, strconv.Itoa(r.TotalCount), strconv.Itoa(r.Active), units.HumanSize(float64(r.Size)), reclaimable}
}

// imageUsageRow is a line of "df --verbose".
type imageUsageRow struct {
	imageRow
	SharedSize int64 // bytes
	UniqueSize int64 // bytes
	Containers int
}

func imageUsageRows(u *layerstore.Usage, users map[digest.Digest]int) []imageUsageRow {
	var rows []imageUsageRow
	for _, i := range u.Images {
		for _, r := range imageRows([]layerstore.ImageInfo{i.ImageInfo}) {
			rows = append(rows, imageUsageRow{r, i.Shared, i.Size - i.Shared, users[i.ID]})
		}
	}
	return rows
}

func (r imageUsageRow) columns() []string {
	r.ID = shortID(r.ID)
	return append(r.imageRow.columns(), units.HumanSize(float64(r.SharedSize)), units.HumanSize(float64(r.UniqueSize)), strconv.Itoa(r.Containers))
}

func verifyCommand() *cli.Command {
	return &cli.Command{
		Name:  "verify",
		Usage: "check everything in the image store",
		Description: `Reads every layer, compares its SHA-256 with its diff ID and its index with what it should be, and checks all images
and names. Faults are listed; the exit code is 1 if any is left. With --repair, indexes are made again, damaged layers
are fetched again from where their image came from, and names that lead nowhere are deleted.

Examples:
   unionfs verify
   unionfs verify --repair`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "repair", Usage: "repair what can be repaired"},
			insecureFlag(),
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			found, err := store.Verify(c.Context, layerstore.VerifyOptions{Repair: c.Bool("repair"), Insecure: c.Bool("insecure")})
			if err != nil {
				return err
			}
			rows := make([]faultRow, 0, len(found.Faults))
			left := 0
			for _, f := range found.Faults {
				rows = append(rows, faultRow{f.What, f.Problem.Error(), f.Repaired})
				if !f.Repaired {
					left++
				}
			}
			if err := printRows(c, nil, rows); err != nil {
				return err
			}
			if left > 0 {
				return fmt.Errorf("the image store has faults that are not repaired: %d", left)
			}
			fmt.Fprintf(c.App.ErrWriter, "unionfs: verified %d images, %d layers, %s\n", found.Images, found.Layers, units.HumanSize(float64(found.Bytes)))
			return nil
		},
	}
}

// faultRow is a line of "verify".
type faultRow struct {
	What     string
	Problem  string
	Repaired bool
}

func (r faultRow) columns() []string {
	state := "damaged"
	if r.Repaired {
		state = "repaired"
	}
	return []string{state, r.What, oneLine(r.Problem)}
}
