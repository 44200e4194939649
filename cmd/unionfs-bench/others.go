package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"unionfs/bench"
)

// The benchmarks besides "bench depth".

func copyUpCommand() *cli.Command {
	return &cli.Command{
		Name:  "copyup",
		Usage: "measure writing one byte into a file of a lower branch",
		Description: `Writes one byte into the middle of files of a lower branch, of growing sizes. Where a file is copied up as a whole first,
the time grows with its size.

Example:
   unionfs bench copyup --sizes 4k,1m,1g --against overlayfs,fuse-overlayfs`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "sizes", Usage: "of the files (`SIZE,SIZE,...`)", Value: "4k,64k,1m,16m,256m,1g"},
			againstFlag(bench.PeerNames()), runsFlag(3),
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := checkBench(c); err != nil {
				return err
			}
			o := bench.CopyUpOptions{Against: againstOf(c, bench.PeerNames()), Runs: c.Int("runs"), Progress: newProgress()}
			for _, text := range listOf(c.String("sizes")) {
				size, err := units.RAMInBytes(text)
				if err != nil || size < 1 {
					return usageError("copyup: --sizes wants sizes such as 64k or 1g, not %q", text)
				}
				o.Sizes = append(o.Sizes, size)
			}
			var err error
			if o.Program, o.Dir, err = place(c); err != nil {
				return err
			}
			return runBench(c, o.Progress, func(ctx context.Context) (*bench.Report, error) { return bench.CopyUp(ctx, o) })
		},
	}
}

func memoryCommand() *cli.Command {
	return &cli.Command{
		Name:  "memory",
		Usage: "measure the memory of servers of file systems",
		Description: `Lists a tree and asks for the attributes of every entry, so that the kernel and the server know them all, and then
reads the server's resident memory.

Example:
   unionfs bench memory --entries 14000,1000000 --against fuse-overlayfs`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "entries", Usage: "of the trees (`N,N,...`)", Value: "1000,14000,100000"},
			againstFlag(bench.PeerNames()), runsFlag(1),
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := checkBench(c); err != nil {
				return err
			}
			o := bench.MemoryOptions{Against: againstOf(c, bench.PeerNames()), Runs: c.Int("runs"), Progress: newProgress()}
			var err error
			if o.Entries, err = numbersOf(c, "entries"); err != nil {
				return err
			}
			if o.Program, o.Dir, err = place(c); err != nil {
				return err
			}
			return runBench(c, o.Progress, func(ctx context.Context) (*bench.Report, error) { return bench.Memory(ctx, o) })
		},
	}
}

func takeoverCommand() *cli.Command {
	return &cli.Command{
		Name:  "takeover",
		Usage: "measure how long nobody answers when a server is killed",
		Description: `Lists a tree and asks for the attributes of every entry, so that the kernel knows them all. Then it kills the server of the mount
--runs times, while it goes on asking, and reports the longest wait for an answer around each kill.

Examples:
   unionfs bench takeover --entries 14000,1000000 --runs 50
   unionfs bench takeover --entries 1000000 --in-directory 1000000`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "entries", Usage: "of the trees (`N,N,...`)", Value: "14000"},
			&cli.IntFlag{Name: "in-directory", Usage: "`N` of the entries are a directory and what is in it", Value: 1000},
			runsFlag(25),
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := checkBench(c); err != nil {
				return err
			}
			o := bench.TakeoverOptions{Kills: c.Int("runs"), Each: c.Int("in-directory"), Progress: newProgress()}
			if o.Each < 2 {
				return fmt.Errorf("--in-directory %d: a directory and a file are two", o.Each)
			}
			var err error
			if o.Entries, err = numbersOf(c, "entries"); err != nil {
				return err
			}
			if o.Program, o.Dir, err = place(c); err != nil {
				return err
			}
			return runBench(c, o.Progress, func(ctx context.Context) (*bench.Report, error) { return bench.Takeover(ctx, o) })
		},
	}
}

func holderCommand() *cli.Command {
	return &cli.Command{
		Name:  "holder",
		Usage: "measure what it costs that a mount outlives its server",
		Description: `Mounts one tree twice at the same time, in the foreground, where the mount ends with its server, and in the background, where it
outlives it, does the same works on both in turns, in rounds of some milliseconds, and reports the ratio, by the clock and in
processor time. --runs says how many such pairs of mounts there are, one after the other.

Example:
   unionfs bench holder --runs 20`,
		Flags: append([]cli.Flag{
			&cli.IntFlag{Name: "entries", Usage: "make a tree of `N` entries", Value: 2500},
			&cli.IntFlag{Name: "rounds", Usage: "do each work `N` times on each pair of mounts", Value: 25},
			runsFlag(12),
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := checkBench(c); err != nil {
				return err
			}
			o := bench.HolderOptions{Entries: c.Int("entries"), Mounts: c.Int("runs"), Rounds: c.Int("rounds"), Progress: newProgress()}
			if o.Rounds < 1 || o.Entries < 10*o.Rounds {
				return usageError("holder: --entries must be at least ten times --rounds, which must be at least 1: each round changes other files")
			}
			var err error
			if o.Program, o.Dir, err = place(c); err != nil {
				return err
			}
			return runBench(c, o.Progress, func(ctx context.Context) (*bench.Report, error) { return bench.Holder(ctx, o) })
		},
	}
}

func runCommand() *cli.Command {
	return &cli.Command{
		Name:  "run",
		Usage: "measure starting a container",
		Description: `Runs a command that does nothing, of an image with busybox and no more, from the call to the end: in a new container, in
sixteen at once, and by exec in one that runs. With --asleep it also starts containers that sleep, and measures the memory
of what stays beside each.

Example:
   unionfs bench run --runs 50 --against podman,runc`,
		Flags: append([]cli.Flag{
			againstFlag(bench.ToolNames()), runsFlag(20),
			&cli.IntFlag{Name: "asleep", Usage: "also measure `N` containers that sleep", Value: 20},
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			return containerBench(c, func(o *bench.ContainerOptions) error {
				o.Asleep = c.Int("asleep")
				return nil
			}, bench.Run)
		},
	}
}

func imagesCommand() *cli.Command {
	return &cli.Command{
		Name:    "images",
		Aliases: []string{"pull", "commit"},
		Usage:   "measure pulling, mounting, committing and removing images",
		Description: `Pulls an image with gzip layers from a registry on loopback into an empty store, mounts it, commits a container of it that
changed ten files, pulls another one that has all layers but one in common with it, and removes that one.

Examples:
   unionfs bench images --depths 1,50 --against podman,podman+fuse
   unionfs bench images --depths 10 --entries 89000 --runs 1`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "depths", Usage: "numbers of layers (`N,N,...`)", Value: "1,10,60"},
			&cli.IntFlag{Name: "entries", Usage: "make an image of `N` entries", Value: 14000},
			againstFlag(bench.ToolNames()), runsFlag(3),
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			return containerBench(c, func(o *bench.ContainerOptions) (err error) {
				o.Entries = c.Int("entries")
				o.Depths, err = numbersOf(c, "depths")
				return err
			}, bench.Images)
		},
	}
}

func volumeCommand() *cli.Command {
	return &cli.Command{
		Name:  "volume",
		Usage: "measure the data of volumes",
		Description: `Lets one program write, read and make files in a directory of this machine's, by itself and as a volume of a container.

Example:
   unionfs bench volume --runs 10 --against podman`,
		Flags: append([]cli.Flag{againstFlag(bench.ToolNames()), runsFlag(10)}, outputFlags()...),
		Action: func(c *cli.Context) error {
			return containerBench(c, func(*bench.ContainerOptions) error { return nil }, bench.Volumes)
		},
	}
}

// volumeWorkCommand is what "volume" starts, in containers and without.
func volumeWorkCommand() *cli.Command {
	return &cli.Command{
		Name:        "volume-work",
		Hidden:      true,
		Usage:       "do what \"volume\" measures, in a directory, and print the seconds that it took",
		ArgsUsage:   "DIR",
		Description: "Example:\n   unionfs-bench volume-work /tmp",
		Action: func(c *cli.Context) error {
			seconds, err := bench.WorkOnVolume(c.Args().First())
			if err != nil {
				return err
			}
			return json.NewEncoder(c.App.Writer).Encode(seconds)
		},
	}
}

func fullCommand() *cli.Command {
	return &cli.Command{
		Name:  "full",
		Usage: "measure all that the documentation shows",
		Description: `Runs every benchmark, with what the documentation's figures were made with, in one report: under a quarter of an hour, and
8 GB below --dir. Best as root: else nothing is measured cold.

Example:
   unionfs bench full --out report`,
		Flags: append([]cli.Flag{
			&cli.BoolFlag{Name: "small", Usage: "take seconds instead of minutes, only to see that everything works"},
			&cli.StringFlag{Name: "parts", Usage: "only these of its benchmarks (`PART,PART,...`); known are " + strings.Join(bench.FullPartNames(), ", "), DefaultText: "all"},
			&cli.DurationFlag{Name: "time", Usage: "do as many rounds as fit into `TIME`, and of what is quick three in any case", Value: bench.DefaultBudget},
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			if err := noArguments(c); err != nil {
				return err
			}
			o := bench.FullOptions{Small: c.Bool("small"), Parts: listOf(c.String("parts")), Budget: c.Duration("time"), Progress: newProgress()}
			var err error
			if o.Program, o.Dir, err = place(c); err != nil {
				return err
			}
			if o.Worker, err = os.Executable(); err != nil {
				return err
			}
			return runBench(c, o.Progress, func(ctx context.Context) (*bench.Report, error) { return bench.Full(ctx, o) })
		},
	}
}

func showCommand() *cli.Command {
	return &cli.Command{
		Name:      "show",
		Usage:     "show a report that was made before",
		ArgsUsage: "REPORT.json",
		Description: `Prints a report, writes its page and plots again, or compares it with another, and measures nothing.

Examples:
   unionfs bench show report/report.json --format markdown
   unionfs bench show new/report.json --compare old/report.json
   unionfs bench show build/bench/report.json --docs docs`,
		Flags: append([]cli.Flag{
			&cli.StringFlag{Name: "docs", Usage: "write benchmarks.md and what it shows to `DIR`, and print nothing"},
		}, outputFlags()...),
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usageError("show: want REPORT.json; see unionfs bench show --help")
			}
			earlier, err := earlierReport(c)
			if err != nil {
				return err
			}
			report, err := bench.ReadReport(c.Args().First())
			if err != nil {
				return err
			}
			if dir := c.String("docs"); dir != "" {
				if err := report.WriteDocument(dir); err != nil {
					return fmt.Errorf("writing the document to %s: %w", dir, err)
				}
				return nil
			}
			return writeBench(c, report, earlier)
		},
	}
}

func containerBench(c *cli.Context, set func(*bench.ContainerOptions) error,
	measure func(context.Context, bench.ContainerOptions) (*bench.Report, error)) error {
	if err := checkBench(c); err != nil {
		return err
	}
	o := bench.ContainerOptions{Against: againstOf(c, bench.ToolNames()), Runs: c.Int("runs"), Progress: newProgress()}
	err := set(&o)
	if err != nil {
		return err
	}
	if o.Program, o.Dir, err = place(c); err != nil {
		return err
	}
	if o.Worker, err = os.Executable(); err != nil {
		return err
	}
	return runBench(c, o.Progress, func(ctx context.Context) (*bench.Report, error) { return measure(ctx, o) })
}

func againstFlag(all []string) cli.Flag {
	return &cli.StringFlag{
		Name: "against", Usage: "whom to measure beside unionfs (`PEER,PEER,...`, or none); known are " + strings.Join(all, ", "), DefaultText: "everyone who is installed",
	}
}

func runsFlag(n int) cli.Flag {
	return &cli.IntFlag{Name: "runs", Usage: "measure everything `N` times", Value: n}
}

// againstOf returns the peers that --against names, or all.
func againstOf(c *cli.Context, all []string) []string {
	if !c.IsSet("against") {
		return all
	}
	names := listOf(c.String("against"))
	if len(names) == 1 && names[0] == "none" {
		return nil
	}
	return names
}

func checkBench(c *cli.Context) error {
	if c.Int("runs") < 1 {
		return usageError("%s: --runs must be at least 1", c.Command.Name)
	}
	return noArguments(c)
}

func numbersOf(c *cli.Context, flag string) ([]int, error) {
	var numbers []int
	for _, text := range listOf(c.String(flag)) {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, usageError("%s: --%s wants numbers from 1, not %q", c.Command.Name, flag, text)
		}
		numbers = append(numbers, n)
	}
	return numbers, nil
}

func newProgress() *bench.Progress {
	return bench.NewProgress(os.Stderr, term.IsTerminal(int(os.Stderr.Fd())))
}
