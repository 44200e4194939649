package fs_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// million is how many names the directory has; every other one is in the upper branch.
const million = 1_000_000

func millionName(i int) string { return "n" + strconv.Itoa(i) }

// numberOf is what millionName made the name of; -1 of another name.
func numberOf(name string) int {
	i, err := strconv.Atoi(name[1:])
	if err != nil || name[0] != 'n' {
		return -1
	}
	return i
}

// makeMillion makes files by the cheapest call that there is.
func makeMillion(t *testing.T, dirs [2]string) {
	t.Helper()
	done := make(chan error, len(dirs))
	for start, dir := range dirs {
		mkdir(t, dir)
		fd := openDir(t, dir)
		go func() {
			for i := start; i < million; i += len(dirs) {
				if err := unix.Mknodat(fd, millionName(i), unix.S_IFREG|0o644, 0); err != nil {
					done <- err
					return
				}
			}
			done <- nil
		}()
	}
	if err := errors.Join(<-done, <-done); err != nil {
		t.Fatal(err)
	}
}

// TestMillionNames lists a directory of a million names in two branches, goes back to places in it, and adds and removes names. All of
// them are listed exactly once each time, and the server keeps less than a fixed number of bytes for each.
func TestMillionNames(t *testing.T) {
	const perName = 250 // bytes
	b := branchesInMemory(t)
	makeMillion(t, [2]string{filepath.Join(b.lower, "dir"), filepath.Join(b.upper, "dir")})
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	before := heap()
	b.mount(t, smallRequests)
	path := filepath.Join(b.mnt, "dir")
	dir := openDir(t, path)

	// expect lists the directory and compares; gone are numbers that are not there. It returns some positions, and the
	// names at them.
	type place struct {
		after int64
		name  string
	}
	expect := func(when string, gone map[int]bool, more int) (places []place) {
		t.Helper()
		if _, err := unix.Seek(dir, 0, unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		seen, others, last, listed := make([]bool, million), 0, int64(0), 0
		for {
			part := dirents(t, dir)
			if len(part) == 0 {
				break
			}
			if listed >= len(places)*20_000 {
				places = append(places, place{last, part[0].Name})
			}
			listed += len(part)
			for _, e := range part {
				i := numberOf(e.Name)
				switch {
				case i < 0:
					others++
				case seen[i] || gone[i]:
					t.Fatalf("%s: %s is listed, twice %v, deleted %v", when, e.Name, seen[i], gone[i])
				default:
					seen[i] = true
				}
				last = int64(e.Off)
			}
		}
		for i := range seen {
			if !seen[i] && !gone[i] {
				t.Fatalf("%s: %s is not listed", when, millionName(i))
			}
		}
		if others != more {
			t.Errorf("%s: %d other names are listed, not %d", when, others, more)
		}
		return places
	}

	places := expect("at first", nil, 0)
	each := (int64(heap()) - int64(before)) / million
	t.Logf("%d bytes a name", each)
	if each > perName {
		t.Errorf("the server keeps %d bytes for each name", each)
	}
	for i := len(places) - 1; i >= 0; i-- {
		if _, err := unix.Seek(dir, places[i].after, unix.SEEK_SET); err != nil {
			t.Fatal(err)
		}
		if part := dirents(t, dir); len(part) == 0 || part[0].Name != places[i].name {
			t.Errorf("after going back to %#x there is not %s", places[i].after, places[i].name)
		}
	}

	gone := map[int]bool{}
	for i := 0; i < million; i += 2003 { // of both branches
		if err := unix.Unlinkat(dir, millionName(i), 0); err != nil {
			t.Fatal(err)
		}
		gone[i] = true
	}
	const made = 500
	for i := range made {
		name := "made" + strconv.Itoa(i)
		if err := os.WriteFile(filepath.Join(path, name), []byte(name), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range gone {
		if i%2 != 0 {
			continue
		}
		delete(gone, i)
		if err := unix.Mknodat(dir, millionName(i), unix.S_IFREG|0o600, 0); err != nil {
			t.Fatal(err)
		}
	}
	expect("after changes", gone, made)
	if st := stat(t, filepath.Join(path, millionName(0))); st.Mode&0o777 != 0o600 {
		t.Errorf("a name that was made again has mode %#o", st.Mode)
	}
}
