package fs_test

import (
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/internal/modeltest"
)

// stack is the branches of a union of several random layers, beside a plain directory that is their merge.
type stack struct {
	lower            []string // the top one first
	upper, work, mnt string
	plain            string
	server           *fs.Server
	union            *cow.Union
	readOnly         bool
	volatile         bool // nothing is synced
}

func newStack(t *testing.T, rng *rand.Rand, layers int, subtrees ...string) *stack {
	t.Helper()
	return fillStack(t, modeltest.Layers{Rand: rng}, layers, subtrees...)
}

// newStackWithoutLinks has no hard links in its layers, which come apart where the upper branch can't have xattrs.
func newStackWithoutLinks(t *testing.T, rng *rand.Rand, layers int) *stack {
	t.Helper()
	return fillStack(t, modeltest.Layers{Rand: rng, NoHardLinks: true}, layers)
}

func fillStack(t *testing.T, fill modeltest.Layers, layers int, subtrees ...string) *stack {
	t.Helper()
	base := publicDir(t)
	s := &stack{upper: base + "/upper", work: base + "/work", mnt: base + "/mnt", plain: base + "/plain"}
	for _, d := range []string{s.upper, s.work, s.mnt, s.plain} {
		mkdir(t, d)
	}
	for i := range layers {
		dir := fmt.Sprintf("%s/lower%d", base, i)
		mkdir(t, dir)
		s.lower = slices.Insert(s.lower, 0, dir)
		if len(subtrees) == 0 {
			subtrees = []string{""}
		}
		for _, sub := range subtrees {
			if sub != "" {
				mkdir(t, dir+"/"+sub)
				if i == 0 {
					mkdir(t, s.plain+"/"+sub)
				}
			}
			if err := fill.Fill(dir+"/"+sub, s.plain+"/"+sub, 3, i > 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	return s
}

// open makes the union. Without an upper branch of its own it has the stack's one as its topmost lower one.
func (s *stack) open() (*cow.Union, error) {
	o := cow.Options{Volatile: s.volatile}
	dirs := s.lower
	if s.readOnly {
		dirs = append([]string{s.upper}, dirs...)
	} else {
		o.Upper, o.Work = s.upper, s.work
	}
	for _, l := range dirs {
		b, err := cow.OpenDirBranch(l, cow.DirOptions{})
		if err != nil {
			return nil, err
		}
		o.Lower = append(o.Lower, b)
	}
	return cow.New(o)
}

func (s *stack) mount(t *testing.T) {
	t.Helper()
	var err error
	if s.union, err = s.open(); err != nil {
		t.Fatal(err)
	}
	if s.server, err = fs.Mount(s.union, s.mnt, fs.Options{AllowOther: true, Logger: slog.New(failOnLog{t})}); err != nil {
		s.union.Close()
		t.Fatal(err)
	}
	t.Cleanup(func() { s.unmount(t) })
	forbidPoll(t, s.mnt, append([]string{s.upper}, s.lower...)...)
}

func (s *stack) unmount(t *testing.T) {
	if s.server == nil {
		return
	}
	if err := s.server.Unmount(); err != nil {
		t.Errorf("%v", err)
		_ = fs.Unmount(s.mnt, true)
	}
	s.server.Wait()
	s.server = nil
	if err := s.union.Close(); err != nil {
		t.Errorf("closing the union: %v", err)
	}
}

// copyTree copies what is in a directory with all its attributes.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if out, err := exec.Command("cp", "-a", from+"/.", to).CombinedOutput(); err != nil {
		t.Fatalf("copying %s: %v: %s", from, err, out)
	}
}

// compare fails if a directory of the mount and one of the plain tree are not the same.
func compare(t *testing.T, mount, plain, after string) {
	t.Helper()
	got, err := modeltest.Dump(mount, false)
	if err != nil {
		t.Fatalf("after %s: %v", after, err)
	}
	want, err := modeltest.Dump(plain, false)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("after %s\nthe union has, the plain directory not:\n%s\nthe plain directory has, the union not:\n%s",
			after, modeltest.Missing(got, want), modeltest.Missing(want, got))
	}
}

// play does random operations by system calls to two trees; results and errors must be the same. compared is called now and
// then.
func play(rng *rand.Rand, mount, plain string, steps int, compared func(history string) error) error {
	a, b := modeltest.NewPlayer(mount), modeltest.NewPlayer(plain)
	defer a.Close()
	defer b.Close()
	var history []string
	for i := range steps {
		op := modeltest.Random(rng)
		got, gotErr := a.Do(op)
		want, wantErr := b.Do(op)
		history = append(history, fmt.Sprintf("%s: %s %v", op.What, got, gotErr))
		if got != want || gotErr != wantErr {
			return fmt.Errorf("%s\nthe plain directory: %s %w", strings.Join(history, "\n"), want, wantErr)
		}
		if i%20 == 19 {
			if err := compared(strings.Join(history, "\n")); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestModel does random operations by system calls to a mounted union and to a plain directory, on descriptors too that
// were opened before the file was copied up, renamed or removed.
func TestModel(t *testing.T) {
	rng := modeltest.NewRand(t)
	for round := range 4 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			s := newStack(t, rng, 1+rng.IntN(3))
			s.volatile = round > 0
			s.mount(t)
			compare(t, s.mnt, s.plain, "mounting")
			err := play(rng, s.mnt, s.plain, 200, func(history string) error {
				compare(t, s.mnt, s.plain, history)
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			s.unmount(t)
			s.mount(t)
			compare(t, s.mnt, s.plain, "mounting again")
		})
	}
}

// TestModelProcesses has two processes change a subtree each at the same time, and read what neither changes.
func TestModelProcesses(t *testing.T) {
	rng := modeltest.NewRand(t)
	s := newStack(t, rng, 2, "one", "two")
	s.volatile = true
	shared := []string{}
	for i := range 20 {
		name := fmt.Sprintf("shared%d", i)
		write(t, filepath.Join(s.lower[i%2], name), strings.Repeat(name, 1000*i))
		write(t, filepath.Join(s.plain, name), strings.Repeat(name, 1000*i))
		shared = append(shared, name)
	}
	s.mount(t)
	done := make(chan error, 2)
	for i, sub := range []string{"one", "two"} {
		cmd := roleCommand(t, "play", s.mnt, s.plain, sub, strconv.FormatUint(rng.Uint64(), 10), strings.Join(shared, ","))
		out := &strings.Builder{}
		cmd.Stdout, cmd.Stderr = out, out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		go func() {
			err := cmd.Wait()
			if err != nil {
				err = fmt.Errorf("process %d: %w\n%s", i, err, out)
			}
			done <- err
		}()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		return
	}
	compare(t, s.mnt, s.plain, "both processes")
	s.unmount(t)
	s.mount(t)
	compare(t, s.mnt, s.plain, "mounting again")
}

func init() {
	roles["play"] = func(args []string) error {
		mnt, plain, sub, shared := args[0], args[1], args[2], strings.Split(args[4], ",")
		seed, err := strconv.ParseUint(args[3], 10, 64)
		if err != nil {
			return err
		}
		unix.Umask(0o022)
		return play(modeltest.Rand(seed), mnt+"/"+sub, plain+"/"+sub, 250, func(history string) error {
			for _, name := range shared {
				got, err := os.ReadFile(filepath.Join(mnt, name))
				if err != nil {
					return err
				}
				if want, err := os.ReadFile(filepath.Join(plain, name)); err != nil || string(got) != string(want) {
					return fmt.Errorf("%s has %d bytes, not its %d; %w", name, len(got), len(want), err)
				}
			}
			a, err := modeltest.Dump(mnt+"/"+sub, false)
			if err != nil {
				return fmt.Errorf("%s\n%w", history, err)
			}
			b, err := modeltest.Dump(plain+"/"+sub, false)
			if err != nil {
				return err
			}
			if !slices.Equal(a, b) {
				return fmt.Errorf("after %s\nthe union has:\n%s\nthe plain directory:\n%s", history, modeltest.Missing(a, b), modeltest.Missing(b, a))
			}
			return nil
		})
	}
}

// TestChaos has several processes do random operations to the same tree at the same time. Nobody can say what is left then, but
// it must be left: the mount, the next one and the upper branch by itself show the same, times included.
func TestChaos(t *testing.T) {
	rng := modeltest.NewRand(t)
	s := newStackWithoutLinks(t, rng, 3)
	s.volatile = true
	s.mount(t)
	const processes = 4
	done := make(chan error, processes)
	for range processes {
		cmd := roleCommand(t, "chaos", s.mnt, strconv.FormatUint(rng.Uint64(), 10))
		go func() {
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%w\n%s", err, out)
			}
			done <- err
		}()
	}
	for range processes {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if t.Failed() {
		return
	}
	dump := func() []string {
		got, err := modeltest.Dump(s.mnt, true)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	want := dump()
	for _, readOnly := range []bool{false, true} {
		s.unmount(t)
		s.readOnly = readOnly
		s.mount(t)
		if got := dump(); !slices.Equal(got, want) {
			t.Fatalf("The next mount (by itself: %v) has, the first not:\n%s\nthe first has, it not:\n%s",
				readOnly, modeltest.Missing(got, want), modeltest.Missing(want, got))
		}
	}
}

func init() {
	roles["chaos"] = func(args []string) error {
		seed, err := strconv.ParseUint(args[1], 10, 64)
		if err != nil {
			return err
		}
		rng := modeltest.Rand(seed)
		p := modeltest.NewPlayer(args[0])
		defer p.Close()
		for range 1500 {
			op := modeltest.Random(rng)
			switch _, err := p.Do(op); err {
			case unix.EIO, unix.ESTALE, unix.EUCLEAN, unix.ENOTCONN:
				return fmt.Errorf("%s: %w", op.What, err)
			}
		}
		return nil
	}
}
