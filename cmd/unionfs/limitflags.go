package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"
)

// leastMemory is the least that Docker takes for --memory: the init needs some of it too.
const leastMemory = 6 << 20

// processorPeriod is the time, in microseconds, of which --cpus is a multiple: the kernel's default.
const processorPeriod = 100000

// limitFlags are the flags of run and try that limit what a container uses, with Docker's names.
func limitFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "memory", Aliases: []string{"m"}, Usage: "use at most `SIZE` of memory, such as 512m"},
		&cli.StringFlag{Name: "memory-swap", Usage: "use at most `SIZE` of memory and swap together; -1 for no limit", DefaultText: "twice the memory"},
		&cli.StringFlag{Name: "memory-reservation", Usage: "leave `SIZE` of memory to the container when the host runs short"},
		&cli.StringFlag{Name: "cpus", Usage: "use at most the time of `N` processors, such as 1.5"},
		&cli.StringFlag{Name: "cpu-quota", Usage: "use at most `N` microseconds of processor time in each period"},
		&cli.StringFlag{Name: "cpu-period", Usage: "the period of --cpu-quota, in microseconds `N`", DefaultText: strconv.Itoa(processorPeriod)},
		&cli.StringFlag{Name: "cpu-shares", Aliases: []string{"c"}, Usage: "get `N` parts of the processors' time where others have 1024"},
		&cli.StringFlag{Name: "cpuset-cpus", Usage: "run on the processors `LIST` only, such as 0-2,7"},
		&cli.StringFlag{Name: "cpuset-mems", Usage: "use memory of the nodes `LIST` only"},
		&cli.StringFlag{Name: "pids-limit", Usage: "run at most `N` processes and threads; -1 for no limit"},
		&cli.StringFlag{Name: "blkio-weight", Usage: "get `N` parts, 10 to 1000, of the disks' time"},
		&cli.StringSliceFlag{Name: "device-read-bps", Usage: "read at most so many bytes a second from a disk: `DEVICE:RATE`, such as /dev/sda:10m"},
		&cli.StringSliceFlag{Name: "device-write-bps", Usage: "write at most so many bytes a second to a disk: `DEVICE:RATE`"},
		&cli.StringSliceFlag{Name: "device-read-iops", Usage: "make at most so many reads a second from a disk: `DEVICE:RATE`"},
		&cli.StringSliceFlag{Name: "device-write-iops", Usage: "make at most so many writes a second to a disk: `DEVICE:RATE`"},
	}
}

// resourcesOf reads those flags; nil without limits.
func resourcesOf(c *cli.Context) (*specs.LinuxResources, error) {
	var r specs.LinuxResources
	if err := readMemory(c, &r); err != nil {
		return nil, err
	}
	cpu := specs.LinuxCPU{Cpus: c.String("cpuset-cpus"), Mems: c.String("cpuset-mems")}
	if err := readProcessorTime(c, &cpu); err != nil {
		return nil, err
	}
	shares, given, err := wholeNumber(c, "cpu-shares", 2, 262144)
	if err != nil {
		return nil, err
	}
	if given {
		n := uint64(shares)
		cpu.Shares = &n
	}
	if cpu.Cpus != "" || cpu.Mems != "" || cpu.Quota != nil || cpu.Shares != nil {
		r.CPU = &cpu
	}
	pids, given, err := wholeNumber(c, "pids-limit", -1, math.MaxInt32)
	if err != nil {
		return nil, err
	}
	if given && pids > 0 {
		r.Pids = &specs.LinuxPids{Limit: &pids}
	}
	weight, given, err := wholeNumber(c, "blkio-weight", 10, 1000)
	if err != nil {
		return nil, err
	}
	var blocks specs.LinuxBlockIO
	if given {
		n := uint16(weight)
		blocks.Weight = &n
	}
	throttled := false
	for flag, list := range map[string]*[]specs.LinuxThrottleDevice{
		"device-read-bps": &blocks.ThrottleReadBpsDevice, "device-write-bps": &blocks.ThrottleWriteBpsDevice,
		"device-read-iops": &blocks.ThrottleReadIOPSDevice, "device-write-iops": &blocks.ThrottleWriteIOPSDevice,
	} {
		for _, value := range c.StringSlice(flag) {
			device, err := throttleOf(flag, value)
			if err != nil {
				return nil, err
			}
			*list, throttled = append(*list, device), true
		}
	}
	if given || throttled {
		r.BlockIO = &blocks
	}
	if r.Memory == nil && r.CPU == nil && r.Pids == nil && r.BlockIO == nil {
		return nil, nil
	}
	return &r, nil
}

// readProcessorTime reads --cpus, or what that is short for. The bounds are the kernel's (kernel/sched/core.c, tg_set_cfs_bandwidth).
func readProcessorTime(c *cli.Context, cpu *specs.LinuxCPU) error {
	quota, limited, err := wholeNumber(c, "cpu-quota", 1000, math.MaxInt32)
	if err != nil {
		return err
	}
	period, given, err := wholeNumber(c, "cpu-period", 1000, 1000000)
	if err != nil {
		return err
	}
	value := c.String("cpus")
	switch {
	case value != "" && (limited || given):
		return usageError("--cpus is a quota and a period: give it, or --cpu-quota and --cpu-period")
	case given && !limited:
		return usageError("--cpu-period is that of --cpu-quota, which is not given")
	case value == "" && !limited:
		return nil
	case !given:
		period = processorPeriod
	}
	if value != "" {
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || n < 0.01 || n > math.MaxInt32 {
			return usageError("--cpus %q: want a number of at least 0.01", value)
		}
		quota = int64(math.Round(n * processorPeriod))
	}
	of := uint64(period)
	cpu.Quota, cpu.Period = &quota, &of
	return nil
}

// throttleOf reads DEVICE:RATE.
func throttleOf(flag, value string) (d specs.LinuxThrottleDevice, err error) {
	i := strings.LastIndexByte(value, ':')
	if i < 0 {
		return d, usageError("--%s %q: want DEVICE:RATE", flag, value)
	}
	var st unix.Stat_t
	if err := unix.Stat(value[:i], &st); err != nil {
		return d, fmt.Errorf("--%s %s: %w", flag, value, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return d, fmt.Errorf("--%s %s: %s is no block device", flag, value, value[:i])
	}
	d.Major, d.Minor = int64(unix.Major(st.Rdev)), int64(unix.Minor(st.Rdev))
	var rate int64
	if strings.HasSuffix(flag, "-bps") {
		rate, err = units.RAMInBytes(value[i+1:])
	} else {
		rate, err = strconv.ParseInt(value[i+1:], 10, 64)
	}
	if err != nil || rate <= 0 {
		return d, usageError("--%s %q: want a rate above 0 after the colon", flag, value)
	}
	d.Rate = uint64(rate)
	return d, nil
}

func readMemory(c *cli.Context, r *specs.LinuxResources) error {
	if reserved := c.String("memory-reservation"); reserved != "" {
		n, err := units.RAMInBytes(reserved)
		if err != nil || n <= 0 {
			return usageError("--memory-reservation %q: want a size, such as 256m", reserved)
		}
		r.Memory = &specs.LinuxMemory{Reservation: &n}
	}
	memory, swap := c.String("memory"), c.String("memory-swap")
	if memory == "" {
		if swap != "" {
			return usageError("--memory-swap: give --memory too")
		}
		return nil
	}
	limit, err := units.RAMInBytes(memory)
	if err != nil || limit < leastMemory {
		return usageError("--memory %q: want a size of at least 6m", memory)
	}
	both := 2 * limit
	if swap != "" {
		if swap == "-1" {
			both = -1
		} else if both, err = units.RAMInBytes(swap); err != nil || both < limit {
			return usageError("--memory-swap %q: want memory and swap together, a size not below --memory, or -1", swap)
		}
	}
	if r.Memory == nil {
		r.Memory = &specs.LinuxMemory{}
	}
	r.Memory.Limit, r.Memory.Swap = &limit, &both
	return nil
}

// wholeNumber reads a flag.
func wholeNumber(c *cli.Context, flag string, least, most int64) (n int64, given bool, err error) {
	value := c.String(flag)
	if value == "" {
		return 0, false, nil
	}
	n, err = strconv.ParseInt(value, 10, 64)
	if err != nil || n < least || n > most {
		return 0, false, usageError("--%s %q: want a whole number from %d to %d", flag, value, least, most)
	}
	return n, true, nil
}
