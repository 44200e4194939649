package runner

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// cgroups are the leaf directories in which the kernel enforces a container's limits, one in each hierarchy that has a
// controller for one of them, and its guard. Only containers with limits, or without a PID namespace of their own, have any. They are made and removed by P1, which is not in them;
// their paths are in the container's directory before they are made, so that others can remove them if P1 is killed.
type cgroups struct {
	container *Container
	leaves    []leaf
	guard     string // the directory by which the container is ended, if there is one
}

// leaf is the container's directory in one hierarchy.
type leaf struct {
	hierarchy
	dir    string
	limits []limit
}

// hierarchy is a mounted cgroup hierarchy, as this process is in it.
type hierarchy struct {
	own         string   // the directory of this process's cgroup
	top         string   // the topmost directory that can be seen
	controllers []string // empty for the unified one, which says them in its files
	unified     bool
}

// newCgroups makes the cgroups of a container and writes its limits; nil if it needs none. The caller holds the container's
// lock, and must call remove.
func newCgroups(c *Container) (*cgroups, error) {
	if c.Spec.Annotations[AnnotationRuntime] != "" {
		return nil, nil // that runtime does it
	}
	resources := c.Spec.Linux.Resources
	if limits, err := limitsOf(resources, false); err != nil || len(limits) == 0 && !guarded(c.Spec) {
		return nil, err
	}
	// What a run before this one left, if its supervisor was killed.
	if err := c.removeCgroups(killLimit); err != nil {
		return nil, err
	}
	c.state.removeStaleCgroups()
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	g := &cgroups{container: c}
	if err := g.place(resources, all); err != nil {
		return nil, err
	}
	if guarded(c.Spec) {
		if err := g.placeGuard(all); err != nil {
			return nil, err
		}
	}
	if err := g.make(); err != nil {
		_ = g.remove()
		return nil, err
	}
	return g, nil
}

// hierarchies lists those that are mounted and that this process has a place in (cgroups(7), /proc/[pid]/cgroup).
func hierarchies(cgroupFile, mountFile string) ([]hierarchy, error) {
	return hierarchiesOf(cgroupFile, mountFile, false)
}

// hierarchiesOf lists, with named, also those that have no controllers but a name.
func hierarchiesOf(cgroupFile, mountFile string, named bool) ([]hierarchy, error) {
	mounts, err := os.Open(mountFile)
	if err != nil {
		return nil, err
	}
	defer mounts.Close()
	infos, err := mountinfo.GetMountsFromReader(mounts, mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		return nil, err
	}
	file, err := os.Open(cgroupFile)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var out []hierarchy
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		fields := strings.SplitN(lines.Text(), ":", 3)
		if len(fields) != 3 || !named && strings.HasPrefix(fields[1], "name=") {
			continue
		}
		h := hierarchy{unified: fields[1] == ""}
		if !h.unified {
			h.controllers = strings.Split(fields[1], ",")
		}
		for _, m := range infos {
			if h.unified != (m.FSType == "cgroup2") {
				continue
			}
			if !h.unified && !slices.Contains(strings.Split(m.VFSOptions, ","), h.controllers[0]) {
				continue
			}
			rel, err := filepath.Rel(m.Root, fields[2])
			if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
				continue // of another cgroup namespace
			}
			h.top, h.own = m.Mountpoint, filepath.Join(m.Mountpoint, rel)
			out = append(out, h)
			break
		}
	}
	return out, lines.Err()
}

// place finds a hierarchy for each limit.
func (g *cgroups) place(resources *specs.LinuxResources, all []hierarchy) error {
	for _, h := range all {
		limits, err := limitsOf(resources, h.unified)
		if err != nil {
			return err
		}
		var mine []limit
		for _, l := range limits {
			if h.has(l.controller) {
				mine = append(mine, l)
			}
		}
		if len(mine) == 0 {
			continue
		}
		parent := h.own
		if h.unified {
			if parent, err = h.delegated(mine); err != nil {
				return err
			}
		}
		g.leaves = append(g.leaves, leaf{hierarchy: h, dir: filepath.Join(parent, g.container.cgroupName()), limits: mine})
	}
	// What no hierarchy took. The names of controllers differ in one case only.
	limits, err := limitsOf(resources, false)
	if err != nil {
		return err
	}
	for _, l := range limits {
		if !slices.ContainsFunc(g.leaves, func(f leaf) bool {
			return slices.ContainsFunc(f.limits, func(o limit) bool { return o.what == l.what })
		}) {
			return fmt.Errorf("limiting %s: this host has no cgroup controller %q, or it is not mounted below /sys/fs/cgroup; a kernel parameter such as cgroup_enable=%[2]s may bring it", l.what, l.controller)
		}
	}
	return nil
}

// has reports whether the hierarchy has the controller at all.
func (h *hierarchy) has(controller string) bool {
	if !h.unified {
		return slices.Contains(h.controllers, controller)
	}
	return slices.Contains(words(filepath.Join(h.top, "cgroup.controllers")), controller) ||
		slices.Contains(words(filepath.Join(h.own, "cgroup.controllers")), controller)
}

// delegated finds the directory, our own or one above, below which the limits' controllers are on or can be switched on.
// Our own can't be it while there are processes in it, unless it is the topmost (cgroup-v2.rst, "No Internal Process
// Constraint").
func (h *hierarchy) delegated(limits []limit) (string, error) {
	var first error
	for dir := h.own; ; dir = filepath.Dir(dir) {
		on := words(filepath.Join(dir, "cgroup.subtree_control"))
		var off []string
		for _, l := range limits {
			if !slices.Contains(on, l.controller) && !slices.Contains(off, "+"+l.controller) {
				off = append(off, "+"+l.controller)
			}
		}
		err := error(nil)
		if len(off) > 0 {
			err = writeCgroupFile(filepath.Join(dir, "cgroup.subtree_control"), strings.Join(off, " "))
		}
		if err == nil {
			return dir, nil
		}
		if first == nil || errors.Is(first, unix.EBUSY) {
			first = err
		}
		if dir == h.top || !strings.HasPrefix(dir, h.top) {
			return "", limitError(limits[0], first)
		}
	}
}

func words(file string) []string {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	return strings.Fields(string(data))
}

// limitError says why a limit can't be enforced and how to get it.
func limitError(l limit, err error) error {
	if errors.Is(err, os.ErrPermission) || errors.Is(err, unix.EROFS) {
		how := "run unionfs as root"
		if unifiedOnly() {
			how = "start unionfs by \"systemd-run --user --scope -p Delegate=yes\" (with systemd, for memory and processes; for the rest, root must delegate the controllers: see systemd.resource-control(5)), or " + how
		}
		return fmt.Errorf("limiting %s: you may not change cgroups here: %s (%w)", l.what, how, err)
	}
	return fmt.Errorf("limiting %s: %w", l.what, err)
}

// failure says why a directory can't be had, by what it is for.
func (l *leaf) failure(err error) error {
	if len(l.limits) == 0 {
		return guardError(err)
	}
	return limitError(l.limits[0], err)
}

func unifiedOnly() bool {
	var fs unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &fs) == nil && fs.Type == unix.CGROUP2_SUPER_MAGIC
}

func (c *Container) cgroupName() string { return "unionfs-" + c.ID }

func (c *Container) cgroupPath() string { return filepath.Join(c.Dir(), "cgroups.json") }

// make makes the directories and writes the limits.
func (g *cgroups) make() error {
	var dirs []string
	for _, l := range g.leaves {
		dirs = append(dirs, l.dir)
	}
	data, err := json.Marshal(dirs)
	if err != nil {
		return err
	}
	if err := os.WriteFile(g.container.cgroupPath(), data, 0o600); err != nil {
		return err
	}
	for _, l := range g.leaves {
		if err := os.Mkdir(l.dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
			return l.failure(err)
		}
		if err := l.inheritCpuset(); err != nil {
			return l.failure(err)
		}
		if err := l.write(func(limit limit) bool { return !l.late(limit) }); err != nil {
			return err
		}
	}
	return nil
}

// late reports whether a limit can be written only when this process has come back from the cgroup: its threads count.
func (l *leaf) late(limit limit) bool { return l.unified && limit.controller == "pids" }

func (l *leaf) write(which func(limit) bool) error {
	for _, limit := range l.limits {
		if !which(limit) {
			continue
		}
		if err := limit.write(l.dir); err != nil {
			return limitError(limit, err)
		}
	}
	return nil
}

// inheritCpuset fills what a new cpuset of version 1 lacks; nothing can run in it before.
func (l *leaf) inheritCpuset() error {
	if l.unified || !slices.Contains(l.controllers, "cpuset") {
		return nil
	}
	for _, name := range []string{"cpus", "mems"} {
		value := words(filepath.Join(l.own, "cpuset.effective_"+name))
		if len(value) == 0 {
			continue
		}
		if err := writeCgroupFile(filepath.Join(l.dir, "cpuset."+name), value[0]); err != nil {
			return err
		}
	}
	return nil
}

func (l limit) write(dir string) error {
	for _, name := range l.files {
		value := l.value
		if v, ok := l.values[name]; ok {
			value = v
		}
		err := writeCgroupFile(filepath.Join(dir, name), value)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("the kernel refuses %s in %s: %w", value, name, err)
		}
		return nil
	}
	if l.optional {
		return nil
	}
	return fmt.Errorf("this kernel has no %s", strings.Join(l.files, " or "))
}

// writeCgroupFile writes in one call, and makes no file.
func writeCgroupFile(name, value string) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(value)
	return err
}

// within calls start with the calling thread, which must be locked, in the cgroups, so that a process that it starts is in
// them from its first moment, and its cgroup namespace begins there. In the unified hierarchy it is this whole process that
// goes there and comes back, since threads can't.
func (g *cgroups) within(start func() error) (err error) {
	if g == nil {
		return start()
	}
	for _, l := range g.leaves {
		if err := l.enter(l.dir); err != nil {
			return l.failure(err)
		}
		defer func() {
			back := l.enter(l.own)
			if back == nil && err == nil {
				back = l.write(l.late)
			}
			if err == nil && back != nil {
				err = fmt.Errorf("leaving the container's cgroup: %w", back)
			}
		}()
	}
	return start()
}

func (l *leaf) enter(dir string) error {
	if l.unified {
		return writeCgroupFile(filepath.Join(dir, "cgroup.procs"), strconv.Itoa(os.Getpid()))
	}
	return writeCgroupFile(filepath.Join(dir, "tasks"), strconv.Itoa(unix.Gettid()))
}

// outOfMemory reports whether the kernel killed a process of the container because of its memory limit.
func (g *cgroups) outOfMemory() bool {
	if g == nil {
		return false
	}
	for _, l := range g.leaves {
		for _, name := range []string{"memory.oom_control", "memory.events"} {
			f := words(filepath.Join(l.dir, name))
			if i := slices.Index(f, "oom_kill"); i >= 0 && i+1 < len(f) && f[i+1] != "0" {
				return true
			}
		}
	}
	return false
}

func (g *cgroups) remove() error {
	if g == nil {
		return nil
	}
	return g.container.removeCgroups(killLimit)
}

// cgroupDirectories are the container's cgroups.
func (c *Container) cgroupDirectories() []string {
	data, err := os.ReadFile(c.cgroupPath())
	var dirs []string
	if err != nil || json.Unmarshal(data, &dirs) != nil {
		return nil // none, or torn, when nothing was made yet
	}
	return slices.DeleteFunc(dirs, func(dir string) bool { return filepath.Base(dir) != c.cgroupName() })
}

// addCgroupDirectory notes a cgroup that is about to be made.
func (c *Container) addCgroupDirectory(dir string) error {
	dirs := c.cgroupDirectories()
	if slices.Contains(dirs, dir) {
		return nil
	}
	data, err := json.Marshal(append(dirs, dir))
	if err != nil {
		return err
	}
	tmp := c.cgroupPath() + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, c.cgroupPath())
}

// removeCgroups removes what a container has of cgroups, and kills what is left in them; the caller holds its lock, and the
// container has ended. A directory in which processes are still dying is waited for, for at most limit.
func (c *Container) removeCgroups(limit time.Duration) error {
	if _, err := os.Lstat(c.cgroupPath()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, dir := range c.cgroupDirectories() {
		_ = thawCgroup(dir) // frozen, what was killed would not go
		deadline := time.Now().Add(limit)
		for {
			err := removeCgroupTree(dir)
			if err == nil || errors.Is(err, unix.ENOENT) {
				break
			}
			if !errors.Is(err, unix.EBUSY) || time.Now().After(deadline) {
				return fmt.Errorf("removing the cgroup %s: %w", dir, err)
			}
			if _, err := killCgroup(dir); err != nil {
				return fmt.Errorf("removing the cgroup %s: %w", dir, err)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return os.Remove(c.cgroupPath())
}

// removeStaleCgroups removes the cgroups of containers whose supervisor was killed. What it can't remove is for the next
// one.
func (s *State) removeStaleCgroups() {
	files, err := filepath.Glob(filepath.Join(s.containersDir(), "*", "cgroups.json"))
	if err != nil {
		return
	}
	for _, file := range files {
		id := filepath.Base(filepath.Dir(file))
		if !isID(id) {
			continue
		}
		c := &Container{ID: id, state: s}
		if lock, err := c.tryLock(); err == nil {
			_ = c.removeCgroups(time.Second)
			lock.Close()
		}
	}
}
