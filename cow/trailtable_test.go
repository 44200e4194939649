package cow

import (
	"os"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestTrailTable fills half of the table, as a million files do of one sixteen times as large, with files numbered in the ways in which
// file systems number them. Nearly all entries are there at the end: without one, its file is looked for in the whole tree.
func TestTrailTable(t *testing.T) {
	const smaller, files, lost = 16, 1_000_000 / 16, 5
	for name, number := range map[string]func(i uint64) uint64{
		"one after the other":                func(i uint64) uint64 { return 0xa00000 + i },
		"with gaps":                          func(i uint64) uint64 { return 0xa00000 + i*5/2 },
		"each directory's somewhere else":    func(i uint64) uint64 { return 0x1000000 + i/1000*8192 + i%1000 },
		"every thirty-second":                func(i uint64) uint64 { return i * 32 },
		"hashed, of another device's branch": func(i uint64) uint64 { return foldIno(i, 2, 1) },
	} {
		tr := make(trail, (trailDirs+trailFiles)/smaller*trailEntry/8)
		id := func(i uint64) uint64 { return (1+i/1000%10)<<inoBits | number(i) } // directories by turns in ten branches
		for i := range uint64(files) {
			tr.set(id(i), false, i/1000, i+1)
		}
		missing := 0
		for i := range uint64(files) {
			switch parent, cookie, gone, ok := tr.get(id(i)); {
			case !ok:
				missing++
			case parent != i/1000 || cookie != i+1 || gone:
				t.Fatalf("%s: the entry of number %d has the directory %d and the place %d", name, i, parent, cookie)
			}
		}
		if missing > lost {
			t.Errorf("%s: %d of %d entries are lost", name, missing, files)
		}
	}
}

// TestTrailOfFew: what few files bring into memory is little, also if their numbers are far apart. Each page costs as much time as
// looking a file up.
func TestTrailOfFew(t *testing.T) {
	const entries = trailDirs + trailFiles
	mem, err := unix.Mmap(-1, 0, entries*trailEntry, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(mem)
	tr := trail(unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8))
	for i := range uint64(10000) {
		id := 1<<inoBits | i/4*1000 + i%4
		for range 2 { // it is looked up and then listed
			tr.set(id, i%16 == 0, 1, i+1)
		}
	}
	pages := make([]byte, (len(mem)+os.Getpagesize()-1)/os.Getpagesize())
	if _, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&mem[0])), uintptr(len(mem)), uintptr(unsafe.Pointer(&pages[0]))); errno != 0 {
		t.Fatal(errno)
	}
	resident := 0
	for _, p := range pages {
		resident += int(p & 1)
	}
	// The small part has some 200 pages, and few entries are outside it.
	if resident == 0 || resident > 1000 {
		t.Errorf("10,000 entries brought %d pages into memory", resident)
	}
}
