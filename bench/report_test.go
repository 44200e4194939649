package bench

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedianAndQuartiles(t *testing.T) {
	for _, c := range []struct {
		values               []float64
		median, lower, upper float64
	}{
		{[]float64{3}, 3, 3, 3},
		{[]float64{4, 2}, 3, 2, 4},
		{[]float64{9, 1, 5}, 5, 1, 9},
		{[]float64{4, 3, 2, 1}, 2.5, 1, 3},
		{[]float64{5, 1, 4, 2, 3}, 3, 2, 4},
	} {
		m := Measurement{Values: c.values}
		lower, upper := m.Quartiles()
		if m.Median() != c.median || lower != c.lower || upper != c.upper {
			t.Errorf("%v: median %v, quartiles %v and %v; want %v, %v and %v", c.values, m.Median(), lower, upper, c.median, c.lower, c.upper)
		}
	}
	if m := (&Measurement{}); !math.IsNaN(m.Median()) {
		t.Errorf("nothing has the median %v", m.Median())
	}
}

// TestCompare checks that noise is not taken for a change, nor a change for noise.
func TestCompare(t *testing.T) {
	for _, c := range []struct {
		name      string
		then, now []float64
		beyond    bool
	}{
		{"the same", []float64{1, 1.1, 0.9, 1.05, 0.95}, []float64{1, 1.1, 0.9, 1.05, 0.95}, false},
		{"twice as long", []float64{1, 1.1, 0.9, 1.05, 0.95}, []float64{2, 2.1, 1.9, 2.05, 1.95}, true},
		{"half as long", []float64{2, 2.1, 1.9, 2.05, 1.95}, []float64{1, 1.1, 0.9, 1.05, 0.95}, true},
		{"noisy", []float64{1, 3, 2, 5, 1}, []float64{2, 1, 4, 3, 2}, false},
		{"sure but small", []float64{1, 1.001, 1.002, 1.003, 1.004}, []float64{1.01, 1.011, 1.012, 1.013, 1.014}, false},
		{"few runs, far apart", []float64{1, 1.1, 0.9}, []float64{2, 2.1, 1.9}, true},
		{"few runs, overlapping", []float64{1, 1.5, 0.9}, []float64{1.4, 2.1, 1.9}, false},
	} {
		key := Key{Bench: "depth", Work: "walk", State: stateCold, Depth: 10}
		then := &Report{Measurements: []Measurement{{Key: key, Peer: peerUnionfs, Unit: "s", Values: c.then}}}
		now := &Report{Measurements: []Measurement{{Key: key, Peer: peerUnionfs, Unit: "s", Values: c.now}}}
		changes := Compare(then, now)
		if len(changes) != 1 || changes[0].Beyond() != c.beyond {
			t.Errorf("%s: %+v", c.name, changes)
		}
	}
}

// TestGoals checks what counts as reached, and that figures of other sizes are named as such.
func TestGoals(t *testing.T) {
	r := &Report{}
	add := func(key Key, peer, unit string, value float64) {
		m := r.at(key, peer, unit)
		m.Values = append(m.Values, value)
	}
	walk := Key{Bench: "files", Work: "walk", State: stateCold, Depth: 100}
	add(walk, peerUnionfs, "s", 0.5)
	add(walk, peerUnionfsImage, "s", 0.3)
	add(walk, peerOverlayfs, "s", 1)
	for _, depth := range []int{1, 500} {
		add(Key{Bench: "depth", Work: "walk", State: stateWarm, Depth: depth}, peerUnionfs, "s", float64(depth))
	}
	add(Key{Bench: "memory", Work: "memory", Depth: 10, Param: 14114}, peerUnionfs, "B", 20<<20)
	add(Key{Bench: "memory", Work: "memory", Depth: 10, Param: 1000000}, peerUnionfs, "B", 20<<20+100*(1000000-14114))
	add(Key{Bench: "images", Work: "commit", Depth: 10}, peerUnionfs, "s", 0.04)
	add(Key{Bench: "images", Work: "commit", Depth: 10}, peerPodmanFuse, "s", 1)
	want := map[string]goalRow{
		"Cold walk with stat, 120 directories":          {Measured: "0.50× (500 ms to 1 s; at 100)", Class: "good"},
		"Cold walk with stat, image of 120 layers":      {Measured: "0.30× (300 ms to 1 s; at 100)", Class: "bad"},
		"500 branches against one: warm walk":           {Measured: "500× (500 s to 1 s)", Class: "bad"},
		"Memory for each node above that, at 1,000,000": {Measured: "100 B (114.0 MiB at 1000000)", Class: "good"},
		"Server's memory at 14,114 nodes":               {Measured: "20.0 MiB", Class: "good"},
		"Commit of a container that changed 10 files":   {Measured: "0.04× (40 ms to 1 s)", Class: "good"},
		"run --rm IMAGE /bin/true":                      {},
	}
	seen := 0
	for _, row := range r.goals() {
		if w, ok := want[row.What]; ok {
			seen++
			if row.Measured != w.Measured || row.Class != w.Class {
				t.Errorf("%s: %q, %q; want %q, %q", row.What, row.Measured, row.Class, w.Measured, w.Class)
			}
		}
	}
	if seen != len(want) {
		t.Errorf("%d of %d goals are listed", seen, len(want))
	}
	if measured, good := reached(r.goals()); measured != 6 || good != 4 {
		t.Errorf("%d of %d are reached; want 4 of 6", good, measured)
	}
}

// TestDocumentIsCurrent checks that docs/benchmarks.md is what "make bench-docs" makes of the report beside it.
func TestDocumentIsCurrent(t *testing.T) {
	r, err := ReadReport("../docs/bench/report.json")
	if err != nil {
		t.Fatal(err)
	}
	var made strings.Builder
	if err := r.writeDocument(&made); err != nil {
		t.Fatal(err)
	}
	kept, err := os.ReadFile("../docs/benchmarks.md")
	if err != nil {
		t.Fatal(err)
	}
	if made.String() != string(kept) {
		t.Error("docs/benchmarks.md differs; run make bench-docs REPORT=docs/bench/report.json")
	}
}

// TestPace checks that a benchmark ends in time, does everything once, and what takes a moment three times.
func TestPace(t *testing.T) {
	p := newPace(time.Now(), time.Hour, 2)
	p.next()
	if p.round(); !p.more(1) {
		t.Error("there is time for another round")
	}
	p.longest = 31 * time.Minute
	if p.more(1) {
		t.Error("another round would take longer than the half of the time")
	}
	if !p.more(0) {
		t.Error("there is to be one round in any case")
	}
	long, short, moment := cell{0, 0}, cell{1, 0}, cell{0, 1}
	costs := map[cell]time.Duration{long: 20 * time.Minute, short: 15 * time.Minute, moment: time.Second}
	if chosen := p.choose(1, costs); chosen[long] || !chosen[short] || !chosen[moment] {
		t.Errorf("of what there is no time for all of, what takes long is to be left out: %v", chosen)
	}
	if chosen := p.choose(0, costs); len(chosen) != 3 {
		t.Errorf("the first round has only %v", chosen)
	}
	p = newPace(time.Now().Add(-time.Hour), time.Minute, 1)
	p.next()
	for done, want := range []int{3, 1, 1, 0} {
		if chosen := p.choose(done, costs); len(chosen) != want || !chosen[moment] && want > 0 {
			t.Errorf("when the time is over after %d rounds, another one has %v", done, chosen)
		}
	}
	p = newPace(time.Now(), 0, 1)
	p.next()
	if p.longest = 100 * time.Hour; !p.more(1) || len(p.choose(9, costs)) != 3 {
		t.Error("without a budget there is always time")
	}
}

// TestPaired checks that what was measured side by side is compared side by side.
func TestPaired(t *testing.T) {
	r := &Report{}
	key := heldKey("walk")
	for n := range 12 { // seconds that drift by far more than the two differ
		at := float64(1 + n*n)
		for peer, seconds := range map[string]float64{peerUnionfs: at, peerUnionfsHeld: at * (1.02 + 0.001*float64(n%3))} {
			m := r.at(key, peer, "s")
			m.Values = append(m.Values, seconds)
		}
	}
	p, ok := r.paired(key, peerUnionfsHeld, peerUnionfs)
	if !ok || p.median < 1.0205 || p.median > 1.0215 || p.low < 1.019 || p.high > 1.023 || p.confidence < 0.95 {
		t.Errorf("%+v, %v", p, ok)
	}
	r.find(key, peerUnionfs).Values = nil
	if _, ok := r.paired(key, peerUnionfsHeld, peerUnionfs); ok {
		t.Error("there is a ratio to nothing")
	}
}

// TestProgress checks the line for those who have no terminal.
func TestProgress(t *testing.T) {
	var out strings.Builder
	p := NewProgress(&out, false)
	begun := time.Now()
	p.clock = func() time.Time { return begun }
	p.plan(100)
	p.section(50)
	p.start(2)
	p.step(1)
	p.clock = func() time.Time { return begun.Add(time.Minute) }
	p.part("half of the first", "")
	p.section(50)
	p.part("the second", "")
	p.End()
	if want := " 25 %, 3:00 left  half of the first\n 50 %, 1:00 left  the second\n"; out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}

// TestTreeIsDeterministic checks that a seed always gives the same tree, another one another, and that branches hold
// all of it however many there are.
func TestTreeIsDeterministic(t *testing.T) {
	dir := t.TempDir()
	sum := func(name string, seed uint64) *catalogue {
		root := filepath.Join(dir, name)
		if err := os.Mkdir(root, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := makeTree(t.Context(), root, treeShape{seed: seed, entries: 300}); err != nil {
			t.Fatal(err)
		}
		if err := makeProject(t.Context(), root, projectShape{sources: 3, tracked: 50}); err != nil {
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(root, repositoryName, ".git/index")); err != nil { // it has times and inode numbers
			t.Fatal(err)
		}
		c, err := takeCatalogue(t.Context(), root)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	one, again, other := sum("one", 1), sum("again", 1), sum("other", 2)
	if one.sum != again.sum || one.entries < 350 {
		t.Errorf("the tree of a seed differs, or has %d entries", one.entries)
	}
	if one.sum == other.sum {
		t.Error("two seeds give one tree")
	}
	s, err := splitTree(t.Context(), filepath.Join(dir, "one"), t.TempDir(), 7)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range one.files {
		var top []byte
		for _, branch := range s.absolute() {
			if top, err = os.ReadFile(filepath.Join(branch, name)); err == nil {
				break
			}
		}
		want, err := os.ReadFile(filepath.Join(dir, "one", name))
		if err != nil || string(top) != string(want) {
			t.Errorf("%s: the branches show %d bytes, the tree has %d (%v)", name, len(top), len(want), err)
		}
	}
}

// TestAnotherTree checks that a peer that shows something else gets no figures.
func TestAnotherTree(t *testing.T) {
	plain := t.TempDir()
	if err := makeTree(t.Context(), plain, treeShape{seed: 1, entries: 120}); err != nil {
		t.Fatal(err)
	}
	branches := t.TempDir()
	s, err := splitTree(t.Context(), plain, branches, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := writeFile(filepath.Join(branches, "1", "not in the tree"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	ours, err := newPeer(peerUnionfs, program)
	if err != nil {
		t.Fatal(err)
	}
	walkOnly, err := chooseWorks([]string{"walk"})
	if err != nil {
		t.Fatal(err)
	}
	b := &depthBench{
		DepthOptions: DepthOptions{Warm: true, Depths: []int{2}, Limit: time.Minute}, report: &Report{},
		works: walkOnly, peers: []peer{ours}, scratch: t.TempDir(), pace: newPace(time.Now(), 0, 1),
	}
	candidates, err := b.check(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	if candidates[0].tree != nil || len(b.report.Measurements) != 1 || b.report.Measurements[0].Status != "it shows another tree than the plain tree" {
		t.Errorf("%+v, %+v", candidates, b.report.Measurements)
	}
}
