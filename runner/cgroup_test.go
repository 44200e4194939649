package runner

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func pointer[T any](v T) *T { return &v }

func TestLimitsOf(t *testing.T) {
	full := &specs.LinuxResources{
		Memory:  &specs.LinuxMemory{Limit: pointer[int64](1 << 20), Swap: pointer[int64](3 << 20)},
		CPU:     &specs.LinuxCPU{Cpus: "0-1", Mems: "0", Shares: pointer[uint64](1024), Quota: pointer[int64](50000), Period: pointer[uint64](100000)},
		Pids:    &specs.LinuxPids{Limit: pointer[int64](5)},
		BlockIO: &specs.LinuxBlockIO{Weight: pointer[uint16](500)},
	}
	for _, c := range []struct {
		resources *specs.LinuxResources
		v1, v2    []string
	}{
		{nil, nil, nil},
		{&specs.LinuxResources{}, nil, nil},
		{full, []string{
			"cpuset.mems 0", "cpuset.cpus 0-1", "cpu.shares 1024", "cpu.cfs_period_us 100000", "cpu.cfs_quota_us 50000", "blkio.bfq.weight 500",
			"memory.limit_in_bytes 1048576", "memory.memsw.limit_in_bytes 3145728", "pids.max 15",
		}, []string{
			"cpuset.mems 0", "cpuset.cpus 0-1", "cpu.weight 39", "cpu.max 50000 100000", "io.bfq.weight 500",
			"memory.max 1048576", "memory.swap.max 2097152", "pids.max 15",
		}},
		{&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: pointer[int64](1 << 20), Swap: pointer[int64](-1)}},
			[]string{"memory.limit_in_bytes 1048576", "memory.memsw.limit_in_bytes -1"}, []string{"memory.max 1048576", "memory.swap.max max"}},
		{&specs.LinuxResources{Pids: &specs.LinuxPids{Limit: pointer[int64](-1)}}, nil, nil},
		{&specs.LinuxResources{Memory: &specs.LinuxMemory{Reservation: pointer[int64](5)}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 7}}, BlockIO: throttled(8, 16)},
			[]string{"blkio.throttle.read_bps_device 8:16 1000", "blkio.throttle.write_iops_device 8:16 20", "hugetlb.2MB.limit_in_bytes 7", "memory.soft_limit_in_bytes 5"},
			[]string{"io.max 8:16 rbps=1000", "io.max 8:16 wiops=20", "hugetlb.2MB.max 7", "memory.low 5"}},
	} {
		for unified, want := range map[bool][]string{false: c.v1, true: c.v2} {
			limits, err := limitsOf(c.resources, unified)
			must(t, err)
			var got []string
			for _, l := range limits {
				got = append(got, l.files[0]+" "+l.value)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("unified %v: %q, want %q", unified, got, want)
			}
		}
	}
	for _, bad := range []specs.LinuxResources{
		{Network: &specs.LinuxNetwork{}},
		{CPU: &specs.LinuxCPU{RealtimeRuntime: pointer[int64](1)}},
		{Memory: &specs.LinuxMemory{Swappiness: pointer[uint64](1)}},
		{BlockIO: &specs.LinuxBlockIO{LeafWeight: pointer[uint16](1)}},
	} {
		if _, err := limitsOf(&bad, true); err == nil {
			t.Errorf("no error for %+v", bad)
		}
	}
}

// throttled limits the rates of a device.
func throttled(major, minor int64) *specs.LinuxBlockIO {
	device := func(rate uint64) []specs.LinuxThrottleDevice {
		d := specs.LinuxThrottleDevice{Rate: rate}
		d.Major, d.Minor = major, minor
		return []specs.LinuxThrottleDevice{d}
	}
	return &specs.LinuxBlockIO{ThrottleReadBpsDevice: device(1000), ThrottleWriteIOPSDevice: device(20)}
}

// TestOtherLimits looks for limits in the kernel's files that can't be exceeded in a test: where this host has version 1, also
// one that is in the unified hierarchy beside it.
func TestOtherLimits(t *testing.T) {
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		var disk unix.Stat_t
		must(t, unix.Stat("/", &disk))
		if unix.Major(disk.Dev) == 0 {
			t.Fatal("the root is on no disk that could be throttled")
		}
		r := w.shell("sleep 1000")
		r.Spec.Linux.Resources = &specs.LinuxResources{
			Memory: &specs.LinuxMemory{Reservation: pointer[int64](1 << 20)}, HugepageLimits: []specs.LinuxHugepageLimit{{Pagesize: "2MB", Limit: 4 << 20}},
			BlockIO: throttled(int64(unix.Major(disk.Dev)), int64(unix.Minor(disk.Dev))),
		}
		d := w.detach(r)
		found := map[string]string{}
		for _, dir := range cgroupsLeft(t, w) {
			for _, name := range []string{"memory.soft_limit_in_bytes", "memory.low", "hugetlb.2MB.limit_in_bytes", "hugetlb.2MB.max", "blkio.throttle.read_bps_device", "blkio.throttle.write_iops_device", "io.max"} {
				if data, err := os.ReadFile(filepath.Join(dir, name)); err == nil {
					kind, _, _ := strings.Cut(name, ".")
					found[kind] += strings.TrimSpace(string(data)) + ";"
				}
			}
		}
		number := fmt.Sprintf("%d:%d", unix.Major(disk.Dev), unix.Minor(disk.Dev))
		blocks := map[string]string{"blkio": number + " 1000;" + number + " 20;", "io": number + " rbps=1000 wbps=max riops=max wiops=20;"}
		if found["memory"] != "1048576;" || found["hugetlb"] != "4194304;" || found["blkio"] != blocks["blkio"] && found["io"] != blocks["io"] {
			t.Errorf("limits in the kernel's files: %q", found)
		}
		must(t, d.container.Kill(time.Minute))
		if left := cgroupsLeft(t, w); len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	})
}

func TestHierarchies(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		name = filepath.Join(dir, name)
		must(t, os.WriteFile(name, []byte(content), 0o644))
		return name
	}
	hybrid, err := hierarchies(file("cgroup", "4:memory:/a/b\n3:cpu,cpuacct:/\n2:pids:/outside\n1:name=systemd:/x\n0::/u\n"), file("mountinfo",
		"10 1 0:1 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"+
			"11 1 0:2 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"+
			"12 1 0:3 /inside /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n"+
			"13 1 0:4 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"))
	must(t, err)
	want := []hierarchy{
		{own: "/sys/fs/cgroup/memory/a/b", top: "/sys/fs/cgroup/memory", controllers: []string{"memory"}},
		{own: "/sys/fs/cgroup/cpu,cpuacct", top: "/sys/fs/cgroup/cpu,cpuacct", controllers: []string{"cpu", "cpuacct"}},
		{own: "/sys/fs/cgroup/unified/u", top: "/sys/fs/cgroup/unified", unified: true},
	}
	if !reflect.DeepEqual(hybrid, want) {
		t.Errorf("%+v, want %+v", hybrid, want)
	}
}

// TestDelegated looks for a place in the unified hierarchy, on plain files in place of the kernel's.
func TestDelegated(t *testing.T) {
	top := t.TempDir()
	own := filepath.Join(top, "slice", "scope")
	must(t, os.MkdirAll(own, 0o755))
	must(t, os.WriteFile(filepath.Join(top, "slice/cgroup.subtree_control"), []byte("memory pids\n"), 0o644))
	h := &hierarchy{own: own, top: top, unified: true}
	if got, err := h.delegated([]limit{{what: "memory", controller: "memory"}}); err != nil || got != filepath.Join(top, "slice") {
		t.Errorf("where it is on: %s, %v", got, err)
	}
	got, err := h.delegated([]limit{{what: "time", controller: "cpu"}, {what: "shares", controller: "cpu"}})
	written, _ := os.ReadFile(filepath.Join(top, "slice/cgroup.subtree_control"))
	if err != nil || got != filepath.Join(top, "slice") || !strings.HasPrefix(string(written), "+cpu") || strings.Count(string(written), "cpu") != 1 {
		t.Errorf("where it can be switched on: %s, %v, written %q", got, err, written)
	}
	must(t, os.Remove(filepath.Join(top, "slice/cgroup.subtree_control")))
	if _, err := h.delegated([]limit{{what: "processor time", controller: "cpu"}}); err == nil || !strings.Contains(err.Error(), "processor time") {
		t.Errorf("nowhere: %v", err)
	}
}

// TestUnifiedCgroup starts a process in a cgroup of the real unified hierarchy, with no controller, and comes back.
func TestUnifiedCgroup(t *testing.T) {
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	must(t, err)
	c := newCgroupContainer(t)
	g := &cgroups{container: c}
	for _, h := range all {
		if h.unified {
			g.leaves = []leaf{{hierarchy: h, dir: filepath.Join(h.own, c.cgroupName())}}
		}
	}
	if len(g.leaves) != 1 {
		t.Fatalf("no unified hierarchy among %+v", all)
	}
	t.Cleanup(func() { _ = unix.Rmdir(g.leaves[0].dir) })
	own := func(file string) string {
		for line := range strings.Lines(file) {
			if path, ok := strings.CutPrefix(line, "0::"); ok {
				return strings.TrimSpace(path)
			}
		}
		return ""
	}
	before, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	must(t, g.make())
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command("sleep", "1000")
	must(t, g.within(cmd.Start))
	inside, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", cmd.Process.Pid))
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	must(t, err)
	after, err := os.ReadFile("/proc/self/cgroup")
	must(t, err)
	if !strings.HasSuffix(own(string(inside)), "/"+c.cgroupName()) || string(before) != string(after) {
		t.Errorf("inside %q; this process before %q, after %q", inside, before, after)
	}
	must(t, g.remove())
	if _, err := os.Stat(g.leaves[0].dir); !os.IsNotExist(err) {
		t.Errorf("the cgroup is left: %v", err)
	}
}

// newCgroupContainer is a container that never runs.
func newCgroupContainer(t *testing.T) *Container {
	t.Helper()
	st, err := OpenState(t.TempDir())
	must(t, err)
	spec := DefaultSpec()
	spec.Process.Args = []string{"true"}
	c, err := st.Create(spec, CreateOptions{})
	must(t, err)
	return c
}

// cgroupsLeft lists the cgroups of a ward's containers that exist.
func cgroupsLeft(t *testing.T, w *ward) []string {
	t.Helper()
	entries, _ := os.ReadDir(filepath.Join(w.state, "containers")) // there may be none yet
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	must(t, err)
	var out []string
	for _, e := range entries {
		for _, h := range all {
			dir := filepath.Join(h.own, "unionfs-"+e.Name())
			if _, err := os.Stat(dir); err == nil {
				out = append(out, dir)
			}
		}
	}
	return out
}

// TestLimitsInside exceeds each limit from inside a container.
func TestLimitsInside(t *testing.T) {
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		limited := func(script string, r specs.LinuxResources) *request {
			q := w.shell(script)
			q.Spec.Linux.Resources = &r
			return q
		}
		memory := &specs.LinuxMemory{Limit: pointer[int64](128 << 20), Swap: pointer[int64](256 << 20)}
		hog := "dd if=/dev/zero of=/dev/null bs=400M count=1"
		res := w.run(limited("exec "+hog, specs.LinuxResources{Memory: memory}))
		if res.code != 137 {
			t.Errorf("memory hog: %+v", res)
		}
		if res := w.run(w.shell(hog)); res.code != 0 {
			t.Errorf("memory hog without a limit: %+v", res)
		}
		st := &State{root: w.state}
		all, err := st.List()
		must(t, err)
		for i, want := range []bool{false, true} {
			if status, err := all[i].Status(); err != nil || status.OutOfMemory != want {
				t.Errorf("out of memory: %+v, %v, want %v", status, err, want)
			}
		}

		// 30 with the init's threads. A shell that can't fork gives up.
		bomb := "(for i in $(seq 60); do sleep 1000 & done) 2>/dev/null; set -- /proc/[0-9]*; echo $#"
		var count int
		fmt.Sscan(w.output(limited(bomb, specs.LinuxResources{Pids: &specs.LinuxPids{Limit: pointer[int64](20)}})), &count)
		if count < 10 || count > 30 {
			t.Errorf("fork bomb: %d processes", count)
		}

		got := w.output(limited("for f in cpu/cpu.cfs_quota_us cpu/cpu.shares cpuset/cpuset.cpus memory/memory.limit_in_bytes pids/pids.max blkio/blkio.bfq.weight; do cat /sys/fs/cgroup/$f; done; grep -c unionfs- /proc/self/cgroup; grep Cpus_allowed_list /proc/self/status",
			specs.LinuxResources{
				Memory: memory, Pids: &specs.LinuxPids{Limit: pointer[int64](90)}, BlockIO: &specs.LinuxBlockIO{Weight: pointer[uint16](70)},
				CPU: &specs.LinuxCPU{Quota: pointer[int64](50000), Shares: pointer[uint64](99), Cpus: "0"},
			}))
		if want := "50000\n99\n0\n134217728\n100\n70\n0\nCpus_allowed_list:\t0"; got != want {
			t.Errorf("limits seen inside: %q, want %q", got, want)
		}

		res = w.run(limited("true", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}}))
		if res.code != 125 || strings.Count(res.stderr, "\n") != 1 || !strings.Contains(res.stderr, "processors") {
			t.Errorf("a processor that isn't there: %+v", res)
		}
		if left := cgroupsLeft(t, w); len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	})
	inWorlds(t, worlds()[1:], func(t *testing.T, w *ward) {
		r := w.shell("true")
		r.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: pointer[int64](9)}}
		res := w.run(r)
		if res.code != 125 || strings.Count(res.stderr, "\n") != 1 || !strings.Contains(res.stderr, "limiting processes") || !strings.Contains(res.stderr, "as root") {
			t.Errorf("a limit that can't be had: %+v", res)
		}
	})
}

// TestCgroupsOfKilled kills supervisors at different instants; listing the containers removes what is left.
func TestCgroupsOfKilled(t *testing.T) {
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		for range 4 {
			r := w.shell("sleep 1000 & sleep 1000")
			r.Spec.Linux.Resources = &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: pointer[int64](256 << 20)}, Pids: &specs.LinuxPids{Limit: pointer[int64](50)}}
			cmd := w.cmd(r)
			must(t, cmd.Start())
			eventually(t, "there are cgroups", func() bool { return len(cgroupsLeft(t, w)) > 0 })
			killSupervisor(t, w, cmd)
			_ = cmd.Wait()
			eventually(t, "all processes are gone", func() bool { return len(concerned(t, w)) == 0 })
			// A child that P1 was just about to make has no arguments any more when it closes its copy of the lock.
			eventually(t, "listing the containers removes the cgroups", func() bool {
				_, err := (&State{root: w.state}).List()
				must(t, err)
				return len(cgroupsLeft(t, w)) == 0
			})
		}
	})
}
