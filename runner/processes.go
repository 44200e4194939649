package runner

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Process is a process of a container, as the host sees it.
type Process struct {
	PID, PPID int
	UID       int           // the effective user, on the host
	State     string        // a letter, proc_pid_stat(5)
	Started   time.Time     // to a hundredth of a second
	Used      time.Duration // of processors
	TTY       int           // device number; 0 if there is none
	Args      []string      // the command's name in brackets if it has none
}

// Processes lists the processes of a running container, the init first, then in the order of their numbers. Those that end
// meanwhile are left out.
func (c *Container) Processes() ([]Process, error) {
	st, err := c.Status()
	if err != nil {
		return nil, err
	}
	if st.State != StateRunning {
		return nil, fmt.Errorf("container %s is not running", c.Name)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	booted, err := bootTime()
	if err != nil {
		return nil, err
	}
	all := map[int]Process{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		p, start, err := readProcess(pid, booted)
		if err != nil || pid == st.InitPID && start != st.InitStart {
			continue
		}
		all[pid] = p
	}
	if _, ok := all[st.InitPID]; !ok {
		return nil, fmt.Errorf("container %s is not running", c.Name)
	}
	// All that is in its PID namespace descends from the init: orphans become its children.
	inside := descendants(all, st.InitPID, func(pid int) (Process, bool) {
		p, _, err := readProcess(pid, booted)
		return p, err == nil
	})
	slices.SortFunc(inside, func(a, b Process) int {
		if a.PID == st.InitPID || b.PID == st.InitPID {
			return map[bool]int{true: -1, false: 1}[a.PID == st.InitPID]
		}
		return a.PID - b.PID
	})
	return inside, nil
}

// descendants picks a process and those that descend from it. all was read while they came and went: a parent that is missing was
// started meanwhile, or it has ended and its children have another one. Either is read again.
func descendants(all map[int]Process, top int, read func(pid int) (Process, bool)) (out []Process) {
	pids := slices.Collect(maps.Keys(all))
	for i := 0; i < len(pids); i++ {
		pid := pids[i]
		for up, steps := pid, 0; up > 1 && steps <= len(all); steps++ {
			if up == top {
				out = append(out, all[pid])
				break
			}
			p, ok := all[up]
			if !ok {
				break
			}
			if _, known := all[p.PPID]; !known && p.PPID > 1 {
				if parent, there := read(p.PPID); there {
					all[p.PPID] = parent
					pids = append(pids, p.PPID)
				} else if again, there := read(up); there {
					p, all[up] = again, again
				}
			}
			up = p.PPID
		}
	}
	return out
}

// clockTicks is how many ticks /proc counts in a second: 100 on every architecture (USER_HZ).
const clockTicks = 100

// readProcess reads a process of /proc, and when it started in ticks after boot.
func readProcess(pid int, booted time.Time) (Process, uint64, error) {
	dir := "/proc/" + strconv.Itoa(pid)
	var owner unix.Stat_t
	if err := unix.Stat(dir, &owner); err != nil {
		return Process{}, 0, err
	}
	stat, err := os.ReadFile(dir + "/stat")
	if err != nil {
		return Process{}, 0, err
	}
	open, end := bytes.IndexByte(stat, '('), bytes.LastIndexByte(stat, ')')
	if open < 0 || end < open {
		return Process{}, 0, errors.New("its stat can't be read")
	}
	fields := strings.Fields(string(stat[end+1:])) // from the third on
	if len(fields) < 20 {
		return Process{}, 0, errors.New("its stat is too short")
	}
	number := func(field int) uint64 {
		n, _ := strconv.ParseUint(fields[field-3], 10, 64)
		return n
	}
	p := Process{PID: pid, PPID: int(number(4)), UID: int(owner.Uid), State: fields[0], TTY: int(number(7))}
	start := number(22)
	p.Started = booted.Add(time.Duration(start) * time.Second / clockTicks)
	p.Used = time.Duration(number(14)+number(15)) * time.Second / clockTicks
	if args, err := os.ReadFile(dir + "/cmdline"); err == nil && len(args) > 0 {
		p.Args = strings.Split(strings.TrimRight(string(args), "\x00"), "\x00")
	} else {
		p.Args = []string{"[" + string(stat[open+1:end]) + "]"}
	}
	// A process that isn't dumpable shows as root's; its status tells.
	if status, err := os.ReadFile(dir + "/status"); err == nil {
		for line := range strings.Lines(string(status)) {
			if ids, ok := strings.CutPrefix(line, "Uid:"); ok {
				if f := strings.Fields(ids); len(f) > 1 {
					p.UID, _ = strconv.Atoi(f[1])
				}
			}
		}
	}
	return p, start, nil
}

// bootTime is when the host was started.
func bootTime() (time.Time, error) {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return time.Time{}, err
	}
	return time.Now().Add(-time.Duration(now.Nano())), nil
}
