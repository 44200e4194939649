package main

import (
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func logsCommand() *cli.Command {
	return &cli.Command{
		Name:      "logs",
		Usage:     "print what a container in the background wrote",
		ArgsUsage: "CONTAINER",
		Description: `Prints what the command of a container has written while it ran in the background, its standard output and its standard
error each to our own. What it writes to "unionfs run" without --detach is not kept.

Examples:
   unionfs logs web
   unionfs logs -f --tail 20 -t web
   unionfs logs --since 10m web`,
		Flags: []cli.Flag{
			&cli.BoolFlag{Name: "follow", Aliases: []string{"f"}, Usage: "go on until the container ends"},
			&cli.StringFlag{Name: "tail", Aliases: []string{"n"}, Usage: "print the last `NUMBER` lines", Value: "all"},
			&cli.StringFlag{Name: "since", Usage: "print what was written after `TIME`: 2026-11-23T14:00:00Z, seconds since 1970, or 10m ago"},
			&cli.StringFlag{Name: "until", Usage: "print what was written before `TIME`"},
			&cli.BoolFlag{Name: "details", Usage: "put before each line the labels and variables that --log-opt labels=NAME,… and env=NAME,… of run name"},
			&cli.BoolFlag{Name: "timestamps", Aliases: []string{"t"}, Usage: "put the time before each line"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "CONTAINER"); err != nil {
				return err
			}
			options := runner.LogOptions{Follow: c.Bool("follow")}
			var err error
			if tail := c.String("tail"); tail == "all" || tail == "-1" {
				options.All = true
			} else if options.Tail, err = strconv.Atoi(tail); err != nil || options.Tail < 0 {
				return usageError("--tail %q: want a number of lines, or all", tail)
			}
			for flag, into := range map[string]*time.Time{"since": &options.Since, "until": &options.Until} {
				if value := c.String(flag); value != "" {
					if *into, err = parseTime(value, time.Now()); err != nil {
						return usageError("--%s: %w", flag, err)
					}
				}
			}
			_, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			details := ""
			if c.Bool("details") {
				details = logDetails(container) + " "
			}
			if err := container.Logs(c.Context, options, logPrinter(c, c.Bool("timestamps"), details)); err != nil {
				return err
			}
			return explainNoLog(c, container)
		},
	}
}

// explainNoLog says why a container that has run has no log.
func explainNoLog(c *cli.Context, container *runner.Container) error {
	if _, err := os.Lstat(container.LogPath()); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if status, err := container.Status(); err == nil && status.Started != nil {
		fmt.Fprintf(c.App.ErrWriter, "unionfs: container %s ran in front of its caller, who had its output; only that of one in the background is kept\n", container.Name)
	}
	return nil
}

// What of a container "logs --details" shows: the names of labels and of variables, separated by commas.
const (
	annotationLogLabels = "io.unionfs.log-labels"
	annotationLogEnv    = "io.unionfs.log-env"
)

// logDetails are the labels and variables that logs --details shows, as Docker writes them.
func logDetails(container *runner.Container) string {
	all := url.Values{}
	add := func(annotation string, have map[string]string) {
		for name := range strings.SplitSeq(container.Spec.Annotations[annotation], ",") {
			if value, ok := have[name]; ok {
				all.Set(name, value)
			}
		}
	}
	add(annotationLogLabels, labelsOf(container))
	variables := map[string]string{}
	for _, assignment := range container.Spec.Process.Env {
		name, value, _ := strings.Cut(assignment, "=")
		variables[name] = value
	}
	add(annotationLogEnv, variables)
	return strings.ReplaceAll(all.Encode(), "&", ",")
}

// logPrinter prints lines as they were written, with what goes before each, and parts of a line without a gap.
func logPrinter(c *cli.Context, timestamps bool, before string) func(runner.LogLine) error {
	within := map[string]bool{} // streams in the middle of a line
	return func(l runner.LogLine) error {
		out := c.App.Writer
		if l.Stream == "stderr" {
			out = c.App.ErrWriter
		}
		line := []byte(nil)
		if !within[l.Stream] {
			if timestamps {
				line = append(l.Time.AppendFormat(line, time.RFC3339Nano), ' ')
			}
			line = append(line, before...)
		}
		line = append(line, l.Text...)
		if l.Whole {
			line = append(line, '\n')
		}
		within[l.Stream] = !l.Whole
		_, err := out.Write(line)
		return err
	}
}

// parseTime reads a time, or how long before now it was.
func parseTime(s string, now time.Time) (time.Time, error) {
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	if seconds, err := strconv.ParseFloat(s, 64); err == nil {
		return time.UnixMicro(int64(seconds * 1e6)), nil
	}
	for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02T15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is no time: want 2026-11-23T14:00:00Z, seconds since 1970, or a duration such as 10m", s)
}
