package fs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/fs"
)

// tmpfile opens a file without a name in a directory.
func tmpfile(t *testing.T, dir string, flags int) *os.File {
	t.Helper()
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC|flags, 0o640)
	if err != nil {
		t.Fatalf("O_TMPFILE in %s: %v", dir, err)
	}
	f := os.NewFile(uintptr(fd), "tmpfile")
	t.Cleanup(func() { f.Close() }) // before the mount's end, which waits for it
	return f
}

// giveName links an open file.
func giveName(f *os.File, path string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

func nlink(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		t.Fatal(err)
	}
	return uint64(st.Nlink)
}

// awaitParked waits until the work directory keeps so many files without a name.
func (b *branches) awaitParked(t *testing.T, want int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		names, err := os.ReadDir(filepath.Join(b.work, "parked"))
		if err != nil {
			t.Fatal(err)
		}
		if len(names) == want {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("the work directory keeps %d files without a name, not %d", len(names), want)
		}
	}
}

// TestTmpfile makes files without a name in a directory of the lower branch, and gives them names: a new one, and one that was deleted.
func TestTmpfile(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "dir/gone", "lower")
	s := b.mount(t, fs.Options{})
	dir := filepath.Join(b.mnt, "dir")
	f := tmpfile(t, dir, 0)
	if _, err := os.Lstat(filepath.Join(b.upper, "dir")); !os.IsNotExist(err) {
		t.Errorf("the directory was copied up for a file that is not in it: %v", err)
	}
	if n := nlink(t, f); n != 0 {
		t.Errorf("%d links of a file without a name", n)
	}
	if _, err := f.WriteString("content"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Fsetxattr(int(f.Fd()), "user.mine", []byte("x"), 0); err != nil {
		t.Fatal(err)
	}
	if err := f.Chmod(0o604); err != nil {
		t.Fatal(err)
	}
	if err := giveName(f, dir+"/gone"); err != unix.EEXIST {
		t.Errorf("a name that is taken: %v", err)
	}
	b.awaitParked(t, 1)

	if err := giveName(f, dir+"/first"); err != nil {
		t.Fatal(err)
	}
	b.awaitParked(t, 0)
	if n := nlink(t, f); n != 1 {
		t.Errorf("%d links of a file with a name", n)
	}
	if err := os.Remove(dir + "/gone"); err != nil {
		t.Fatal(err)
	}
	if err := giveName(f, dir+"/gone"); err != nil {
		t.Fatal(err)
	}
	if n := nlink(t, f); n != 2 {
		t.Errorf("%d links of a file with two names", n)
	}
	for _, name := range []string{"first", "gone"} {
		if err := os.Remove(dir + "/" + name); err != nil {
			t.Fatal(err)
		}
	}
	if n := nlink(t, f); n != 0 {
		t.Errorf("%d links after both were removed", n)
	}
	b.awaitParked(t, 1)
	if err := giveName(f, dir+"/gone"); err != unix.ENOENT {
		t.Errorf("giving a name to a file that was removed: %v", err) // as on every file system: vfs_link in fs/namei.c
	}
	kept := tmpfile(t, dir, 0)
	if _, err := kept.WriteString("content"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(giveName(kept, dir+"/kept"), kept.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}

	if err := s.Unmount(); err != nil {
		t.Fatal(err)
	}
	s.Wait()
	if got := read(t, filepath.Join(b.upper, "dir/kept")); got != "content" {
		t.Errorf("the upper branch has %q", got)
	}
}

// TestTmpfileIsForgotten holds that a file which never got a name goes with the last that holds it, and that O_EXCL means never.
func TestTmpfileIsForgotten(t *testing.T) {
	b := newBranches(t)
	b.mount(t, fs.Options{})
	kept, left := tmpfile(t, b.mnt, 0), tmpfile(t, b.mnt, unix.O_EXCL)
	b.awaitParked(t, 2)
	if err := giveName(left, b.mnt+"/name"); err != unix.ENOENT {
		t.Errorf("giving a name to a file that was to have none: %v", err)
	}
	if err := left.Close(); err != nil {
		t.Fatal(err)
	}
	b.awaitParked(t, 1)
	if err := giveName(kept, b.mnt+"/name"); err != nil {
		t.Errorf("giving a name to the other: %v", err)
	}
	if err := kept.Close(); err != nil {
		t.Fatal(err)
	}
	names, err := os.ReadDir(b.upper)
	if err != nil || len(names) != 1 || names[0].Name() != "name" {
		t.Errorf("the upper branch has %v, %v", names, err)
	}
}

// TestTmpfileInherits holds that such a file has the owner, group, mode and ACL of one that is made by name.
func TestTmpfileInherits(t *testing.T) {
	b := newBranches(t)
	for _, dir := range []string{"plain", "shared"} {
		b.inLower(t, dir+"/x", "")
		if err := unix.Chown(filepath.Join(b.lower, dir), 0, otherGID); err != nil {
			t.Fatal(err)
		}
		if err := unix.Chmod(filepath.Join(b.lower, dir), 0o2777); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(filepath.Join(b.lower, "shared"), "system.posix_acl_default", []byte(sharedACL), 0); err != nil {
		t.Fatal(err)
	}
	b.mount(t, fs.Options{AllowOther: true})
	for dir, want := range map[string]uint32{"plain": 0o640, "shared": 0o664} {
		for call, name := range map[string]string{"create": "created", "tmpfile": "linked"} {
			path := filepath.Join(b.mnt, dir, name)
			if err := as(t, 2000, call, path, "027"); err != nil {
				t.Errorf("%s: %v", path, err)
				continue
			}
			st := stat(t, path)
			if st.Mode&0o7777 != want || st.Uid != 2000 || st.Gid != otherGID {
				t.Errorf("%s: mode %#o of %d:%d, want %#o", path, st.Mode&0o7777, st.Uid, st.Gid, want)
			}
			size, err := unix.Getxattr(path, "system.posix_acl_access", nil)
			if has := err == nil && size > 0; has != (dir == "shared") {
				t.Errorf("%s: an ACL of %d bytes, %v", path, size, err)
			}
		}
	}
	b.awaitParked(t, 0)
}

// TestTmpfileReadOnly holds the answer of a union without an upper branch.
func TestTmpfileReadOnly(t *testing.T) {
	b := newBranches(t)
	b.mountReadOnly(t, fs.Options{})
	if _, err := unix.Open(b.mnt, unix.O_TMPFILE|unix.O_RDWR, 0o600); err != unix.EROFS {
		t.Errorf("O_TMPFILE: %v", err)
	}
}
