package runner

import (
	"fmt"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// limit is one value that enforces a part of a specification's linux.resources.
type limit struct {
	what       string // for people
	controller string // of the cgroup, as in cgroups(7)
	files      []string
	value      string

	// values has those of the files whose scale is another.
	values map[string]string

	// optional says that it may be left out where the kernel has none of the files.
	optional bool
}

// initThreads is how many threads P2 may have, which count as processes of the container's cgroup.
const initThreads = 10

// limitsOf translates the resources of a specification for cgroup v2 (unified) or v1, in the order in which they must be
// written (runtime-spec config-linux.md, "Control groups"; the kernel's admin-guide/cgroup-v2.rst and cgroup-v1/). The
// error names what this runner can't limit.
func limitsOf(r *specs.LinuxResources, unified bool) ([]limit, error) {
	if r == nil {
		return nil, nil
	}
	if r.Network != nil || len(r.Rdma) > 0 || len(r.Unified) > 0 {
		return nil, fmt.Errorf("limits of network and RDMA, and files of cgroup v2 by name, are not supported")
	}
	var all []limit
	add := func(what, controller, v1, v2, value string) {
		file := v1
		if unified {
			file = v2
		}
		all = append(all, limit{what: what, controller: controller, files: []string{file}, value: value})
	}
	if c := r.CPU; c != nil {
		if c.RealtimePeriod != nil || c.RealtimeRuntime != nil || c.Burst != nil || c.Idle != nil {
			return nil, fmt.Errorf("limits of real-time processor time, burst and idle are not supported")
		}
		// The memory nodes come first: no process can be in a cpuset that has none.
		if c.Mems != "" {
			add("memory nodes", "cpuset", "cpuset.mems", "cpuset.mems", c.Mems)
		}
		if c.Cpus != "" {
			add("processors", "cpuset", "cpuset.cpus", "cpuset.cpus", c.Cpus)
		}
		if c.Shares != nil && *c.Shares > 0 {
			add("processor shares", "cpu", "cpu.shares", "cpu.weight", sharesValue(*c.Shares, unified))
		}
		if c.Quota != nil && *c.Quota > 0 {
			period := uint64(100000)
			if c.Period != nil && *c.Period > 0 {
				period = *c.Period
			}
			if unified {
				add("processor time", "cpu", "", "cpu.max", fmt.Sprintf("%d %d", *c.Quota, period))
			} else {
				add("processor time", "cpu", "cpu.cfs_period_us", "", strconv.FormatUint(period, 10))
				add("processor time", "cpu", "cpu.cfs_quota_us", "", strconv.FormatInt(*c.Quota, 10))
			}
		}
	}
	if b := r.BlockIO; b != nil {
		if b.LeafWeight != nil || len(b.WeightDevice) > 0 {
			return nil, fmt.Errorf("weights of leaves and of single block devices are not supported")
		}
		if b.Weight != nil && *b.Weight > 0 {
			l := limit{what: "block I/O weight", controller: "blkio", files: []string{"blkio.bfq.weight", "blkio.weight"}, value: strconv.Itoa(int(*b.Weight))}
			if unified {
				// The scheduler BFQ has its own; else it is the cost model's, of 1 to 10000 as runc translates it.
				l.controller, l.files = "io", []string{"io.bfq.weight", "io.weight"}
				l.values = map[string]string{"io.weight": strconv.Itoa(1 + (int(*b.Weight)-10)*9999/990)}
			}
			all = append(all, l)
		}
		all = append(all, throttles(b, unified)...)
	}
	for _, h := range r.HugepageLimits {
		bytes := strconv.FormatUint(h.Limit, 10)
		add("huge pages", "hugetlb", "hugetlb."+h.Pagesize+".limit_in_bytes", "hugetlb."+h.Pagesize+".max", bytes)
	}
	if m := r.Memory; m != nil {
		if m.Swappiness != nil || m.DisableOOMKiller != nil && *m.DisableOOMKiller {
			return nil, fmt.Errorf("swappiness and a container without an OOM killer are not supported: cgroup v2 has neither")
		}
		if m.Reservation != nil && *m.Reservation > 0 {
			add("memory reservation", "memory", "memory.soft_limit_in_bytes", "memory.low", strconv.FormatInt(*m.Reservation, 10))
		}
		all = append(all, memoryLimits(m, unified)...)
	}
	if p := r.Pids; p != nil && p.Limit != nil && *p.Limit > 0 {
		add("processes", "pids", "pids.max", "pids.max", strconv.FormatInt(*p.Limit+initThreads, 10))
	}
	return all, nil
}

// throttles limits the rates of single block devices.
func throttles(b *specs.LinuxBlockIO, unified bool) (all []limit) {
	for _, t := range []struct {
		what, v1, v2 string
		devices      []specs.LinuxThrottleDevice
	}{
		{"bytes read from a block device", "blkio.throttle.read_bps_device", "rbps", b.ThrottleReadBpsDevice},
		{"bytes written to a block device", "blkio.throttle.write_bps_device", "wbps", b.ThrottleWriteBpsDevice},
		{"reads from a block device", "blkio.throttle.read_iops_device", "riops", b.ThrottleReadIOPSDevice},
		{"writes to a block device", "blkio.throttle.write_iops_device", "wiops", b.ThrottleWriteIOPSDevice},
	} {
		for _, d := range t.devices {
			l := limit{what: t.what, controller: "blkio", files: []string{t.v1}, value: fmt.Sprintf("%d:%d %d", d.Major, d.Minor, d.Rate)}
			if unified {
				l.controller, l.files, l.value = "io", []string{"io.max"}, fmt.Sprintf("%d:%d %s=%d", d.Major, d.Minor, t.v2, d.Rate)
			}
			all = append(all, l)
		}
	}
	return all
}

// memoryLimits limits memory, and memory and swap together, as the specification counts them.
func memoryLimits(m *specs.LinuxMemory, unified bool) []limit {
	var all []limit
	bytes := func(n int64) string {
		if n < 0 && unified {
			return "max"
		}
		return strconv.FormatInt(n, 10)
	}
	if m.Limit != nil && *m.Limit != 0 {
		l := limit{what: "memory", controller: "memory", files: []string{"memory.limit_in_bytes"}, value: bytes(*m.Limit)}
		if unified {
			l.files = []string{"memory.max"}
		}
		all = append(all, l)
	}
	if m.Swap != nil && *m.Swap != 0 {
		l := limit{what: "memory and swap", controller: "memory", files: []string{"memory.memsw.limit_in_bytes"}, value: bytes(*m.Swap)}
		if m.Limit != nil {
			// Docker's default, which nobody may have asked for.
			l.optional = *m.Swap == 2**m.Limit
		}
		if unified {
			l.files = []string{"memory.swap.max"}
			if *m.Swap > 0 && m.Limit != nil {
				l.value = bytes(max(0, *m.Swap-*m.Limit)) // without the memory
			}
		}
		all = append(all, l)
	}
	return all
}

// sharesValue translates cgroup v1's shares (2 to 262144, 1024 by default) to v2's weight (1 to 10000, 100 by default), as
// runc did for years.
func sharesValue(shares uint64, unified bool) string {
	if unified {
		shares = min(max(shares, 2), 262144)
		shares = 1 + (shares-2)*9999/262142
	}
	return strconv.FormatUint(shares, 10)
}
