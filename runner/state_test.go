package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

func newState(t *testing.T) *State {
	t.Helper()
	st, err := OpenState(filepath.Join(t.TempDir(), "state"))
	must(t, err)
	return st
}

func aSpec() *specs.Spec {
	spec := DefaultSpec()
	spec.Process.Args = []string{"true"}
	return spec
}

func TestCreateGetListRemove(t *testing.T) {
	st := newState(t)
	a, err := st.Create(aSpec(), CreateOptions{ID: strings.Repeat("ab", 32), Name: "web.1", Image: "debian:12", User: "alice", Annotations: map[string]string{"k": "v"}})
	must(t, err)
	b, err := st.Create(aSpec(), CreateOptions{ID: strings.Repeat("a0", 32)})
	must(t, err)
	if err := checkName(b.Name); err != nil || !strings.Contains(b.Name, "_") {
		t.Errorf("made-up name %q: %v", b.Name, err)
	}
	for ref, want := range map[string]string{a.ID: a.ID, "web.1": a.ID, "ab": a.ID, "aba": a.ID, b.Name: b.ID, "a0": b.ID} {
		c, err := st.Get(ref)
		if err != nil || c.ID != want {
			t.Errorf("Get(%q) is %v, %v", ref, c, err)
		}
	}
	for ref, want := range map[string]string{"": "no such", "a": "more than one", "zz": "no such", "web": "no such", "../x": "no such", "ffff": "no such"} {
		if c, err := st.Get(ref); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Get(%q) is %v, %v; want %q", ref, c, err, want)
		}
	}
	c, err := st.Get("web.1")
	must(t, err)
	if c.Name != "web.1" || c.Image() != "debian:12" || c.Spec.Annotations["k"] != "v" || c.Spec.Annotations[AnnotationUser] != "alice" || c.Spec.Hostname != a.ID[:12] {
		t.Errorf("read back: %+v, %+v", c, c.Spec.Annotations)
	}
	s, err := c.Status()
	if err != nil || s.State != StateCreated || s.Created.IsZero() {
		t.Errorf("status is %+v, %v", s, err)
	}
	all, err := st.List()
	if err != nil || len(all) != 2 || all[0].ID != b.ID || all[1].ID != a.ID {
		t.Errorf("list is %v, %v", all, err)
	}
	for _, c := range all {
		must(t, st.Remove(c))
		if err := st.Remove(c); !errors.Is(err, ErrNotFound) {
			t.Errorf("removing again: %v", err)
		}
	}
	if left, _ := filepath.Glob(st.Root() + "/*/*"); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestCreateRefuses(t *testing.T) {
	st := newState(t)
	for _, c := range []struct {
		name   string
		change func(*specs.Spec, *CreateOptions)
		says   string
	}{
		{"no command", func(s *specs.Spec, o *CreateOptions) { s.Process.Args = nil }, "no command"},
		{"bad name", func(s *specs.Spec, o *CreateOptions) { o.Name = "../x" }, "is no container name"},
		{"hidden name", func(s *specs.Spec, o *CreateOptions) { o.Name = ".x" }, "is no container name"},
		{"long name", func(s *specs.Spec, o *CreateOptions) { o.Name = strings.Repeat("x", 129) }, "is no container name"},
		{"bad ID", func(s *specs.Spec, o *CreateOptions) { o.ID = "../../x" }, "64 hexadecimal digits"},
		{"bad capability", func(s *specs.Spec, o *CreateOptions) { s.Process.Capabilities.Bounding = []string{"CAP_ANY"} }, "CAP_ANY"},
		{"joined namespace", func(s *specs.Spec, o *CreateOptions) { s.Linux.Namespaces[5].Path = "/proc/1/ns/net" }, "joining"},
		{"host mount namespace", func(s *specs.Spec, o *CreateOptions) { s.Linux.Namespaces = nil }, "new mount namespace"},
		{"another's PID namespace by another runtime", func(s *specs.Spec, o *CreateOptions) {
			ShareContainerNamespace(s, specs.PIDNamespace, strings.Repeat("a", 64))
			s.Annotations[AnnotationRuntime] = "/bin/runc"
		}, "another runtime"},
		{"relative source", func(s *specs.Spec, o *CreateOptions) { s.Mounts = append(s.Mounts, bindMount("x", "/x")) }, "absolute path"},
		{"relative target", func(s *specs.Spec, o *CreateOptions) { s.Mounts = append(s.Mounts, bindMount("/x", "x")) }, "absolute path"},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec, o := aSpec(), CreateOptions{}
			c.change(spec, &o)
			if _, err := st.Create(spec, o); err == nil || !strings.Contains(err.Error(), c.says) {
				t.Errorf("error is %v, want %q", err, c.says)
			}
			if left, _ := filepath.Glob(st.Root() + "/*/*"); len(left) != 0 {
				t.Errorf("left over: %q", left)
			}
		})
	}
}

// TestNameIsGivenOnce: of many that want a name at once, one gets it, also if a dead container seems to have it.
func TestNameIsGivenOnce(t *testing.T) {
	st := newState(t)
	for round := range 20 {
		name := fmt.Sprintf("n%d", round)
		if round%2 == 1 {
			must(t, os.WriteFile(filepath.Join(st.namesDir(), name), []byte(strings.Repeat("0", 64)), 0o600))
		}
		var wg sync.WaitGroup
		var mu sync.Mutex
		var winners []*Container
		for range 8 {
			wg.Go(func() {
				c, err := st.Create(aSpec(), CreateOptions{Name: name})
				if err == nil {
					mu.Lock()
					winners = append(winners, c)
					mu.Unlock()
				} else if !errors.Is(err, ErrNameInUse) {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(winners) != 1 {
			t.Fatalf("%d got the name %s", len(winners), name)
		}
		if c, err := st.Get(name); err != nil || c.ID != winners[0].ID {
			t.Errorf("the name leads to %v, %v", c, err)
		}
		must(t, st.Remove(winners[0]))
	}
	if left, _ := filepath.Glob(st.Root() + "/*/*"); len(left) != 0 {
		t.Errorf("left over: %q", left)
	}
}

func TestTornState(t *testing.T) {
	st := newState(t)
	c, err := st.Create(aSpec(), CreateOptions{Name: "torn"})
	must(t, err)
	must(t, os.WriteFile(c.statusPath(), []byte(`{"version":1,"sta`), 0o600))
	if s, err := c.Status(); err != nil || s.State != StateExited || s.ExitCode != exitUnknown {
		t.Errorf("status with a torn state.json is %+v, %v", s, err)
	}
	must(t, os.WriteFile(c.configPath(), []byte(`{"ociVersion`), 0o600))
	if _, err := st.Get("torn"); err == nil || !strings.Contains(err.Error(), "damaged") || !strings.Contains(err.Error(), c.Dir()) {
		t.Errorf("with a torn config.json: %v", err)
	}
}

// TestRemainsAreSwept: a removal takes along what others left when they were killed, and nothing else.
func TestRemainsAreSwept(t *testing.T) {
	st := newState(t)
	removing := filepath.Join(st.containersDir(), strings.Repeat("1", 64)+removingSuffix)
	old, young := filepath.Join(st.containersDir(), strings.Repeat("2", 64)), filepath.Join(st.containersDir(), strings.Repeat("3", 64))
	for _, d := range []string{removing, old, young} {
		must(t, os.MkdirAll(filepath.Join(d, "upper/x"), 0o755))
	}
	past := time.Now().Add(-2 * time.Hour)
	must(t, os.Chtimes(old, past, past))
	kept, err := st.Create(aSpec(), CreateOptions{})
	must(t, err)
	c, err := st.Create(aSpec(), CreateOptions{})
	must(t, err)
	must(t, st.Remove(c))
	left, err := filepath.Glob(st.containersDir() + "/*")
	must(t, err)
	slices.Sort(left)
	want := []string{young, kept.Dir()}
	slices.Sort(want)
	if !slices.Equal(left, want) {
		t.Errorf("left are %q, want %q", left, want)
	}
	if all, err := st.List(); err != nil || len(all) != 1 || all[0].ID != kept.ID {
		t.Errorf("list is %v, %v", all, err)
	}
}

func TestRunningIsNotRemoved(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		b := w.start(w.shell("touch /tmp/ready; exec sleep 1000"))
		res := finish(t, w.verb("test-remove", w.state, b.container.Name))
		if res.code != 125 || !strings.Contains(res.stderr, "container is running") {
			t.Errorf("removing a running container: code %d, %q", res.code, res.stderr)
		}
		must(t, b.container.Signal(unix.SIGTERM))
		b.wait()
		if res := finish(t, w.verb("test-remove", w.state, b.container.Name)); res.code != 0 {
			t.Errorf("removing: code %d, %q", res.code, res.stderr)
		}
	})
}

func TestAutoRemove(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, args := range [][]string{{"true"}, {"no-such-command"}} {
			r := w.command(args...)
			r.Options.AutoRemove = true
			w.run(r)
			if left, _ := filepath.Glob(w.state + "/*/*"); len(left) != 0 {
				t.Errorf("%q: left over: %q", args, left)
			}
		}
	})
}
