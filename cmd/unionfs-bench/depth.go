package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"

	"unionfs/bench"
)

// outputFlags say what becomes of a report.
func outputFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "format", Usage: "print as `FORMAT`: table, markdown, json or csv", Value: "table"},
		&cli.StringFlag{Name: "out", Usage: "also write the report to `DIR`, which is made: report.json and report.csv, a page to look at (index.html), and its plots as SVG files"},
		&cli.StringFlag{Name: "compare", Usage: "say what changed since the report in `FILE`, a report.json"},
		&cli.StringFlag{Name: "dir", Usage: "make branches and mounts in a directory in `DIR`; its file system is part of what is measured", DefaultText: "$TMPDIR or /tmp"},
	}
}

func depthCommand() *cli.Command {
	return &cli.Command{
		Name:  "depth",
		Usage: "measure how the cost of a union grows with the number of its branches",
		Description: `Makes a tree, always the same for a seed, spreads it over as many branches as --depths says, lets every peer merge
them, and measures what --work lists. Peers take turns; each is mounted with the options that are known to be best
for it, and must show the same tree as the others before a figure of it counts. What one can't do is shown as such.

Works: ` + strings.Join(bench.WorkNames(), ", ") + `.
Peers: ` + strings.Join(bench.PeerNames(), ", ") + `; the first two are always measured.

Cold figures need root, because only root can drop the kernel's caches. Ctrl-C ends it early, unmounts everything and
reports what was measured.

Examples:
   unionfs bench depth
   unionfs bench depth --depths 10,120 --work walk,negative --cold --runs 5
   unionfs bench depth --branches layers/top,layers/middle,layers/bottom
   unionfs bench depth --image debian:local --depths 10,120 --out report`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "depths", Usage: "measure with these numbers of branches (`N,N,...`)", DefaultText: joinNumbers(bench.DefaultDepths()) + ", or all of --branches"},
			&cli.StringFlag{Name: "work", Usage: "what to measure (`WORK,WORK,...`)", DefaultText: "everything"},
			againstFlag(bench.PeerNames()), runsFlag(3),
			&cli.BoolFlag{Name: "cold", Usage: "measure only with caches dropped"},
			&cli.BoolFlag{Name: "warm", Usage: "measure only with caches filled"},
			&cli.IntFlag{Name: "entries", Usage: "make a tree of `N` entries", Value: 14000},
			&cli.Uint64Flag{Name: "seed", Usage: "make the tree from the number `N`", Value: 1},
			&cli.StringFlag{Name: "big", Usage: "make its large file of `SIZE`", Value: "256m"},
			&cli.StringFlag{Name: "branches", Usage: "take these branches, the top one first (`DIR,DIR,...`)"},
			&cli.StringFlag{Name: "tree", Usage: "spread a copy of `DIR` over the branches, in place of a tree that is made"},
			&cli.StringFlag{Name: "image", Usage: "spread what `IMAGE` holds over the branches, in place of a tree that is made"},
			&cli.DurationFlag{Name: "limit", Usage: "don't ask a peer for more of a work once it has taken longer than `TIME`", Value: 30 * time.Second},
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			o, err := depthOptionsOf(c)
			if err != nil {
				return err
			}
			return runBench(c, o.Progress, func(ctx context.Context) (*bench.Report, error) { return bench.Depth(ctx, o) })
		},
	}
}

func depthOptionsOf(c *cli.Context) (bench.DepthOptions, error) {
	o := bench.DepthOptions{
		Works: bench.WorkNames(), Against: againstOf(c, bench.PeerNames()), Runs: c.Int("runs"), Cold: c.Bool("cold"), Warm: c.Bool("warm"),
		Entries: c.Int("entries"), Seed: c.Uint64("seed"), Tree: c.String("tree"), Image: c.String("image"), Limit: c.Duration("limit"),
		Branches: listOf(c.String("branches")),
	}
	if !o.Cold && !o.Warm {
		o.Cold, o.Warm = true, true
	}
	if c.IsSet("work") {
		o.Works = listOf(c.String("work"))
	}
	sources := 0
	for _, set := range []bool{o.Tree != "", o.Image != "", len(o.Branches) > 0} {
		if set {
			sources++
		}
	}
	var err error
	switch {
	case sources > 1:
		return o, usageError("depth: only one of --branches, --tree and --image can be given")
	case o.Runs < 1:
		return o, usageError("depth: --runs must be at least 1")
	case o.Entries < 100 && sources == 0:
		return o, usageError("depth: --entries must be at least 100")
	}
	if o.Big, err = units.RAMInBytes(c.String("big")); err != nil || o.Big < 1<<20 {
		return o, usageError("depth: --big wants a size of 1m at least, not %q", c.String("big"))
	}
	if o.Depths, err = numbersOf(c, "depths"); err != nil {
		return o, err
	}
	if len(o.Depths) == 0 && len(o.Branches) == 0 {
		o.Depths = bench.DefaultDepths()
	}
	o.Root = c.String("root")
	if o.Program, o.Dir, err = place(c); err != nil {
		return o, err
	}
	o.Progress = newProgress()
	return o, nil
}

func listOf(text string) []string {
	var list []string
	for item := range strings.SplitSeq(text, ",") {
		if item = strings.TrimSpace(item); item != "" {
			list = append(list, item)
		}
	}
	return list
}

func joinNumbers(numbers []int) string {
	var texts []string
	for _, n := range numbers {
		texts = append(texts, strconv.Itoa(n))
	}
	return strings.Join(texts, ",")
}

// runBench measures until it is done or interrupted, and reports.
func runBench(c *cli.Context, progress *bench.Progress, measure func(context.Context) (*bench.Report, error)) error {
	earlier, err := earlierReport(c) // before what takes minutes
	if err != nil {
		return err
	}
	// SIGPIPE too: who reads the progress may go away, and mounts must not be left behind then.
	ctx, stop := signal.NotifyContext(c.Context, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	report, err := measure(ctx)
	progress.End()
	if report == nil || len(report.Measurements) == 0 {
		return errors.Join(err, errors.New("nothing was measured"))
	}
	// What was measured is reported even if something failed after it.
	report.Command = append([]string{"unionfs", "bench"}, os.Args[1:]...)
	return errors.Join(err, writeBench(c, report, earlier))
}

// earlierReport checks --format and reads what --compare names; nil if it names nothing.
func earlierReport(c *cli.Context) (*bench.Report, error) {
	switch format := c.String("format"); format {
	case "table", "markdown", "json", "csv":
	default:
		return nil, usageError("unknown format %q; known are table, markdown, json and csv", format)
	}
	if name := c.String("compare"); name != "" {
		return bench.ReadReport(name)
	}
	return nil, nil
}

func writeBench(c *cli.Context, report, earlier *bench.Report) error {
	var err error
	switch c.String("format") {
	case "json":
		err = report.WriteJSON(c.App.Writer)
	case "markdown":
		err = report.WriteMarkdown(c.App.Writer)
	case "csv":
		err = report.WriteCSV(c.App.Writer)
	default:
		err = report.WriteTable(c.App.Writer)
	}
	if err != nil {
		return err
	}
	if earlier != nil && c.String("format") == "table" {
		fmt.Fprintln(c.App.Writer)
		if err := report.WriteChanges(c.App.Writer, earlier); err != nil {
			return err
		}
	}
	if dir := c.String("out"); dir != "" {
		if err := report.WriteFiles(dir, earlier); err != nil {
			return fmt.Errorf("writing the report to %s: %w", dir, err)
		}
		fmt.Fprintf(c.App.ErrWriter, "The page is %s\n", filepath.Join(dir, "index.html"))
	}
	return nil
}
