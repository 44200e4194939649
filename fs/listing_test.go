package fs_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/fs"
)

const many = 20_000

// smallRequests keeps the race detector, under which buffers are seldom used again, from clearing 1 MiB for each request.
// Without writeback the kernel sends no times of removed files.
var smallRequests = fs.Options{MaxWrite: 64 << 10, NoWriteback: true}

// manyFiles is a union with a directory of 20,000 files: half of them in the lower branch, half in the upper.
func manyFiles(t *testing.T) (b *branches, names []string) {
	t.Helper()
	b = branchesInMemory(t)
	mkdir(t, filepath.Join(b.lower, "dir"))
	mkdir(t, filepath.Join(b.upper, "dir"))
	for i := range many {
		name := fmt.Sprintf("file-%05d", i)
		names = append(names, name)
		f, err := os.Create(filepath.Join([]string{b.lower, b.upper}[i%2], "dir", name))
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	return b, names
}

// dirents is one getdents(2).
func dirents(t *testing.T, fd int) []fuse.DirEntry {
	t.Helper()
	buf := make([]byte, 32<<10)
	n, err := unix.Getdents(fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	var list []fuse.DirEntry
	for buf = buf[:n]; len(buf) > 0; {
		var e fuse.DirEntry
		buf = buf[e.Parse(buf):]
		if e.Name != "." && e.Name != ".." {
			list = append(list, e)
		}
	}
	return list
}

// listing reads a directory from where it stands to its end.
func listing(t *testing.T, fd int) []fuse.DirEntry {
	t.Helper()
	var all []fuse.DirEntry
	for {
		part := dirents(t, fd)
		if len(part) == 0 {
			return all
		}
		all = append(all, part...)
	}
}

func namesOf(list []fuse.DirEntry) []string {
	names := make([]string, len(list))
	for i := range list {
		names[i] = list[i].Name
	}
	return names
}

func openDir(t *testing.T, path string) int {
	t.Helper()
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// TestManyEntries lists 20,000 names, cold and kept, seeks to positions met before and rewinds after a change.
func TestManyEntries(t *testing.T) {
	b, names := manyFiles(t)
	b.mount(t, smallRequests)
	dir := filepath.Join(b.mnt, "dir")
	var first []fuse.DirEntry
	for _, state := range []string{"cold", "kept"} {
		all := listing(t, openDir(t, dir))
		got := namesOf(all)
		slices.Sort(got)
		if !slices.Equal(got, names) {
			t.Fatalf("%s: %d names listed, %d of them different ones; %d wanted", state, len(got),
				len(slices.Compact(slices.Clone(got))), many)
		}
		if first != nil && !slices.Equal(namesOf(first), namesOf(all)) {
			t.Errorf("%s: another order than before", state)
		}
		first = all
	}
	for i := 0; i < many; i += many / 20 {
		e := first[i]
		if e.Mode != unix.S_IFREG {
			t.Errorf("%s has type %#o", e.Name, e.Mode)
		}
		if st := stat(t, filepath.Join(dir, e.Name)); st.Ino != e.Ino {
			t.Errorf("%s: inode %d in the listing, %d by stat", e.Name, e.Ino, st.Ino)
		}
	}

	fd := openDir(t, dir)
	dirents(t, fd) // somewhere into the listing
	for _, at := range []int{many - 5, 3, many / 2, many - 1} {
		if _, err := unix.Seek(fd, int64(first[at].Off), unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		if got := dirents(t, fd); len(got) > 0 != (at < many-1) || len(got) > 0 && got[0].Name != first[at+1].Name {
			t.Errorf("after seeking to the position of entry %d: %d entries, not entry %d first", at, len(got), at+1)
		}
	}

	write(t, filepath.Join(dir, "added"), "")
	if err := os.Remove(filepath.Join(dir, names[0])); err != nil {
		t.Fatal(err)
	}
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		t.Fatal(err)
	}
	got := namesOf(listing(t, fd))
	if !slices.Contains(got, "added") || slices.Contains(got, names[0]) || len(got) != many {
		t.Errorf("after rewinding: %d names, the added one %v, the removed one %v", len(got),
			slices.Contains(got, "added"), slices.Contains(got, names[0]))
	}
}

// TestRemoveWhileListing is rm -r: what was listed is removed before the listing goes on. Nothing may be left out.
func TestRemoveWhileListing(t *testing.T) {
	b, _ := manyFiles(t)
	b.mount(t, smallRequests)
	dir := filepath.Join(b.mnt, "dir")
	fd := openDir(t, dir)
	removed := 0
	for {
		part := dirents(t, fd)
		if len(part) == 0 {
			break
		}
		for _, e := range part {
			if err := unix.Unlinkat(fd, e.Name, 0); err != nil {
				t.Fatalf("after %d files: removing %s: %v", removed, e.Name, err)
			}
			removed++
		}
	}
	if removed != many {
		t.Errorf("%d files removed of %d", removed, many)
	}
	if err := unix.Rmdir(dir); err != nil {
		t.Errorf("removing the directory: %v", err)
	}
}

// TestDotDot holds the inode numbers of "." and "..", which a listing must have right for getcwd(3) and find(1).
func TestDotDot(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "a/b/file", "")
	b.mount(t, fs.Options{})
	for _, path := range []string{"", "a", "a/b"} {
		fd := openDir(t, filepath.Join(b.mnt, path))
		buf := make([]byte, 4096)
		n, err := unix.Getdents(fd, buf)
		if err != nil {
			t.Fatal(err)
		}
		seen := map[string]uint64{}
		for buf = buf[:n]; len(buf) > 0; {
			var e fuse.DirEntry
			buf = buf[e.Parse(buf):]
			seen[e.Name] = e.Ino
		}
		if want := stat(t, filepath.Join(b.mnt, path)).Ino; seen["."] != want {
			t.Errorf("%q: . has inode %d, stat says %d", path, seen["."], want)
		}
		if path == "" {
			continue
		}
		if want := stat(t, filepath.Join(b.mnt, path, "..")).Ino; seen[".."] != want {
			t.Errorf("%q: .. has inode %d, stat says %d", path, seen[".."], want)
		}
	}
}
