package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// detached is a container that runs in the background, and whose P0 is gone.
type detached struct {
	*ward
	container *Container
	status    *Status // when P0 had returned
}

// detach starts a request in the background.
func (w *ward) detach(r *request) *detached {
	w.t.Helper()
	data, err := json.Marshal(r)
	must(w.t, err)
	res := finish(w.t, w.verb("test-start", string(data)))
	if res.code != 0 {
		w.t.Fatalf("starting: code %d: %s", res.code, res.stderr)
	}
	d := &detached{ward: w}
	d.container, err = (&State{root: w.state}).Get(strings.TrimSpace(res.stdout))
	must(w.t, err)
	w.t.Cleanup(func() { _ = d.container.Kill(time.Minute) })
	d.status, err = d.container.Status()
	must(w.t, err)
	return d
}

// do calls the program with a verb about the container.
func (d *detached) do(verb string, more ...string) result {
	d.t.Helper()
	return finish(d.t, d.verb(append([]string{verb, d.state, d.container.ID}, more...)...))
}

func (d *detached) log() string {
	d.t.Helper()
	var out strings.Builder
	must(d.t, d.container.Logs(context.Background(), LogOptions{All: true}, func(l LogLine) error {
		fmt.Fprintf(&out, "%s:%s", l.Stream[3:], l.Text)
		if l.Whole {
			out.WriteByte('\n')
		}
		return nil
	}))
	return out.String()
}

// TestBackground: the container lives on when its caller's session and terminal are gone, and has nothing of them.
func TestBackground(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		d := w.detach(w.shell(`readlink /proc/self/fd/0; echo to stderr >&2; trap 'echo bye; exit 9' TERM; touch /tmp/ready; while :; do sleep 0.02; done`))
		if d.status.State != StateRunning {
			t.Fatalf("state is %s", d.status.State)
		}
		for _, pid := range []int{d.status.SupervisorPID, d.status.InitPID} {
			if sid, err := unix.Getsid(pid); err != nil || sid == must1(unix.Getsid(0)) {
				t.Errorf("process %d is in session %d, %v", pid, sid, err)
			}
			for fd := range 3 {
				target, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", pid, fd))
				if err != nil || !strings.HasSuffix(target, "/null") && !strings.HasSuffix(target, "/supervisor.log") {
					t.Errorf("descriptor %d of process %d is %q, %v", fd, pid, target, err)
				}
			}
		}
		eventually(t, "the command runs", func() bool {
			_, err := os.Stat(filepath.Join(w.root, "tmp/ready"))
			return err == nil
		})
		eventually(t, "its output is in the log", func() bool {
			log := d.log()
			return strings.Contains(log, "/null\n") && strings.Contains(log, "err:to stderr\n")
		})
		waiting := d.verb("test-wait", d.state, d.container.ID)
		must(t, waiting.Start())
		if res := d.do("test-stop", "1m"); res.code != 0 {
			t.Errorf("stop: %+v", res)
		}
		if _ = waiting.Wait(); waiting.ProcessState.ExitCode() != 9 {
			t.Errorf("wait: %v, want 9", waiting.ProcessState)
		}
		st, err := d.container.Status()
		must(t, err)
		if st.State != StateExited || st.ExitCode != 9 || !strings.HasSuffix(d.log(), "out:bye\n") {
			t.Errorf("after the end: %+v, log %q", st, d.log())
		}
		if res := d.do("test-wait"); res.code != 9 {
			t.Errorf("wait after the end: %+v", res)
		}
		if _, err := os.Lstat(d.container.controlPath()); !os.IsNotExist(err) {
			t.Errorf("the control socket is left: %v", err)
		}
	})
}

func must1[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// TestStopKills: one that doesn't listen is killed after the grace, and can be started again, when its log goes on.
func TestStopKills(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell(`trap '' TERM INT; echo on; while :; do sleep 0.02; done`)
		r.Options.Annotations = map[string]string{AnnotationStopSignal: "SIGINT"}
		d := w.detach(r)
		eventually(t, "it runs", func() bool { return d.log() == "out:on\n" })
		if res := d.do("test-stop", "100ms"); res.code != 0 {
			t.Errorf("stop: %+v", res)
		}
		if st, err := d.container.Status(); err != nil || st.State != StateExited || st.ExitCode != 137 {
			t.Errorf("status is %+v, %v", st, err)
		}
		if res := d.do("test-again", w.root); res.code != 0 {
			t.Fatalf("start: %+v", res)
		}
		eventually(t, "it runs again", func() bool { return d.log() == "out:on\nout:on\n" })
		if res := d.do("test-again", w.root); res.code != 125 || !strings.Contains(res.stderr, "running") {
			t.Errorf("starting a running container: %+v", res)
		}
	})
}

// TestBackgroundStartFails: the exit code and the reason come to the caller, and into the state.
func TestBackgroundStartFails(t *testing.T) {
	w := newWard(t, worlds()[0])
	for command, code := range map[string]int{"nosuch": 127, "/bin/notexec": 126} {
		data, err := json.Marshal(w.command(command))
		must(t, err)
		res := finish(t, w.verb("test-start", string(data)))
		if res.code != code || !strings.Contains(res.stderr, command) {
			t.Errorf("%s: %+v", command, res)
		}
	}
	all, err := (&State{root: w.state}).List()
	must(t, err)
	for _, c := range all {
		if st, err := c.Status(); err != nil || st.State != StateExited || st.ExitCode < 126 || st.Error == "" {
			t.Errorf("status is %+v, %v", st, err)
		}
	}
}

// TestBackgroundKilled: whichever process is killed, the state tells the truth and nothing is left.
func TestBackgroundKilled(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, victim := range []string{"supervisor", "init", "command"} {
			d := w.detach(w.shell("echo on; sleep 1000 & sleep 1000; true"))
			b := &background{t: t, w: w, status: d.status}
			eventually(t, "all of it runs", func() bool { return len(b.inside()) == 4 && d.log() == "out:on\n" })
			waiting := d.verb("test-wait", d.state, d.container.ID)
			must(t, waiting.Start())
			pid := map[string]int{"supervisor": d.status.SupervisorPID, "init": d.status.InitPID}[victim]
			if victim == "command" {
				for _, p := range must1(d.container.Processes()) {
					if p.PPID == d.status.InitPID { // the others are its children
						pid = p.PID
					}
				}
			}
			// Numbers of processes and of namespaces are given again; a number with a start time is not.
			started := map[int]uint64{}
			for _, p := range append(b.inside(), d.status.SupervisorPID) {
				started[p] = must1(startTime(p))
			}
			must(t, unix.Kill(pid, unix.SIGKILL))
			eventually(t, "all of it is gone", func() bool {
				for p, start := range started {
					if now, err := startTime(p); err == nil && now == start && !gone(p) {
						return false
					}
				}
				return true
			})
			// A process whose first thread is a zombie keeps its files, and with them the lock, until its last thread has ended.
			eventually(t, "the state says that it has ended", func() bool {
				st, err := d.container.Status()
				return err != nil || st.State != StateRunning
			})
			st, err := d.container.Status()
			if err != nil || st.State != StateExited || st.ExitCode != 137 || (st.Error != "") != (victim == "supervisor") {
				t.Errorf("%s killed: status is %+v, %v", victim, st, err)
			}
			if _ = waiting.Wait(); waiting.ProcessState.ExitCode() != 137 {
				t.Errorf("%s killed: wait: %v", victim, waiting.ProcessState)
			}
			if m := mountsUnder(t, filepath.Dir(w.root)); len(m) != 0 {
				t.Errorf("mounts are left: %q", m)
			}
			// A dead supervisor's socket is in nobody's way.
			if res := d.do("test-again", w.root); res.code != 0 {
				t.Errorf("%s killed: starting again: %+v", victim, res)
			}
			must(t, d.container.Kill(time.Minute))
		}
	})
}

// TestBackgroundTerminal: the output of a terminal that nobody sits at is kept, and its reader isn't at the end.
func TestBackgroundTerminal(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		d := w.detach(w.interactive("tty; stty size; read line; echo not reached"))
		eventually(t, "it has a terminal", func() bool { return strings.HasPrefix(d.log(), "out:/dev/pts/0\r\n") })
		r := w.shell("read line; echo not reached")
		r.Options.Annotations = map[string]string{AnnotationInteractive: "true"}
		waits := w.detach(r)
		empty := w.detach(w.shell("read line; echo at its end"))
		if res := empty.do("test-wait"); res.code != 0 {
			t.Errorf("%+v", res)
		}
		for _, d := range []*detached{d, waits} {
			if st, err := d.container.Status(); err != nil || st.State != StateRunning || strings.Contains(d.log(), "not reached") {
				t.Errorf("status is %+v, %v, log %q", st, err, d.log())
			}
		}
	})
}

// TestAutoRemoveInBackground: whoever waits hears the code of a container that removes itself.
func TestAutoRemoveInBackground(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell("touch /tmp/ready; while [ -e /tmp/ready ]; do sleep 0.02; done; exit 6")
		r.Options.AutoRemove = true
		d := w.detach(r)
		waiting := d.verb("test-wait", d.state, d.container.ID)
		must(t, waiting.Start())
		eventually(t, "it runs", func() bool { _, err := os.Stat(filepath.Join(w.root, "tmp/ready")); return err == nil })
		eventually(t, "the other one waits", func() bool { return inSystemCall(waiting.Process.Pid, unix.SYS_RECVMSG) })
		must(t, os.Remove(filepath.Join(w.root, "tmp/ready")))
		if _ = waiting.Wait(); waiting.ProcessState.ExitCode() != 6 {
			t.Errorf("wait: %v", waiting.ProcessState)
		}
		if _, err := os.Lstat(d.container.Dir()); !os.IsNotExist(err) {
			t.Errorf("it is still there: %v", err)
		}
	})
}

// TestRename: also of a container that runs; names are free when and only when nobody has them.
// None of the names could be the beginning of an ID, by which containers are found too.
func TestRename(t *testing.T) {
	w := newWard(t, worlds()[0])
	r := w.shell("sleep 1000")
	r.Options.Name = "old"
	r.Options.AutoRemove = true
	d := w.detach(r)
	st := d.container.state
	other := must1(st.Create(aSpec(), CreateOptions{Name: "taken"}))
	for name, want := range map[string]string{"taken": "in use", "../x": "no container name"} {
		if err := d.container.Rename(name); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("renaming to %q: %v", name, err)
		}
	}
	must(t, d.container.Rename("new"))
	if c, err := st.Get("new"); err != nil || c.ID != d.container.ID {
		t.Errorf("new is %v, %v", c, err)
	}
	if _, err := st.Get("old"); err == nil {
		t.Error("old is still there")
	}
	must(t, other.Rename("old"))
	// As a renaming that was cut short leaves it: the file names a container that has another name.
	must(t, os.WriteFile(filepath.Join(st.namesDir(), "half"), []byte(other.ID), 0o600))
	if _, err := st.Get("half"); err == nil {
		t.Error("half is a name")
	}
	must(t, other.Rename("half"))
	must(t, d.container.Kill(time.Minute))
	eventually(t, "it removed itself", func() bool { _, err := st.Get(d.container.ID); return err != nil })
	must(t, other.Rename("new"))
}

// TestLog: parts, tail, since and rotation.
func TestLog(t *testing.T) {
	st := newState(t)
	c := must1(st.Create(aSpec(), CreateOptions{Annotations: map[string]string{AnnotationLogSize: "2000", AnnotationLogFiles: "3"}}))
	l := must1(c.openLog())
	l.copy("stdout", strings.NewReader("one\ntwo\n\nlast without end"))
	must(t, l.close())
	read := func(o LogOptions) string {
		var out bytes.Buffer
		must(t, c.Logs(context.Background(), o, func(l LogLine) error {
			out.Write(l.Text)
			if l.Whole {
				out.WriteByte('\n')
			}
			return nil
		}))
		return out.String()
	}
	for n, want := range []string{"", "last without end", "\nlast without end", "two\n\nlast without end", "one\ntwo\n\nlast without end", "one\ntwo\n\nlast without end"} {
		if got := read(LogOptions{Tail: n}); got != want {
			t.Errorf("tail %d: %q, want %q", n, got, want)
		}
	}
	if got := read(LogOptions{All: true, Since: time.Now().Add(time.Hour)}); got != "" {
		t.Errorf("since: %q", got)
	}
	// A torn line, as a kill leaves it, is passed over; what comes after it is not.
	must(t, os.WriteFile(c.LogPath(), []byte("2026-11-23T14:00:00.1"), 0o600))
	l = must1(c.openLog())
	l.copy("stdout", strings.NewReader("after\n"))
	if got := read(LogOptions{All: true}); got != "after\n" {
		t.Errorf("after a torn line: %q", got)
	}
	// A reader that is fast enough sees every line over all rotations, one that comes late sees what is kept.
	r := &logReader{path: c.LogPath()}
	defer r.close()
	var seen int
	for i := range 200 {
		l.copy("stderr", strings.NewReader(fmt.Sprintf("line %d\n", i)))
		if i%30 == 0 {
			for {
				line, ok, err := r.next()
				must(t, err)
				if !ok {
					break
				}
				if string(line.Text) == fmt.Sprintf("line %d", seen) {
					seen++
				}
			}
			if seen != i+1 {
				t.Fatalf("%d lines seen, want %d", seen, i+1)
			}
		}
	}
	must(t, l.close())
	files, err := filepath.Glob(c.LogPath() + "*")
	must(t, err)
	if len(files) != 3 {
		t.Errorf("files: %q", files)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 2000 {
			t.Errorf("%s: %v, %v", f, st, err)
		}
	}
	got := read(LogOptions{All: true})
	if !strings.HasSuffix(got, "line 198\nline 199\n") || strings.Count(got, "\n") < 60 {
		t.Errorf("what is kept: %q", got)
	}
	long := strings.Repeat("x", 3*maxLogText+5) + "\n"
	l = must1(c.openLog())
	l.most = 1 << 20
	l.copy("stdout", strings.NewReader(long))
	must(t, l.close())
	if got := read(LogOptions{Tail: 1}); got != long {
		t.Errorf("a long line has %d bytes, want %d", len(got), len(long))
	}
}

// TestLogFollow: a follower sees all of a container's output and ends with it.
func TestLogFollow(t *testing.T) {
	w := newWard(t, worlds()[0])
	r := w.shell("seq 3000; sleep 0.2; seq 3001 6000")
	r.Options.Annotations = map[string]string{AnnotationLogSize: "100000", AnnotationLogFiles: "9"}
	d := w.detach(r)
	n := 0
	must(t, d.container.Logs(context.Background(), LogOptions{All: true, Follow: true}, func(l LogLine) error {
		if n++; string(l.Text) != fmt.Sprint(n) {
			return fmt.Errorf("line %d is %q", n, l.Text)
		}
		return nil
	}))
	if n != 6000 {
		t.Errorf("%d lines, want 6000", n)
	}
}

// inSystemCall reports whether a thread of the process waits in a system call (proc_pid_syscall(5)).
func inSystemCall(pid, number int) bool {
	calls, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/syscall", pid))
	for _, call := range calls {
		if data, _ := os.ReadFile(call); strings.HasPrefix(string(data), fmt.Sprint(number, " ")) {
			return true
		}
	}
	return false
}
