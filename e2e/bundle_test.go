package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// writeBundle makes a bundle with busybox as its root, and returns its directory.
func (c *caller) writeBundle(t *testing.T, change func(spec *specs.Spec)) string {
	t.Helper()
	dir, err := os.MkdirTemp(c.home, "bundle-")
	if err != nil {
		t.Fatal(err)
	}
	r := c.script(t, `
		cd "$1"
		mkdir -p rootfs/bin rootfs/usr rootfs/etc rootfs/tmp rootfs/old
		ln -s ../bin rootfs/usr/bin
		cp /bin/busybox rootfs/bin
		chmod 755 .
		/bin/busybox --install -s rootfs/bin
		echo old > rootfs/old/file
		"$2"/bin/unionfs runtime spec --bundle .
		cat config.json`, dir, c.home)
	spec := &specs.Spec{}
	if err := json.Unmarshal([]byte(r), spec); err != nil {
		t.Fatal(err)
	}
	spec.Process.Terminal = false
	change(spec)
	if len(spec.Linux.UIDMappings) > 0 {
		c.script(t, `chown -R "$2:$2" "$1"/rootfs`, dir, fmt.Sprint(spec.Linux.UIDMappings[0].HostID))
	}
	data, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func pointer[T any](v T) *T { return &v }

// TestRuntimeBundle runs bundles whose specification asks for what podman never does.
func TestRuntimeBundle(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	maps := []specs.LinuxIDMapping{{ContainerID: 0, HostID: 300000, Size: 1000}, {ContainerID: 1000, HostID: 400000, Size: 1}}
	source := filepath.Join(c.home, "source")
	if err := os.MkdirAll(filepath.Join(source, "below"), 0o755); err != nil {
		t.Fatal(err)
	}
	script := func(text string) func(*specs.Spec) {
		return func(s *specs.Spec) { s.Process.Args = []string{"sh", "-c", text} }
	}
	for name, test := range map[string]struct {
		change []func(*specs.Spec)
		want   string
		code   int
	}{
		"new user namespace": {
			[]func(*specs.Spec){script("cat /proc/self/uid_map; id -u; stat -c %u /; stat -c %t:%T /dev/null; sleep 0; cat /proc/self/setgroups"), func(s *specs.Spec) {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
				s.Linux.UIDMappings, s.Linux.GIDMappings = maps, maps
			}},
			"         0     300000       1000\n      1000     400000          1\n0\n0\n1:3\nallow\n", 0,
		},
		"time namespace": {
			[]func(*specs.Spec){script("cut -d . -f 1 /proc/uptime | sed 's/...$//' | grep -v '^$' | sed 's/.*/days/'"), func(s *specs.Spec) {
				s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
				s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 10_000_000}, "monotonic": {Secs: 1000}}
			}},
			"days\n", 0,
		},
		"user, groups and capabilities": {
			[]func(*specs.Spec){script("id -u; id -g; grep -E 'Groups|CapPrm|CapAmb' /proc/self/status; umask"), func(s *specs.Spec) {
				s.Process.User = specs.User{UID: 5, GID: 6, AdditionalGids: []uint32{7, 8}, Umask: pointer(uint32(0o27))}
				caps := []string{"CAP_KILL"}
				s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps, Inheritable: caps, Ambient: caps}
			}},
			"5\n6\nGroups:\t7 8 \nCapPrm:\t0000000000000020\nCapAmb:\t0000000000000020\n0027\n", 0,
		},
		"mounts": {
			[]func(*specs.Spec){script(`cat /old/file; touch /tmp/x; ls /old | wc -l; touch /rro/x || touch /rro/below/x || touch /ro/below/x && echo written; touch /ro/x || echo read-only; grep -c " /old tmpfs rw,nosuid,nodev,noexec" /proc/mounts`), func(s *specs.Spec) {
				s.Mounts = append(s.Mounts,
					specs.Mount{Destination: "/old", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "nodev", "noexec", "tmpcopyup", "size=1m"}},
					specs.Mount{Destination: "/rro", Type: "bind", Source: source, Options: []string{"rbind", "rro"}},
					specs.Mount{Destination: "/ro", Source: source, Options: []string{"rbind", "ro"}},
				)
			}},
			"old\n1\nread-only\n1\n", 0,
		},
		"mapped mount": {
			[]func(*specs.Spec){script("stat -c %u:%g /mapped"), func(s *specs.Spec) {
				s.Mounts = append(s.Mounts, specs.Mount{
					Destination: "/mapped", Type: "bind", Source: source, Options: []string{"bind"},
					UIDMappings: []specs.LinuxIDMapping{{HostID: 77, Size: 10}}, GIDMappings: []specs.LinuxIDMapping{{HostID: 88, Size: 10}},
				})
			}},
			"77:88\n", 0,
		},
		"devices": {
			[]func(*specs.Spec){script("stat -c '%t:%T %a %u' /dev/mine /dir/pipe; cat /dev/mine > /dev/null && echo readable; mknod /tmp/zero c 1 5; head -c 1 /tmp/zero | wc -c; mknod /tmp/kmsg c 1 11; head -c 1 /tmp/kmsg 2> /dev/null || echo refused"), func(s *specs.Spec) {
				s.Linux.Devices = []specs.LinuxDevice{
					{Path: "/dev/mine", Type: "c", Major: 1, Minor: 3, FileMode: pointer(os.FileMode(0o640)), UID: pointer(uint32(9))},
					{Path: "/dir/pipe", Type: "p"},
				}
				s.Linux.Resources = &specs.LinuxResources{Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}}
			}},
			"1:3 640 9\n0:0 666 0\nreadable\n1\nrefused\n", 0,
		},
		"limits": {
			[]func(*specs.Spec){script("cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/memory/memory.limit_in_bytes; cat /proc/self/oom_score_adj; cat /proc/self/cgroup | grep pids"), func(s *specs.Spec) {
				s.Linux.CgroupsPath = "/unionfs-test/" + filepath.Base(c.home)
				s.Process.OOMScoreAdj = pointer(300)
				s.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: pointer(int64(55))}, Memory: &specs.LinuxMemory{Limit: pointer(int64(64 << 20))}}
			}},
			"55\n67108864\n300\n", 0,
		},
		"names and parameters": {
			[]func(*specs.Spec){script("hostname; cat /proc/sys/kernel/domainname /proc/sys/net/ipv4/ip_forward; cat /sys/class/net/lo/flags"), func(s *specs.Spec) {
				s.Hostname, s.Domainname = "host", "domain"
				s.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
			}},
			"host\ndomain\n1\n0x9\n", 0,
		},
		"scheduler": {
			[]func(*specs.Spec){script("cut -d ' ' -f 19,41 /proc/self/stat; ionice"), func(s *specs.Spec) {
				s.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch, Nice: 5}
				s.Process.IOPriority = &specs.LinuxIOPriority{Class: specs.IOPRIO_CLASS_IDLE}
			}},
			"5 3\nidle\n", 0,
		},
		"read-only root":     {[]func(*specs.Spec){script("touch /file"), func(s *specs.Spec) { s.Root.Readonly = true }}, "", 1},
		"killed by a signal": {[]func(*specs.Spec){script("sh -c 'kill -9 $$'; exit $?")}, "", 137},
		"no such command":    {[]func(*specs.Spec){func(s *specs.Spec) { s.Process.Args = []string{"nosuchcommand"} }}, "", 1},
		"a namespace that is none": {[]func(*specs.Spec){func(s *specs.Spec) {
			s.Linux.Namespaces[0].Path = "/dev/null"
		}}, "", 1},
	} {
		t.Run(name, func(t *testing.T) {
			bundle := c.writeBundle(t, func(s *specs.Spec) {
				for _, f := range test.change {
					f(s)
				}
			})
			id := strings.ReplaceAll(name, " ", "-")
			id = strings.ReplaceAll(id, ",", "")
			r := run(t, c.command(t, c.home+"/bin/unionfs", "runtime", "--root", c.home+"/runtime", "run", "--bundle", bundle, id))
			got := r.stdout
			if name == "limits" {
				before, last, _ := strings.Cut(got, "300\n")
				got = before + "300\n"
				if !strings.Contains(last, ":/") {
					t.Errorf("the cgroup is %q", last)
				}
			}
			if got != test.want || r.code != test.code {
				t.Errorf("exit code %d, output:\n%s%s\nwant exit code %d, output:\n%s", r.code, got, r.stderr, test.code, test.want)
			}
		})
	}
	if entries, err := os.ReadDir(c.home + "/runtime"); err != nil || len(entries) > 0 {
		t.Errorf("left in the runtime's directory: %v, %v", entries, err)
	}
	left, err := filepath.Glob("/sys/fs/cgroup/*/unionfs-test/" + filepath.Base(c.home))
	if err != nil || len(left) > 0 {
		t.Errorf("cgroups are left: %v %v", left, err)
	}
	for _, dir := range paths(filepath.Glob("/sys/fs/cgroup/*/unionfs-test")) {
		os.Remove(dir)
	}
}

func paths[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}
