package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// UpdateOptions is what [Container.Update] changes.
type UpdateOptions struct {
	// Resources are further limits, and new values of those that there are; nil for no change. A limit of processes of -1 takes
	// that away.
	Resources *specs.LinuxResources `json:"resources,omitempty"`

	// Restart is the new restart policy; nil for no change.
	Restart *RestartPolicy `json:"restart,omitempty"`
}

// Update changes limits and the restart policy of a container, at once if it runs.
func (c *Container) Update(o UpdateOptions) error {
	request, err := json.Marshal(o)
	if err == nil {
		err = c.ask(message{Kind: msgUpdate, Update: request})
	}
	if errors.Is(err, errNoSupervisor) {
		var lock *os.File
		if lock, err = c.tryLock(); err == nil {
			defer lock.Close()
			if _, err = limitsOf(o.Resources, false); err == nil {
				err = c.change(o.apply)
			}
		}
	}
	if err != nil {
		return fmt.Errorf("updating container %s: %w", c.Name, err)
	}
	c.note("update")
	return nil
}

// change changes config.json, while nobody else does.
func (c *Container) change(do func(*specs.Spec)) error {
	dir, err := os.Open(c.Dir())
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return err
	}
	fresh, err := c.state.load(c.ID)
	if err != nil {
		return err
	}
	do(fresh.Spec)
	return fresh.writeSpec()
}

// apply changes a specification.
func (o UpdateOptions) apply(spec *specs.Spec) {
	if o.Restart != nil {
		spec.Annotations[AnnotationRestart] = o.Restart.String()
	}
	if o.Resources == nil {
		return
	}
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	r := spec.Linux.Resources
	if o.Resources.Memory != nil {
		r.Memory = o.Resources.Memory
	}
	if o.Resources.Pids != nil {
		r.Pids = o.Resources.Pids
	}
	if o.Resources.BlockIO != nil {
		r.BlockIO = o.Resources.BlockIO
	}
	if cpu := o.Resources.CPU; cpu != nil {
		if r.CPU == nil {
			r.CPU = &specs.LinuxCPU{}
		}
		if cpu.Quota != nil {
			r.CPU.Quota, r.CPU.Period = cpu.Quota, cpu.Period
		}
		if cpu.Shares != nil {
			r.CPU.Shares = cpu.Shares
		}
		if cpu.Cpus != "" {
			r.CPU.Cpus = cpu.Cpus
		}
		if cpu.Mems != "" {
			r.CPU.Mems = cpu.Mems
		}
	}
}

// update changes the container while it runs: first what the kernel enforces, which may be refused, then what is kept.
func (s *supervisor) update(request []byte) error {
	var o UpdateOptions
	if err := json.Unmarshal(request, &o); err != nil {
		return fmt.Errorf("reading the new limits: %w", err)
	}
	s.pauseMu.Lock() // not while its processes are being moved to be frozen
	defer s.pauseMu.Unlock()
	if s.running() && o.Resources != nil {
		if err := s.container.limitNow(o.Resources); err != nil {
			return err
		}
	}
	return s.container.change(o.apply)
}

// limitNow writes limits to the container's cgroups. One that is missing is made, and the container's processes are moved there.
func (c *Container) limitNow(r *specs.LinuxResources) error {
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	if err != nil {
		return err
	}
	g := &cgroups{container: c}
	if err := g.place(r, all); err != nil {
		return err
	}
	for i := range g.leaves {
		l := &g.leaves[i]
		_, err := os.Lstat(l.dir)
		missing := errors.Is(err, os.ErrNotExist)
		if missing {
			if err := c.addCgroupDirectory(l.dir); err != nil {
				return err
			}
			if err := os.Mkdir(l.dir, 0o755); err != nil {
				return limitError(l.limits[0], err)
			}
			if err := l.inheritCpuset(); err != nil {
				return limitError(l.limits[0], err)
			}
		}
		if err := l.rewrite(); err != nil {
			return err
		}
		if missing {
			f := cgroupFreezer{dir: l.dir}
			if err := f.gather(c); err != nil {
				return limitError(l.limits[0], err)
			}
		}
	}
	if r.Pids != nil && r.Pids.Limit != nil && *r.Pids.Limit < 0 {
		for _, dir := range c.cgroupDirectories() {
			err := writeCgroupFile(filepath.Join(dir, "pids.max"), "max")
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// rewrite writes all limits, in either order: the limit of memory and swap together may not be below that of memory at any moment.
func (l *leaf) rewrite() error {
	err := l.write(func(limit) bool { return true })
	if err == nil || len(l.limits) < 2 {
		return err
	}
	for i := len(l.limits) - 1; i >= 0; i-- {
		if err := l.limits[i].write(l.dir); err != nil {
			return limitError(l.limits[i], err)
		}
	}
	return nil
}

// outOfMemory reports whether the kernel killed a process of the container because of a limit that it has now.
func (c *Container) outOfMemory() bool {
	g := &cgroups{container: c}
	for _, dir := range c.cgroupDirectories() {
		g.leaves = append(g.leaves, leaf{dir: dir})
	}
	return g.outOfMemory()
}
