package runner

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// world is who runs the containers of a test.
type world struct {
	name string
	user bool // an ordinary user
}

func worlds() []world {
	return []world{{name: "root"}, {name: "ranges", user: true}, {name: "single", user: true}}
}

// inEveryWorld runs f as a subtest for root, for a user with subordinate IDs, and for a user with one ID.
func inEveryWorld(t *testing.T, f func(t *testing.T, w *ward)) {
	inWorlds(t, worlds(), f)
}

func inWorlds(t *testing.T, which []world, f func(t *testing.T, w *ward)) {
	for _, w := range which {
		t.Run(w.name, func(t *testing.T) { f(t, newWard(t, w)) })
	}
}

// ward is the directories of one test in one world.
type ward struct {
	world
	t     *testing.T
	state string
	root  string // a root directory with busybox

	cgroup *os.File // the directory of a cgroup of the unified hierarchy in which programs are started; nil for the test's own
}

func newWard(t *testing.T, w world) *ward {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Fatal("the tests of the runner must be run as root: they are an ordinary user's where they must be")
	}
	dir := t.TempDir()
	wd := &ward{world: w, t: t, state: filepath.Join(dir, "state"), root: filepath.Join(dir, "root")}
	for _, d := range []string{wd.state, wd.root} {
		must(t, os.Mkdir(d, 0o755))
	}
	busyboxRoot(t, wd.root)
	if w.user {
		must(t, os.Chmod(filepath.Dir(dir), 0o755)) // t.TempDir keeps it to root
		must(t, filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			return os.Lchown(path, testUID, testUID)
		}))
	}
	return wd
}

// in is the same ward within a subtest.
func (w *ward) in(t *testing.T) *ward {
	sub := *w
	sub.t = t
	return &sub
}

// busyboxRoot fills dir with a small system.
func busyboxRoot(t *testing.T, dir string) {
	t.Helper()
	for _, d := range []string{"bin", "dev", "etc", "proc", "sys", "tmp", "root", "home/alice"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	data, err := os.ReadFile("/bin/busybox")
	must(t, err)
	must(t, os.WriteFile(filepath.Join(dir, "bin/busybox"), data, 0o755))
	for _, name := range strings.Fields(`cat chmod chown dd echo env find grep head hostname id ip ls mkdir mknod mount nc pidof pwd
		readlink seq setsid sh sleep sort stat stty sed touch tr true tty umount wc`) {
		must(t, os.Symlink("busybox", filepath.Join(dir, "bin", name)))
	}
	for name, content := range map[string]string{
		"etc/passwd":      "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
		"etc/group":       "root:x:0:\ntty:x:5:\nalice:x:1000:\nstaff:x:50:alice\n",
		"etc/hosts":       "", // mount points, so that no test is about placeholders unless it wants to be
		"etc/hostname":    "",
		"etc/resolv.conf": "",
		"bin/notexec":     "data",
	} {
		must(t, os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644))
	}
	must(t, os.WriteFile(filepath.Join(dir, "bin/nointerp"), []byte("#!/no/such/shell\n"), 0o755))
}

// shell is a request to run a script in the default container.
func (w *ward) shell(script string) *request {
	return w.command("sh", "-c", script)
}

func (w *ward) command(args ...string) *request {
	spec := DefaultSpec()
	spec.Process.Args = args
	return &request{State: w.state, Root: w.root, Spec: spec}
}

// result is what a run printed and returned.
type result struct {
	code           int
	stdout, stderr string
}

// cmd is the process P0 for a request, not yet started.
func (w *ward) cmd(r *request) *exec.Cmd {
	w.t.Helper()
	data, err := json.Marshal(r)
	must(w.t, err)
	return w.verb("test-run", string(data))
}

// verb is this program called with args, as the world's user.
func (w *ward) verb(args ...string) *exec.Cmd {
	cmd := exec.Command(selfExe, args...)
	if w.user || w.name == freezerWorld {
		cmd = exec.Command(selfExe, append([]string{"test-world", w.name}, args...)...)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS}
	}
	if w.cgroup != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(w.cgroup.Fd())
	}
	cmd.Args[0] = "runner.test"
	cmd.Dir = "/"
	return cmd
}

// run runs a request to its end.
func (w *ward) run(r *request) result {
	w.t.Helper()
	return finish(w.t, w.cmd(r))
}

func finish(t *testing.T, cmd *exec.Cmd) result {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// output runs a request that must succeed, and returns its output without the last newline.
func (w *ward) output(r *request) string {
	w.t.Helper()
	res := w.run(r)
	if res.code != 0 {
		w.t.Fatalf("exit code %d, standard error: %s", res.code, res.stderr)
	}
	return strings.TrimSuffix(res.stdout, "\n")
}

func bindMount(source, target string, options ...string) specs.Mount {
	return specs.Mount{Destination: target, Type: "bind", Source: source, Options: append([]string{"rbind"}, options...)}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
