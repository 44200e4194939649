package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSecurityOptions looks at the command's status in /proc, and at what a profile of one's own refuses.
func TestSecurityOptions(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname","mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":122}]}`
		if err := os.WriteFile(filepath.Join(c.home, "profile.json"), []byte(profile), 0o644); err != nil {
			t.Fatal(err)
		}
		const status = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '"
		for _, test := range []struct {
			name   string
			flags  []string
			script string
			want   string
		}{
			{"default", nil, status, "NoNewPrivs: 0 Seccomp: 2"},
			{"unconfined", []string{"--security-opt", "seccomp=unconfined"}, status, "NoNewPrivs: 0 Seccomp: 0"},
			{"no new privileges", []string{"--security-opt", "no-new-privileges"}, status, "NoNewPrivs: 1 Seccomp: 2"},
			{"with colons", []string{"--security-opt", "no-new-privileges:true", "--security-opt", "seccomp:unconfined"}, status, "NoNewPrivs: 1 Seccomp: 0"},
			{"own profile", []string{"--security-opt", "seccomp=profile.json"}, "mkdir /tmp/x 2>&1 | grep -o 'quota exceeded'", "quota exceeded"},
			{"system paths", []string{"--security-opt", "systempaths=unconfined"}, "grep -c ' /proc/' /proc/mounts", "0"},
		} {
			r := c.try(t, append(append([]string{"run", "--rm"}, test.flags...), "bb:1", "sh", "-c", test.script)...)
			if got := strings.TrimSpace(r.stdout); got != c.filtered(test.want) {
				t.Errorf("%s: %q, want %q\n%s", test.name, got, test.want, r.stderr)
			}
		}
		for _, option := range []string{"seccomp=/no/such/file", "seccomp", "apparmor=mine", "no-new-privileges=perhaps"} {
			oneLine(t, c.try(t, "run", "--rm", "--security-opt", option, "bb:1", "true"), 125, strings.SplitAfter(option, "=")[0][:7])
		}
	})
}

// filtered is what is wanted of a container without a profile of system calls: where there is one ID, changes of owners are
// filtered all the same.
func (c *caller) filtered(want string) string {
	if c.uid == 0 || c.subordinates {
		return want
	}
	return strings.NewReplacer("Seccomp: 0", "Seccomp: 2", "Seccomp:\t0", "Seccomp:\t2").Replace(want)
}

// TestIsolationFlags gives each flag and looks, from inside, at what it changed.
func TestIsolationFlags(t *testing.T) {
	host := func(name string) string {
		target, err := os.Readlink("/proc/self/ns/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return target
	}
	const capabilities = "grep -E '^Cap(Bnd|Eff):' /proc/self/status | cut -f2 | sort -u"
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		c.script(t, "mkdir -p plain")
		for _, test := range []struct {
			flags  []string
			script string
			want   string
		}{
			{[]string{"--cap-drop", "ALL"}, capabilities, "0000000000000000"},
			{[]string{"--cap-drop", "all", "--cap-add", "net_bind_service,CAP_CHOWN"}, capabilities, "0000000000000401"},
			{[]string{"--cap-add", "SYS_ADMIN", "--cap-drop", "MKNOD"}, capabilities + "; mount -t tmpfs x /tmp && echo mounted", "00000000a02425fb\nmounted"},
			{[]string{"--cap-add", "ALL", "--cap-drop", "CHOWN"}, capabilities, "000001fffffffffe"},
			{[]string{"--ulimit", "nofile=100:200", "--ulimit", "core=0"}, "ulimit -n; ulimit -Hn; ulimit -c", "100\n200\n0"},
			{[]string{"--oom-score-adj", "321"}, "cat /proc/self/oom_score_adj", "321"},
			{[]string{"--sysctl", "net.ipv4.ip_unprivileged_port_start=77", "--sysctl", "kernel.msgmax=9000"}, "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/msgmax", "77\n9000"},
			{[]string{"--shm-size", "3m"}, "df -k /dev/shm | tail -1 | awk '{print $2}'", "3072"},
			{[]string{"--device", "/dev/fuse"}, "stat -c %t:%T /dev/fuse; exec 3<>/dev/fuse && echo opened", "a:e5\nopened"},
			{[]string{"--device", "/dev/zero:/dev/nought:rwm"}, "head -c 3 /dev/nought | wc -c; ls /dev/fuse 2>/dev/null", "3"},
			{[]string{"--add-host", "db:10.1.2.3", "--add-host=six=::1"}, "tail -2 /etc/hosts", "10.1.2.3\tdb\n::1\tsix"},
			{[]string{"--init", "--pid", "private", "--userns", "host", "--ipc", "private"}, "echo $(($$ != 1))", "1"},
			{[]string{"--ipc", "host"}, "readlink /proc/self/ns/ipc; [ -w /dev/shm ] && echo shared", host("ipc") + "\nshared"},
			{[]string{"--uts", "host"}, "readlink /proc/self/ns/uts", host("uts")},
			{[]string{"--cgroupns", "host"}, "readlink /proc/self/ns/cgroup", host("cgroup")},
			{[]string{"--privileged"}, capabilities + "; grep Seccomp: /proc/self/status; grep -c ' /proc/' /proc/mounts; [ -c /dev/fuse ] && mount -t tmpfs x /tmp && echo mounted",
				"000001ffffffffff\nSeccomp:\t0\n0\nmounted"},
			{[]string{"--privileged", "--cap-drop", "CHOWN"}, capabilities, "000001fffffffffe"},
		} {
			r := c.try(t, append(append([]string{"run", "--rm"}, test.flags...), "bb:1", "sh", "-c", test.script)...)
			if got := strings.TrimSpace(r.stdout); got != c.filtered(test.want) {
				t.Errorf("%q: %q, want %q\n%s", test.flags, got, test.want, r.stderr)
			}
		}
		for _, test := range []struct {
			flags []string
			want  string
		}{
			{[]string{"--cap-add", "SYS_MAGIC"}, "SYS_MAGIC"},
			{[]string{"--ulimit", "nofile"}, "--ulimit nofile"},
			{[]string{"--ulimit", "nofile=5000000000:5000000000"}, "hard limit"},
			{[]string{"--oom-score-adj", "1001"}, "from -1000 to 1000"},
			{[]string{"--sysctl", "vm.swappiness=1"}, "the whole host's"},
			{[]string{"--shm-size", "much"}, "--shm-size"},
			{[]string{"--device", "/etc/passwd"}, "not a device"},
			{[]string{"--device", "/dev/fuse:r"}, "rwm"},
			{[]string{"--add-host", "db"}, "--add-host"},
			{[]string{"--stop-signal", "SIGWHAT"}, "SIGWHAT"},
			{[]string{"--pid", "other"}, "container:NAME"},
			{[]string{"--ipc", "container:x"}, ""},
			{[]string{"--ipc", "other"}, "container:NAME"},
			{[]string{"--group-add", "keep-groups", "--group-add", "5"}, "keep-groups"},
			{[]string{"--userns", "auto"}, "--userns"},
			{[]string{"--group-add", "nobody-there"}, ""},
		} {
			oneLine(t, c.try(t, append(append([]string{"run", "--rm"}, test.flags...), "bb:1", "true")...), 125, test.want)
		}

		spared := c.try(t, "run", "--rm", "--oom-score-adj", "-900", "bb:1", "cat", "/proc/self/oom_score_adj")
		var held [2]unix.CapUserData
		if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &held[0]); err != nil {
			t.Fatal(err)
		}
		if c.uid != 0 || held[0].Effective&(1<<unix.CAP_SYS_RESOURCE) == 0 {
			oneLine(t, spared, 125, "CAP_SYS_RESOURCE")
		} else if strings.TrimSpace(spared.stdout) != "-900" {
			t.Errorf("--oom-score-adj -900: %+v", spared)
		}

		r := c.try(t, "run", "--rm", "--group-add", "4711", "--group-add", "root", "-u", "12:34", "bb:1", "id", "-G")
		ranges := c.uid == 0 || c.subordinates
		if ranges && strings.TrimSpace(r.stdout) != "34 0 4711" || !ranges && !strings.Contains(r.stderr, "/etc/subuid") {
			t.Errorf("--group-add: %+v", r)
		}
		keepsID(t, c)
		c.must(t, "run", "--name", "stopped-by", "--stop-signal", "USR1", "bb:1", "true")
		config, err := filepath.Glob(filepath.Join(c.root, "containers/*/config.json"))
		if err != nil || len(config) != 1 {
			t.Fatal(config, err)
		}
		if text, err := os.ReadFile(config[0]); err != nil || !strings.Contains(string(text), `stopSignal":"USR1"`) {
			t.Errorf("--stop-signal is not recorded: %v", err)
		}
		if got := c.must(t, "try", "--rm", "--cap-drop", "ALL", "sh", "-c", capabilities); strings.TrimSpace(got) != "0000000000000000" {
			t.Errorf("try --cap-drop: %q", got)
		}
	})
}

// keepsID runs commands with --userns keep-id: the caller has its own ID inside and outside, and what is stored is what the
// container sees.
func keepsID(t *testing.T, c *caller) {
	t.Helper()
	if c.uid == 0 {
		oneLine(t, c.try(t, "run", "--rm", "--userns", "keep-id", "bb:1", "true"), 125, "keep-id")
		return
	}
	c.script(t, "mkdir -p kept")
	r := c.try(t, "run", "--name", "kept", "--userns", "keep-id", "-v", c.home+"/kept:/v", "bb:1", "sh", "-c", "id -u; touch /tmp/x /v/x; stat -c %u /tmp/x /v/x /bin/busybox")
	own := fmt.Sprintf("%d\n", c.uid)
	want := own + own + own + "0\n"
	if !c.subordinates {
		want = own + own + own + own // it has no other
	}
	if r.stdout != want {
		t.Errorf("--userns keep-id: %+v, want %q", r, want)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.home, "kept/x"), &st); err != nil || int(st.Uid) != c.uid {
		t.Errorf("--userns keep-id: the volume's file is user %d's, %v", st.Uid, err)
	}
	if c.subordinates {
		c.must(t, "commit", "kept", "kept:1")
		if got := c.must(t, "run", "--rm", "kept:1", "stat", "-c", "%u", "/tmp/x", "/bin/busybox"); got != own+"0\n" {
			t.Errorf("--userns keep-id, committed: owners %q", got)
		}
		got := c.must(t, "run", "--rm", "--userns", "keep-id", "-u", "0", "bb:1", "sh", "-c", "id -u; touch /tmp/y; chown 5:6 /tmp/y; stat -c %u:%g /tmp/y; cat /proc/self/uid_map | wc -l")
		if got != "0\n5:6\n3\n" {
			t.Errorf("--userns keep-id, as root: %q", got)
		}
	}
	c.must(t, "rm", "kept")
}

// TestLimitFlags reads back the limits, as root, and the error for those who may not set any.
func TestLimitFlags(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		if c.uid != 0 {
			oneLine(t, c.try(t, "run", "--rm", "-m", "64m", "bb:1", "true"), 125, "limiting memory", "as root")
			return
		}
		got := c.must(t, "run", "--rm", "-m", "64m", "--memory-swap=100m", "--cpus", "0.5", "--pids-limit", "30", "--cpuset-cpus", "0", "-c", "7", "--blkio-weight", "20", "--memory-reservation", "32m", "bb:1",
			"sh", "-c", "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes memory/memory.soft_limit_in_bytes memory/memory.memsw.limit_in_bytes cpu/cpu.cfs_quota_us cpuset/cpuset.cpus cpu/cpu.shares blkio/blkio.bfq.weight")
		if want := "67108864\n33554432\n104857600\n50000\n0\n7\n20\n"; got != want {
			t.Errorf("limits: %q, want %q", got, want)
		}
		got = c.must(t, "run", "--rm", "--cpu-quota", "20000", "--cpu-period=50000", "bb:1", "sh", "-c", "cd /sys/fs/cgroup/cpu; cat cpu.cfs_quota_us cpu.cfs_period_us")
		if got != "20000\n50000\n" {
			t.Errorf("processor time: %q", got)
		}
		if r := c.try(t, "run", "--name", "hog", "--memory", "64m", "bb:1", "dd", "if=/dev/zero", "of=/dev/null", "bs=300M", "count=1"); r.code != 137 {
			t.Errorf("memory hog: %+v", r)
		}
		if got := c.must(t, "ps", "-a"); !strings.Contains(got, "Exited (137, out of memory)") {
			t.Errorf("ps: %q", got)
		}
		if got := c.must(t, "ps", "-a", "--format", "json"); !strings.Contains(got, `"OOMKilled":true`) {
			t.Errorf("ps: %q", got)
		}
		for _, flags := range [][]string{
			{"--memory", "1m"}, {"--memory", "lots"}, {"--memory-swap", "1g"}, {"--memory=64m", "--memory-swap=32m"}, {"--cpus", "0"},
			{"--cpu-quota", "1"}, {"--cpu-quota", "5000", "--cpus", "1"}, {"--cpu-period", "5000"}, {"--cpu-quota", "5000", "--cpu-period", "7"},
			{"--pids-limit", "x"}, {"--cpu-shares", "1"}, {"--blkio-weight", "5000"}, {"--cpuset-cpus", "900"},
			{"--device-read-bps", "/dev/null"}, {"--device-read-bps", "/dev/null:1m"}, {"--device-write-iops", "/missing:5"}, {"--memory-reservation", "-1"},
		} {
			oneLine(t, c.try(t, append(append([]string{"run", "--rm"}, flags...), "bb:1", "true")...), 125)
		}
	})
}
