package fs_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/fs"
)

// TestRemovedButOpenDirectory goes on with directories that somebody holds open after they were removed: nothing is in them or can be
// made there, and another of the same name is another one.
func TestRemovedButOpenDirectory(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "lower/gone", "")
	b.inLower(t, "merged/gone", "")
	b.mount(t, fs.Options{})
	mkdir(t, filepath.Join(b.mnt, "new"))
	write(t, filepath.Join(b.mnt, "merged/upper"), "")
	for _, name := range []string{"lower", "merged", "new"} {
		path := filepath.Join(b.mnt, name)
		fd := openDir(t, path)
		if err := os.RemoveAll(path); err != nil {
			t.Fatal(err)
		}
		mkdir(t, path)
		write(t, filepath.Join(path, "in"), "of the other directory")
		if n, err := unix.Getdents(fd, make([]byte, 4096)); err != unix.ENOENT { // as everywhere: iterate_dir in fs/readdir.c
			t.Errorf("%s: listing it gives %d bytes, %v", name, n, err)
		}
		var st, other unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Nlink != 0 || st.Mode&unix.S_IFMT != unix.S_IFDIR {
			t.Errorf("%s: nlink %d, mode %#o, %v", name, st.Nlink, st.Mode, err)
		}
		if err := unix.Stat(path, &other); err != nil || st.Ino == other.Ino {
			t.Errorf("%s: the other directory has the same number %d, %v", name, other.Ino, err)
		}
		for call, err := range map[string]error{
			"stat":   unix.Fstatat(fd, "in", &st, 0),
			"mkdir":  unix.Mkdirat(fd, "made", 0o755),
			"link":   unix.Linkat(unix.AT_FDCWD, filepath.Join(path, "in"), fd, "linked", 0),
			"rename": unix.Renameat(unix.AT_FDCWD, filepath.Join(path, "in"), fd, "moved"),
		} {
			if err != unix.ENOENT {
				t.Errorf("%s: %s in it: %v", name, call, err)
			}
		}
		if err := unix.Fchmod(fd, 0o700); err != nil {
			t.Errorf("%s: chmod: %v", name, err)
		}
		if err := unix.Fsync(fd); err != nil {
			t.Errorf("%s: fsync: %v", name, err)
		}
		if got := read(t, filepath.Join(path, "in")); got != "of the other directory" {
			t.Errorf("%s: the other directory's file has %q", name, got)
		}
	}
}
