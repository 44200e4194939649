package runner

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// Usage is what a running container uses: its command, everything that this started, and the init. The FUSE server, which
// is outside the container, is not counted.
//
// The kernel's own counts are taken from the container's cgroups where it has them, for what it has a limit of. The rest is
// the sum over its processes.
type Usage struct {
	// Memory is in bytes. By cgroup, it is without the cache of files that nobody used lately, which the kernel drops
	// when memory is wanted (Docker counts so); by processes, it is the sum of their proportional set sizes
	// (proc_pid_smaps(5), Pss).
	Memory uint64

	MemoryPeak  uint64 // bytes; 0 where nothing counts it
	MemoryLimit uint64 // bytes; 0 where there is none

	// CPU is the processors' time. By processes, what ended and was never waited for is missing.
	CPU time.Duration

	PIDs      uint64 // processes and threads, with the init's
	PIDsLimit uint64 // 0 where there is none

	BlockRead, BlockWrite uint64 // bytes, from and to block devices
}

// Usage tells what a running container uses.
func (c *Container) Usage() (Usage, error) {
	processes, err := c.Processes()
	if err != nil {
		return Usage{}, err
	}
	var dirs []string
	if data, err := os.ReadFile(c.cgroupPath()); err == nil {
		_ = json.Unmarshal(data, &dirs)
	}
	var u Usage
	var counted counts
	for _, dir := range dirs {
		counted |= u.addCgroup(dir)
	}
	for _, p := range processes {
		u.addProcess(p.PID, counted)
	}
	return u, nil
}

// counts says which parts of a Usage are known.
type counts uint

const (
	countMemory counts = 1 << iota
	countCPU
	countPIDs
	countBlocks
)

// addCgroup takes what the kernel counts in a cgroup's directory, of version 1 or 2 (admin-guide/cgroup-v1 and
// cgroup-v2.rst), and says what that was.
func (u *Usage) addCgroup(dir string) (have counts) {
	number := func(name string) (uint64, bool) {
		value := words(filepath.Join(dir, name))
		if len(value) != 1 {
			return 0, false
		}
		n, err := strconv.ParseUint(value[0], 10, 64)
		return n, err == nil // not "max"
	}
	either := func(v2, v1 string) (uint64, bool) {
		if n, ok := number(v2); ok {
			return n, true
		}
		return number(v1)
	}
	if n, ok := either("memory.current", "memory.usage_in_bytes"); ok {
		stat := keyed(filepath.Join(dir, "memory.stat"))
		cache, v1 := stat["total_inactive_file"]
		if !v1 {
			cache = stat["inactive_file"]
		}
		u.Memory = n - min(n, cache)
		u.MemoryPeak, _ = either("memory.peak", "memory.max_usage_in_bytes")
		const none = 1 << 62 // version 1 says so by the largest number of pages
		if limit, ok := either("memory.max", "memory.limit_in_bytes"); ok && limit < none {
			u.MemoryLimit = limit
		}
		have |= countMemory
	}
	if n, ok := number("cpuacct.usage"); ok {
		u.CPU, have = time.Duration(n), have|countCPU
	} else if n, ok := keyed(filepath.Join(dir, "cpu.stat"))["usage_usec"]; ok {
		u.CPU, have = time.Duration(n)*time.Microsecond, have|countCPU
	}
	if n, ok := number("pids.current"); ok {
		u.PIDs, have = n, have|countPIDs
		u.PIDsLimit, _ = number("pids.max")
	}
	// Version 1 counts blocks of those disks only that somebody throttles (blk_throtl_bio in block/blk-throttle.h).
	if stat, err := os.ReadFile(filepath.Join(dir, "io.stat")); err == nil {
		u.addBlocks(string(stat))
		have |= countBlocks
	}
	return have
}

// addBlocks takes the content of io.stat: "8:0 rbytes=1 wbytes=2 …" for each device.
func (u *Usage) addBlocks(stat string) {
	for _, field := range strings.Fields(stat) {
		name, value, _ := strings.Cut(field, "=")
		n, _ := strconv.ParseUint(value, 10, 64)
		switch name {
		case "rbytes":
			u.BlockRead += n
		case "wbytes":
			u.BlockWrite += n
		}
	}
}

// addProcess adds what /proc says of a process, without what is counted already. One that has ended meanwhile, or that the
// caller may not look into, adds nothing.
func (u *Usage) addProcess(pid int, counted counts) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	if counted&countMemory == 0 {
		u.Memory += keyed(dir + "smaps_rollup")["Pss:"] << 10
	}
	if counted&countCPU == 0 {
		if stat, err := os.ReadFile(dir + "stat"); err == nil {
			// With the time of the children that were waited for. The command's name may hold anything.
			fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
			for i := 14 - 3; i <= 17-3 && i < len(fields); i++ {
				n, _ := strconv.ParseUint(fields[i], 10, 64)
				u.CPU += time.Duration(n) * time.Second / clockTicks
			}
		}
	}
	if counted&countPIDs == 0 {
		u.PIDs += keyed(dir + "status")["Threads:"]
	}
	if counted&countBlocks == 0 {
		io := keyed(dir + "io")
		u.BlockRead += io["read_bytes:"]
		u.BlockWrite += io["write_bytes:"]
	}
}

// keyed reads a file of lines that begin with a word and a number.
func keyed(file string) map[string]uint64 {
	out := map[string]uint64{}
	data, err := os.ReadFile(file)
	if err != nil {
		return out
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) >= 2 {
			if n, err := strconv.ParseUint(f[1], 10, 64); err == nil {
				out[f[0]] = n
			}
		}
	}
	return out
}
