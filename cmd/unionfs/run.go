package main

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

// Flags that run and try share.
func containerFlags() []cli.Flag {
	return append([]cli.Flag{
		&cli.BoolFlag{Name: "rm", Usage: "remove the container, with all that it changed, when the command has ended"},
		&cli.StringFlag{Name: "name", Usage: "call the container `NAME`; one is made up otherwise"},
		&cli.StringSliceFlag{Name: "volume", Aliases: []string{"v"}, Usage: "mount `HOST-PATH:TARGET[:ro,U]`, the volume NAME:TARGET, or at TARGET a new volume that goes with the container"},
		&cli.StringSliceFlag{Name: "volumes-from", Usage: "mount the volumes of `CONTAINER[:ro]`"},
		&cli.StringSliceFlag{Name: "mount", Usage: "mount `type=bind|volume|tmpfs|image,source=…,target=…[,readonly]`"},
		&cli.StringSliceFlag{Name: "tmpfs", Usage: "mount memory at `TARGET[:size=64m,mode=1777]`"},
		&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `NAME=VALUE`, or pass the caller's NAME"},
		&cli.StringSliceFlag{Name: "env-file", Usage: "set the variables in `FILE`, one a line"},
		&cli.StringFlag{Name: "workdir", Aliases: []string{"w"}, Usage: "start in `DIR`"},
		&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "run as `USER[:GROUP]`, names or numbers"},
		&cli.StringFlag{Name: "hostname", Aliases: []string{"h"}, Usage: "set the host name to `NAME`"},
		&cli.StringFlag{Name: "domainname", Usage: "set the NIS domain name to `NAME`"},
		&cli.BoolFlag{Name: "read-only", Usage: "make the root read only"},
		&cli.StringSliceFlag{Name: "label", Aliases: []string{"l"}, Usage: "give the container the label `NAME=VALUE`"},
		&cli.StringSliceFlag{Name: "label-file", Usage: "give it the labels in `FILE`, one a line"},
		&cli.StringSliceFlag{Name: "annotation", Usage: "set the annotation `NAME=VALUE` in the container's OCI configuration"},
		&cli.StringFlag{Name: "cidfile", Usage: "write the container's ID to `FILE`, which must not be there"},
	}, slices.Concat(networkFlags(), isolationFlags(), limitFlags())...)
}

func runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "run a command on an image, in a container",
		UsageText: "unionfs run [options] IMAGE [COMMAND [ARG...]]",
		Description: `Runs COMMAND, or what the image says, on a copy-on-write view of the image, in namespaces of its own. What it writes is
kept in the container until "unionfs rm", or until it ends with --rm. The image "host" is this machine's own root: see
"unionfs try".

The exit code is the command's; 128+N if signal N ended it; 126 if it can't be executed, 127 if it isn't there; 125 if
unionfs itself failed.

Examples:
   unionfs run --rm -it alpine sh
   unionfs run --rm -v "$PWD":/src:ro -w /src -e CGO_ENABLED=0 golang go vet ./...
   unionfs run -d --name web -u www-data nginx`,
		Flags: append(imageRunFlags(), &cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "run it in the background, and print the container's ID"}, sigProxyFlag(), detachKeysFlag()),
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "IMAGE [COMMAND...]"); err != nil {
				return asRunFailure(err)
			}
			l, err := launchOf(c)
			if err != nil {
				return asRunFailure(err)
			}
			return asRunFailure(runContainer(c, l))
		},
	}
}

// imageRunFlags are those that run and create share.
func imageRunFlags() []cli.Flag {
	return slices.Concat(containerFlags(), imageToRunFlags(), lifecycleFlags(), healthFlags(), []cli.Flag{
		&cli.BoolFlag{Name: "interactive", Aliases: []string{"i"}, Usage: "pass standard input to the command"},
		&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give the command a terminal"},
		&cli.StringSliceFlag{Name: "attach", Aliases: []string{"a"}, Usage: "pass on only `STREAM` stdin, stdout or stderr; may be given several times", DefaultText: "the outputs, and with -i the input"},
		&cli.StringFlag{Name: "entrypoint", Usage: "run `PROGRAM` in place of the image's entry point"},
	})
}

// launchOf is what the command line of run or create says.
func launchOf(c *cli.Context) (launch, error) {
	l := launch{
		image:       c.Args().First(),
		args:        c.Args().Tail(),
		interactive: c.Bool("interactive"),
		terminal:    c.Bool("tty"),
		background:  c.Bool("detach"),
	}
	asked := c.StringSlice("attach")
	if len(asked) == 0 {
		return l, nil
	}
	if l.background {
		return l, usageError("--attach and --detach exclude each other")
	}
	attached := map[string]bool{}
	for _, stream := range asked {
		stream = strings.ToLower(stream)
		if !slices.Contains([]string{"stdin", "stdout", "stderr"}, stream) {
			return l, usageError("--attach %q: want stdin, stdout or stderr", stream)
		}
		attached[stream] = true
	}
	l.interactive = l.interactive && attached["stdin"]
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return l, err
	}
	if !attached["stdout"] {
		l.stdout = null
	}
	if !attached["stderr"] {
		l.stderr = null
	}
	return l, nil
}

func tryCommand() *cli.Command {
	return &cli.Command{
		Name:      "try",
		Usage:     "run a command on a copy-on-write view of this machine",
		UsageText: "unionfs try [options] COMMAND [ARG...]",
		Description: `Runs COMMAND as root on this machine's own files, in the same directory and with the same environment, but what it
writes, deletes or renames is kept apart: the machine itself stays as it is. Afterwards "unionfs diff" lists what it
changed, and "unionfs apply" does the same to the machine, or "unionfs rm" forgets it.

It is for ordinary users too, with the files that they may read. The command has the machine's network (--network none
takes it away), but sees no other processes, and no devices but the harmless ones.

Examples:
   unionfs try sh -c 'apt-get update && apt-get install -y cowsay'
   unionfs try make install
   unionfs try --rm rm -rf /usr/lib`,
		Flags: containerFlags(),
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, -1, "COMMAND [ARG...]"); err != nil {
				return asRunFailure(err)
			}
			return asRunFailure(runContainer(c, launch{
				image:       rootfs.HostImage,
				args:        c.Args().Slice(),
				interactive: true,
				terminal:    term.IsTerminal(0) && term.IsTerminal(1),
				tell:        true,
			}))
		},
	}
}

// asRunFailure gives an error the exit code that says that unionfs failed, not the command. A wrong command line is that
// too: the code 2 may be the command's.
func asRunFailure(err error) error {
	if err == nil {
		return nil
	}
	if coded, ok := err.(*exitError); ok {
		if coded.code == exitUsage {
			coded.code = exitRunFailed
		}
		return coded
	}
	return &exitError{exitRunFailed, err}
}

// launch is what to run.
type launch struct {
	image       string
	args        []string
	interactive bool
	terminal    bool
	background  bool
	stdout      *os.File // what the command writes goes there; our own if nil
	stderr      *os.File
	tell        bool // say afterwards how to see and keep what the command changed
}

// options are how it is run in front.
func (l *launch) options(ahead *runner.Supervisor) runner.RunOptions {
	return runner.RunOptions{Ahead: ahead, Interactive: l.interactive, Stdout: l.stdout, Stderr: l.stderr}
}

// processRequestOf reads the flags that run and try share.
func processRequestOf(c *cli.Context, l launch, directory string) (processRequest, error) {
	r := processRequest{
		args:     l.args,
		workdir:  c.String("workdir"),
		hostname: c.String("hostname"),
		domain:   c.String("domainname"),
		readOnly: c.Bool("read-only"),
		terminal: l.terminal,
	}
	if c.IsSet("entrypoint") {
		entrypoint := c.String("entrypoint")
		r.entrypoint = &entrypoint
	}
	for _, file := range c.StringSlice("env-file") {
		env, err := readEnvFile(file)
		if err != nil {
			return r, err
		}
		r.env = append(r.env, env...)
	}
	env, err := resolveEnv(c.StringSlice("env"))
	if err != nil {
		return r, err
	}
	r.env = append(r.env, env...)
	if r.isolation, err = isolationOf(c); err != nil {
		return r, err
	}
	if r.resources, err = resourcesOf(c); err != nil {
		return r, err
	}
	if r.labels, err = containerLabels(c); err != nil {
		return r, err
	}
	kinds := []struct {
		flag  string
		parse func(string) (volumes.Volume, error)
	}{
		{"volume", func(s string) (volumes.Volume, error) { return volumes.ParseVolume(s, directory) }},
		{"mount", func(s string) (volumes.Volume, error) { return volumes.ParseMount(s, directory) }},
		{"tmpfs", volumes.ParseTmpfs},
	}
	for _, kind := range kinds {
		for _, value := range c.StringSlice(kind.flag) {
			v, err := kind.parse(value)
			if err != nil {
				return r, err
			}
			r.volumes = append(r.volumes, v)
		}
	}
	return r, nil
}

// createContainer makes the container with a new ID, and returns the state's root too.
func createContainer(c *cli.Context, l launch, id string) (string, *runner.Container, error) {
	directory, err := os.Getwd()
	if err != nil {
		return "", nil, fmt.Errorf("finding the working directory: %w", err)
	}
	request, err := processRequestOf(c, l, directory)
	if err != nil {
		return "", nil, err
	}
	root, err := stateRoot(c)
	if err != nil {
		return "", nil, err
	}
	image, err := imageToRun(c, root, l.image)
	if err != nil {
		return "", nil, err
	}
	config, imageID := configToRun(image, directory)
	writeID, err := openIDFile(c.String("cidfile"))
	if err != nil {
		return "", nil, err
	}
	if request.network, err = networkOf(c, root, l.image, config, request); err != nil {
		return "", nil, err
	}
	state, err := runner.OpenState(root)
	if err != nil {
		return "", nil, err
	}
	request.volumes, err = completeVolumes(root, state.ContainerDir(id), request.volumes, c.StringSlice("volumes-from"), config.Volumes)
	if err != nil {
		return "", nil, err
	}
	claim := volumes.OpenStore(root).Claim()
	created := false
	defer func() {
		writeID(id, created)
		if created {
			claim.Release()
		} else {
			claim.Discard()
		}
	}()
	spec, err := newSpec(config, request, claim)
	if err != nil {
		return "", nil, err
	}
	user := c.String("user")
	if user == "" {
		user = cmp.Or(request.isolation.user(), config.User)
	}
	annotations, err := lifecycleAnnotations(c, l.interactive)
	if err != nil {
		return "", nil, err
	}
	annotations[rootfs.AnnotationImageID] = imageID
	annotations[supervisor.AnnotationNetwork] = request.network.mode
	if image != nil {
		health, err := healthAnnotation(c, image.RawConfig())
		if err != nil {
			return "", nil, err
		}
		if health != "" {
			annotations[runner.AnnotationHealth] = health
		}
	}
	container, err := state.Create(spec, runner.CreateOptions{
		ID:          id,
		Name:        c.String("name"),
		Image:       l.image,
		User:        user,
		AutoRemove:  c.Bool("rm"),
		Annotations: annotations,
		KeepEtc:     l.image == rootfs.HostImage,
		Hosts:       request.network.hosts,
		Groups:      request.isolation.groups,
	})
	if err != nil {
		return "", nil, err
	}
	if err := request.network.writePlan(container); err != nil {
		return "", nil, errors.Join(err, state.Remove(container))
	}
	created = true
	return root, container, nil
}

func runContainer(c *cli.Context, l launch) error {
	id := runner.NewID()
	ahead := startAhead(c, l, id)
	root, container, err := createContainer(c, l, id)
	if err != nil {
		ahead.Abandon()
		return err
	}
	if l.background {
		if err := startInBackground(c, root, container); err != nil {
			removeUnstarted(root, container)
			return err
		}
		fmt.Fprintln(c.App.Writer, container.ID)
		return nil
	}
	err = runInFront(c, root, container, l.options(ahead))
	if isOurFailure(err) {
		removeUnstarted(root, container)
	}
	if l.tell && !isOurFailure(err) && !container.AutoRemove() {
		fmt.Fprintf(c.App.ErrWriter, "unionfs: what it changed is in container %s: see it with \"unionfs diff %[1]s\", then \"unionfs apply %[1]s\" or \"unionfs rm %[1]s\"\n", container.Name)
	}
	return err
}

// removeUnstarted removes a --rm container whose run failed. Its supervisor does that, unless it never was: an error here
// means that it has done so.
func removeUnstarted(root string, container *runner.Container) {
	if state, err := runner.OpenState(root); err == nil && container.AutoRemove() {
		if state.Remove(container) == nil {
			_ = supervisor.RemoveAnonymous(root, container)
		}
	}
}

// isOurFailure reports whether an error of runInFront is more than the command's own exit code.
func isOurFailure(err error) bool {
	coded, ok := err.(*exitError)
	return err != nil && (!ok || coded.err != nil)
}
