package cow

import "testing"

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
