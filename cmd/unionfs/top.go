package main

import (
	"errors"
	"fmt"
	"os/exec"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/runner"
)

func topCommand() *cli.Command {
	return &cli.Command{
		Name:      "top",
		Usage:     "list the processes of a container",
		UsageText: "unionfs top [options] CONTAINER [PS-OPTION...]",
		Description: `Lists the processes of a running container, with their numbers and users on the host. The first is the container's init.
With options of ps(1), this machine's ps lists them.

Examples:
   unionfs top web
   unionfs top web -o pid,rss,args`,
		Flags: []cli.Flag{formatFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "CONTAINER [PS-OPTION...]"); err != nil {
				return err
			}
			_, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			if c.NArg() > 1 {
				return topByPs(c, container, c.Args().Tail())
			}
			processes, err := container.Processes()
			if err != nil {
				return err
			}
			rows := make([]processRow, len(processes))
			for i, p := range processes {
				rows[i] = rowOf(p)
			}
			return printRows(c, []string{"UID", "PID", "PPID", "STAT", "STIME", "TTY", "TIME", "CMD"}, rows)
		},
	}
}

// topByPs has the machine's ps list all processes, and prints the lines of the container's, as Docker does: they are found by the
// column PID.
func topByPs(c *cli.Context, container *runner.Container, options []string) error {
	processes, err := container.Processes()
	if err != nil {
		return err
	}
	ps := exec.CommandContext(c.Context, "ps", options...)
	var said strings.Builder
	ps.Stderr = &said
	listed, err := ps.Output()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("top: options of ps need the program ps, which this machine doesn't have (package procps)")
	}
	if err != nil {
		return fmt.Errorf("top: ps %s: %w: %s", strings.Join(options, " "), err, strings.TrimSpace(said.String()))
	}
	lines := strings.Split(strings.TrimRight(string(listed), "\n"), "\n")
	column := slices.Index(strings.Fields(lines[0]), "PID")
	if column < 0 {
		return fmt.Errorf("top: ps %s: there is no column PID, by which the container's processes are found", strings.Join(options, " "))
	}
	fmt.Fprintln(c.App.Writer, lines[0])
	for _, line := range lines[1:] {
		fields := strings.Fields(line)
		if column >= len(fields) {
			continue
		}
		pid, err := strconv.Atoi(fields[column])
		if err == nil && slices.ContainsFunc(processes, func(p runner.Process) bool { return p.PID == pid }) {
			fmt.Fprintln(c.App.Writer, printable(line))
		}
	}
	return nil
}

// processRow is a line of "top", with the columns of ps -f.
type processRow struct {
	UID   string // a name if the host has one
	PID   int
	PPID  int
	STAT  string
	STIME time.Time
	TTY   string
	TIME  string // HH:MM:SS of processors
	CMD   string
}

func rowOf(p runner.Process) processRow {
	row := processRow{UID: strconv.Itoa(p.UID), PID: p.PID, PPID: p.PPID, STAT: p.State, STIME: p.Started, TTY: "?"}
	if u, err := user.LookupId(row.UID); err == nil {
		row.UID = u.Username
	}
	// Terminals of a devpts (Documentation/admin-guide/devices.txt); others are of no container's.
	if major := unix.Major(uint64(p.TTY)); major >= 136 && major <= 143 {
		row.TTY = fmt.Sprintf("pts/%d", (major-136)<<8+unix.Minor(uint64(p.TTY)))
	}
	seconds := int(p.Used / time.Second)
	row.TIME = fmt.Sprintf("%02d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
	row.CMD = strings.Join(p.Args, " ")
	return row
}

func (r processRow) columns() []string {
	started := r.STIME.Format("15:04")
	if time.Since(r.STIME) > 24*time.Hour {
		started = r.STIME.Format("Jan02")
	}
	// A process names itself: its name must not move the cursor.
	return []string{r.UID, strconv.Itoa(r.PID), strconv.Itoa(r.PPID), r.STAT, started, r.TTY, r.TIME, printable(r.CMD)}
}

// printable writes control characters as a space.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}
