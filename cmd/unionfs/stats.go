package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"unionfs/runner"
)

func statsCommand() *cli.Command {
	return &cli.Command{
		Name:      "stats",
		Usage:     "show what containers use, live",
		ArgsUsage: "[CONTAINER...]",
		Description: `Shows once a second what running containers use of processors, memory, network, disks and processes; all of them, or
those that are named. What a container's root costs its FUSE server is not part of it. By cgroup, where a container
has limits; else as the sum over its processes.

Examples:
   unionfs stats
   unionfs stats --no-stream --format '{{.Name}} {{.CPUPerc}} {{.MemUsage}}' web`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "all", Aliases: []string{"a"}, Usage: "show those too that don't run"},
			&cli.BoolFlag{Name: "no-stream", Usage: "show it once"},
			&cli.BoolFlag{Name: "no-trunc", Usage: "show whole IDs"},
			formatFlag(),
		},
		Action: func(c *cli.Context) error {
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			state, err := runner.OpenState(root)
			if err != nil {
				return err
			}
			return showStats(c, state)
		},
	}
}

// statsRow is a line of "stats", with Docker's names.
type statsRow struct {
	Container string
	ID        string
	Name      string
	CPUPerc   string
	MemUsage  string
	MemPerc   string
	NetIO     string
	BlockIO   string
	PIDs      string
}

func (r statsRow) columns() []string {
	return []string{r.ID, r.Name, r.CPUPerc, r.MemUsage, r.MemPerc, r.NetIO, r.BlockIO, r.PIDs}
}

var statsHeader = []string{"CONTAINER ID", "NAME", "CPU %", "MEM USAGE / LIMIT", "MEM %", "NET I/O", "BLOCK I/O", "PIDS"}

// statsInterval is the time between two looks.
const statsInterval = time.Second

// sample is one look at a container.
type sample struct {
	at    time.Time
	usage runner.Usage
}

func showStats(c *cli.Context, state *runner.State) error {
	// Two looks make a rate.
	before, err := takeSamples(c, state)
	if err != nil {
		return err
	}
	live := !c.Bool("no-stream") && c.String("format") == "table"
	terminal := false
	if f, ok := c.App.Writer.(*os.File); ok {
		terminal = term.IsTerminal(int(f.Fd()))
	}
	for {
		if err := sleep(c.Context, statsInterval); err != nil {
			return nil
		}
		rows, now, err := statsRows(c, state, before)
		if err != nil {
			return err
		}
		before = now
		if live && terminal {
			// To the top left corner, and clear all (ECMA-48).
			fmt.Fprint(c.App.Writer, "\x1b[H\x1b[2J")
		}
		if err := printRows(c, statsHeader, rows); err != nil {
			return err
		}
		if c.Bool("no-stream") {
			return nil
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// statsContainers are those that the command line means.
func statsContainers(c *cli.Context, state *runner.State) ([]*runner.Container, error) {
	if !c.Args().Present() {
		return state.List()
	}
	var named []*runner.Container
	for _, ref := range c.Args().Slice() {
		container, err := state.Get(ref)
		if err != nil {
			return nil, err
		}
		named = append(named, container)
	}
	return named, nil
}

func takeSamples(c *cli.Context, state *runner.State) (map[string]sample, error) {
	containers, err := statsContainers(c, state)
	if err != nil {
		return nil, err
	}
	samples := map[string]sample{}
	for _, container := range containers {
		if usage, err := container.Usage(); err == nil {
			samples[container.ID] = sample{time.Now(), usage}
		}
	}
	return samples, nil
}

func statsRows(c *cli.Context, state *runner.State, before map[string]sample) ([]statsRow, map[string]sample, error) {
	containers, err := statsContainers(c, state)
	if err != nil {
		return nil, nil, err
	}
	var host unix.Sysinfo_t
	if err := unix.Sysinfo(&host); err != nil {
		return nil, nil, err
	}
	memory := uint64(host.Totalram) * uint64(host.Unit)
	now := map[string]sample{}
	var rows []statsRow
	for _, container := range containers {
		status, err := container.Status()
		if errors.Is(err, runner.ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, nil, err
		}
		row := statsRow{Container: container.Name, ID: container.ID, Name: container.Name, CPUPerc: "--", MemUsage: "-- / --", MemPerc: "--", NetIO: "--", BlockIO: "--", PIDs: "--"}
		if !c.Bool("no-trunc") {
			row.ID = shortID(row.ID)
		}
		if status.State != runner.StateRunning {
			if c.Bool("all") || c.Args().Present() {
				rows = append(rows, row)
			}
			continue
		}
		usage, err := container.Usage()
		if err != nil {
			continue // it has ended since
		}
		now[container.ID] = sample{time.Now(), usage}
		row.fill(usage, before[container.ID], now[container.ID].at, memory)
		if in, out, ok := networkBytes(status.InitPID); ok {
			row.NetIO = bytesText(in) + " / " + bytesText(out)
		}
		rows = append(rows, row)
	}
	return rows, now, nil
}

// fill writes what is used, and its rate since the look before.
func (r *statsRow) fill(u runner.Usage, before sample, at time.Time, memory uint64) {
	rate := 0.0
	if !before.at.IsZero() && u.CPU > before.usage.CPU {
		rate = 100 * float64(u.CPU-before.usage.CPU) / float64(at.Sub(before.at))
	}
	r.CPUPerc = fmt.Sprintf("%.2f%%", min(rate, float64(100*runtime.NumCPU())))
	limit := memory
	if u.MemoryLimit > 0 {
		limit = min(limit, u.MemoryLimit)
	}
	r.MemUsage = units.BytesSize(float64(u.Memory)) + " / " + units.BytesSize(float64(limit))
	r.MemPerc = fmt.Sprintf("%.2f%%", 100*float64(u.Memory)/float64(max(1, limit)))
	r.BlockIO = bytesText(u.BlockRead) + " / " + bytesText(u.BlockWrite)
	r.PIDs = strconv.FormatUint(u.PIDs, 10)
}

func bytesText(n uint64) string { return units.HumanSizeWithPrecision(float64(n), 3) }

// networkBytes is what came into and went out of a process's network namespace, without its loopback. It is false where that is the
// host's own, whose traffic is not the container's.
func networkBytes(pid int) (in, out uint64, ok bool) {
	own, err := os.Readlink("/proc/self/ns/net")
	theirs, terr := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err != nil || terr != nil || own == theirs {
		return 0, 0, false
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/dev", pid))
	if err != nil {
		return 0, 0, false
	}
	in, out = sumInterfaces(string(data))
	return in, out, true
}

// sumInterfaces adds up /proc/net/dev: after two lines of heading, one for each interface, with the bytes that came first and those
// that went ninth (proc_pid_net(5)).
func sumInterfaces(text string) (in, out uint64) {
	for line := range strings.Lines(text) {
		name, counts, found := strings.Cut(line, ":")
		fields := strings.Fields(counts)
		if !found || strings.TrimSpace(name) == "lo" || len(fields) < 9 {
			continue
		}
		received, _ := strconv.ParseUint(fields[0], 10, 64)
		sent, _ := strconv.ParseUint(fields[8], 10, 64)
		in, out = in+received, out+sent
	}
	return in, out
}
