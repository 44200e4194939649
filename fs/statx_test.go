package fs_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/fs"
	"unionfs/internal/modeltest"
)

func statx(t *testing.T, path string) unix.Statx_t {
	t.Helper()
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st); err != nil {
		t.Fatal(err)
	}
	return st
}

// TestStatx holds that statx(2) says of a file of either branch what its own file system says, time of birth included, and that this stays
// when the file is copied up, on the next mount too.
func TestStatx(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "dir/file", "content")
	if err := unix.Mknod(filepath.Join(b.lower, "dir/device"), unix.S_IFCHR|0o604, int(unix.Mkdev(259, 300000))); err != nil {
		t.Fatal(err)
	}
	born := map[string]unix.StatxTimestamp{}
	file := filepath.Join(b.mnt, "dir/file")
	stays := func(t *testing.T) {
		if got := statx(t, file); got.Btime != born["dir/file"] || got.Size != 5 {
			t.Errorf("born %v, not %v; %d bytes", got.Btime, born["dir/file"], got.Size)
		}
	}
	t.Run("first mount", func(t *testing.T) {
		b.mount(t, fs.Options{})
		write(t, filepath.Join(b.mnt, "new"), "made here")
		for name, branch := range map[string]string{"dir": b.lower, "dir/file": b.lower, "dir/device": b.lower, "new": b.upper} {
			got, want := statx(t, filepath.Join(b.mnt, name)), statx(t, filepath.Join(branch, name))
			if want.Mask&unix.STATX_BTIME == 0 {
				t.Fatal("the file system of the branches has no time of birth")
			}
			if got.Mask&(unix.STATX_BASIC_STATS|unix.STATX_BTIME) != unix.STATX_BASIC_STATS|unix.STATX_BTIME {
				t.Errorf("%s: mask %#x", name, got.Mask)
			}
			if got.Btime != want.Btime || got.Mtime != want.Mtime || got.Mode != want.Mode || got.Uid != want.Uid || got.Gid != want.Gid ||
				name != "dir" && got.Size != want.Size || got.Rdev_major != want.Rdev_major || got.Rdev_minor != want.Rdev_minor {
				t.Errorf("%s is\n%+v, not\n%+v", name, got, want)
			}
			born[name] = got.Btime
		}
		if err := os.WriteFile(file, []byte("other"), 0); err != nil {
			t.Fatal(err)
		}
		stays(t)
	})
	if got := statx(t, filepath.Join(b.upper, "dir/file")); got.Btime == born["dir/file"] {
		t.Fatal("the copy was not made at another time")
	}
	t.Run("second mount", func(t *testing.T) {
		b.mount(t, fs.Options{})
		stays(t)
	})
}

// TestStatxWithoutBirth has a branch whose file system doesn't know when a file was made.
func TestStatxWithoutBirth(t *testing.T) {
	b := newBranches(t)
	if err := unix.Mount("none", b.lower, "ramfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modeltest.Unmount(t, b.lower) })
	b.inLower(t, "file", "content")
	b.mount(t, fs.Options{})
	want := statx(t, filepath.Join(b.lower, "file"))
	got := statx(t, filepath.Join(b.mnt, "file"))
	if got.Mask&unix.STATX_BTIME != want.Mask&unix.STATX_BTIME || got.Size != 7 {
		t.Errorf("mask %#x, %d bytes; the branch says %#x", got.Mask, got.Size, want.Mask)
	}
}
