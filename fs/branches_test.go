package fs_test

import (
	"bufio"
	"fmt"
	iofs "io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/fs"
	"unionfs/internal/modeltest"
)

// mountHost mounts a file system for the length of the test.
func mountHost(t *testing.T, source, dir, kind string, flags uintptr) {
	t.Helper()
	if err := unix.Mount(source, dir, kind, flags, ""); err != nil {
		t.Fatalf("mounting %s on %s: %v", kind, dir, err)
	}
	t.Cleanup(func() { modeltest.Unmount(t, dir) })
}

// withoutTypes mounts a file system whose listings don't say what kind of file a name is: ext4 without the feature "filetype".
func withoutTypes(t *testing.T) string { return newExt4(t, "-O", "^filetype") }

// newExt4 mounts a new file system, made with these options of mke2fs.
func newExt4(t *testing.T, options ...string) string {
	t.Helper()
	dir := publicDir(t)
	image, mnt := dir+"/image", dir+"/mnt"
	mkdir(t, mnt)
	for _, command := range [][]string{
		{"truncate", "-s", "64M", image},
		append(append([]string{"mke2fs", "-q", "-F", "-t", "ext4"}, options...), image),
		{"mount", "-o", "loop", image, mnt},
	} {
		if out, err := exec.Command(command[0], command[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", command, err, out)
		}
	}
	t.Cleanup(func() { modeltest.Unmount(t, mnt) })
	if err := os.Remove(mnt + "/lost+found"); err != nil {
		t.Fatal(err)
	}
	return mnt
}

// markOpaqueByFiles makes the marks for directories whose original has the xattr.
func markOpaqueByFiles(t *testing.T, original, dir string) {
	t.Helper()
	err := filepath.WalkDir(original, func(p string, e iofs.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if n, err := unix.Lgetxattr(p, "trusted.overlay.opaque", nil); err != nil || n == 0 {
			return nil
		}
		return os.WriteFile(filepath.Join(dir, strings.TrimPrefix(p, original), ".wh..wh..opq"), nil, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// serveStack starts another process that serves a union, and returns what ends it.
func serveStack(t *testing.T, s *stack) (stop func()) {
	t.Helper()
	cmd := roleCommand(t, "serve stack", append([]string{s.mnt, s.upper, s.work, "true"}, s.lower...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "mounted\n" {
		cmd.Process.Kill()
		cmd.Wait()
		t.Fatalf("the server says %q, %v", line, err)
	}
	return func() {
		if err := fs.Unmount(s.mnt, false); err != nil {
			t.Errorf("unmounting %s: %v", s.mnt, err)
			cmd.Process.Kill()
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the server of %s: %v", s.mnt, err)
		}
	}
}

// TestKindsOfBranches does random operations to unions whose branches are on all kinds of file systems.
func TestKindsOfBranches(t *testing.T) {
	rng := modeltest.NewRand(t)
	type kind struct {
		name string
		// upper returns a directory for the upper and the work directory, and the type of file system for the plain
		// directory if it has to be like it.
		upper func(t *testing.T) (dir, plainKind string)
		lower func(t *testing.T, s *stack)
	}
	ext4 := func(t *testing.T) (string, string) { return publicDir(t), "" }
	on := func(fsType string) func(t *testing.T) (string, string) {
		return func(t *testing.T) (string, string) {
			dir := publicDir(t)
			mountHost(t, "none", dir, fsType, 0)
			return dir, fsType
		}
	}
	for _, k := range []kind{
		{"upper on tmpfs", on("tmpfs"), nil},
		{"upper without xattrs and RENAME_WHITEOUT", on("ramfs"), nil},
		{"no file types in listings", func(t *testing.T) (string, string) { return withoutTypes(t), "" }, func(t *testing.T, s *stack) {
			for i := range s.lower {
				dir := withoutTypes(t)
				copyTree(t, s.lower[i], dir)
				s.lower[i] = dir
			}
		}},
		{"lower branches without xattrs", ext4, func(t *testing.T, s *stack) {
			for i := range s.lower {
				dir := publicDir(t)
				mountHost(t, "none", dir, "ramfs", 0)
				copyTree(t, s.lower[i], dir)
				markOpaqueByFiles(t, s.lower[i], dir)
				s.lower[i] = dir
			}
		}},
		{"lower branches of other file systems, read only", ext4, func(t *testing.T, s *stack) {
			dir := publicDir(t)
			mountHost(t, "none", dir, "tmpfs", 0)
			copyTree(t, s.lower[0], dir)
			s.lower[0] = dir
			for i := range s.lower {
				mountHost(t, s.lower[i], s.lower[i], "", unix.MS_BIND)
				if err := unix.Mount("none", s.lower[i], "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
					t.Fatal(err)
				}
			}
		}},
		{"a union below", ext4, func(t *testing.T, s *stack) {
			below := &stack{lower: s.lower, upper: publicDir(t), work: publicDir(t), mnt: publicDir(t)}
			t.Cleanup(serveStack(t, below))
			// It has files in both of its branches, and whiteouts.
			a, b := modeltest.NewPlayer(below.mnt), modeltest.NewPlayer(s.plain)
			defer a.Close()
			defer b.Close()
			for range 60 {
				op := modeltest.Random(rng)
				if strings.Contains(op.What, "overlay") {
					continue // to the union above it would be a mark of the format
				}
				_, gotErr := a.Do(op)
				if _, wantErr := b.Do(op); gotErr != wantErr {
					t.Fatalf("%s: %v, not %v", op.What, gotErr, wantErr)
				}
			}
			s.lower = []string{below.mnt}
		}},
		{"a union as upper branch", func(t *testing.T) (string, string) {
			below := newStack(t, rng, 1)
			t.Cleanup(serveStack(t, below))
			if err := unix.Mkdir(below.mnt+"/inside", 0o755); err != nil {
				t.Fatal(err)
			}
			return below.mnt + "/inside", ""
		}, nil},
	} {
		t.Run(k.name, func(t *testing.T) {
			s := newStackWithoutLinks(t, rng, 2)
			dir, plainKind := k.upper(t)
			if plainKind != "" {
				old := s.plain
				s.plain = publicDir(t)
				mountHost(t, "none", s.plain, plainKind, 0)
				copyTree(t, old, s.plain)
			}
			s.upper, s.work, s.volatile = dir+"/upper", dir+"/work", true
			mkdir(t, s.upper)
			mkdir(t, s.work)
			if k.lower != nil {
				k.lower(t, s)
			}
			s.mount(t)
			compare(t, s.mnt, s.plain, "mounting")
			var history []string
			for range 3 {
				history = append(history, playWithCopies(t, rng, s, 80)...)
				s.unmount(t)
				s.mount(t)
				compare(t, s.mnt, s.plain, "mounting again after\n"+strings.Join(history, "\n"))
			}
			s.unmount(t)
		})
	}
}

// playWithCopies is play where a rename may be refused with EXDEV, so that mv(1) copies: it is then left out.
func playWithCopies(t *testing.T, rng *rand.Rand, s *stack, steps int) (history []string) {
	t.Helper()
	a, b := modeltest.NewPlayer(s.mnt), modeltest.NewPlayer(s.plain)
	defer a.Close()
	defer b.Close()
	for range steps {
		op := modeltest.Random(rng)
		got, gotErr := a.Do(op)
		if gotErr == unix.EXDEV {
			continue
		}
		want, wantErr := b.Do(op)
		history = append(history, fmt.Sprintf("%s: %s %v", op.What, got, gotErr))
		if got != want || gotErr != wantErr {
			t.Fatalf("%s\nthe plain directory: %s %v", strings.Join(history, "\n"), want, wantErr)
		}
	}
	compare(t, s.mnt, s.plain, strings.Join(history, "\n"))
	return slices.Clip(history)
}

// TestFullUpper copies up a file that the upper branch has no room for. The file stays as it is, and nothing is left behind.
func TestFullUpper(t *testing.T) {
	b := newBranches(t)
	content := strings.Repeat("content ", 1<<18)
	b.inLower(t, "large", content)
	b.inLower(t, "small", "small")
	dir := publicDir(t)
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modeltest.Unmount(t, dir) })
	b.upper, b.work = dir+"/upper", dir+"/work"
	mkdir(t, b.upper)
	mkdir(t, b.work)
	b.mount(t, fs.Options{})
	fill := func(path string) {
		fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		if err := unix.Fallocate(fd, 0, 0, 1); err != unix.ENOSPC {
			t.Errorf("a change of the data of %s: %v", path, err)
		}
	}
	fill(b.mnt + "/large")
	// These need no room for the data.
	if err := unix.Chmod(b.mnt+"/large", 0o600); err != nil {
		t.Errorf("chmod: %v", err)
	}
	if err := unix.Rename(b.mnt+"/large", b.mnt+"/other"); err != nil {
		t.Errorf("rename: %v", err)
	}
	fill(b.mnt + "/other")
	if got, err := os.ReadFile(b.mnt + "/other"); err != nil || string(got) != content {
		t.Errorf("the file has %d bytes, %v", len(got), err)
	}
	if err := unix.Unlink(b.mnt + "/other"); err != nil {
		t.Errorf("unlink: %v", err)
	}
	if err := unix.Chmod(b.mnt+"/small", 0o600); err != nil {
		t.Errorf("a file for which there is room: %v", err)
	}
	if left, err := os.ReadDir(b.work + "/new"); err != nil || len(left) > 0 {
		t.Errorf("%v is left in the work directory, %v", left, err)
	}
}
