package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

func printJSON(w io.Writer, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(data))
	return err
}

func ownerName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return "#" + strconv.Itoa(uid)
}

func runtimeExecCommand() *cli.Command {
	return &cli.Command{
		Name:        "exec",
		Usage:       "run another command in a running container",
		Description: "What is not said is as for the container's first command.\n\nExamples:\n   unionfs runtime exec -t mycontainer sh\n   unionfs runtime exec --process process.json --pid-file /tmp/pid --detach mycontainer",
		ArgsUsage:   "ID [COMMAND [ARGUMENT…]]",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "process", Aliases: []string{"p"}, Usage: "the command as the runtime-spec's process, in `FILE`"},
			&cli.StringFlag{Name: "console-socket", Usage: "send the terminal's master to the socket `PATH`"},
			&cli.StringFlag{Name: "pid-file", Usage: "write the command's process number to `FILE`"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "don't wait for its end"},
			&cli.BoolFlag{Name: "tty", Aliases: []string{"t"}, Usage: "give it a terminal"},
			&cli.StringFlag{Name: "cwd", Usage: "its working `DIR`"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "set the variable `K=V`"},
			&cli.StringFlag{Name: "user", Aliases: []string{"u"}, Usage: "its user, `UID[:GID]`"},
			&cli.IntSliceFlag{Name: "additional-gids", Aliases: []string{"g"}, Usage: "a further group, `GID`"},
			&cli.StringSliceFlag{Name: "cap", Aliases: []string{"c"}, Usage: "a further capability, `CAP`"},
			&cli.BoolFlag{Name: "no-new-privs", Usage: "forbid it to gain privileges by executing files"},
			&cli.StringFlag{Name: "apparmor", Usage: "its AppArmor `PROFILE`"},
			&cli.StringFlag{Name: "process-label", Usage: "its SELinux `LABEL`"},
			&cli.StringFlag{Name: "cgroup", Usage: "run it in `PATH` below the container's cgroup"},
			&cli.IntFlag{Name: "preserve-fds", Usage: "pass `N` descriptors, from 3 on, to it"},
			&cli.BoolFlag{Name: "ignore-paused", Usage: "also in a paused container, where it waits"},
			&cli.BoolFlag{Name: "no-subreaper", Usage: "accepted for runc's sake"},
		},
		Action: withContainer(-1, "ID [COMMAND [ARGUMENT…]]", func(c *cli.Context, container *runner.OCIContainer) error {
			process, err := execProcess(c, container.Spec.Process)
			if err != nil {
				return err
			}
			code, err := container.Exec(c.Context, runner.OCIExecOptions{
				Process: process, ConsoleSocket: c.String("console-socket"), PIDFile: c.String("pid-file"), PreserveFDs: c.Int("preserve-fds"),
				Detach: c.Bool("detach"), Cgroup: c.String("cgroup"), IgnorePaused: c.Bool("ignore-paused"),
				Streams: runner.RunOptions{Interactive: true},
			})
			if err != nil {
				return &exitError{255, err} // as runc, whose callers tell it by this from the command's own
			}
			return exitWith(code, nil)
		}),
	}
}

// execProcess is the other command: what --process says, or the first one with what the flags say.
func execProcess(c *cli.Context, first *specs.Process) (*specs.Process, error) {
	if file := c.String("process"); file != "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("--process: %w", err)
		}
		p := &specs.Process{}
		if err := json.Unmarshal(data, p); err != nil {
			return nil, fmt.Errorf("--process %s: %w", file, err)
		}
		return p, nil
	}
	p := *first
	p.Args = c.Args().Tail()
	if len(p.Args) == 0 {
		return nil, usageError("exec: a command or --process FILE is missing")
	}
	p.Terminal, p.ConsoleSize = c.Bool("tty"), nil
	if cwd := c.String("cwd"); cwd != "" {
		p.Cwd = cwd
	}
	p.Env = mergeEnv(p.Env, c.StringSlice("env"))
	if name := c.String("user"); name != "" {
		uid, gid, hasGID := strings.Cut(name, ":")
		u, err := strconv.ParseUint(uid, 10, 32)
		g, gerr := uint64(p.User.GID), error(nil)
		if hasGID {
			g, gerr = strconv.ParseUint(gid, 10, 32)
		}
		if err != nil || gerr != nil {
			return nil, usageError("--user %q: want UID[:GID]", name)
		}
		p.User = specs.User{UID: uint32(u), GID: uint32(g), Umask: p.User.Umask}
	}
	p.User.AdditionalGids = slices.Clone(p.User.AdditionalGids)
	for _, g := range c.IntSlice("additional-gids") {
		p.User.AdditionalGids = append(p.User.AdditionalGids, uint32(g))
	}
	if caps := c.StringSlice("cap"); len(caps) > 0 {
		all := specs.LinuxCapabilities{}
		if p.Capabilities != nil {
			all = *p.Capabilities
		}
		for _, set := range []*[]string{&all.Bounding, &all.Effective, &all.Permitted} {
			*set = append(slices.Clone(*set), caps...)
		}
		p.Capabilities = &all
	}
	if c.IsSet("no-new-privs") {
		p.NoNewPrivileges = c.Bool("no-new-privs")
	}
	if profile := c.String("apparmor"); profile != "" {
		p.ApparmorProfile = profile
	}
	if label := c.String("process-label"); label != "" {
		p.SelinuxLabel = label
	}
	return &p, nil
}

func runtimeListCommand() *cli.Command {
	return &cli.Command{
		Name:        "list",
		Usage:       "list the containers",
		Description: "Example:\n   unionfs runtime list --format json",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "print as `FORMAT`: table or json", Value: "table"},
			&cli.BoolFlag{Name: "quiet", Aliases: []string{"q"}, Usage: "print IDs only"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			r, err := openRuntime(c)
			if err != nil {
				return err
			}
			all, err := r.List()
			if err != nil {
				return err
			}
			described := []ociDescription{}
			for _, container := range all {
				described = append(described, describeOCI(container))
			}
			switch {
			case c.Bool("quiet"):
				for _, d := range described {
					fmt.Fprintln(c.App.Writer, d.ID)
				}
				return nil
			case c.String("format") == "json":
				return printJSON(c.App.Writer, described)
			case c.String("format") != "table":
				return usageError("--format %q: want table or json", c.String("format"))
			}
			w := tabwriter.NewWriter(c.App.Writer, 12, 1, 3, ' ', 0)
			fmt.Fprintln(w, "ID\tPID\tSTATUS\tBUNDLE\tCREATED\tOWNER")
			for _, d := range described {
				fmt.Fprintf(w, "%s\t%d\t%s\t%s\t%s\t%s\n", d.ID, d.PID, d.Status, d.Bundle, d.Created.Format(time.RFC3339Nano), d.Owner)
			}
			return w.Flush()
		},
	}
}

func runtimePsCommand() *cli.Command {
	return &cli.Command{
		Name:        "ps",
		Usage:       "list a container's processes",
		Description: "The rest of the command line goes to ps(1).\n\nExample:\n   unionfs runtime ps mycontainer -ef",
		ArgsUsage:   "ID [PS-OPTION…]",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "print as `FORMAT`: table or json", Value: "table"}},
		Action: withContainer(-1, "ID [PS-OPTION…]", func(c *cli.Context, container *runner.OCIContainer) error {
			pids, err := container.PIDs()
			if err != nil {
				return err
			}
			if c.String("format") == "json" {
				return json.NewEncoder(c.App.Writer).Encode(pids)
			}
			options := c.Args().Tail()
			if len(options) == 0 {
				options = []string{"-ef"}
			}
			out, err := exec.CommandContext(c.Context, "ps", options...).Output()
			if err != nil {
				return fmt.Errorf("ps %s: %w", strings.Join(options, " "), err)
			}
			lines := strings.Split(strings.TrimRight(string(out), "\n"), "\n")
			column := slices.Index(strings.Fields(lines[0]), "PID")
			if column < 0 {
				return errors.New("ps: its output has no column PID")
			}
			fmt.Fprintln(c.App.Writer, lines[0])
			for _, line := range lines[1:] {
				fields := strings.Fields(line)
				if len(fields) <= column {
					continue
				}
				if pid, err := strconv.Atoi(fields[column]); err == nil && slices.Contains(pids, pid) {
					fmt.Fprintln(c.App.Writer, line)
				}
			}
			return nil
		}),
	}
}

func runtimePauseCommand() *cli.Command {
	return &cli.Command{
		Name:        "pause",
		Usage:       "freeze a container's processes",
		Description: "Example:\n   unionfs runtime pause mycontainer",
		ArgsUsage:   "ID",
		Action: withContainer(1, "ID", func(_ *cli.Context, container *runner.OCIContainer) error {
			return container.Pause()
		}),
	}
}

func runtimeResumeCommand() *cli.Command {
	return &cli.Command{
		Name:        "resume",
		Usage:       "thaw a container's processes",
		Description: "Example:\n   unionfs runtime resume mycontainer",
		ArgsUsage:   "ID",
		Action: withContainer(1, "ID", func(_ *cli.Context, container *runner.OCIContainer) error {
			return container.Resume()
		}),
	}
}

func runtimeUpdateCommand() *cli.Command {
	return &cli.Command{
		Name:        "update",
		Usage:       "change a container's limits",
		Description: "The file has the runtime-spec's linux.resources; \"-\" is standard input.\n\nExample:\n   echo '{\"pids\":{\"limit\":50}}' | unionfs runtime update --resources - mycontainer",
		ArgsUsage:   "ID",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "resources", Aliases: []string{"r"}, Usage: "the limits, in `FILE`", Required: true}},
		Action: withContainer(1, "ID", func(c *cli.Context, container *runner.OCIContainer) error {
			input := io.Reader(os.Stdin)
			if name := c.String("resources"); name != "-" {
				file, err := os.Open(name)
				if err != nil {
					return fmt.Errorf("--resources: %w", err)
				}
				defer file.Close()
				input = file
			}
			resources := &specs.LinuxResources{}
			if err := json.NewDecoder(input).Decode(resources); err != nil {
				return fmt.Errorf("--resources: %w", err)
			}
			return container.Update(resources)
		}),
	}
}

func runtimeFeaturesCommand() *cli.Command {
	return &cli.Command{
		Name:        "features",
		Usage:       "print what this runtime can do, as JSON",
		Description: "Example:\n   unionfs runtime features",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			f, err := runner.Features()
			if err != nil {
				return err
			}
			return printJSON(c.App.Writer, f)
		},
	}
}

func runtimeSpecCommand() *cli.Command {
	return &cli.Command{
		Name:        "spec",
		Usage:       "write a config.json to begin with",
		Description: "Example:\n   unionfs runtime spec --bundle /tmp/bundle",
		Flags:       []cli.Flag{&cli.StringFlag{Name: "bundle", Aliases: []string{"b"}, Usage: "the bundle's `DIR`", Value: "."}},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			spec := runner.DefaultSpec()
			spec.Process.Args, spec.Process.Terminal, spec.Process.NoNewPrivileges = []string{"sh"}, true, true
			spec.Hostname = "unionfs"
			// The first user namespace, until maps are written here; and no time namespace, of which older runtimes know nothing.
			spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool {
				return ns.Type == specs.UserNamespace || ns.Type == specs.TimeNamespace
			})
			data, err := json.MarshalIndent(spec, "", "  ")
			if err != nil {
				return err
			}
			file, err := os.OpenFile(filepath.Join(c.String("bundle"), "config.json"), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
			if err != nil {
				return err
			}
			defer file.Close()
			_, err = file.Write(append(data, '\n'))
			return err
		},
	}
}
