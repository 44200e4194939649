package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/docker/cli/templates"
	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func eventsCommand() *cli.Command {
	return &cli.Command{
		Name:  "events",
		Usage: "print what happens to containers and volumes",
		Description: `Prints what happens to containers and volumes, one line each, as it happens; with --since also what happened before,
as far as it is still known (the last 4 to 8 MiB of events). With --until in the past it ends.

Examples:
   unionfs events --filter type=container --filter event=die
   unionfs events --since 1h --until 0s --format '{{.Action}} {{.Actor.Attributes.name}}'
   unionfs events --format json`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "since", Usage: "begin at `TIME`: 2026-11-23T14:00:00Z, seconds since 1970, or 10m ago", DefaultText: "now"},
			&cli.StringFlag{Name: "until", Usage: "end at `TIME`", DefaultText: "never"},
			&cli.StringSliceFlag{Name: "filter", Aliases: []string{"f"}, Usage: "print only those with `NAME=VALUE`: type, event, container, volume, image, label"},
			&cli.StringFlag{Name: "format", Usage: "print as `FORMAT`: text, json (one object a line), or a Go template such as '{{.Action}}'", Value: "text"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			var options runner.EventOptions
			now := time.Now()
			for flag, into := range map[string]*time.Time{"since": &options.Since, "until": &options.Until} {
				if value := c.String(flag); value != "" {
					at, err := parseTime(value, now)
					if err != nil {
						return usageError("--%s: %w", flag, err)
					}
					*into = at
				}
			}
			wanted, err := parseEventFilters(c.StringSlice("filter"))
			if err != nil {
				return err
			}
			print, err := eventPrinter(c.App.Writer, c.String("format"))
			if err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			state, err := runner.OpenState(root)
			if err != nil {
				return err
			}
			return state.Events(c.Context, options, func(e runner.Event) error {
				if !wanted(e) {
					return nil
				}
				return print(e)
			})
		},
	}
}

// eventPrinter prints events in a format.
func eventPrinter(w io.Writer, format string) (func(runner.Event) error, error) {
	switch {
	case format == "text":
		return func(e runner.Event) error {
			_, err := fmt.Fprintln(w, eventLine(e))
			return err
		}, nil
	case format == "json":
		format = "{{json .}}"
	case !strings.Contains(format, "{{"):
		return nil, usageError("unknown format %q; known are text, json and Go templates", format)
	}
	parsed, err := templates.Parse(format)
	if err != nil {
		return nil, usageError("--format: %w", err)
	}
	return func(e runner.Event) error {
		if err := parsed.Execute(w, e); err != nil {
			return usageError("--format: %w", err)
		}
		_, err := fmt.Fprintln(w)
		return err
	}, nil
}

// eventLine is an event as Docker prints it.
func eventLine(e runner.Event) string {
	var attributes []string
	for name, value := range e.Actor.Attributes {
		attributes = append(attributes, name+"="+value)
	}
	slices.Sort(attributes)
	line := fmt.Sprintf("%s %s %s %s", e.Time.Format("2006-01-02T15:04:05.000000000Z07:00"), e.Type, e.Action, e.Actor.ID)
	if len(attributes) > 0 {
		line += " (" + strings.Join(attributes, ", ") + ")"
	}
	return line
}

// parseEventFilters reads the values of --filter: several for one name mean any of them.
func parseEventFilters(values []string) (func(runner.Event) bool, error) {
	byName := map[string][]string{}
	for _, value := range values {
		name, want, found := strings.Cut(value, "=")
		if !found || !slices.Contains([]string{"type", "event", "container", "volume", "image", "label", "network"}, name) {
			return nil, usageError("--filter %q: want type, event, container, volume, network, image or label, with =VALUE", value)
		}
		byName[name] = append(byName[name], want)
	}
	return func(e runner.Event) bool {
		for name, wanted := range byName {
			if !slices.ContainsFunc(wanted, func(want string) bool { return matchesEvent(e, name, want) }) {
				return false
			}
		}
		return true
	}, nil
}

func matchesEvent(e runner.Event, name, want string) bool {
	attributes := e.Actor.Attributes
	switch name {
	case "type":
		return e.Type == want
	case "event":
		// "health_status" is all of "health_status: healthy" and the like.
		return e.Action == want || strings.HasPrefix(e.Action, want+":")
	case "container":
		return e.Type == "container" && (strings.HasPrefix(e.Actor.ID, want) || attributes["name"] == want)
	case "volume", "network":
		return e.Type == name && (e.Actor.ID == want || attributes["name"] == want)
	case "image":
		return attributes["image"] == want || attributes["image"] == want+":latest"
	}
	key, value, exact := strings.Cut(want, "=")
	have, ok := attributes[key]
	return ok && (!exact || have == value)
}

// noteVolume notes what happened to a volume.
func noteVolume(state *runner.State, action, name string) {
	state.Note(runner.Event{Type: "volume", Action: action, Actor: runner.Actor{ID: name, Attributes: map[string]string{"driver": "local"}}})
}
