package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"unionfs/runner"
	"unionfs/volumes"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print all about containers and images",
		ArgsUsage: "CONTAINER|IMAGE...",
		Description: `Prints what is known about containers and images as a JSON array, with Docker's names. Where a container and an image
have the same name, it is the container.

Examples:
   unionfs inspect web
   unionfs inspect --format json alpine debian | jq -r .Config.Cmd
   unionfs inspect --format '{{.State.Status}}' web`,
		Flags: []cli.Flag{inspectFormatFlag()},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "CONTAINER|IMAGE..."); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			all := []any{} // [] rather than null
			var failed error
			for _, ref := range c.Args().Slice() {
				details, err := inspectContainer(root, ref)
				if errors.Is(err, runner.ErrNotFound) {
					details, err = inspectImage(store, ref)
				}
				if err != nil {
					failed = errors.Join(failed, err)
					continue
				}
				all = append(all, details)
			}
			return errors.Join(printDetails(c.App.Writer, c.String("format"), all), failed)
		},
	}
}

func printDetails(w io.Writer, format string, all []any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	switch format {
	case "array":
		encoder.SetIndent("", "    ")
		return encoder.Encode(all)
	case "json":
		for _, details := range all {
			if err := encoder.Encode(details); err != nil {
				return err
			}
		}
		return nil
	}
	if strings.Contains(format, "{{") {
		return printTemplate(w, format, all)
	}
	return usageError("unknown format %q; known are array, json and Go templates", format)
}

func inspectContainer(root, ref string) (any, error) {
	container, err := findContainer(root, ref)
	if err != nil {
		return nil, err
	}
	status, err := container.Status()
	if err != nil {
		return nil, err
	}
	return detailsOf(root, container, status), nil
}

// containerDetails is a container in the shape of Docker's "inspect" (Engine API 1.47, ContainerInspect), as far as it has
// a meaning here.
type containerDetails struct {
	ID      string `json:"Id"`
	Created time.Time
	Path    string
	Args    []string
	State   struct {
		Status     string
		Running    bool
		Paused     bool
		Restarting bool
		Dead       bool
		Pid        int // of the command's parent, the container's init, on the host
		OOMKilled  bool
		ExitCode   int
		Error      string
		StartedAt  time.Time // the zero time if it never did
		FinishedAt time.Time
		Health     *runner.HealthStatus `json:",omitempty"`
	}
	Image          string // the image's ID, or "host"
	Name           string // with a slash before it, as Docker's
	HostnamePath   string
	ResolvConfPath string
	HostsPath      string
	LogPath        string
	RestartCount   int
	Driver         string // of the root
	Platform       string
	HostConfig     hostSettings
	Mounts         []mountDetails
	Config         struct {
		Hostname    string
		User        string
		Tty         bool
		OpenStdin   bool
		Env         []string
		Cmd         []string // with the entry point, which is not kept apart
		Image       string   // as it was named
		WorkingDir  string
		Labels      map[string]string
		StopSignal  string
		StopTimeout int
		Volumes     map[string]struct{} // at which there is a volume without a name of its own
		Healthcheck *runner.HealthCheck `json:",omitempty"`
	}
	NetworkSettings networkSettings
}

func detailsOf(root string, container *runner.Container, status *runner.Status) containerDetails {
	spec := container.Spec
	d := containerDetails{ID: container.ID, Created: status.Created, Name: "/" + container.Name, LogPath: container.LogPath()}
	d.Path, d.Args = spec.Process.Args[0], spec.Process.Args[1:]
	d.State.Status, d.State.Paused = stateOf(status), status.Paused
	d.State.Running = status.State == runner.StateRunning
	if d.State.Running {
		d.State.Pid = status.InitPID
	}
	d.State.OOMKilled = status.OutOfMemory
	d.State.ExitCode, d.State.Error = status.ExitCode, status.Error
	if status.Started != nil {
		d.State.StartedAt = *status.Started
	}
	if status.Finished != nil {
		d.State.FinishedAt = *status.Finished
	}
	d.Image = spec.Annotations[annotationImageID]
	if d.Image == "" {
		d.Image = container.Image()
	}
	d.HostConfig = hostConfigOf(container)
	d.RestartCount, d.Driver, d.Platform = status.RestartCount, "unionfs", "linux"
	d.State.Restarting, d.State.Health = status.State == runner.StateRestarting, status.Health
	d.Config.Healthcheck = container.HealthCheck()
	d.Config.Volumes = map[string]struct{}{}
	for _, v := range volumesOf(container) {
		if v.Anonymous {
			d.Config.Volumes[v.Target] = struct{}{}
		}
	}
	for _, m := range spec.Mounts {
		switch m.Destination {
		case "/etc/hosts":
			d.HostsPath = m.Source
		case "/etc/hostname":
			d.HostnamePath = m.Source
		case "/etc/resolv.conf":
			d.ResolvConfPath = m.Source
		}
	}
	d.Mounts = mountsOf(container)
	d.Config.Hostname = spec.Hostname
	d.Config.User = spec.Annotations[runner.AnnotationUser]
	d.Config.Tty = spec.Process.Terminal
	d.Config.OpenStdin = spec.Annotations[runner.AnnotationInteractive] == "true"
	d.Config.Env = spec.Process.Env
	d.Config.Cmd = spec.Process.Args
	d.Config.Image = container.Image()
	d.Config.WorkingDir = spec.Process.Cwd
	d.Config.Labels = labelsOf(container)
	d.Config.StopSignal = signalName(container)
	d.Config.StopTimeout = int(container.StopTimeout() / time.Second)
	d.NetworkSettings = networkSettingsOf(root, container)
	return d
}

func signalName(container *runner.Container) string {
	if name := container.Spec.Annotations[runner.AnnotationStopSignal]; name != "" {
		return name
	}
	return "SIGTERM"
}

// labelsOf are the labels of the image and of the command line, without what unionfs notes among them.
func labelsOf(container *runner.Container) map[string]string {
	labels := map[string]string{}
	maps.Copy(labels, container.Spec.Annotations)
	maps.DeleteFunc(labels, func(name, _ string) bool { return ownAnnotation(name) })
	return labels
}

// containerFilter reports whether a container is wanted.
type containerFilter func(*runner.Container, *runner.Status) bool

// parseFilters reads the values of --filter. As in Docker, several for one name mean any of them, except for labels, and
// all names must agree.
func parseFilters(values []string) (containerFilter, error) {
	byName := map[string][]string{}
	for _, value := range values {
		name, want, found := strings.Cut(value, "=")
		if !found || !slices.Contains([]string{"id", "name", "label", "status", "exited", "ancestor", "health", "volume"}, name) {
			return nil, usageError("--filter %q: want id, name, label, status, exited, ancestor, health or volume, with =VALUE", value)
		}
		byName[name] = append(byName[name], want)
	}
	return func(container *runner.Container, status *runner.Status) bool {
		for name, wanted := range byName {
			matches := func(want string) bool { return matchesFilter(container, status, name, want) }
			if name == "label" {
				if slices.ContainsFunc(wanted, func(want string) bool { return !matches(want) }) {
					return false
				}
			} else if !slices.ContainsFunc(wanted, matches) {
				return false
			}
		}
		return true
	}, nil
}

func matchesFilter(container *runner.Container, status *runner.Status, name, want string) bool {
	switch name {
	case "id":
		return strings.HasPrefix(container.ID, want)
	case "name":
		return strings.Contains(container.Name, want)
	case "label":
		key, value, exact := strings.Cut(want, "=")
		have, ok := labelsOf(container)[key]
		return ok && (!exact || have == value)
	case "status":
		return stateOf(status) == want
	case "health":
		if status.Health == nil {
			return want == "none"
		}
		return status.Health.Status == want
	case "volume":
		return slices.ContainsFunc(volumesOf(container), func(v volumes.Volume) bool { return v.Source == want || v.Target == want })
	case "exited":
		return status.State == runner.StateExited && fmt.Sprint(status.ExitCode) == want
	case "ancestor":
		id := container.Spec.Annotations[annotationImageID]
		return container.Image() == want || container.Image() == want+":latest" || len(want) >= 12 && strings.HasPrefix(strings.TrimPrefix(id, "sha256:"), want) || id == want
	}
	return false
}
