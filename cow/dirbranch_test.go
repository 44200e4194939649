package cow_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/cow/branchtest"
)

// marks is one way in which a directory on disk says what it hides.
type marks struct {
	name     string
	whiteout func(dir, name string) error
	opaque   func(dir string) error
}

func setxattr(attr, value string) func(path string) error {
	return func(path string) error { return unix.Lsetxattr(path, attr, []byte(value), 0) }
}

func device(dir, name string) error { return unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR, 0) }

func whFile(dir, name string) error {
	return os.WriteFile(filepath.Join(dir, ".wh."+name), nil, 0o644)
}

// xattrWhiteout is the kernel's form without a device: Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts".
func xattrWhiteout(prefix string) func(dir, name string) error {
	return func(dir, name string) error {
		path := filepath.Join(dir, name)
		opaque, err := os.ReadFile(path)
		if len(opaque) > 0 || err == nil {
			return errors.New(path + " is there")
		}
		if err := errors.Join(os.WriteFile(path, nil, 0o644), setxattr(prefix+"whiteout", "y")(path)); err != nil {
			return err
		}
		var buf [8]byte
		if n, err := unix.Lgetxattr(dir, prefix+"opaque", buf[:]); err == nil && string(buf[:n]) == "y" {
			return nil
		}
		return setxattr(prefix+"opaque", "x")(dir)
	}
}

func allMarks() []marks {
	return []marks{
		{"device, trusted xattr", device, setxattr("trusted.overlay.opaque", "y")},
		{"device, user xattr", device, setxattr("user.overlay.opaque", "y")},
		{"file, fuse-overlayfs xattr", whFile, setxattr("user.fuseoverlayfs.opaque", "y")},
		{"file, file", whFile, func(dir string) error { return os.WriteFile(dir+"/.wh..wh..opq", nil, 0o644) }},
		{"trusted xattrs", xattrWhiteout("trusted.overlay."), setxattr("trusted.overlay.opaque", "y")},
		{"user xattrs", xattrWhiteout("user.overlay."), setxattr("user.overlay.opaque", "y")},
	}
}

// TestDirBranch runs the suite of all branches over directories, with every form of whiteouts and opaque directories.
func TestDirBranch(t *testing.T) {
	for i, m := range allMarks() {
		suite := branchtest.RunMarked
		if i == 0 {
			suite = branchtest.Run
		}
		t.Run(m.name, func(t *testing.T) {
			suite(t, func(t *testing.T, tree branchtest.Tree) cow.Branch {
				dir := t.TempDir()
				m.build(t, dir, tree)
				b, err := cow.OpenDirBranch(dir, cow.DirOptions{})
				if err != nil {
					t.Fatal(err)
				}
				return b
			})
		})
	}
}

// TestDirBranchDeep opens directories whose paths are longer than any that a system call takes.
func TestDirBranchDeep(t *testing.T) {
	root := t.TempDir()
	name := strings.Repeat("d", unix.NAME_MAX)
	const depth = 40 // PATH_MAX is reached at 16
	fd, err := unix.Open(root, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range depth {
		if err := unix.Mkdirat(fd, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(fd, name, unix.O_PATH, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	b, err := cow.OpenDirBranch(root, cow.DirOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	d, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	for i := range depth {
		e, err := d.Lookup(name)
		if err == nil {
			d, err = d.Sub(e)
		}
		if err != nil {
			t.Fatalf("at depth %d: %v", i, err)
		}
	}
	if err := d.List(0, func(e cow.Entry) bool { t.Errorf("%q is in the deepest directory", e.Name); return true }); err != nil {
		t.Error(err)
	}
}

// build makes the tree in an empty directory.
func (m *marks) build(t *testing.T, root string, tree branchtest.Tree) {
	t.Helper()
	for i := range tree {
		if err := m.make(root, &tree[i]); err != nil {
			t.Fatalf("making %q: %v", tree[i].Path, err)
		}
	}
	// From the bottom up, since what is made in a directory changes its times.
	for i := len(tree) - 1; i >= 0; i-- {
		f := &tree[i]
		if f.Whiteout || f.Link != "" {
			continue
		}
		times := []unix.Timespec{f.Mtime, f.Mtime}
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, f.Path), times, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *marks) make(root string, f *branchtest.File) error {
	path := filepath.Join(root, f.Path)
	kind := f.Mode & unix.S_IFMT
	var err error
	switch {
	case f.Whiteout:
		return m.whiteout(filepath.Dir(path), filepath.Base(path))
	case f.Link != "":
		return os.Link(filepath.Join(root, f.Link), path)
	case kind == unix.S_IFREG:
		err = os.WriteFile(path, []byte(f.Content), 0o600)
	case kind == unix.S_IFDIR && f.Path == "":
	case kind == unix.S_IFDIR:
		err = os.Mkdir(path, 0o700)
	case kind == unix.S_IFLNK:
		err = os.Symlink(f.Target, path)
	default:
		err = unix.Mknod(path, f.Mode, int(f.Rdev))
	}
	if err != nil {
		return err
	}
	if err := os.Lchown(path, int(f.UID), int(f.GID)); err != nil {
		return err
	}
	if kind != unix.S_IFLNK {
		if err := unix.Chmod(path, f.Mode&0o7777); err != nil {
			return err
		}
	}
	for name, value := range f.Xattrs {
		if err := unix.Lsetxattr(path, name, []byte(value), 0); err != nil {
			return err
		}
	}
	if f.Opaque {
		return m.opaque(path)
	}
	return nil
}
