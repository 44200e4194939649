package cow

import (
	"fmt"
	"testing"
)

// TestTrailNames finds files by their numbers, in a union that goes on from a killed one, though no directory has been read.
func TestTrailNames(t *testing.T) {
	w := newTrailTree(t, true)
	defer func() { w.close() }()
	at := &paths{u: w.u}
	want := map[uint64]string{}
	note := func(name, content string) { want[w.find(name)] = content }
	at.create("/dir/new")
	at.at("/dir/new", func(n *Node) error { _, err := w.u.Write(n, 0, []byte("new")); return err })
	note("/dir/new", "new")
	note("/file", "lower /file")
	at.rename("/dir/file", "/dir/sub/moved", 0)
	note("/dir/sub/moved", "lower /dir/file")
	at.rename("/dir/sub", "/elsewhere", 0)
	note("/elsewhere/deep/file", "lower /dir/sub/deep/file")
	must(t, at.err)
	for range 2 {
		w.kill()
		for id, content := range want {
			if got := w.locate(id); got != content {
				t.Errorf("file %#x has %q, not %q", id, got, content)
			}
		}
		for i := range w.u.shards {
			for _, n := range w.u.shards[i].nodes {
				if n.isDir() && n.dir.loaded {
					t.Errorf("directory %#x was read", n.id)
				}
			}
		}
	}
}

// TestTrailNamesRing notes more names than there is room for, some again under another name: the newest are there, and no other name is
// taken for one.
func TestTrailNamesRing(t *testing.T) {
	names := trailNames{next: new(uint64), index: make([]uint64, nameSlots), ring: make([]byte, 1<<20)}
	const files, newest = 200_000, 20_000
	name := func(id uint64) string { return fmt.Sprintf("the name of file %d", id) }
	for id := range uint64(files) {
		names.note(id, "an older name")
		names.note(id, name(id))
	}
	known := 0
	for id := range uint64(files) {
		switch got := names.of(id); got {
		case name(id):
			known++
		case "", "an older name":
			if id >= files-newest/2 {
				t.Fatalf("file %d has the name %q", id, got)
			}
		default:
			t.Fatalf("file %d has the name %q", id, got)
		}
	}
	if known < newest/2 || known > newest {
		t.Errorf("%d names are known", known)
	}
	names.note(1, string(make([]byte, 300)))
	if got := names.of(files); got != "" {
		t.Errorf("a file that was not noted has the name %q", got)
	}
}
