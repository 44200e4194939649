package fs_test

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/fs"
	"unionfs/internal/modeltest"
)

// kills is how often TestCrash kills a server at most, and crashTime for how long it goes on doing so.
const (
	kills     = 40
	crashTime = 8 * time.Second
)

// TestCrash kills the server at random instants of random operations. The next one must show the tree as it was before the
// operation that was under way or as it is after it, and so must the upper branch by itself, read by a union that repairs
// nothing.
func TestCrash(t *testing.T) {
	rng := modeltest.NewRand(t)
	var s *stack
	effective := 0
	done := 0
	for start := time.Now(); done < kills && (time.Since(start) < crashTime || done < 10); done++ {
		i := done
		if i%10 == 0 {
			s = newStack(t, rng, 1+rng.IntN(3))
			s.volatile = i%20 == 0
			enlarge(t, s)
		}
		if s.crash(t, rng, time.Duration(rng.IntN(40_000))*time.Microsecond) {
			effective++
		}
	}
	t.Logf("%d of %d interrupted operations had their effect", effective, done)
}

// enlarge makes some files large enough that the server can be killed while it copies them.
func enlarge(t *testing.T, s *stack) {
	t.Helper()
	byBlock := false
	for _, dir := range s.lower {
		for _, name := range modeltest.Names() {
			var st unix.Stat_t
			if unix.Lstat(dir+"/"+name, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Size == 0 {
				continue
			}
			// The name can mean another file in the merged tree: that of a layer further up.
			if top := s.provider(name); top != dir {
				continue
			}
			size := 1 << 20
			if !byBlock {
				size, byBlock = 9<<20, true // so large that it is copied by block
			}
			for _, p := range []string{dir, s.plain} {
				if err := os.WriteFile(p+"/"+name, []byte(strings.Repeat("large lower file", size/16)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// provider is the topmost layer that has a name.
func (s *stack) provider(name string) string {
	for _, dir := range s.lower {
		var st unix.Stat_t
		for _, n := range []string{name, ".wh." + name} {
			if unix.Lstat(dir+"/"+n, &st) == nil {
				return dir
			}
		}
	}
	return ""
}

// crash starts a server, kills it after a time in which one operation follows the other, and checks what is left. It reports
// whether the operation that was under way had its effect.
func (s *stack) crash(t *testing.T, rng *rand.Rand, after time.Duration) bool {
	t.Helper()
	args := append([]string{s.mnt, s.upper, s.work, fmt.Sprint(s.volatile)}, s.lower...)
	cmd := roleCommand(t, "serve stack", args...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	defer func() {
		cmd.Process.Kill()
		<-ended
	}()
	line, err := bufio.NewReader(out).ReadString('\n')
	go func() {
		cmd.Wait()
		close(ended)
	}()
	if err != nil || line != "mounted\n" {
		t.Fatalf("the server says %q, %v", line, err)
	}
	defer func() {
		if s.isMounted() {
			if err := fs.Unmount(s.mnt, true); err != nil {
				t.Error(err)
			}
		}
	}()
	// Now and then the end is the server's own, and it is killed while it completes the upper branch.
	ending := rng.IntN(4) == 0
	deadline := time.Now().Add(after)
	if !ending {
		timer := time.AfterFunc(after, func() { cmd.Process.Kill() })
		defer timer.Stop()
	}

	union, plain := modeltest.NewPlayer(s.mnt), modeltest.NewPlayer(s.plain)
	var op modeltest.Operation
	var history []string
	for {
		if ending && time.Now().After(deadline) {
			op = modeltest.Nothing()
			break
		}
		op = modeltest.Whole(rng)
		_, err := union.Do(op)
		if err == unix.ENOTCONN || err == unix.ECONNABORTED || err == unix.EIO {
			break
		}
		_, want := plain.Do(op)
		history = append(history, fmt.Sprintf("%s: %v", op.What, err))
		if err != want {
			t.Fatalf("%s\nthe plain directory: %v", strings.Join(history, "\n"), want)
		}
	}
	if ending {
		if err := fs.Unmount(s.mnt, false); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Duration(rng.IntN(4000)) * time.Microsecond)
		cmd.Process.Kill()
	}
	<-ended
	if !ending {
		if err := fs.Unmount(s.mnt, true); err != nil {
			t.Fatal(err)
		}
	}

	// Hard links of which not all names are in the upper branch yet are completed only at the end of a server, and files
	// that are being copied by block at the start of the next.
	var unfinished []os.DirEntry
	for _, dir := range []string{"index", "partial"} {
		entries, err := os.ReadDir(filepath.Join(s.work, dir))
		if err != nil {
			t.Fatal(err)
		}
		unfinished = append(unfinished, entries...)
	}
	var alone []string
	if len(unfinished) == 0 {
		s.readOnly = true
		alone = s.dump(t)
		s.readOnly = false
	}
	got := s.dump(t)
	before, err := modeltest.Dump(s.plain, false)
	if err != nil {
		t.Fatal(err)
	}
	want := before
	if !slices.Equal(got, before) {
		_, opErr := plain.Do(op)
		op.What += fmt.Sprintf(" (%v)", opErr)
		if want, err = modeltest.Dump(s.plain, false); err != nil {
			t.Fatal(err)
		}
	}
	history = append(history, "killed during "+op.What)
	if !slices.Equal(got, want) {
		t.Fatalf("%s\nThe next mount has, the tree before not:\n%s\nthe tree before has, it not:\n%s\nit has, the tree after not:\n%s\nthe tree after has, it not:\n%s",
			strings.Join(history, "\n"), modeltest.Missing(got, before), modeltest.Missing(before, got), modeltest.Missing(got, want), modeltest.Missing(want, got))
	}
	if alone != nil && !slices.Equal(alone, got) {
		t.Fatalf("%s\nThe upper branch by itself has, the next mount not:\n%s\nthe next mount has, it not:\n%s",
			strings.Join(history, "\n"), modeltest.Missing(alone, got), modeltest.Missing(got, alone))
	}
	return !slices.Equal(got, before)
}

// dump mounts the union for a moment and describes what is in it.
func (s *stack) dump(t *testing.T) []string {
	t.Helper()
	s.mount(t)
	defer s.unmount(t)
	got, err := modeltest.Dump(s.mnt, false)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// isMounted reports whether something is mounted on the stack's target.
func (s *stack) isMounted() bool {
	b, err := os.ReadFile("/proc/self/mountinfo")
	return err == nil && strings.Contains(string(b), " "+s.mnt+" ")
}

func init() {
	roles["serve stack"] = func(args []string) error {
		s := &stack{mnt: args[0], upper: args[1], work: args[2], volatile: args[3] == "true", lower: args[4:]}
		u, err := s.open()
		if err != nil {
			return err
		}
		// What the kernel has collected to write would be lost with the server.
		server, err := fs.Mount(u, s.mnt, fs.Options{NoWriteback: true})
		if err != nil {
			return err
		}
		fmt.Println("mounted")
		server.Wait()
		return u.Close()
	}
}
