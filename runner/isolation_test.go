package runner

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func TestNamespaces(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		kinds := []string{"cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"}
		inside := strings.Split(w.output(w.shell("cd /proc/self/ns && for i in "+strings.Join(kinds, " ")+"; do readlink $i; done")), "\n")
		for i, kind := range kinds {
			host, err := os.Readlink("/proc/self/ns/" + kind)
			must(t, err)
			if len(inside) != len(kinds) || inside[i] == host || !strings.HasPrefix(inside[i], kind+":[") {
				t.Errorf("%s namespace: inside %q, on the host %s", kind, inside, host)
			}
		}
		r := w.shell("readlink /proc/self/ns/net")
		ShareHostNetwork(r.Spec)
		host, err := os.Readlink("/proc/self/ns/net")
		must(t, err)
		if got := w.output(r); got != host {
			t.Errorf("with the host's network: %s inside, %s on the host", got, host)
		}
	})
}

func TestIDMaps(t *testing.T) {
	want := map[string]string{
		"root":   "0 0 4294967295|0 0 4294967295|allow",
		"ranges": "0 0 1;1 1 65536|0 0 1;1 1 65536|allow",
		"single": "0 0 1|0 0 1|deny",
	}
	inEveryWorld(t, func(t *testing.T, w *ward) {
		out := w.output(w.shell("cat /proc/self/uid_map; echo '|'; cat /proc/self/gid_map; echo '|'; cat /proc/self/setgroups"))
		var parts []string
		for part := range strings.SplitSeq(out, "|") {
			var lines []string
			for line := range strings.Lines(part) {
				if f := strings.Fields(line); len(f) > 0 {
					lines = append(lines, strings.Join(f, " "))
				}
			}
			parts = append(parts, strings.Join(lines, ";"))
		}
		if got := strings.Join(parts, "|"); got != want[w.name] {
			t.Errorf("maps are %s, want %s", got, want[w.name])
		}
	})
}

// status picks lines of /proc/self/status.
func status(w *ward, r *request) map[string]string {
	r.Spec.Process.Args = []string{"cat", "/proc/self/status"}
	out := map[string]string{}
	for line := range strings.Lines(w.output(r)) {
		k, v, _ := strings.Cut(line, ":")
		out[k] = strings.TrimSpace(v)
	}
	return out
}

func TestCapabilities(t *testing.T) {
	const docker = "00000000a80425fb" // as of Docker's default set
	const none = "0000000000000000"
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, c := range []struct {
			name   string
			user   specs.User
			change func(*specs.Process)
			want   map[string]string
		}{
			{name: "root", want: map[string]string{"CapBnd": docker, "CapEff": docker, "CapPrm": docker, "CapInh": none, "CapAmb": none, "NoNewPrivs": "0", "Seccomp": "0"}},
			{name: "user", user: specs.User{UID: 1000, GID: 1000}, want: map[string]string{"CapBnd": docker, "CapEff": none, "CapPrm": none, "CapInh": none, "CapAmb": none}},
			{name: "no new privileges", change: func(p *specs.Process) { p.NoNewPrivileges = true }, want: map[string]string{"NoNewPrivs": "1"}},
			{name: "none", change: func(p *specs.Process) { p.Capabilities = nil }, want: map[string]string{"CapBnd": none, "CapEff": none, "CapPrm": none}},
			{name: "ambient", user: specs.User{UID: 1000, GID: 1000}, change: func(p *specs.Process) {
				p.Capabilities.Ambient = []string{"CAP_NET_BIND_SERVICE"}
			}, want: map[string]string{"CapBnd": docker, "CapEff": "0000000000000400", "CapAmb": "0000000000000400"}},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := w.in(t)
				r := w.shell("")
				r.Spec.Process.User = c.user
				if c.change != nil {
					c.change(r.Spec.Process)
				}
				got := status(w, r)
				for k, v := range c.want {
					if got[k] != v {
						t.Errorf("%s is %s, want %s", k, got[k], v)
					}
				}
			})
		}
	})
}

func TestUsers(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, c := range []struct {
			user, id, groups, home string
			groupsNeedRanges       bool
		}{
			{"", "0:0", "0", "/root", false},
			{"alice", "1000:1000", "1000 50", "/home/alice", true},
			{"1000", "1000:1000", "1000 50", "/home/alice", true},
			{"alice:staff", "1000:50", "50", "/home/alice", true},
			{"4321:99", "4321:99", "99", "/", false},
			{"0", "0:0", "0", "/root", false},
		} {
			t.Run("user "+c.user, func(t *testing.T) {
				w := w.in(t)
				r := w.shell(`echo $(id -u):$(id -g); echo $HOME; id -G; umask; touch /tmp/file && stat -c %u:%g /tmp/file`)
				must(t, os.Chmod(filepath.Join(w.root, "tmp"), 0o1777))
				os.Remove(filepath.Join(w.root, "tmp/file"))
				r.Options.User = c.user
				lines := strings.Split(w.output(r), "\n")
				if len(lines) != 5 {
					t.Fatalf("output is %q", lines)
				}
				if lines[0] != c.id || lines[1] != c.home || lines[3] != "0022" || lines[4] != c.id {
					t.Errorf("got %q, want %s with home %s, umask 0022", lines, c.id, c.home)
				}
				if lines[2] != c.groups && !(c.groupsNeedRanges && w.name == "single") {
					t.Errorf("groups are %s, want %s", lines[2], c.groups)
				}
			})
		}
		res := w.run(func() *request { r := w.shell("true"); r.Options.User = "nobody-there"; return r }())
		if res.code != 125 || !strings.Contains(res.stderr, "nobody-there") || strings.Count(res.stderr, "\n") != 1 {
			t.Errorf("unknown user: code %d, %q", res.code, res.stderr)
		}
		if w.name == "ranges" {
			res := w.run(func() *request { r := w.shell("true"); r.Options.User = "70000"; return r }())
			if res.code != 125 || !strings.Contains(res.stderr, "/etc/subuid") {
				t.Errorf("user outside the range: code %d, %q", res.code, res.stderr)
			}
		}
	})
}

// TestShutIn is what a command can see of the host and do to the kernel: each script must print exactly what is wanted.
func TestShutIn(t *testing.T) {
	refused := func(script string) string {
		return "( " + script + " ) 2>/dev/null && echo allowed || echo refused"
	}
	inEveryWorld(t, func(t *testing.T, w *ward) {
		if err := unix.Mknod(filepath.Join(w.root, "disk"), unix.S_IFBLK|0o666, int(unix.Mkdev(254, 0))); err != nil {
			t.Fatal(err)
		}
		checks := []struct{ name, script, want string }{
			{"core_pattern", refused("echo x >/proc/sys/kernel/core_pattern"), "refused"},
			{"sysrq", refused("echo h >/proc/sysrq-trigger"), "refused"},
			{"kernel parameters", refused("echo 1 >/proc/sys/vm/drop_caches"), "refused"},
			{"kcore masked", "cat /proc/kcore | wc -c", "0"},
			{"keys masked", "cat /proc/keys | wc -c", "0"},
			{"timer_list masked", "cat /proc/timer_list | wc -c", "0"},
			{"interrupts masked", "cat /proc/interrupts | wc -c", "0"},
			{"firmware masked", "ls /sys/firmware | wc -l", "0"},
			{"mask not undone", refused("umount /proc/kcore"), "refused"},
			{"null", "stat -c %t:%T /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty | tr '\\n' ' '", "1:3 1:5 1:7 1:8 1:9 5:0 "},
			{"dev", "ls /dev | tr '\\n' ' '", "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero "},
			{"null works", "echo x >/dev/null && cat /dev/null | wc -c", "0"},
			{"shm", "echo x >/dev/shm/x && cat /dev/shm/x", "x"},
			{"sys read-only", refused("mkdir /sys/fs/cgroup/x; echo 1 >/sys/kernel/profiling"), "refused"},
			{"cgroup read-only", "find /sys/fs/cgroup -name tasks -o -name cgroup.procs -o -name release_agent 2>/dev/null | while read f; do echo $$ 2>/dev/null >$f && echo $f; done; echo done", "done"},
			{"no cgroup mount", refused("mkdir -p /tmp/c && mount -t cgroup -o memory x /tmp/c"), "refused"},
			{"no tmpfs mount", refused("mkdir -p /tmp/c && mount -t tmpfs x /tmp/c"), "refused"},
			{"no proc remount", refused("mount -o remount,rw /proc/sys"), "refused"},
			{"no disk", refused("dd if=/disk of=/dev/null bs=512 count=1"), "refused"},
			{"no mknod", refused("mknod /tmp/disk b 254 0 && dd if=/tmp/disk of=/dev/null bs=512 count=1"), "refused"},
			{"descriptors", "ls /proc/self/fd | tr '\\n' ' '", "0 1 2 3 "}, // 3 is the directory itself
			{"directory", "readlink /proc/self/cwd", "/"},
			{"init's program", refused("cat /proc/1/exe >/dev/null; : >>/proc/1/exe"), "refused"},
			{"init's files", refused("readlink /proc/1/fd/3 || readlink /proc/1/exe || ls /proc/1/root/ || ls /proc/1/cwd/"), "refused"},
			{"init's memory", refused("dd if=/proc/1/mem of=/dev/null bs=1 count=1"), "refused"},
			{"environment", "env | sort | sed 's/HOSTNAME=.*/HOSTNAME=/' | tr '\\n' ' '", "HOME=/root HOSTNAME= PATH=" + DefaultPath + " PWD=/ SHLVL=1 "},
			{"one root", "grep -c ' / / ' /proc/self/mountinfo; grep -c ' / ' /proc/mounts", "0\n1"},
			{"pid 1", "cat /proc/1/comm; cat /proc/1/environ 2>/dev/null | wc -c", "unionfs-init\n0"},
			{"loopback", "ip -o addr show dev lo | grep -o 'inet [0-9./]*'; ls /sys/class/net", "inet 127.0.0.1/8\nlo"},
			{"host name", "hostname | wc -c; cat /etc/hostname | wc -c; grep -c $(hostname) /etc/hosts", "13\n13\n1"},
			{"not dumpable only for init", "ls -ld /proc/self/fd >/dev/null && echo ok", "ok"},
		}
		// All in one container, each in a shell of its own.
		const mark = "--- next ---\n"
		var script strings.Builder
		for _, c := range checks {
			script.WriteString("(\n" + c.script + "\n)\necho '" + strings.TrimSpace(mark) + "'\n")
		}
		got := strings.Split(w.output(w.shell(script.String())), mark[:len(mark)-1])
		if len(got) != len(checks)+1 {
			t.Fatalf("%d results for %d checks: %q", len(got)-1, len(checks), got)
		}
		for i, c := range checks {
			if out := strings.TrimSuffix(strings.TrimPrefix(got[i], "\n"), "\n"); out != c.want {
				t.Errorf("%s: %s\nprinted %q, want %q", c.name, c.script, out, c.want)
			}
		}
	})
}

// TestMountsInside holds the list of a container's mounts against what it should be: nothing of the host's is left.
func TestMountsInside(t *testing.T) {
	allowed := regexp.MustCompile(`^/$|^/(proc|sys|dev)(/.*)?$|^/etc/(hosts|hostname|resolv\.conf)$`)
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for line := range strings.Lines(w.output(w.shell("cat /proc/self/mountinfo"))) {
			f := strings.Fields(line)
			if !allowed.MatchString(f[4]) {
				t.Errorf("unexpected mount: %s", line)
			}
			if slices.ContainsFunc(f[6:], func(s string) bool { return strings.HasPrefix(s, "shared:") || strings.HasPrefix(s, "master:") }) {
				t.Errorf("mount is not private: %s", line)
			}
			if f[4] == "/" && !strings.Contains(f[5], "nodev") {
				t.Errorf("the root allows devices: %s", line)
			}
		}
	})
}

func TestMountsStayInside(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		before := mountsUnder(t, filepath.Dir(w.root))
		volume := filepath.Join(w.root, "../volume")
		must(t, os.Mkdir(volume, 0o777))
		r := w.shell("mount -t tmpfs x /vol && mount -t tmpfs x /tmp && echo x >/vol/x && echo mounted")
		for _, set := range []*[]string{&r.Spec.Process.Capabilities.Bounding, &r.Spec.Process.Capabilities.Effective, &r.Spec.Process.Capabilities.Permitted} {
			*set = append(*set, "CAP_SYS_ADMIN")
		}
		r.Spec.Mounts = append(r.Spec.Mounts, bindMount(volume, "/vol"))
		if got := w.output(r); got != "mounted" {
			t.Errorf("output is %q", got)
		}
		if after := mountsUnder(t, filepath.Dir(w.root)); !slices.Equal(before, after) {
			t.Errorf("mounts on the host: before %q, after %q", before, after)
		}
		if _, err := os.Stat(filepath.Join(volume, "x")); err == nil {
			t.Error("what was written to a mount inside is on the host")
		}
	})
}

// mountsUnder lists the mount points below dir in the test's mount namespace.
func mountsUnder(t *testing.T, dir string) []string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mountinfo")
	must(t, err)
	var out []string
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], dir) {
			out = append(out, f[4])
		}
	}
	return out
}

func TestHostSocketsUnreachable(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	port := ln.Addr().(*net.TCPAddr).Port
	inEveryWorld(t, func(t *testing.T, w *ward) {
		script := fmt.Sprintf("nc -w 60 127.0.0.1 %d </dev/null >/dev/null 2>&1 && echo reached || echo unreachable", port)
		if got := w.output(w.shell(script)); got != "unreachable" {
			t.Errorf("the host's loopback is %s", got)
		}
		r := w.shell(script)
		ShareHostNetwork(r.Spec)
		if got := w.output(r); got != "reached" {
			t.Errorf("with the host's network, its loopback is %s", got)
		}
	})
}

// TestHostsAbstractSocket tries a socket of the host's that has no place in the file system.
func TestHostsAbstractSocket(t *testing.T) {
	ln, err := net.Listen("unix", fmt.Sprintf("@unionfs-runner-test-%d", os.Getpid()))
	must(t, err)
	defer ln.Close()
	try := func(w *ward) *request {
		r := w.probe("abstract socket")
		r.Spec.Process.Env = append(r.Spec.Process.Env, abstractSocketVariable+"="+ln.Addr().String())
		return r
	}
	inEveryWorld(t, func(t *testing.T, w *ward) {
		if got := w.probed(try(w))["abstract socket"]; got != "ECONNREFUSED" {
			t.Errorf("on a private network: %s", got)
		}
		r := try(w)
		ShareHostNetwork(r.Spec)
		if got := w.probed(r)["abstract socket"]; got != "allowed" {
			t.Errorf("on the host's network: %s", got)
		}
	})
}

// TestNothingOfTheCaller starts containers from a process with a umask, groups, variables, keys and a directory of its own,
// and looks for them inside.
func TestNothingOfTheCaller(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		// The keyring is a thread's, and goes on to what the thread starts.
		runtime.LockOSThread() // never unlocked: the thread ends with the test
		_, err := unix.KeyctlJoinSessionKeyring("caller")
		must(t, err)
		_, err = unix.AddKey("user", callersKey, []byte("secret"), unix.KEY_SPEC_SESSION_KEYRING)
		must(t, err)
		from := func(r *request) *exec.Cmd {
			inner := w.cmd(r)
			exe, err := os.Executable()
			must(t, err)
			cmd := exec.Command("sh", append([]string{"-c", `umask 077; exec "$0" "$@"`, exe}, inner.Args[1:]...)...)
			cmd.SysProcAttr, cmd.Dir = inner.SysProcAttr, "/usr"
			cmd.Env = append(os.Environ(), "SECRET=of-the-caller")
			if w.name == "root" {
				cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4242}}}
			}
			return cmd
		}
		r := w.shell("umask; id -G; pwd; env | grep -c caller; cat /proc/1/environ /proc/*/environ 2>/dev/null | grep -c caller; true")
		want := "0022\n0\n/\n0\n0\n"
		if w.name == "single" {
			// Its groups can't be given up.
			r.Spec.Process.Args[2] = strings.Replace(r.Spec.Process.Args[2], "id -G", "echo 0", 1)
		}
		if res := finish(t, from(r)); res.stdout != want {
			t.Errorf("inside: %q, want %q; %s", res.stdout, want, res.stderr)
		}
		// Without a filter of system calls, so that it is not that which refuses.
		res := finish(t, from(w.probe("caller's key")))
		if !strings.Contains(res.stdout, `"caller's key":"ENOKEY"`) {
			t.Errorf("the caller's key: %s%s", res.stdout, res.stderr)
		}
	})
}

// TestKeepGroups lets the command keep the caller's groups.
func TestKeepGroups(t *testing.T) {
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		r := w.shell("id -G; id -u")
		r.Options.User, r.Options.Groups = "12:34", []string{KeepGroups}
		cmd := w.cmd(r)
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Groups: []uint32{4242, 77}}}
		if res := finish(t, cmd); res.stdout != "34 77 4242\n12\n" {
			t.Errorf("groups: %q %s", res.stdout, res.stderr)
		}
	})
}

// TestSharedNamespaces shares the IPC and UTS namespaces of a container with another one.
func TestSharedNamespaces(t *testing.T) {
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		first := w.shell("echo of the first > /dev/shm/file; hostname first; touch /tmp/ready; sleep 1000")
		addCapabilities(first, "CAP_SYS_ADMIN")
		b := w.start(first)
		r := w.shell("cat /dev/shm/file; echo of the second > /dev/shm/file; hostname; readlink /proc/self/ns/ipc; readlink /proc/self/ns/uts; ls -d /dev/mqueue")
		ShareContainerNamespace(r.Spec, specs.IPCNamespace, b.container.ID)
		ShareContainerNamespace(r.Spec, specs.UTSNamespace, b.container.ID)
		var links []string
		for _, kind := range []string{"ipc", "uts"} {
			link, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", b.status.InitPID, kind))
			must(t, err)
			links = append(links, link)
		}
		if got, want := w.output(r), "of the first\nfirst\n"+strings.Join(links, "\n")+"\n/dev/mqueue"; got != want {
			t.Errorf("the second sees %q, want %q", got, want)
		}
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/dev/shm/file", b.status.InitPID))
		if err != nil || string(data) != "of the second\n" {
			t.Errorf("the first sees %q, %v", data, err)
		}
		must(t, b.container.Kill(time.Minute))
		if res := w.run(r); res.code != 125 || !strings.Contains(res.stderr, "not running") {
			t.Errorf("with a container that has ended: %+v", res)
		}
	})
}

func TestInheritedDescriptors(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		cmd := w.cmd(w.shell("ls /proc/self/fd | tr '\\n' ' '"))
		for range 6 {
			f, err := os.Open("/etc")
			must(t, err)
			defer f.Close()
			cmd.ExtraFiles = append(cmd.ExtraFiles, f)
		}
		if res := finish(t, cmd); res.stdout != "0 1 2 3 " {
			t.Errorf("descriptors inside: %q, standard error %q", res.stdout, res.stderr)
		}
	})
}
