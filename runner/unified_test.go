package runner

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"unionfs/internal/testimage"
)

// TestUnified exceeds and reads the limits on a host with cgroup v2 alone. Where this host isn't one, the test starts one: a
// virtual machine with Debian's kernel, in which this program runs the same test again.
func TestUnified(t *testing.T) {
	if !unifiedOnly() {
		inVirtualMachine(t, "^TestUnified$")
		return
	}
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		limited := func(script string, r specs.LinuxResources) *request {
			q := w.shell(script)
			q.Spec.Linux.Resources = &r
			return q
		}
		memory := &specs.LinuxMemory{Limit: pointer[int64](64 << 20), Swap: pointer[int64](64 << 20)}
		res := w.run(limited("exec dd if=/dev/zero of=/dev/null bs=100M count=1", specs.LinuxResources{Memory: memory}))
		all, err := (&State{root: w.state}).List()
		must(t, err)
		status, err := all[0].Status()
		must(t, err)
		if res.code != 137 || !status.OutOfMemory {
			t.Errorf("memory hog: %+v, %+v", res, status)
		}

		bomb := "(for i in $(seq 60); do sleep 1000 & done) 2>/dev/null; set -- /proc/[0-9]*; echo $#"
		var count int
		fmt.Sscan(w.output(limited(bomb, specs.LinuxResources{Pids: &specs.LinuxPids{Limit: pointer[int64](20)}})), &count)
		if count < 10 || count > 30 {
			t.Errorf("fork bomb: %d processes", count)
		}

		every := specs.LinuxResources{
			Memory: memory, Pids: &specs.LinuxPids{Limit: pointer[int64](90)}, BlockIO: &specs.LinuxBlockIO{Weight: pointer[uint16](505)},
			CPU: &specs.LinuxCPU{Quota: pointer[int64](20000), Shares: pointer[uint64](1024), Cpus: "0", Mems: "0"},
		}
		got := w.output(limited("cd /sys/fs/cgroup; cat memory.max memory.swap.max pids.max cpu.max cpu.weight cpuset.cpus cpuset.mems io.weight; cat /proc/self/cgroup; grep Cpus_allowed_list /proc/self/status; touch x 2>/dev/null && echo writable; true", every))
		if want := "67108864\n0\n100\n20000 100000\n39\n0\n0\ndefault 5000\n0::/\nCpus_allowed_list:\t0"; got != want {
			t.Errorf("limits seen inside: %q, want %q", got, want)
		}
		// A fifth of a processor: the kernel counts the periods in which it would have used more.
		d := w.detach(limited("while :; do :; done", every))
		before, err := d.container.Usage()
		must(t, err)
		after := before
		eventually(t, "it uses what it may, and is held back", func() bool {
			after, err = d.container.Usage()
			must(t, err)
			return after.CPU > before.CPU && keyed(filepath.Join("/sys/fs/cgroup", d.container.cgroupName(), "cpu.stat"))["nr_throttled"] > 2
		})
		if after.MemoryLimit != 64<<20 || after.PIDsLimit != 100 || after.Memory == 0 || after.MemoryPeak < after.Memory || after.PIDs < 2 {
			t.Errorf("usage: %+v", after)
		}
		must(t, d.container.Pause())
		before, err = d.container.Usage()
		must(t, err)
		time.Sleep(300 * time.Millisecond)
		if after, err = d.container.Usage(); err != nil || after.CPU-before.CPU > 20*time.Millisecond {
			t.Errorf("paused, it used %s, %v", after.CPU-before.CPU, err)
		}
		must(t, d.container.Unpause())
		must(t, d.container.Kill(time.Minute))

		res = w.run(limited("true", specs.LinuxResources{CPU: &specs.LinuxCPU{Cpus: "4000"}}))
		if res.code != 125 || strings.Count(res.stderr, "\n") != 1 || !strings.Contains(res.stderr, "processors") {
			t.Errorf("a processor that isn't there: %+v", res)
		}
		if got := w.output(w.ofHost("sleep 1000 & setsid sleep 1000 & cat /proc/1/comm")); got != "busybox" && got != "init" {
			t.Errorf("in the host's PID namespace: %q", got)
		}
		w.noneMarked()
		if left := cgroupsLeft(t, w); len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	})
	inWorlds(t, worlds()[2:], func(t *testing.T, w *ward) {
		limits := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: pointer[int64](64 << 20)}, Pids: &specs.LinuxPids{Limit: pointer[int64](50)}}
		r := w.shell("cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max")
		r.Spec.Linux.Resources = limits
		for _, r := range []*request{r, w.ofHost("true")} {
			if res := w.run(r); res.code != 125 || strings.Count(res.stderr, "\n") != 1 || !strings.Contains(res.stderr, "Delegate=yes") {
				t.Errorf("with nothing delegated: %+v", res)
			}
		}
		// As systemd-run --user --scope -p Delegate=yes has it: a directory of the user's, and in it one with the process.
		scope := "/sys/fs/cgroup/scope"
		must(t, os.MkdirAll(scope+"/main", 0o755))
		must(t, writeCgroupFile("/sys/fs/cgroup/cgroup.subtree_control", "+memory +pids"))
		t.Cleanup(func() { _ = unix.Rmdir(scope + "/main"); _ = unix.Rmdir(scope) })
		for _, file := range []string{"", "/cgroup.procs", "/cgroup.subtree_control", "/main", "/main/cgroup.procs"} {
			must(t, os.Chown(scope+file, testUID, testUID))
		}
		must(t, writeCgroupFile(scope+"/main/cgroup.procs", fmt.Sprint(os.Getpid())))
		// Back, before the scope is removed.
		t.Cleanup(func() { _ = writeCgroupFile("/sys/fs/cgroup/cgroup.procs", fmt.Sprint(os.Getpid())) })
		if got := w.output(r); got != "67108864\n60" {
			t.Errorf("delegated limits: %q", got)
		}
		hog := w.shell("exec dd if=/dev/zero of=/dev/null bs=100M count=1")
		hog.Spec.Linux.Resources = limits
		if res := w.run(hog); res.code != 137 {
			t.Errorf("memory hog: %+v", res)
		}
		bomb := w.shell("(for i in $(seq 90); do sleep 1000 & done) 2>/dev/null; set -- /proc/[0-9]*; echo $#")
		bomb.Spec.Linux.Resources = limits
		var count int
		if fmt.Sscan(w.output(bomb), &count); count < 40 || count > 60 {
			t.Errorf("fork bomb: %d processes", count)
		}
		both := w.ofHost("sleep 1000 & setsid sleep 1000 & cat /sys/fs/cgroup/pids.max")
		both.Spec.Linux.Resources = limits
		for _, r := range []*request{both, w.ofHost("sleep 1000 & setsid sleep 1000 & echo 60")} {
			if got := w.output(r); got != "60" {
				t.Errorf("in the host's PID namespace: %q", got)
			}
			w.noneMarked()
		}
	})
}

// machineInit is PID 1 of the virtual machine: it leaves the initial ramfs, on which the root can't be changed, and runs the
// test.
const machineInit = `#!/bin/busybox sh
b=/bin/busybox
if [ "$1" != again ]; then
	$b mkdir -p /new && $b mount -t tmpfs -o mode=755,size=90% root /new
	$b cp -a /bin /etc /init /runner.test /new
	exec $b switch_root /new /init again
fi
$b mkdir -p /proc /sys /dev /tmp /root && $b chmod 1777 /tmp
$b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev
$b mount -t cgroup2 cgroup2 /sys/fs/cgroup
$b --install -s /bin
export PATH=/bin HOME=/root
ip link set lo up
/runner.test -test.run "$(cat /etc/tests)" -test.v -test.timeout 15m > /tmp/out 2>&1
echo "exit code $?" >> /tmp/out
cat /tmp/out > /dev/ttyS0
poweroff -f
`

// inVirtualMachine runs tests of this package in a virtual machine of Debian's kernel, and fails if they do.
func inVirtualMachine(t *testing.T, tests string) {
	dir := t.TempDir()
	root := filepath.Join(dir, "root")
	for _, d := range []string{"bin", "etc"} {
		must(t, os.MkdirAll(filepath.Join(root, d), 0o755))
	}
	build := exec.Command("go", "test", "-c", "-buildvcs=false", "-o", filepath.Join(root, "runner.test"), ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("building the test program: %v\n%s", err, out)
	}
	for name, content := range map[string]string{"init": machineInit, "etc/tests": tests, "etc/passwd": "root:x:0:0::/root:/bin/sh\n", "etc/group": "root:x:0:\n", "etc/subuid": "", "etc/subgid": ""} {
		must(t, os.WriteFile(filepath.Join(root, name), []byte(content), 0o755))
	}
	initramfs := filepath.Join(dir, "initramfs")
	if out, err := exec.Command("sh", "-ec", `cp /bin/busybox "$1/bin/"; cd "$1"; find . | busybox cpio -o -H newc > "$2"`, "sh", root, initramfs).CombinedOutput(); err != nil {
		t.Fatalf("making the initial file system: %v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	kernel := testimage.Kernel(t)
	// Emulated: not every host that offers its processor for this lets it work. The kernel is up in a few seconds all the same.
	machine := exec.CommandContext(ctx, "qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64", "-m", "768", "-smp", "2", "-nodefaults", "-no-reboot",
		"-display", "none", "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs, "-append", "console=ttyS0 quiet panic=-1 cgroup_no_v1=all")
	var out bytes.Buffer
	machine.Stdout, machine.Stderr = &out, &out
	err := machine.Run()
	if text := strings.ReplaceAll(out.String(), "\r", ""); err != nil || !strings.Contains(text, "exit code 0\n") {
		t.Fatalf("in the virtual machine: %v\n%s", err, text)
	}
}
