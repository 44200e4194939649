package main

import (
	"math"
	"strconv"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"
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
		&cli.StringFlag{Name: "cpus", Usage: "use at most the time of `N` processors, such as 1.5"},
		&cli.StringFlag{Name: "cpu-shares", Aliases: []string{"c"}, Usage: "get `N` parts of the processors' time where others have 1024"},
		&cli.StringFlag{Name: "cpuset-cpus", Usage: "run on the processors `LIST` only, such as 0-2,7"},
		&cli.StringFlag{Name: "cpuset-mems", Usage: "use memory of the nodes `LIST` only"},
		&cli.StringFlag{Name: "pids-limit", Usage: "run at most `N` processes and threads; -1 for no limit"},
		&cli.StringFlag{Name: "blkio-weight", Usage: "get `N` parts, 10 to 1000, of the disks' time"},
	}
}

// resourcesOf reads those flags; nil without limits.
func resourcesOf(c *cli.Context) (*specs.LinuxResources, error) {
	var r specs.LinuxResources
	if err := readMemory(c, &r); err != nil {
		return nil, err
	}
	cpu := specs.LinuxCPU{Cpus: c.String("cpuset-cpus"), Mems: c.String("cpuset-mems")}
	if value := c.String("cpus"); value != "" {
		n, err := strconv.ParseFloat(value, 64)
		if err != nil || n < 0.01 || n > math.MaxInt32 {
			return nil, usageError("--cpus %q: want a number of at least 0.01", value)
		}
		quota, period := int64(math.Round(n*processorPeriod)), uint64(processorPeriod)
		cpu.Quota, cpu.Period = &quota, &period
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
	if given {
		n := uint16(weight)
		r.BlockIO = &specs.LinuxBlockIO{Weight: &n}
	}
	if r.Memory == nil && r.CPU == nil && r.Pids == nil && r.BlockIO == nil {
		return nil, nil
	}
	return &r, nil
}

func readMemory(c *cli.Context, r *specs.LinuxResources) error {
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
	r.Memory = &specs.LinuxMemory{Limit: &limit, Swap: &both}
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
