package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// OCICreateOptions are how an OCI runtime's caller wants a container, beside its bundle.
type OCICreateOptions struct {
	// ConsoleSocket is a stream socket that is sent the terminal's master, if the specification asks for a terminal.
	ConsoleSocket string

	PIDFile     string // is written the PID of the container's first process
	PreserveFDs int    // that many of our descriptors, from 3 on, are the command's too
	NoPivot     bool
	NoKeyring   bool

	console *ociConsole // our own, in the place of ConsoleSocket
}

// ReadBundle reads a bundle's config.json, and refuses what this runtime can't do.
func ReadBundle(bundle string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the bundle: %w", err)
	}
	spec := &specs.Spec{}
	if err := json.Unmarshal(data, spec); err != nil {
		return nil, fmt.Errorf("reading %s: %w", filepath.Join(bundle, "config.json"), err)
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	return spec, checkBundle(spec)
}

func checkBundle(spec *specs.Spec) error {
	major, _, _ := strings.Cut(spec.Version, ".")
	switch {
	case major != "1":
		return fmt.Errorf("ociVersion %q: this runtime knows versions 1.x", spec.Version)
	case spec.Root == nil || spec.Root.Path == "":
		return errors.New("root.path is missing")
	case spec.Process == nil:
		return errors.New("process is missing")
	}
	if err := checkOCIProcess(spec.Process); err != nil {
		return err
	}
	seen := map[specs.LinuxNamespaceType]bool{}
	for _, ns := range spec.Linux.Namespaces {
		if _, ok := namespaceFlag(ns.Type); !ok {
			return fmt.Errorf("linux.namespaces: unknown type %q", ns.Type)
		}
		if seen[ns.Type] {
			return fmt.Errorf("linux.namespaces: %s is there twice", ns.Type)
		}
		seen[ns.Type] = true
	}
	newUser := hasNewNamespace(spec, specs.UserNamespace)
	maps := len(spec.Linux.UIDMappings) + len(spec.Linux.GIDMappings)
	switch {
	case newUser && (len(spec.Linux.UIDMappings) == 0 || len(spec.Linux.GIDMappings) == 0):
		return errors.New("a new user namespace needs linux.uidMappings and linux.gidMappings")
	case !seen[specs.UserNamespace] && maps > 0:
		return errors.New("linux.uidMappings and linux.gidMappings need a user namespace")
	case spec.Linux.TimeOffsets != nil && !hasNewNamespace(spec, specs.TimeNamespace):
		return errors.New("linux.timeOffsets need a new time namespace")
	case (spec.Hostname != "" || spec.Domainname != "") && !seen[specs.UTSNamespace]:
		return errors.New("hostname and domainname need a UTS namespace")
	case (len(spec.Linux.MaskedPaths) > 0 || len(spec.Linux.ReadonlyPaths) > 0) && !seen[specs.MountNamespace]:
		return errors.New("linux.maskedPaths and linux.readonlyPaths need a mount namespace")
	case spec.Linux.IntelRdt != nil:
		return errors.New("linux.intelRdt is not supported")
	}
	for i, m := range spec.Mounts {
		if !filepath.IsAbs(m.Destination) {
			// Older versions of the specification allow it, and runc with them.
			spec.Mounts[i].Destination = "/" + m.Destination
		}
	}
	for key := range spec.Linux.Sysctl {
		if err := checkSysctl(spec, key); err != nil {
			return err
		}
	}
	return checkHooks(spec.Hooks)
}

func checkOCIProcess(p *specs.Process) error {
	if len(p.Args) == 0 {
		return errors.New("process.args must not be empty")
	}
	if !filepath.IsAbs(p.Cwd) {
		return fmt.Errorf("process.cwd %q is not an absolute path", p.Cwd)
	}
	for _, e := range p.Env {
		if strings.ContainsRune(e, 0) {
			return errors.New("process.env has a value with a NUL in it")
		}
	}
	return nil
}

// Create creates a container of a bundle: its process waits for [OCIContainer.Start], in its namespaces, with its mounts
// made. If anything fails, nothing is left of it. The container outlives this process, as the child of whoever adopts it.
func (r *Runtime) Create(id, bundle string, o OCICreateOptions) (*OCIContainer, error) {
	if err := checkOCIID(id); err != nil {
		return nil, err
	}
	bundle, err := filepath.Abs(bundle)
	if err != nil {
		return nil, err
	}
	spec, err := ReadBundle(bundle)
	if err != nil {
		return nil, err
	}
	if spec.Process.Terminal && o.ConsoleSocket == "" && o.console == nil {
		return nil, errors.New("process.terminal needs --console-socket when the container is detached")
	}
	if !spec.Process.Terminal && o.ConsoleSocket != "" {
		return nil, errors.New("--console-socket is of use only with process.terminal")
	}
	if err := os.MkdirAll(r.root, 0o700); err != nil {
		return nil, err
	}
	c := &OCIContainer{ID: id, Bundle: bundle, Spec: spec, runtime: r}
	c.record = ociRecord{Version: ociRecordVersion, ID: id, Bundle: bundle, Created: time.Now().UTC(), Owner: os.Getuid(), Spec: spec}
	if err := os.Mkdir(c.dir(), 0o711); err != nil {
		if errors.Is(err, os.ErrExist) {
			return nil, fmt.Errorf("container with id exists: %s", id)
		}
		return nil, err
	}
	lock, err := c.lock()
	if err == nil {
		defer lock.Close()
		err = c.create(o)
	}
	if err != nil {
		_ = os.RemoveAll(c.dir())
		return nil, err
	}
	return c, nil
}

// create does it, with the container's directory locked. The calling thread stays alive until the process has said that it
// needs us no more.
func (c *OCIContainer) create(o OCICreateOptions) (err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	p, err := c.newProcess(o)
	if err != nil {
		return err
	}
	defer p.close()
	manager, err := ociCgroups(c.ID, c.Spec, nil)
	if err != nil {
		return err
	}
	if err := p.listen(c); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			p.kill()
			_ = c.killCgroup()
			_ = c.removeCgroups()
			_ = c.removeMounts()
			_ = runPoststop(c.Spec.Hooks, c.State())
		}
	}()
	p.spawn.beforeFork = func(pid int) error {
		c.record.Cgroups = manager.GetPaths()
		// So that a delete finds them, whatever becomes of us.
		if err := c.write(); err != nil {
			return err
		}
		if err := manager.Apply(pid); err != nil {
			if ignoreCgroups(c.Spec, err) {
				c.record.Cgroups = nil
				return nil
			}
			return fmt.Errorf("making the container's cgroups: %w", err)
		}
		resources, err := ociResources(c.Spec)
		if err != nil {
			return err
		}
		resources.SkipDevices = inUserNamespace()
		if err := manager.Set(resources); err != nil {
			return fmt.Errorf("setting the container's limits: %w", err)
		}
		return nil
	}
	if err := p.start(); err != nil {
		return err
	}
	c.record.PID = p.pid
	if c.record.Start, err = startTime(p.pid); err != nil {
		return err
	}
	if err := setOOMScore(p.pid, c.Spec.Process.OOMScoreAdj); err != nil {
		return err
	}
	if err := c.write(); err != nil {
		return err
	}
	if err := p.configure(); err != nil {
		return err
	}
	if err := p.expect(msgMounted); err != nil {
		return err
	}
	state := c.State()
	state.Status = specs.StateCreating
	for _, kind := range []string{"prestart", "createRuntime"} {
		if err := runHooks(kind, c.Spec.Hooks, state); err != nil {
			return err
		}
	}
	if err := p.wire.send(message{Kind: msgReady}); err != nil {
		return err
	}
	if err := p.expect(msgCreated); err != nil {
		return err
	}
	return writePIDFile(o.PIDFile, p.pid)
}

// ignoreCgroups reports whether a container can do without cgroups that can't be made: an ordinary user's that has no
// limits.
func ignoreCgroups(spec *specs.Spec, err error) bool {
	if os.Geteuid() == 0 && !inUserNamespace() {
		return false
	}
	return spec.Linux.CgroupsPath == "" || errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) || strings.Contains(err.Error(), "rootless")
}

// writePIDFile writes a PID into a new file, whole or not at all.
func writePIDFile(name string, pid int) error {
	if name == "" {
		return nil
	}
	name, err := filepath.Abs(name)
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(name), "."+filepath.Base(name))
	if err := os.WriteFile(tmp, []byte(strconv.Itoa(pid)), 0o644); err != nil {
		return fmt.Errorf("writing --pid-file: %w", err)
	}
	return os.Rename(tmp, name)
}

// setOOMScore is ours to do since a process may not lower its own in a user namespace.
func setOOMScore(pid int, score *int) error {
	if score == nil {
		return nil
	}
	err := writeOOMScore(pid, *score)
	if errors.Is(err, os.ErrPermission) && inUserNamespace() {
		return nil // as runc and crun do it: their callers always give one
	}
	return err
}

// writeOOMScore sets what decides, besides its memory, whether the kernel ends a process when memory is short (proc_pid_oom_score_adj(5)).
func writeOOMScore(pid, score int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte(strconv.Itoa(score)), 0); err != nil {
		return fmt.Errorf("setting process.oomScoreAdj to %d: %w", score, err)
	}
	return nil
}
