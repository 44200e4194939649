// Package e2e tests the built program from the outside, on real input: a Debian root in twelve layers from a real
// registry, as root and as ordinary users, and the ways in which it can go wrong.
package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// world is what all tests share: where the program under test is.
type world struct {
	dir     string // readable by everybody
	unionfs string
}

var shared world

func TestMain(m *testing.M) {
	os.Exit(runTests(m))
}

func runTests(m *testing.M) int {
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the end-to-end tests need root: they also play ordinary users")
		return 1
	}
	dir, err := os.MkdirTemp("", "unionfs-e2e-")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err == nil {
		// As udev leaves it; without udev it is root's alone.
		err = os.Chmod("/dev/fuse", 0o666)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	shared = world{dir: dir, unionfs: filepath.Join(dir, "unionfs")}
	build := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-buildid=e2e", "-o", dir+"/", "../cmd/unionfs", "../cmd/unionfs-supervisor", "../cmd/unionfs-init", "../cmd/unionfs-holder", "../cmd/unionfs-bench")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building unionfs: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// caller is somebody who uses the program, with a home directory and state of their own.
type caller struct {
	uid          int    // 0 is root
	subordinates bool   // has ranges in /etc/subuid and /etc/subgid
	home         string // belongs to them
	root         string // --root
	uplink       string // UNIONFS_UPLINK; none if empty
	netns        string // the path of the network namespace that their commands run in; the test's own if empty

	cgroup *os.File // the directory of a cgroup of the unified hierarchy that their commands run in; nil for the test's own
}

// All kinds of callers, by name.
var kinds = map[string]struct {
	uid          int
	subordinates bool
}{
	"root":                         {0, false},
	"user with subordinate IDs":    {12345, true},
	"user without subordinate IDs": {12346, false},
}

// newCaller makes a caller of one of the kinds. When the test ends, nothing of theirs may be left but files.
func newCaller(t *testing.T, kind string) *caller {
	t.Helper()
	home, err := os.MkdirTemp(shared.dir, "home-")
	if err != nil {
		t.Fatal(err)
	}
	k := kinds[kind]
	c := &caller{uid: k.uid, subordinates: k.subordinates, home: home, root: filepath.Join(home, "state")}
	if err := errors.Join(os.Chmod(home, 0o755), os.Chown(home, k.uid, k.uid)); err != nil {
		t.Fatal(err)
	}
	c.writeEtc(t)
	t.Cleanup(func() {
		c.checkNothingLeft(t)
		os.RemoveAll(home)
	})
	return c
}

// checkNothingLeft fails the test if a process or a mount of the caller's is there, and removes them.
func (c *caller) checkNothingLeft(t *testing.T) {
	t.Helper()
	processes := c.processes()
	for deadline := time.Now().Add(time.Minute); len(processes) > 0 && time.Now().Before(deadline); processes = c.processes() {
		time.Sleep(20 * time.Millisecond)
	}
	for pid, line := range processes {
		t.Errorf("process %d is left: %s", pid, line)
		if p, err := os.FindProcess(pid); err == nil {
			p.Kill()
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); strings.HasPrefix(fields[4], c.home+"/") {
			t.Errorf("mount is left: %s", line)
			exec.Command("umount", "-l", fields[4]).Run()
		}
	}
}

// processes returns the processes that run the program under test with the caller's state, by PID.
func (c *caller) processes() map[int]string {
	found := map[int]string{}
	all, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range all {
		exe, err := os.Readlink(filepath.Join(dir, "exe"))
		if err != nil || !strings.HasPrefix(exe, shared.unionfs) {
			continue
		}
		environment, _ := os.ReadFile(filepath.Join(dir, "environ"))
		line, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if !bytes.Contains(environment, []byte(c.home)) && !bytes.Contains(line, []byte(c.home)) {
			continue
		}
		var pid int
		fmt.Sscan(filepath.Base(dir), &pid)
		found[pid] = string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
	}
	return found
}

// asCaller is a shell script that becomes a caller in a mount namespace of its own: their name and subordinate IDs are in
// copies of the files in /etc, and the machine's own stay as they are. Arguments: home, uid, command.
const asCaller = `set -e
home=$1 uid=$2; shift 2
if [ "$uid" != 0 ]; then
	for file in passwd group subuid subgid; do
		touch /etc/$file
		mount --bind "$home/etc/$file" /etc/$file
	done
fi
exec setpriv --reuid "$uid" --regid "$uid" --clear-groups "$@"`

// command is a command line of the caller's, with their environment and in their home.
func (c *caller) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	script := []string{"--mount", "--propagation", "private", "sh", "-c", asCaller, "sh", c.home, fmt.Sprint(c.uid), name}
	command := exec.Command("unshare", append(script, args...)...)
	command.Dir = c.home
	command.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
		"HOME=" + c.home, "UNIONFS_ROOT=" + c.root, "UNIONFS=" + shared.unionfs,
	}
	if c.uplink != "" {
		command.Env = append(command.Env, "UNIONFS_UPLINK="+c.uplink)
	}
	if c.cgroup != nil {
		command.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(c.cgroup.Fd())}
	}
	if c.netns != "" {
		return inside(c.netns, command)
	}
	return command
}

// delegateCgroup gives an ordinary user a cgroup, as systemd does. Root needs none.
func (c *caller) delegateCgroup(t *testing.T) {
	t.Helper()
	if c.uid == 0 {
		return
	}
	unified := "/sys/fs/cgroup"
	var fs unix.Statfs_t
	if err := unix.Statfs(unified, &fs); err == nil && fs.Type != unix.CGROUP2_SUPER_MAGIC {
		unified = "/sys/fs/cgroup/unified"
	}
	dir, err := os.MkdirTemp(unified, "unionfs-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The last command's process may be dying.
		waitFor(t, func() bool { return !errors.Is(unix.Rmdir(dir), unix.EBUSY) })
	})
	for _, file := range []string{"", "cgroup.procs", "cgroup.threads", "cgroup.subtree_control"} {
		if err := os.Chown(filepath.Join(dir, file), c.uid, c.uid); err != nil {
			t.Fatal(err)
		}
	}
	if c.cgroup, err = os.Open(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.cgroup.Close()
		c.cgroup = nil
	})
}

// writeEtc writes what command binds over the files in /etc.
func (c *caller) writeEtc(t *testing.T) {
	t.Helper()
	if c.uid == 0 {
		return
	}
	etc := filepath.Join(c.home, "etc")
	if err := os.MkdirAll(etc, 0o755); err != nil {
		t.Fatal(err)
	}
	ranges := ""
	if c.subordinates {
		ranges = "tester:200000:65536\n"
	}
	for name, line := range map[string]string{
		"passwd": fmt.Sprintf("tester:x:%d:%d::%s:/bin/sh\n", c.uid, c.uid, c.home),
		"group":  fmt.Sprintf("tester:x:%d:\n", c.uid),
		"subuid": ranges,
		"subgid": ranges,
	} {
		content := line
		if name == "passwd" || name == "group" {
			own, err := os.ReadFile("/etc/" + name)
			if err != nil {
				t.Fatal(err)
			}
			content = string(own) + line
		}
		if err := os.WriteFile(filepath.Join(etc, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// result is how a command ended.
type result struct {
	code           int
	stdout, stderr string
}

// limit is how long any command may take before the test fails: only one that hangs takes so long, also of the scripts that
// call podman fifty times, on a machine that is busy.
const limit = 15 * time.Minute

// run runs the command to its end.
func run(t *testing.T, command *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	command.Stdout, command.Stderr = &stdout, &stderr
	command.WaitDelay = time.Minute
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(limit, func() { command.Process.Kill() })
	err := command.Wait()
	if !timer.Stop() {
		t.Fatalf("%q took more than %s", command.Args, limit)
	}
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%q: %v", command.Args, err)
	}
	return result{command.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// try runs unionfs as the caller.
func (c *caller) try(t *testing.T, args ...string) result {
	t.Helper()
	return run(t, c.command(t, shared.unionfs, args...))
}

// must runs unionfs as the caller and returns its output. It fails the test unless that succeeds.
func (c *caller) must(t *testing.T, args ...string) string {
	t.Helper()
	r := c.try(t, args...)
	if r.code != 0 {
		t.Fatalf("unionfs %q: exit code %d\n%s%s", args, r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// script runs a shell script as the caller, which finds the program in $UNIONFS, and fails the test unless it succeeds.
func (c *caller) script(t *testing.T, text string, args ...string) string {
	t.Helper()
	r := run(t, c.command(t, "sh", append([]string{"-euc", text, "sh"}, args...)...))
	if r.code != 0 {
		t.Fatalf("script: exit code %d\n%s%s", r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// eachKind runs the test as every kind of caller.
func eachKind(t *testing.T, test func(t *testing.T, c *caller)) {
	for kind := range kinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			test(t, newCaller(t, kind))
		})
	}
}
