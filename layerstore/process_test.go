package layerstore

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// childVar makes the test binary do something else than test: "VERB ROOT REF", each in a process of its
// own.
const childVar = "UNIONFS_LAYERSTORE_CHILD"

func TestMain(m *testing.M) {
	if args := strings.Fields(os.Getenv(childVar)); len(args) == 3 {
		if err := child(args[0], args[1], args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func child(verb, root, ref string) error {
	// strace counts system calls by thread: see runKilled.
	runtime.LockOSThread()
	s, err := Open(root)
	if err != nil {
		return err
	}
	return act(s, verb, ref)
}

// act does to a store what a child is for. A comma separates two references.
func act(s *Store, verb, ref string) error {
	ref, other, _ := strings.Cut(ref, ",")
	switch verb {
	case "pull":
		i, err := s.Pull(context.Background(), ref, PullOptions{})
		if err != nil {
			return err
		}
		b, err := i.Branch()
		if err != nil {
			return err
		}
		defer b.Close()
		_, err = snapshotBranch(b)
		return err
	case "push":
		_, err := s.Push(context.Background(), ref, other, PushOptions{})
		return err
	case "load":
		_, err := s.Load(context.Background(), ref, LoadOptions{})
		return err
	case "commit":
		base, err := s.Image(ref)
		if err != nil {
			return err
		}
		f, err := os.Open(other)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = s.Commit(context.Background(), base, f, "committed", CommitOptions{})
		return err
	case "tag":
		return s.Tag(ref, other)
	case "prune":
		_, err := s.Prune(PruneOptions{})
		return err
	case "use":
		i, err := s.Image(ref)
		if err != nil {
			return err
		}
		if _, err := i.Acquire(); err != nil {
			return err
		}
		fmt.Println("acquired")
		_, err = os.Stdin.Read(make([]byte, 1))
		return err
	case "remove":
		_, err := s.Remove(ref)
		return err
	case "import":
		f, err := os.Open(ref)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = s.Import(context.Background(), f, "imported", ImportOptions{})
		return err
	case "churn":
		// Pull and remove; that others do the same may make it fail, but only in so many ways.
		for range 6 {
			if _, err := s.Pull(context.Background(), ref, PullOptions{}); err != nil {
				return err
			}
			if _, err := s.Remove(ref); err != nil && !strings.Contains(err.Error(), ErrNotFound.Error()) {
				return err
			}
			if _, err := s.Prune(PruneOptions{}); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("unknown verb %q", verb)
}

// startChild starts this binary again. Whatever happens, it is dead when the test ends. The verbs "use" and "" are left
// for the caller to start.
func startChild(t *testing.T, verb string, s *Store, ref string) (cmd *exec.Cmd, output *bytes.Buffer) {
	t.Helper()
	cmd = exec.Command(os.Args[0])
	// The race detector of a child would sleep for a second when it ends.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", childVar+"="+strings.Join([]string{verb, s.Root(), ref}, " "))
	output = &bytes.Buffer{}
	cmd.Stderr = output
	if verb != "use" && verb != "" {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill() })
	}
	return cmd, output
}

func TestManyProcessesPull(t *testing.T) {
	host := testRegistry(t, nil)
	tars := someTars(t)
	makeImage(t, tars).push(t, host+"/many:1")
	s := openStore(t)
	type result struct {
		cmd    *exec.Cmd
		output *bytes.Buffer
	}
	var all []result
	for range 6 {
		cmd, output := startChild(t, "pull", s, host+"/many:1")
		all = append(all, result{cmd, output})
	}
	for _, r := range all {
		if err := r.cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, r.output)
		}
	}
	i, err := s.Image(host + "/many:1")
	if err != nil {
		t.Fatal(err)
	}
	if d := diffSnapshots(imageSnapshot(t, i), stacked(t, tars)); d != "" {
		t.Error(d)
	}
	removeAll(t, s, host+"/many:1")
}

// removeAll removes the only image and checks that nothing is left.
func removeAll(t *testing.T, s *Store, ref string) {
	t.Helper()
	if _, err := s.Remove(ref); err != nil {
		t.Error(err)
	}
	// Another process's attempt may just have been swept.
	if _, err := Open(s.Root()); err != nil {
		t.Error(err)
	}
	checkEmpty(t, s)
}

func TestManyProcessesChurn(t *testing.T) {
	host := testRegistry(t, nil)
	tars := someTars(t)
	// Two images that share layers, so that what one removes the other needs.
	makeImage(t, tars).push(t, host+"/many:1")
	makeImage(t, tars[:3]).push(t, host+"/many:2")
	s := openStore(t)
	var cmds []*exec.Cmd
	var outputs []*bytes.Buffer
	for n := range 4 {
		cmd, output := startChild(t, "churn", s, fmt.Sprintf("%s/many:%d", host, n%2+1))
		cmds, outputs = append(cmds, cmd), append(outputs, output)
	}
	for n, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Errorf("%v: %s", err, outputs[n])
		}
	}
	ref := host + "/many:1"
	i := mustPull(t, s, ref, PullOptions{})
	if d := diffSnapshots(imageSnapshot(t, i), stacked(t, tars)); d != "" {
		t.Error(d)
	}
	removeAll(t, s, ref)
}

// TestKilledPull kills pulls at random instants.
func TestKilledPull(t *testing.T) {
	const kills = 25
	// A little slow, so that there are instants within the download.
	host := testRegistry(t, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			time.Sleep(5 * time.Millisecond)
		}
		return false
	})
	tars := someTars(t)
	want := stacked(t, tars)
	ref := host + "/killed:1"
	makeImage(t, tars).push(t, ref)
	s := openStore(t)
	start := time.Now()
	cmd, output := startChild(t, "pull", s, ref)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, output)
	}
	whole := time.Since(start)
	removeAll(t, s, ref)
	random := rand.New(rand.NewPCG(3, 4))
	killed := 0
	for range kills {
		cmd, output := startChild(t, "pull", s, ref)
		time.Sleep(time.Duration(random.Int64N(int64(whole))))
		cmd.Process.Kill()
		if err := cmd.Wait(); err != nil {
			killed++
			if output.Len() > 0 {
				t.Fatalf("a pull failed: %s", output)
			}
		}
		again, err := Open(s.Root())
		if err != nil {
			t.Fatal(err)
		}
		list, err := again.Images()
		if err != nil {
			t.Fatal(err)
		}
		if len(list) == 0 {
			continue
		}
		// It got so far that there is an image: then it is whole, and has its name.
		if len(list) != 1 || len(list[0].Names) != 1 {
			t.Fatalf("the store has %+v", list)
		}
		i, err := again.Image(string(list[0].ID))
		if err != nil {
			t.Fatal(err)
		}
		if d := diffSnapshots(imageSnapshot(t, i), want); d != "" {
			t.Fatal(d)
		}
		if _, err := again.Remove(string(list[0].ID)); err != nil {
			t.Fatal(err)
		}
	}
	if killed == 0 {
		t.Error("every pull was done before it was killed")
	}
	t.Logf("%d of %d pulls were killed", killed, kills)
	i := mustPull(t, s, ref, PullOptions{})
	if d := diffSnapshots(imageSnapshot(t, i), want); d != "" {
		t.Error(d)
	}
	removeAll(t, s, ref)
}

// TestKilledAtEveryStep kills a pull, an import and a removal before each system call that changes what is published.
func TestKilledAtEveryStep(t *testing.T) {
	host := testRegistry(t, nil)
	tars := [][]byte{tarOf(t, reg("a", "1"), reg("b", "2")), tarOf(t, wh(".wh.a"), reg("c", "3"))}
	whole := tarOf(t, reg("b", "2"), reg("c", "3"))
	want := stacked(t, [][]byte{whole})
	ref := host + "/steps:1"
	makeImage(t, tars).push(t, ref)
	file := filepath.Join(t.TempDir(), "whole.tar")
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		verb, ref string
		calls     map[string]int // system call → how many there are at least, in one thread
		prepare   func(t *testing.T, s *Store)
	}{
		{"pull", ref, map[string]int{"renameat": 3, "fsync": 7, "unlinkat": 1}, nil},
		// Layers are published by other threads than the image; here they are there.
		{"pull", ref, map[string]int{"renameat": 3, "fsync": 6, "unlinkat": 3}, func(t *testing.T, s *Store) {
			i := mustPull(t, s, ref, PullOptions{})
			for _, id := range i.Config().RootFS.DiffIDs {
				if err := s.keepLayer(id); err != nil {
					t.Fatal(err)
				}
			}
			refs, _ := filepath.Glob(s.path(refsDir, "*"))
			for _, file := range append(refs, s.path(imagesDir, i.ID().Encoded()), s.path(mergedDir, i.ChainID().Encoded())) {
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"import", file, map[string]int{"renameat": 4, "fsync": 9, "unlinkat": 1}, nil},
		{"remove", ref, map[string]int{"renameat": 4, "fsync": 2, "unlinkat": 5}, func(t *testing.T, s *Store) {
			mustPull(t, s, ref, PullOptions{})
		}},
	}
	for n, c := range cases {
		for call, least := range c.calls {
			t.Run(fmt.Sprintf("%d %s %s", n, c.verb, call), func(t *testing.T) {
				s := openStore(t)
				done := false
				step := 0
				for !done && step < 100 {
					step++
					if c.prepare != nil {
						c.prepare(t, s)
					}
					done = runKilled(t, s, c.verb, c.ref, call, step)
					checkAfterKill(t, s, want)
					if t.Failed() {
						t.Fatalf("after a %s was killed before %s number %d", c.verb, call, step)
					}
					if list, err := s.Images(); err != nil {
						t.Fatal(err)
					} else if len(list) > 0 {
						removeAll(t, s, string(list[0].ID))
					}
				}
				if !done || step <= least {
					t.Errorf("%s was called %d times, expected at least %d", call, step-1, least)
				}
			})
		}
	}
}

// runKilled runs a child that is killed before the step-th time that any one of its threads makes a system call. What
// publishes runs in the main goroutine, and that keeps to one thread. True if the child came to its end.
func runKilled(t *testing.T, s *Store, verb, ref, call string, step int) bool {
	t.Helper()
	cmd, output := startChild(t, "", s, ref)
	traced := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=KILL:when=%d", call, step), os.Args[0])
	traced.Env = append(cmd.Env, childVar+"="+strings.Join([]string{verb, s.Root(), ref}, " "))
	traced.Stderr = output
	err := traced.Run()
	if output.Len() > 0 {
		t.Fatalf("step %d: %v: %s", step, err, output)
	}
	return err == nil
}

// checkAfterKill opens a store after a process that used it was killed: it has the whole image or nothing of it.
func checkAfterKill(t *testing.T, s *Store, want snapshot) {
	t.Helper()
	if _, err := Open(s.Root()); err != nil {
		t.Fatal(err)
	}
	list, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	if len(list) == 0 {
		checkPruned(t, s)
		return
	}
	i, err := s.Image(string(list[0].ID))
	if err != nil {
		t.Fatal(err)
	}
	if d := diffSnapshots(imageSnapshot(t, i), want); d != "" {
		t.Error(d)
	}
	if staged, err := os.ReadDir(s.path(stagingDir)); err != nil || len(staged) > 0 {
		t.Errorf("%d directories are left in staging, %v", len(staged), err)
	}
}

func TestImageInUseByAnotherProcess(t *testing.T) {
	s := openStore(t)
	i := importBytes(t, s, "used", tarOf(t, reg("a", "1")))
	cmd, _ := startChild(t, "use", s, "used")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Process.Kill()
	if _, err := stdout.Read(make([]byte, 8)); err != nil {
		t.Fatal(err)
	}
	r, err := s.Remove("used")
	if err != nil || !r.InUse || r.Deleted != "" || len(r.Untagged) != 1 {
		t.Fatalf("removing an image that is in use: %+v, %v", r, err)
	}
	if _, err := s.Image("used"); err == nil {
		t.Error("its name is still there")
	}
	if _, err := s.Prune(PruneOptions{}); err != nil {
		t.Error(err)
	}
	if d := diffSnapshots(imageSnapshot(t, i), stacked(t, [][]byte{tarOf(t, reg("a", "1"))})); d != "" {
		t.Error(d)
	}
	// Killed, it uses nothing, and the space comes back with the next command.
	cmd.Process.Kill()
	cmd.Wait()
	if _, err := Open(s.Root()); err != nil {
		t.Error(err)
	}
	checkEmpty(t, s)
}
