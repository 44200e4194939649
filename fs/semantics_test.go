package fs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/fs"
)

func lstat(t *testing.T, path string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatalf("stat %s: %v", path, err)
	}
	return st
}

// TestNumbersStay holds st_ino and st_dev against copy-up, rename and another mount, for every kind of file.
func TestNumbersStay(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "regular", "content")
	b.inLower(t, "linked", "two names")
	kinds := []string{"regular", "linked", "other", "directory", "symlink", "fifo", "device"}
	for _, err := range []error{
		os.Link(b.lower+"/linked", b.lower+"/other"), os.Mkdir(b.lower+"/directory", 0o755),
		os.Symlink("target", b.lower+"/symlink"), unix.Mkfifo(b.lower+"/fifo", 0o644),
		unix.Mknod(b.lower+"/device", unix.S_IFCHR|0o644, int(unix.Mkdev(1, 3))),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	numbers := map[string]unix.Stat_t{}
	t.Run("first mount", func(t *testing.T) {
		b.mount(t, fs.Options{})
		for _, k := range kinds {
			before := lstat(t, b.mnt+"/"+k)
			if err := unix.Lchown(b.mnt+"/"+k, 7, 7); err != nil {
				t.Fatalf("chown %s: %v", k, err)
			}
			if err := unix.Rename(b.mnt+"/"+k, b.mnt+"/moved "+k); err != nil {
				t.Fatalf("rename %s: %v", k, err)
			}
			after := lstat(t, b.mnt+"/moved "+k)
			if before.Ino != after.Ino || before.Dev != after.Dev {
				t.Errorf("%s had the number %#x, and %#x after it was copied up", k, before.Ino, after.Ino)
			}
			numbers[k] = before
		}
	})
	t.Run("second mount", func(t *testing.T) {
		b.mount(t, fs.Options{})
		for _, k := range kinds {
			st := lstat(t, b.mnt+"/moved "+k)
			// Of a merged directory nobody counts the directories in it: its link count is 1, as in overlayfs.
			if was := numbers[k]; st.Ino != was.Ino || st.Nlink != was.Nlink && k != "directory" {
				t.Errorf("%s had the number %#x and %d links, and %#x and %d on the next mount", k, was.Ino, was.Nlink, st.Ino, st.Nlink)
			}
		}
	})
}

// TestParentsKeepTheirTimes copies up a file, which is no change to the directories that it is in.
func TestParentsKeepTheirTimes(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "a/b/file", "content")
	old := []unix.Timespec{{Sec: 1_000_000_000, Nsec: 5}, {Sec: 1_000_000_001, Nsec: 6}}
	for _, d := range []string{"a/b", "a", ""} {
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(b.lower, d), old, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, mount := range []string{"first mount", "second mount"} {
		t.Run(mount, func(t *testing.T) {
			b.mount(t, fs.Options{})
			if err := unix.Chmod(b.mnt+"/a/b/file", 0o600); err != nil {
				t.Fatal(err)
			}
			for _, d := range []string{"a/b", "a"} {
				if st := lstat(t, filepath.Join(b.mnt, d)); st.Mtim != old[1] {
					t.Errorf("%s was modified at %v, not %v", d, st.Mtim, old[1])
				}
			}
		})
	}
}

// TestLongNames removes, replaces and creates names as long as they can be.
func TestLongNames(t *testing.T) {
	b := newBranches(t)
	name := strings.Repeat("n", unix.NAME_MAX)
	for _, n := range []string{name, name[1:] + "d"} {
		b.inLower(t, n, "lower")
	}
	for _, mount := range []string{"first mount", "second mount"} {
		t.Run(mount, func(t *testing.T) {
			b.mount(t, fs.Options{})
			for _, n := range []string{name, name[1:] + "d", name[1:] + "e"} {
				p := b.mnt + "/" + n
				if err := unix.Unlink(p); err != nil && (n != name[1:]+"e" || mount == "second mount") {
					t.Fatalf("unlink: %v", err)
				}
				write(t, p, "upper")
				if got, err := os.ReadFile(p); err != nil || string(got) != "upper" {
					t.Fatalf("%q, %v", got, err)
				}
			}
			long := b.mnt + "/" + name + "x"
			for what, err := range map[string]error{
				"mkdir": unix.Mkdir(long, 0o755), "unlink": unix.Unlink(long), "symlink": unix.Symlink("x", long),
				"rename": unix.Rename(b.mnt+"/"+name, long), "link": unix.Link(b.mnt+"/"+name, long),
			} {
				if err != unix.ENAMETOOLONG {
					t.Errorf("%s of a name of 256 bytes: %v", what, err)
				}
			}
		})
	}
}

// TestDevices makes devices, but not the one that marks a whiteout; nor does a rename leave one behind.
func TestDevices(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "content")
	b.mount(t, fs.Options{})
	null := b.mnt + "/null"
	if err := unix.Mknod(null, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))); err != nil {
		t.Fatal(err)
	}
	write(t, null, "into nothing")
	if got, err := os.ReadFile(null); err != nil || len(got) > 0 {
		t.Errorf("the null device gives %q, %v", got, err)
	}
	if err := unix.Mknod(b.mnt+"/block", unix.S_IFBLK|0o600, int(unix.Mkdev(259, 70000))); err != nil {
		t.Error(err)
	} else if st := lstat(t, b.mnt+"/block"); st.Rdev != unix.Mkdev(259, 70000) {
		t.Errorf("the device is %#x", st.Rdev)
	}
	if err := unix.Mknod(b.mnt+"/whiteout", unix.S_IFCHR, 0); err != unix.EPERM {
		t.Errorf("making device 0/0: %v", err)
	}
	err := unix.Renameat2(unix.AT_FDCWD, b.mnt+"/file", unix.AT_FDCWD, b.mnt+"/file2", unix.RENAME_WHITEOUT)
	if err != unix.EINVAL {
		t.Errorf("rename with RENAME_WHITEOUT: %v", err)
	}
	if err := os.WriteFile(b.mnt+"/.wh.file", nil, 0o644); err == nil {
		t.Error("a file can be named as the mark of a whiteout is")
	}
}

// TestHolesOfLowerFiles looks for the holes of a lower file, copies it up, and punches another.
func TestHolesOfLowerFiles(t *testing.T) {
	b := newBranches(t)
	const block = 64 << 10
	b.inLower(t, "sparse", "")
	f, err := os.OpenFile(b.lower+"/sparse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []int64{0, 4, 8} { // blocks with data; 1 to 3, 5 to 7 and 9 to 15 are holes
		if _, err := f.WriteAt([]byte(strings.Repeat("d", block)), at*block); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(16 * block); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b.mount(t, fs.Options{})
	fd, err := unix.Open(b.mnt+"/sparse", unix.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	data := func() (found []int64) {
		for at := int64(0); ; {
			start, err := unix.Seek(fd, at, unix.SEEK_DATA)
			if err == unix.ENXIO {
				return found
			}
			if err != nil {
				t.Fatal(err)
			}
			if at, err = unix.Seek(fd, start, unix.SEEK_HOLE); err != nil {
				t.Fatal(err)
			}
			found = append(found, start/block, at/block)
		}
	}
	if got, want := fmt.Sprint(data()), "[0 1 4 5 8 9]"; got != want {
		t.Errorf("the lower file has data in %s, expected %s", got, want)
	}
	if err := unix.Fallocate(fd, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 4*block, block); err != nil {
		t.Fatal(err)
	}
	if got, want := fmt.Sprint(data()), "[0 1 8 9]"; got != want {
		t.Errorf("after a hole was punched there is data in %s, expected %s", got, want)
	}
	if st := lstat(t, b.upper+"/sparse"); st.Blocks*512 > 3*block || st.Size != 16*block {
		t.Errorf("the upper file takes %d bytes of %d", st.Blocks*512, st.Size)
	}
}

// TestSetgidDirectory makes files in a directory whose group they are to have.
func TestSetgidDirectory(t *testing.T) {
	b := newBranches(t)
	mkdir(t, b.lower+"/d")
	if err := unix.Chown(b.lower+"/d", 0, 4321); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(b.lower+"/d", 0o2777); err != nil {
		t.Fatal(err)
	}
	b.mount(t, fs.Options{})
	write(t, b.mnt+"/d/file", "x")
	mkdir(t, b.mnt+"/d/sub")
	if err := os.Symlink("x", b.mnt+"/d/link"); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]uint32{"file": unix.S_IFREG | 0o644, "sub": unix.S_IFDIR | 0o2755, "link": unix.S_IFLNK | 0o777} {
		if st := lstat(t, b.mnt+"/d/"+name); st.Gid != 4321 || st.Mode != mode {
			t.Errorf("%s has mode %o of group %d, expected %o of 4321", name, st.Mode, st.Gid, mode)
		}
	}
}
