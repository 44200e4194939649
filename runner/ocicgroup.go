package runner

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	cgroupfs "github.com/opencontainers/cgroups"
	_ "github.com/opencontainers/cgroups/devices" // lets the managers restrict devices
	devices "github.com/opencontainers/cgroups/devices/config"
	"github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ociCgroups are the cgroups of an OCI container, by the library that runc has them by: its callers look for them in the
// same places, and all of linux.resources can be asked for.
func ociCgroups(id string, spec *specs.Spec, paths map[string]string) (cgroupfs.Manager, error) {
	resources, err := ociResources(spec)
	if err != nil {
		return nil, err
	}
	group := &cgroupfs.Cgroup{Resources: resources, Rootless: os.Geteuid() != 0 || inUserNamespace()}
	if path := spec.Linux.CgroupsPath; path == "" {
		group.Name = id
	} else if strings.Count(path, ":") == 2 && !strings.Contains(path, "/") {
		return nil, fmt.Errorf("linux.cgroupsPath %q names a slice of systemd, which this runtime does not manage cgroups by: use the cgroupfs manager", path)
	} else {
		group.Path = path
	}
	if cgroupfs.IsCgroup2UnifiedMode() {
		return fs2.NewManager(group, paths[""])
	}
	return fs.NewManager(group, paths)
}

// inUserNamespace reports whether this process is in another user namespace than the first.
func inUserNamespace() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(data)), " ") != "0 0 4294967295"
}

// ociResources translates linux.resources (runtime-spec config-linux.md, "Control groups").
func ociResources(spec *specs.Spec) (*cgroupfs.Resources, error) {
	out := &cgroupfs.Resources{Devices: defaultDeviceRules(spec)}
	r := spec.Linux.Resources
	if r == nil {
		return out, nil
	}
	rules, err := deviceRules(r.Devices)
	if err != nil {
		return nil, err
	}
	out.Devices = append(rules, out.Devices...)
	if m := r.Memory; m != nil {
		set(&out.Memory, m.Limit)
		set(&out.MemoryReservation, m.Reservation)
		set(&out.MemorySwap, m.Swap)
		out.MemorySwappiness = m.Swappiness
		set(&out.OomKillDisable, m.DisableOOMKiller)
		set(&out.MemoryCheckBeforeUpdate, m.CheckBeforeUpdate)
	}
	if c := r.CPU; c != nil {
		set(&out.CpuShares, c.Shares)
		if c.Shares != nil {
			out.CpuWeight = cgroupfs.ConvertCPUSharesToCgroupV2Value(*c.Shares)
		}
		set(&out.CpuQuota, c.Quota)
		set(&out.CpuPeriod, c.Period)
		set(&out.CpuRtRuntime, c.RealtimeRuntime)
		set(&out.CpuRtPeriod, c.RealtimePeriod)
		out.CpusetCpus, out.CpusetMems, out.CPUIdle, out.CpuBurst = c.Cpus, c.Mems, c.Idle, c.Burst
	}
	if r.Pids != nil {
		out.PidsLimit = r.Pids.Limit
	}
	if b := r.BlockIO; b != nil {
		set(&out.BlkioWeight, b.Weight)
		set(&out.BlkioLeafWeight, b.LeafWeight)
		for _, d := range b.WeightDevice {
			var weight, leaf uint16
			set(&weight, d.Weight)
			set(&leaf, d.LeafWeight)
			out.BlkioWeightDevice = append(out.BlkioWeightDevice, cgroupfs.NewWeightDevice(d.Major, d.Minor, weight, leaf))
		}
		for _, t := range []struct {
			from []specs.LinuxThrottleDevice
			to   *[]*cgroupfs.ThrottleDevice
		}{
			{b.ThrottleReadBpsDevice, &out.BlkioThrottleReadBpsDevice}, {b.ThrottleWriteBpsDevice, &out.BlkioThrottleWriteBpsDevice},
			{b.ThrottleReadIOPSDevice, &out.BlkioThrottleReadIOPSDevice}, {b.ThrottleWriteIOPSDevice, &out.BlkioThrottleWriteIOPSDevice},
		} {
			for _, d := range t.from {
				*t.to = append(*t.to, cgroupfs.NewThrottleDevice(d.Major, d.Minor, d.Rate))
			}
		}
	}
	for _, h := range r.HugepageLimits {
		out.HugetlbLimit = append(out.HugetlbLimit, &cgroupfs.HugepageLimit{Pagesize: h.Pagesize, Limit: h.Limit})
	}
	for name, limit := range r.Rdma {
		if out.Rdma == nil {
			out.Rdma = map[string]cgroupfs.LinuxRdma{}
		}
		out.Rdma[name] = cgroupfs.LinuxRdma{HcaHandles: limit.HcaHandles, HcaObjects: limit.HcaObjects}
	}
	if n := r.Network; n != nil {
		set(&out.NetClsClassid, n.ClassID)
		for _, p := range n.Priorities {
			out.NetPrioIfpriomap = append(out.NetPrioIfpriomap, &cgroupfs.IfPrioMap{Interface: p.Name, Priority: int64(p.Priority)})
		}
	}
	out.Unified = r.Unified
	return out, nil
}

// set sets what a pointer leads to, if there is one.
func set[T any](to *T, from *T) {
	if from != nil {
		*to = *from
	}
}

func deviceRules(list []specs.LinuxDeviceCgroup) ([]*devices.Rule, error) {
	var out []*devices.Rule
	for _, d := range list {
		kind := devices.WildcardDevice
		if d.Type != "" && d.Type != "a" {
			if d.Type != "c" && d.Type != "b" {
				return nil, fmt.Errorf("linux.resources.devices: %q is no type of device", d.Type)
			}
			kind = devices.Type(d.Type[0])
		}
		major, minor := int64(devices.Wildcard), int64(devices.Wildcard)
		set(&major, d.Major)
		set(&minor, d.Minor)
		access := d.Access
		if access == "" && kind == devices.WildcardDevice {
			access = "rwm"
		}
		out = append(out, &devices.Rule{Type: kind, Major: major, Minor: minor, Permissions: devices.Permissions(access), Allow: d.Allow})
	}
	return out, nil
}

// defaultDeviceRules allow what every container may do: make any node, and use the standard devices and terminals. They
// count only where a rule forbids the rest.
func defaultDeviceRules(spec *specs.Spec) []*devices.Rule {
	allow := func(kind devices.Type, major, minor int64, access devices.Permissions) *devices.Rule {
		return &devices.Rule{Type: kind, Major: major, Minor: minor, Permissions: access, Allow: true}
	}
	out := []*devices.Rule{
		allow(devices.CharDevice, devices.Wildcard, devices.Wildcard, "m"),
		allow(devices.BlockDevice, devices.Wildcard, devices.Wildcard, "m"),
		allow(devices.CharDevice, 136, devices.Wildcard, "rwm"), // /dev/pts
		allow(devices.CharDevice, 5, 2, "rwm"),                  // /dev/ptmx
		allow(devices.CharDevice, 5, 1, "rwm"),                  // /dev/console
	}
	for _, d := range standardDevices() {
		out = append(out, allow(devices.CharDevice, d.Major, d.Minor, "rwm"))
	}
	for _, d := range spec.Linux.Devices {
		if d.Type == "c" || d.Type == "u" || d.Type == "b" {
			kind := devices.CharDevice
			if d.Type == "b" {
				kind = devices.BlockDevice
			}
			out = append(out, allow(kind, d.Major, d.Minor, "rwm"))
		}
	}
	return out
}

// cgroups are the container's, as they were made.
func (c *OCIContainer) cgroups() (cgroupfs.Manager, error) {
	return ociCgroups(c.ID, c.Spec, c.record.Cgroups)
}

func (c *OCIContainer) frozen() bool {
	if len(c.record.Cgroups) == 0 {
		return false
	}
	m, err := c.cgroups()
	if err != nil {
		return false
	}
	state, err := m.GetFreezerState()
	return err == nil && state == cgroupfs.Frozen
}

// Pause freezes all processes of a running container.
func (c *OCIContainer) Pause() error { return c.freeze(cgroupfs.Frozen, specs.StateRunning) }

// Resume thaws the processes of a paused container.
func (c *OCIContainer) Resume() error { return c.freeze(cgroupfs.Thawed, StatePaused) }

func (c *OCIContainer) freeze(state cgroupfs.FreezerState, from specs.ContainerState) error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if now := c.Status(); now != from {
		return fmt.Errorf("container %s is %s, not %s", c.ID, now, from)
	}
	m, err := c.cgroups()
	if err != nil {
		return err
	}
	return m.Freeze(state)
}

// Update changes the limits of a container that exists.
func (c *OCIContainer) Update(resources *specs.LinuxResources) error {
	lock, err := c.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if c.Status() == specs.StateStopped {
		return fmt.Errorf("container %s is stopped", c.ID)
	}
	// Devices stay as they were: a filter that is changed while it is in use can be in nobody's way.
	resources.Devices = nil
	if old := c.Spec.Linux.Resources; old != nil {
		resources.Devices = old.Devices
	}
	c.Spec.Linux.Resources = resources
	m, err := c.cgroups()
	if err != nil {
		return err
	}
	wanted, err := ociResources(c.Spec)
	if err != nil {
		return err
	}
	wanted.SkipDevices = true
	if err := m.Set(wanted); err != nil {
		return err
	}
	return c.write()
}

// PIDs are the container's processes, as the calling process sees them.
func (c *OCIContainer) PIDs() ([]int, error) {
	if len(c.record.Cgroups) == 0 {
		return nil, errors.New("this container has no cgroup to find its processes by")
	}
	m, err := c.cgroups()
	if err != nil {
		return nil, err
	}
	return m.GetAllPids()
}

// killCgroup kills what is left in the container's cgroups, and waits until they are empty: without a PID namespace of its
// own, a container's processes may outlive its first.
func (c *OCIContainer) killCgroup() error {
	if len(c.record.Cgroups) == 0 {
		return nil
	}
	m, err := c.cgroups()
	if err != nil {
		return err
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		pids, err := m.GetAllPids()
		if err != nil || len(pids) == 0 {
			return nil // it is gone
		}
		for _, pid := range pids {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		_ = m.Freeze(cgroupfs.Thawed)
		if time.Now().After(deadline) {
			return fmt.Errorf("processes of container %s are still there after they were killed: %v", c.ID, pids)
		}
	}
}

// removeCgroups removes the container's cgroups, and those that its processes made below. Controllers that two names lead
// to are removed twice, which is no error.
func (c *OCIContainer) removeCgroups() error {
	if len(c.record.Cgroups) == 0 {
		return nil
	}
	m, err := c.cgroups()
	if err != nil {
		return err
	}
	if err := m.Destroy(); err != nil {
		return fmt.Errorf("removing the cgroups of container %s: %w", c.ID, err)
	}
	return nil
}
