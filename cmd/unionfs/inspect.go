package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	"github.com/urfave/cli/v2"

	"unionfs/layerstore"
	"unionfs/network"
	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

func inspectCommand() *cli.Command {
	return &cli.Command{
		Name:      "inspect",
		Usage:     "print all about containers, images, volumes and networks",
		ArgsUsage: "CONTAINER|IMAGE|VOLUME|NETWORK...",
		Description: `Prints what is known about containers, images, volumes and networks as a JSON array, with Docker's names. Where several
things have the same name, it is the first of them in this order, unless --type says which kind is meant.

Examples:
   unionfs inspect web
   unionfs inspect --format json alpine debian | jq -r .Config.Cmd
   unionfs inspect --format '{{.State.Status}}' web`,
		Flags: []cli.Flag{
			inspectFormatFlag(),
			&cli.StringFlag{Name: "type", Usage: "look only for a `KIND`: container, image, volume or network"},
			&cli.BoolFlag{Name: "size", Aliases: []string{"s"}, Usage: "tell what a container wrote too, in bytes (SizeRw), and with its image (SizeRootFs)"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "CONTAINER|IMAGE|VOLUME|NETWORK..."); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			if c.Bool("size") && runner.NeedsUserNamespace() {
				return againInNamespace(c, root)
			}
			store, err := openStore(c)
			if err != nil {
				return err
			}
			look, err := inspectorOf(c, root, store)
			if err != nil {
				return err
			}
			all := []any{} // [] rather than null
			var failed error
			for _, ref := range c.Args().Slice() {
				details, err := look(ref)
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

// inspectEach is the action of the verbs that print all about what their arguments name. What there is is printed also if
// something isn't there.
func inspectEach(usage string, inspect func(root, name string) (any, error)) cli.ActionFunc {
	return func(c *cli.Context) error {
		if err := arguments(c, 1, -1, usage); err != nil {
			return err
		}
		root, err := stateRoot(c)
		if err != nil {
			return err
		}
		all := []any{}
		var failed error
		for _, name := range c.Args().Slice() {
			details, err := inspect(root, name)
			if err != nil {
				failed = errors.Join(failed, err)
				continue
			}
			all = append(all, details)
		}
		return errors.Join(printDetails(c.App.Writer, c.String("format"), all), failed)
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

// inspectorOf returns what looks for things of the kind that --type says, or for all kinds in turn.
func inspectorOf(c *cli.Context, root string, store *layerstore.Store) (func(ref string) (any, error), error) {
	kinds := []struct {
		name string
		look func(ref string) (any, error)
	}{
		{"container", func(ref string) (any, error) { return inspectContainer(root, ref, c.Bool("size")) }},
		{"image", func(ref string) (any, error) { return inspectImage(store, ref) }},
		{"volume", func(ref string) (any, error) { return inspectVolume(root, ref) }},
		{"network", func(ref string) (any, error) { return inspectNetwork(root, ref) }},
	}
	wanted := c.String("type")
	for _, kind := range kinds {
		if kind.name == wanted {
			return kind.look, nil
		}
	}
	if wanted != "" {
		return nil, usageError("--type %q: want container, image, volume or network", wanted)
	}
	return func(ref string) (any, error) {
		for _, kind := range kinds {
			details, err := kind.look(ref)
			// A name that no image can have may be a volume's.
			if err == nil || !isMissing(err) && (kind.name != "image" || layerstore.CheckName(ref) == nil) {
				return details, err
			}
		}
		return nil, fmt.Errorf("there is no container, image, volume or network %q", ref)
	}, nil
}

// isMissing reports whether an error says that something isn't there, or can't be by its name.
func isMissing(err error) bool {
	for _, missing := range []error{runner.ErrNotFound, layerstore.ErrNotFound, volumes.ErrNotFound, network.ErrNotFound} {
		if errors.Is(err, missing) {
			return true
		}
	}
	return false
}

func inspectContainer(root, ref string, sizes bool) (any, error) {
	container, err := findContainer(root, ref)
	if err != nil {
		return nil, err
	}
	status, err := container.Status()
	if err != nil {
		return nil, err
	}
	details := detailsOf(root, container, status)
	if sizes {
		written, image, err := sizesOf(root, container, map[string]int64{})
		if err != nil {
			return nil, err
		}
		whole := written + image
		details.SizeRw, details.SizeRootFs = &written, &whole
	}
	return details, nil
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
	SizeRw          *int64 `json:",omitempty"` // bytes that it wrote, with --size
	SizeRootFs      *int64 `json:",omitempty"` // with those of its image
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
	d.Image = spec.Annotations[rootfs.AnnotationImageID]
	if d.Image == "" {
		d.Image = container.Image()
	}
	d.HostConfig = hostConfigOf(container)
	d.RestartCount, d.Driver, d.Platform = status.RestartCount, "unionfs", "linux"
	d.State.Restarting, d.State.Health = status.State == runner.StateRestarting, status.Health
	d.Config.Healthcheck = container.HealthCheck()
	d.Config.Volumes = map[string]struct{}{}
	for _, v := range supervisor.VolumesOf(container) {
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
