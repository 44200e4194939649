package cow

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestReadAhead walks a tree and checks that directories are read before they are listed, that no more are than the window
// lets, and that nothing holds them afterwards.
func TestReadAhead(t *testing.T) {
	lower, dirs := t.TempDir(), 40
	for i := range dirs {
		sub := filepath.Join(lower, fmt.Sprintf("dir%d", i))
		must(t, os.Mkdir(sub, 0o755))
		must(t, os.WriteFile(filepath.Join(sub, "file"), nil, 0o644))
	}
	b, err := OpenDirBranch(lower, DirOptions{})
	must(t, err)
	u, err := New(Options{Lower: []Branch{b}})
	must(t, err)
	defer u.Close()
	list := func(n *Node) (names []string) {
		got, err := u.ReadDir(n, 0, make([]DirEnt, 0, 100))
		must(t, err)
		for _, e := range got {
			names = append(names, e.Name)
		}
		if !u.ReadsAhead(n) {
			t.Error("no reading ahead over directories")
		}
		return names
	}
	var a Attr
	subs := list(u.Root())
	u.Listed(u.Root(), slices.Clone(subs), true, true)
	if u.ahead.running > 0 {
		t.Error("the first listing made it read ahead")
	}
	found := 0
	for _, name := range subs {
		n, err := u.Lookup(u.Root(), name, &a)
		must(t, err)
		u.ahead.ended.Wait()
		if unused := len(u.ahead.unused); unused > aheadWindow+aheadRunning {
			t.Errorf("%d directories were read for nobody yet", unused)
		}
		if u.ahead.unused[n.id] {
			found++
		}
		if got := list(n); !slices.Equal(got, []string{"file"}) {
			t.Errorf("%s has %q", name, got)
		}
		u.Listed(n, nil, true, true)
		u.Forget(n, 1)
	}
	if found < dirs-8 {
		t.Errorf("%d of %d directories were read ahead", found, dirs)
	}
	u.ahead.ended.Wait()
	for i := range u.shards {
		for _, n := range u.shards[i].nodes {
			if n != u.root {
				t.Errorf("node %d is left", n.id)
			}
		}
	}
}
