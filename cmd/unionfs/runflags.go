package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/moby/sys/signal"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/network"
	"unionfs/runner"
)

// isolationFlags are the flags of run and try that loosen or tighten what shuts a container in, with Docker's names.
func isolationFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "security-opt", Usage: "`OPTION`: seccomp=FILE|unconfined, no-new-privileges, systempaths=unconfined"},
		&cli.StringSliceFlag{Name: "cap-add", Usage: "give the command the capability `NAME`, or ALL"},
		&cli.StringSliceFlag{Name: "cap-drop", Usage: "take the capability `NAME`, or ALL, from the command"},
		&cli.BoolFlag{Name: "privileged", Usage: "give the command all that you have yourself: capabilities, devices, system calls"},
		&cli.StringSliceFlag{Name: "device", Usage: "let the command use the device `HOST-PATH[:PATH]`"},
		&cli.StringSliceFlag{Name: "ulimit", Usage: "set a resource limit: `NAME=SOFT[:HARD]`, such as nofile=1024"},
		&cli.StringFlag{Name: "oom-score-adj", Usage: "when memory is short, end the command rather than others, or others rather than it: `N` from -1000 to 1000"},
		&cli.StringSliceFlag{Name: "sysctl", Usage: "set a kernel parameter of the container's own: `NAME=VALUE`"},
		&cli.StringFlag{Name: "shm-size", Usage: "make /dev/shm `SIZE` large", DefaultText: "64m"},
		&cli.StringSliceFlag{Name: "add-host", Usage: "add a line to /etc/hosts: `NAME:ADDRESS`; the address host-gateway is this machine's"},
		&cli.StringSliceFlag{Name: "group-add", Usage: "make the command's user a member of `GROUP` too; keep-groups is your own ones"},
		&cli.StringFlag{Name: "stop-signal", Usage: "ask the command to end by `SIGNAL`", DefaultText: "the image's, or TERM"},
		&cli.StringFlag{Name: "userns", Usage: "`MODE`: host, or keep-id to have your own ID inside"},
		&cli.StringFlag{Name: "pid", Usage: "`MODE`: private, host to see the machine's processes, or container:NAME to see another's"},
		&cli.StringFlag{Name: "ipc", Usage: "`MODE`: private or shareable, host to share the machine's message queues and /dev/shm, or container:NAME to share another's"},
		&cli.StringFlag{Name: "uts", Usage: "`MODE`: private, host to share the machine's name, or container:NAME to share another's"},
		&cli.StringFlag{Name: "cgroupns", Usage: "`MODE`: private, host to see the machine's cgroups, or container:NAME to see what another sees"},
		&cli.StringFlag{Name: "runtime", Usage: "have the OCI runtime `PROGRAM` make the container, such as runc"},
		&cli.BoolFlag{Name: "init", Usage: "have an init in the container; there always is one"},
	}
}

// isolation is what the command line says by those flags.
type isolation struct {
	seccomp          string // a file, "unconfined", or "" for Docker's profile
	noNewPrivileges  bool
	openPaths        bool // nothing is masked
	privileged       bool
	capAdd, capDrop  []string
	devices          []string
	rlimits          []specs.POSIXRlimit
	oomScore         *int
	sysctls          map[string]string
	shmSize          int64    // bytes; 0 for the default
	hosts            []string // lines for /etc/hosts
	groups           []string
	stopSignal       string
	keepID           bool
	runtime          string // the path of another OCI runtime; "" for our own
	mapsIDs          bool   // with keepID: there are others to be mapped around it
	sharedNamespaces []specs.LinuxNamespaceType
	ofContainers     map[specs.LinuxNamespaceType]string // namespaces that other containers share, by their IDs
}

func isolationOf(c *cli.Context) (isolation, error) {
	i := isolation{
		privileged: c.Bool("privileged"),
		capAdd:     c.StringSlice("cap-add"),
		capDrop:    c.StringSlice("cap-drop"),
		devices:    c.StringSlice("device"),
		groups:     c.StringSlice("group-add"),
		stopSignal: c.String("stop-signal"),
	}
	for _, read := range []func(*cli.Context) error{i.readSecurity, i.readLimits, i.readSysctls, i.readHosts, i.readNamespaces} {
		if err := read(c); err != nil {
			return i, err
		}
	}
	if name := c.String("runtime"); name != "" {
		program, err := exec.LookPath(name)
		if err == nil {
			program, err = filepath.Abs(program)
		}
		if err != nil {
			return i, fmt.Errorf("--runtime %s: %w", name, err)
		}
		i.runtime = program
	}
	if i.stopSignal != "" {
		if _, err := signal.ParseSignal(i.stopSignal); err != nil {
			return i, usageError("--stop-signal: there is no signal %q", i.stopSignal)
		}
	}
	return i, nil
}

func (i *isolation) readSecurity(c *cli.Context) error {
	for _, option := range c.StringSlice("security-opt") {
		key, value, hasValue := strings.Cut(option, "=")
		if !hasValue {
			key, value, _ = strings.Cut(option, ":") // as it was written in older days
		}
		switch {
		case key == "seccomp" && value == "builtin":
			i.seccomp = ""
		case key == "seccomp" && value != "":
			i.seccomp = value
		case key == "no-new-privileges":
			on, err := strconv.ParseBool(value)
			if err != nil && value != "" {
				return usageError("--security-opt %s: want no-new-privileges, or =false", option)
			}
			i.noNewPrivileges = on || value == ""
		case key == "systempaths" && value == "unconfined":
			i.openPaths = true
		case key == "apparmor" && value == "unconfined" || key == "label" && value == "disable":
			// No profile and no label is put on a container in any case.
		default:
			return usageError("unknown --security-opt %q; known are seccomp=FILE, seccomp=unconfined, no-new-privileges, systempaths=unconfined", option)
		}
	}
	return nil
}

func (i *isolation) readLimits(c *cli.Context) error {
	for _, value := range c.StringSlice("ulimit") {
		u, err := units.ParseUlimit(value)
		if err != nil {
			return usageError("--ulimit %s: %v; want NAME=SOFT[:HARD]", value, err)
		}
		// -1 is no limit.
		i.rlimits = append(i.rlimits, specs.POSIXRlimit{Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard)})
	}
	if n, given, err := wholeNumber(c, "oom-score-adj", -1000, 1000); err != nil {
		return err
	} else if given {
		score := int(n)
		i.oomScore = &score
	}
	if size := c.String("shm-size"); size != "" {
		n, err := units.RAMInBytes(size)
		if err != nil || n <= 0 {
			return usageError("--shm-size %q: want a size such as 64m", size)
		}
		i.shmSize = n
	}
	return nil
}

func (i *isolation) readSysctls(c *cli.Context) error {
	for _, value := range c.StringSlice("sysctl") {
		key, content, ok := strings.Cut(value, "=")
		if !ok || key == "" {
			return usageError("--sysctl %q: want NAME=VALUE", value)
		}
		if i.sysctls == nil {
			i.sysctls = map[string]string{}
		}
		i.sysctls[key] = content
	}
	return nil
}

func (i *isolation) readHosts(c *cli.Context) error {
	for _, value := range c.StringSlice("add-host") {
		name, address, ok := strings.Cut(value, "=")
		if !ok {
			name, address, _ = strings.Cut(value, ":")
		}
		if address == network.HostGateway && name != "" && !strings.ContainsAny(name, " \t\n#") {
			i.hosts = append(i.hosts, network.HostGateway+"\t"+name)
			continue
		}
		ip := net.ParseIP(strings.Trim(address, "[]"))
		if ip == nil || name == "" || strings.ContainsAny(name, " \t\n#") {
			return usageError("--add-host %q: want NAME:ADDRESS, with an IP address or host-gateway", value)
		}
		i.hosts = append(i.hosts, ip.String()+"\t"+name)
	}
	return nil
}

// readNamespaces reads the flags that share a namespace of the host's.
func (i *isolation) readNamespaces(c *cli.Context) error {
	for flag, kind := range map[string]specs.LinuxNamespaceType{"pid": specs.PIDNamespace, "ipc": specs.IPCNamespace, "uts": specs.UTSNamespace, "cgroupns": specs.CgroupNamespace} {
		switch mode := c.String(flag); {
		case mode == "" || mode == "private" || flag == "ipc" && mode == "shareable":
		case mode == "host":
			i.sharedNamespaces = append(i.sharedNamespaces, kind)
		case strings.HasPrefix(mode, "container:"):
			id, err := sharingContainer(c, strings.TrimPrefix(mode, "container:"))
			if err != nil {
				return err
			}
			if i.ofContainers == nil {
				i.ofContainers = map[specs.LinuxNamespaceType]string{}
			}
			i.ofContainers[kind] = id
		default:
			return usageError("--%s %q is not supported; known are private, host and container:NAME", flag, mode)
		}
	}
	if i.ofContainers[specs.UTSNamespace] != "" && c.String("hostname") != "" {
		return usageError("--hostname: with --uts container:NAME the name is the other container's")
	}
	if c.String("uts") == "host" && c.String("hostname") != "" {
		return usageError("--hostname: with --uts host the name is the machine's")
	}
	if slices.Contains(i.groups, runner.KeepGroups) && len(i.groups) > 1 {
		return usageError("--group-add keep-groups can't be together with other groups")
	}
	switch mode := c.String("userns"); mode {
	case "", "host":
		// A container's user namespace has the IDs of the namespace around it, which is what "host" means to programs
		// inside.
	case "keep-id":
		if !runner.NeedsUserNamespace() {
			return usageError("--userns keep-id is for ordinary users; root's ID inside is its own")
		}
		ranges, err := runner.HasSubordinateIDs()
		if err != nil {
			return err
		}
		i.keepID, i.mapsIDs = true, ranges
	default:
		return usageError("--userns %q is not supported; known are host and keep-id", mode)
	}
	return nil
}

// sharingContainer is the ID of the container whose namespace is to be shared.
func sharingContainer(c *cli.Context, name string) (string, error) {
	root, err := stateRoot(c)
	if err != nil {
		return "", err
	}
	other, err := findContainer(root, name)
	if err != nil {
		return "", err
	}
	return other.ID, nil
}

// user is the USER of --userns keep-id, "" without.
func (i *isolation) user() string {
	if !i.keepID {
		return ""
	}
	return fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
}

// apply changes the specification. It comes last: the seccomp profile depends on the capabilities.
func (i *isolation) apply(spec *specs.Spec) (err error) {
	if err := i.setCapabilities(spec.Process); err != nil {
		return err
	}
	if i.privileged {
		runner.Unmask(spec)
	}
	if err := i.addDevices(spec); err != nil {
		return err
	}
	if err := i.setLimits(spec.Process); err != nil {
		return err
	}
	spec.Linux.Sysctl = i.sysctls
	if i.shmSize > 0 {
		if err := setShmSize(spec, i.shmSize); err != nil {
			return err
		}
	}
	if i.stopSignal != "" {
		spec.Annotations[runner.AnnotationStopSignal] = i.stopSignal
	}
	for _, kind := range i.sharedNamespaces {
		runner.ShareHostNamespace(spec, kind)
	}
	if i.mapsIDs {
		if err := runner.KeepID(spec); err != nil {
			return err
		}
	}
	if i.runtime != "" {
		spec.Annotations[runner.AnnotationRuntime] = i.runtime
	}
	for kind, id := range i.ofContainers {
		runner.ShareContainerNamespace(spec, kind, id)
	}
	spec.Process.NoNewPrivileges = i.noNewPrivileges
	if i.openPaths {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	}
	switch {
	case i.seccomp == "unconfined" || i.seccomp == "" && i.privileged:
	case i.seccomp == "":
		spec.Linux.Seccomp, err = runner.DefaultSeccomp(spec)
	default:
		spec.Linux.Seccomp, err = runner.ReadSeccomp(i.seccomp, spec)
	}
	return err
}

// setCapabilities is Docker's rule: ALL in either list goes first, and dropping one goes before adding it unless it is all
// that are added.
func (i *isolation) setCapabilities(p *specs.Process) error {
	if len(i.capAdd)+len(i.capDrop) == 0 && !i.privileged {
		return nil
	}
	known, err := runner.SupportedCapabilities()
	if err != nil {
		return err
	}
	read := func(flag string, values []string) (names []string, all bool, err error) {
		for _, value := range values {
			for name := range strings.SplitSeq(value, ",") {
				name = strings.ToUpper(name)
				if name == "ALL" {
					all = true
					continue
				}
				name = "CAP_" + strings.TrimPrefix(name, "CAP_")
				if !slices.Contains(known, name) {
					return nil, false, usageError("--%s %q: this kernel has no such capability; see capabilities(7)", flag, value)
				}
				names = append(names, name)
			}
		}
		return names, all, nil
	}
	add, addAll, err := read("cap-add", i.capAdd)
	if err != nil {
		return err
	}
	drop, dropAll, err := read("cap-drop", i.capDrop)
	if err != nil {
		return err
	}
	have := slices.Clone(p.Capabilities.Bounding)
	without := func(set []string) []string {
		return slices.DeleteFunc(set, func(name string) bool { return slices.Contains(drop, name) })
	}
	switch {
	case i.privileged:
		have = without(known)
	case addAll:
		have = without(known)
	case dropAll:
		have = add
	default:
		have = append(without(have), add...)
	}
	slices.Sort(have)
	have = slices.Compact(have)
	p.Capabilities.Bounding, p.Capabilities.Effective, p.Capabilities.Permitted = have, slices.Clone(have), slices.Clone(have)
	return nil
}

// addDevices adds those of --device, and with --privileged all that the caller may use.
func (i *isolation) addDevices(spec *specs.Spec) error {
	if i.privileged {
		devices, err := runner.HostDevices()
		if err != nil {
			return err
		}
		spec.Linux.Devices = devices
	}
	for _, value := range i.devices {
		parts := strings.Split(value, ":")
		source, target := parts[0], parts[0]
		if len(parts) > 1 && strings.HasPrefix(parts[1], "/") {
			target = parts[1]
			parts = parts[1:]
		}
		if len(parts) == 2 && parts[1] != "rwm" && parts[1] != "rw" {
			return usageError("--device %s: only rwm is supported: the permissions of the device's file decide", value)
		}
		if len(parts) > 2 || !strings.HasPrefix(source, "/") {
			return usageError("--device %q: want HOST-PATH[:PATH[:rwm]]", value)
		}
		st, err := os.Stat(source)
		if err != nil {
			return fmt.Errorf("--device: %w", err)
		}
		if st.Mode()&os.ModeDevice == 0 {
			return usageError("--device %s: it is not a device", source)
		}
		if source == target {
			if device, ok := runner.HostDevice(source); ok {
				spec.Linux.Devices = append(slices.DeleteFunc(spec.Linux.Devices, func(d specs.LinuxDevice) bool { return d.Path == source }), device)
				continue
			}
		}
		spec.Mounts = append(spec.Mounts, specs.Mount{Destination: target, Type: "bind", Source: source, Options: []string{"bind", "nosuid", "noexec", "dev"}})
	}
	return nil
}

// setLimits refuses, rather than lowers, what this process can't allow the command. A higher limit is taken here already,
// since the processes in the container have no power over it.
func (i *isolation) setLimits(p *specs.Process) error {
	for _, l := range i.rlimits {
		n, ok := runner.LimitNumber(l.Type)
		if !ok {
			return usageError("--ulimit: there is no limit %q", strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_")))
		}
		var own unix.Rlimit
		if err := unix.Getrlimit(n, &own); err != nil {
			return err
		}
		if l.Hard > own.Max {
			if err := unix.Setrlimit(n, &unix.Rlimit{Cur: own.Cur, Max: l.Hard}); err != nil {
				return fmt.Errorf("--ulimit: %s can be at most %d here, the caller's own hard limit: raise it in /etc/security/limits.conf, or ask for less (%w)",
					strings.ToLower(strings.TrimPrefix(l.Type, "RLIMIT_")), own.Max, err)
			}
		}
	}
	p.Rlimits = append(p.Rlimits, i.rlimits...)
	p.OOMScoreAdj = i.oomScore
	return nil
}

func setShmSize(spec *specs.Spec, size int64) error {
	for n := range spec.Mounts {
		m := &spec.Mounts[n]
		if m.Destination == "/dev/shm" && m.Type == "tmpfs" {
			m.Options = append(slices.DeleteFunc(m.Options, func(o string) bool { return strings.HasPrefix(o, "size=") }), fmt.Sprintf("size=%d", size))
			return nil
		}
	}
	return errors.New("--shm-size: /dev/shm is not the container's own memory")
}
