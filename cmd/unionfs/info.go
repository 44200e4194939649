package main

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/docker/go-units"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/runner"
)

// hostInfo is what "info" prints, with Docker's names in JSON where Docker has it.
type hostInfo struct {
	ServerVersion     string
	RootDir           string
	Containers        int
	ContainersRunning int
	ContainersPaused  int
	ContainersStopped int
	Images            int
	CgroupVersion     string // "1" or "2": what limits containers
	Rootless          bool
	KernelVersion     string
	OperatingSystem   string
	OSType            string
	Architecture      string
	NCPU              int
	MemTotal          uint64 // bytes
}

func infoCommand() *cli.Command {
	return &cli.Command{
		Name:  "info",
		Usage: "say what there is here, and on what machine",
		Description: `Counts containers and images, and says where they are kept and what machine this is.

Examples:
   unionfs info
   unionfs info -f '{{.RootDir}}'`,
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "format", Aliases: []string{"f"}, Usage: "print as `FORMAT`: table, json, or a Go template such as '{{.Images}}'", Value: "table"},
		},
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			info, err := hostInfoOf(c, root)
			if err != nil {
				return err
			}
			if c.String("format") != "table" {
				return printRows(c, nil, []*hostInfo{info})
			}
			return printRows(c, nil, info.lines())
		},
	}
}

func hostInfoOf(c *cli.Context, root string) (*hostInfo, error) {
	info := &hostInfo{
		ServerVersion: version, RootDir: root, Rootless: runner.NeedsUserNamespace(), OSType: runtime.GOOS, NCPU: runtime.NumCPU(),
		CgroupVersion: "1", OperatingSystem: osName("/etc/os-release"),
	}
	state, err := runner.OpenState(root)
	if err != nil {
		return nil, err
	}
	containers, err := state.List()
	if err != nil {
		return nil, err
	}
	info.Containers = len(containers)
	for _, container := range containers {
		switch status, err := container.Status(); {
		case err != nil: // removed since
			info.Containers--
		case status.Paused:
			info.ContainersPaused++
		case status.State == runner.StateRunning:
			info.ContainersRunning++
		default:
			info.ContainersStopped++
		}
	}
	store, err := openStore(c)
	if err != nil {
		return nil, err
	}
	images, err := store.Images()
	if err != nil {
		return nil, err
	}
	info.Images = len(images)
	var uname unix.Utsname
	if err := unix.Uname(&uname); err != nil {
		return nil, err
	}
	info.KernelVersion, info.Architecture = unix.ByteSliceToString(uname.Release[:]), unix.ByteSliceToString(uname.Machine[:])
	var sysinfo unix.Sysinfo_t
	if err := unix.Sysinfo(&sysinfo); err != nil {
		return nil, err
	}
	info.MemTotal = uint64(sysinfo.Totalram) * uint64(sysinfo.Unit)
	var fs unix.Statfs_t
	if unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC {
		info.CgroupVersion = "2"
	}
	return info, nil
}

// osName is what a distribution calls itself in its os-release(5).
func osName(file string) string {
	f, err := os.Open(file)
	if err != nil {
		return "Linux"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if name, is := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); is {
			return strings.Trim(name, `"'`)
		}
	}
	return "Linux"
}

// columns are all in one line; see lines.
func (i *hostInfo) columns() []string { return nil }

// infoLine is one of a table's.
type infoLine [2]string

func (l infoLine) columns() []string { return l[:] }

func (i *hostInfo) lines() []infoLine {
	return []infoLine{
		{"Version:", i.ServerVersion},
		{"Root Dir:", i.RootDir},
		{"Containers:", fmt.Sprint(i.Containers)},
		{" Running:", fmt.Sprint(i.ContainersRunning)},
		{" Paused:", fmt.Sprint(i.ContainersPaused)},
		{" Stopped:", fmt.Sprint(i.ContainersStopped)},
		{"Images:", fmt.Sprint(i.Images)},
		{"Cgroup Version:", i.CgroupVersion},
		{"Rootless:", fmt.Sprint(i.Rootless)},
		{"Kernel Version:", i.KernelVersion},
		{"Operating System:", i.OperatingSystem},
		{"Architecture:", i.Architecture},
		{"CPUs:", fmt.Sprint(i.NCPU)},
		{"Total Memory:", units.BytesSize(float64(i.MemTotal))},
	}
}
