package runner

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// freezerWorld is root's, on a host that has no unified hierarchy.
const freezerWorld = "freezer"

// hideUnified goes on without the unified hierarchy, in a mount namespace of this process's own.
func hideUnified(args []string) (int, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return exitOurs, err
	}
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	if err != nil {
		return exitOurs, err
	}
	for _, h := range all {
		if h.unified {
			if err := unix.Unmount(h.top, unix.MNT_DETACH); err != nil {
				return exitOurs, err
			}
		}
	}
	return exitOurs, unix.Exec(selfExe, append([]string{os.Args[0]}, args...), os.Environ())
}

// inGuardedWorlds runs f wherever a guard can be had: for root, with cgroup v2 and, where this host has it, the freezer of v1, and for
// users to whom a cgroup is delegated.
func inGuardedWorlds(t *testing.T, f func(t *testing.T, w *ward)) {
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	must(t, err)
	inWorlds(t, worlds()[:1], f)
	if slices.ContainsFunc(all, func(h hierarchy) bool { return slices.Contains(h.controllers, "freezer") }) {
		inWorlds(t, []world{{name: freezerWorld}}, f)
	}
	at := slices.IndexFunc(all, func(h hierarchy) bool { return h.unified })
	if at < 0 {
		t.Fatal("this host has no unified hierarchy: mount cgroup2 at /sys/fs/cgroup/unified")
	}
	inWorlds(t, worlds()[1:], func(t *testing.T, w *ward) {
		dir, err := os.MkdirTemp(all[at].own, "unionfs-test-")
		must(t, err)
		t.Cleanup(func() {
			if err := unix.Rmdir(dir); err != nil {
				t.Errorf("the delegated cgroup has something left in it: %v", err)
			}
		})
		// As systemd delegates one.
		for _, file := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
			must(t, os.Chown(filepath.Join(dir, file), testUID, testUID))
		}
		w.cgroup, err = os.Open(dir)
		must(t, err)
		t.Cleanup(func() { w.cgroup.Close() })
		f(t, w)
	})
}

// ofHost is a request to run a script in the host's PID namespace. Its processes can be told by what marked looks for.
func (w *ward) ofHost(script string) *request {
	r := w.shell(script)
	ShareHostNamespace(r.Spec, specs.PIDNamespace)
	r.Spec.Process.Env = append(r.Spec.Process.Env, "MARK="+w.root)
	return r
}

// marked lists the processes of the ward's containers that are in the host's PID namespace.
func (w *ward) marked() (pids []int) {
	names, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, name := range names {
		var pid int
		environ, err := os.ReadFile(name)
		if err != nil || !bytes.Contains(environ, []byte("MARK="+w.root+"\x00")) {
			continue
		}
		if fmt.Sscanf(name, "/proc/%d/", &pid); !gone(pid) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// noneMarked waits until all processes of the ward's containers are gone, and looks for what else is left.
func (w *ward) noneMarked() {
	w.t.Helper()
	eventually(w.t, "all of its processes are gone", func() bool { return len(w.marked()) == 0 })
}

// TestHostPIDs runs commands in the host's PID namespace: they see the host's processes and can't look into them, and when the first
// one ends all of them do.
func TestHostPIDs(t *testing.T) {
	inGuardedWorlds(t, func(t *testing.T, w *ward) {
		host, err := os.Readlink("/proc/self/ns/pid")
		must(t, err)
		must(t, os.Chmod(filepath.Join(w.root, "tmp"), 0o1777))
		var script, want strings.Builder
		for _, c := range []struct{ script, want string }{
			{"readlink /proc/self/ns/pid", host},
			{fmt.Sprintf("test -d /proc/%d && echo there", os.Getpid()), "there"},
			{fmt.Sprintf("readlink /proc/%d/exe || ls /proc/%[1]d/root/ || cat /proc/%[1]d/environ || readlink /proc/$PPID/exe || echo refused", os.Getpid()), "refused"},
			{"(echo x >/proc/sys/kernel/core_pattern) && echo written || echo refused", "refused"},
			{"cat /proc/keys | wc -c", "0"},
			// What is left by its parent becomes the init's.
			{"(sh -c 'sleep 1000 & echo $!' >/tmp/pid); set -- $(cat /proc/$(cat /tmp/pid)/stat); test $4 = $PPID && echo ours", "ours"},
			{"echo 5 >/proc/self/oom_score_adj && cat /proc/self/oom_score_adj", "5"},
		} {
			script.WriteString("{ " + c.script + "; } 2>/dev/null\n")
			want.WriteString(c.want + "\n")
		}
		if res := w.run(w.ofHost(script.String())); res.stdout != want.String() || res.code != 0 {
			t.Errorf("%s: %+v, want %q", script.String(), res, want.String())
		}
		w.noneMarked()
		res := w.run(w.ofHost("sleep 1000 & setsid sleep 1000 & (sleep 1000 &); exit 7"))
		if res.code != 7 {
			t.Errorf("exit code: %+v", res)
		}
		w.noneMarked()
		// A limit beside it.
		if w.name == "root" {
			r := w.ofHost("sleep 1000 & cat /sys/fs/cgroup/pids/pids.max")
			r.Spec.Linux.Resources = &specs.LinuxResources{Pids: &specs.LinuxPids{Limit: pointer[int64](90)}}
			if unifiedOnly() {
				r.Spec.Process.Args[2] = "sleep 1000 & cat /sys/fs/cgroup/pids.max"
			}
			if got := w.output(r); got != "100" {
				t.Errorf("limit: %q", got)
			}
		}
		w.noneMarked()
		if left := cgroupsLeft(t, w); len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	})
}

// TestHostPIDsBehind does to a container in the background, in the host's PID namespace, what can be done to one.
func TestHostPIDsBehind(t *testing.T) {
	inGuardedWorlds(t, func(t *testing.T, w *ward) {
		d := w.detach(w.ofHost("trap 'exit 9' TERM; (setsid sleep 1001 &); while :; do echo more; sleep 0.01; done"))
		var names []string
		eventually(t, "all of it is listed", func() bool {
			names = nil
			for _, p := range must1(d.container.Processes()) {
				names = append(names, strings.Join(p.Args, " "))
			}
			return slices.Contains(names, "sleep 1001")
		})
		if !strings.HasPrefix(names[0], "unionfs-init") || len(names) > 4 {
			t.Errorf("processes: %q", names)
		}
		o, err := json.Marshal(ExecOptions{Args: []string{"sh", "-c", "kill -0 $PPID && echo $MARK; sleep 1000 >/dev/null 2>&1 &"}})
		must(t, err)
		if res := d.do("test-other", string(o)); res.code != 0 || res.stdout != w.root+"\n" {
			t.Errorf("exec: %+v", res)
		}
		if res := d.do("test-pause"); res.code != 0 {
			t.Fatalf("pause: %+v", res)
		}
		before := d.log()
		if res := d.do("test-unpause"); res.code != 0 {
			t.Fatalf("unpause: %+v", res)
		}
		eventually(t, "it goes on", func() bool { return len(d.log()) > len(before) })
		if usage, err := d.container.Usage(); err != nil || usage.PIDs < 3 {
			t.Errorf("usage: %+v, %v", usage, err)
		}
		if res := d.do("test-stop", "1m"); res.code != 0 {
			t.Errorf("stop: %+v", res)
		}
		if st, err := d.container.Status(); err != nil || st.ExitCode != 9 {
			t.Errorf("stopped: %+v, %v", st, err)
		}
		w.noneMarked()
		if res := d.do("test-again", w.root); res.code != 0 {
			t.Fatalf("started again: %+v", res)
		}
		must(t, d.container.Kill(time.Minute))
		w.noneMarked()
		if res := d.do("test-remove"); res.code != 0 {
			t.Errorf("removing: %+v", res)
		}
	})
}

// TestHostPIDsKilled kills the processes of containers in the host's PID namespace that start others all the time: nothing may be left.
func TestHostPIDsKilled(t *testing.T) {
	inGuardedWorlds(t, func(t *testing.T, w *ward) {
		for _, victims := range []string{"supervisor", "init", "command", "paused supervisor", "supervisor and init"} {
			d := w.detach(w.ofHost("while :; do sleep 1000 & setsid sleep 1000 & sleep 0.001; done"))
			eventually(t, "it has started some", func() bool { return len(w.marked()) > 10 })
			if strings.HasPrefix(victims, "paused") {
				if res := d.do("test-pause"); res.code != 0 {
					t.Fatalf("pause: %+v", res)
				}
			}
			pids := map[string]int{"supervisor": d.status.SupervisorPID, "init": d.status.InitPID}
			for _, p := range must1(d.container.Processes()) {
				if p.PPID == d.status.InitPID && p.Args[0] == "sh" {
					pids["command"] = p.PID
				}
			}
			for victim, pid := range pids {
				if strings.Contains(victims, victim) {
					// With two victims, the first one's end may have been the second one's already.
					if err := unix.Kill(pid, unix.SIGKILL); err != nil && (err != unix.ESRCH || victims != "supervisor and init") {
						t.Fatalf("killing the %s: %v", victim, err)
					}
				}
			}
			eventually(t, "the state says that it has ended", func() bool { return must1(d.container.Status()).State == StateExited })
			if strings.Contains(victims, " ") {
				// Nobody is left who could, or can run: whoever looks next does it.
				_, err := (&State{root: w.state}).List()
				must(t, err)
			}
			w.noneMarked()
			if st := must1(d.container.Status()); st.ExitCode != exitUnknown {
				t.Errorf("%s killed: %+v", victims, st)
			}
			if res := d.do("test-again", w.root); res.code != 0 {
				t.Errorf("%s killed: starting again: %+v", victims, res)
			}
			must(t, d.container.Kill(time.Minute))
			w.noneMarked()
			if res := d.do("test-remove"); res.code != 0 {
				t.Errorf("%s killed: removing: %+v", victims, res)
			}
		}
		if left := cgroupsLeft(t, w); len(left) > 0 {
			t.Errorf("cgroups are left: %q", left)
		}
	})
}

// TestHostPIDsRefused: where no cgroup can be had, and where the command could leave it.
func TestHostPIDsRefused(t *testing.T) {
	inWorlds(t, worlds()[1:], func(t *testing.T, w *ward) {
		res := w.run(w.ofHost("true"))
		if res.code != 125 || strings.Count(res.stderr, "\n") != 1 || !strings.Contains(res.stderr, "Delegate=yes") || !strings.Contains(res.stderr, "as root") {
			t.Errorf("with nothing delegated: %+v", res)
		}
	})
	w := newWard(t, worlds()[0])
	r := w.ofHost("true")
	Unmask(r.Spec)
	if res := w.run(r); res.code != 0 {
		t.Errorf("privileged: %+v", res)
	}
	ShareHostNamespace(r.Spec, specs.CgroupNamespace)
	if res := w.run(r); res.code != 125 || !strings.Contains(res.stderr, "cgroup namespace of its own") {
		t.Errorf("privileged, with the host's cgroups: %+v", res)
	}
}

// TestOtherContainersPIDs runs a container in the PID namespace of another one, and ends either.
func TestOtherContainersPIDs(t *testing.T) {
	inWorlds(t, worlds()[:1], func(t *testing.T, w *ward) {
		first := w.detach(w.shell("sleep 1001"))
		in := func(script string) *request {
			r := w.shell(script)
			ShareContainerNamespace(r.Spec, specs.PIDNamespace, first.container.ID)
			return r
		}
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", first.status.InitPID))
		must(t, err)
		// A process that was just forked has its parent's name yet.
		count := "for i in $(seq 1000); do set -- $(pidof sleep); test $# -ge 3 && break; done; echo $#"
		got := w.output(in("sleep 1002 & setsid sleep 1002 & readlink /proc/self/ns/pid; cat /proc/1/comm; " + count + "; cat /proc/keys | wc -c"))
		if got != theirs+"\nunionfs-init\n3\n0" {
			t.Errorf("inside: %q", got)
		}
		within := func() int { return len(processesWith(t, theirs)) }
		eventually(t, "the first one is as it was", func() bool { return within() == 2 })
		second := w.detach(in("sleep 1002 & setsid sleep 1002 & sleep 1002; true"))
		eventually(t, "all of it runs", func() bool { return within() == 7 })
		must(t, unix.Kill(second.status.SupervisorPID, unix.SIGKILL))
		eventually(t, "the first one is as it was", func() bool { return within() == 2 })
		// With the first one, the second ends.
		third := w.detach(in("sleep 1002 & setsid sleep 1002 & sleep 1002; true"))
		must(t, first.container.Kill(time.Minute))
		if res := third.do("test-wait"); res.code != 137 {
			t.Errorf("the second one's end: %+v", res)
		}
		if res := w.run(in("true")); res.code != 125 || !strings.Contains(res.stderr, "not running") {
			t.Errorf("with a container that has ended: %+v", res)
		}
		eventually(t, "listing the containers removes the cgroups", func() bool {
			_, err = (&State{root: w.state}).List()
			must(t, err)
			return len(cgroupsLeft(t, w)) == 0
		})
	})
}

// TestKillCgroup kills what starts processes all the time, in a cgroup and one below it, of each hierarchy that can be a guard's and of
// one that can only list its processes.
func TestKillCgroup(t *testing.T) {
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	must(t, err)
	for _, h := range all {
		if !h.unified && !slices.Contains(h.controllers, "freezer") && !slices.Contains(h.controllers, "pids") {
			continue
		}
		t.Run(strings.Join(append([]string{"in"}, h.controllers...), " "), func(t *testing.T) {
			dir, err := os.MkdirTemp(h.own, "unionfs-test-")
			must(t, err)
			t.Cleanup(func() {
				_ = endCgroup(dir)
				_ = removeCgroupTree(dir)
			})
			below := filepath.Join(dir, "below")
			must(t, os.Mkdir(below, 0o755))
			var shells []*exec.Cmd
			for _, d := range []string{dir, below} {
				cmd := exec.Command("sh", "-c", `echo $$ >"$0/cgroup.procs"; while :; do sleep 1000 & sleep 0.001; done`, d)
				must(t, cmd.Start())
				shells = append(shells, cmd)
			}
			listed := func(dir string) int {
				f, err := os.Open(dir)
				must(t, err)
				defer f.Close()
				return len(must1(cgroupProcesses(f)))
			}
			eventually(t, "both have started some", func() bool { return listed(below) > 10 && listed(dir)-listed(below) > 10 })
			must(t, endCgroup(dir))
			for _, cmd := range shells {
				if _ = cmd.Wait(); cmd.ProcessState.String() != "signal: killed" {
					t.Errorf("a shell's end: %v", cmd.ProcessState)
				}
			}
			must(t, removeCgroupTree(dir))
			if _, err := os.Stat(dir); !os.IsNotExist(err) {
				t.Errorf("it is left: %v", err)
			}
		})
	}
}
