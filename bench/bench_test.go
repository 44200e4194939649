package bench

import (
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// BenchmarkUnion has the works of "unionfs bench depth" for benchstat, for instance to compare two versions of this
// program:
//
//	go test ./bench -run '^$' -bench 'Union/./././peer=unionfs$' -count 10 >new.txt && benchstat old.txt new.txt
//
// or to compare peers: benchstat -col /peer new.txt.
func BenchmarkUnion(b *testing.B) {
	dir := b.TempDir()
	s, tree := benchStack(b, dir)
	for _, w := range works() {
		for _, state := range []string{stateCold, stateWarm} {
			if w.needsBig || state == stateCold && w.writes || state == stateWarm && w.coldOnly || state == stateCold && os.Geteuid() != 0 {
				continue
			}
			for _, name := range PeerNames() {
				p, err := newPeer(name, program)
				if err != nil {
					b.Fatal(err)
				}
				if _, err := p.version(b.Context()); err != nil || p.unable(w) != "" {
					continue
				}
				b.Run(fmt.Sprintf("work=%s/state=%s/branches=%d/peer=%s", w.name, state, s.depth(), name), func(b *testing.B) {
					benchWork(b, dir, s, tree, p, w, state)
				})
			}
		}
	}
}

// benchStack makes the branches and the image.
func benchStack(b *testing.B, dir string) (*stack, *catalogue) {
	b.Helper()
	plain, branches := filepath.Join(dir, "plain"), filepath.Join(dir, "branches")
	for _, d := range []string{plain, branches} {
		if err := os.Mkdir(d, 0o755); err != nil {
			b.Fatal(err)
		}
	}
	if err := makeTree(b.Context(), plain, treeShape{seed: 1, entries: *flagEntries}); err != nil {
		b.Fatal(err)
	}
	if err := makeProject(b.Context(), plain, projectShape{sources: 20, tracked: 1000}); err != nil {
		b.Fatal(err)
	}
	s, err := splitTree(b.Context(), plain, branches, *flagBranches)
	if err != nil {
		b.Fatal(err)
	}
	images, err := startImageServer(dir)
	if err != nil {
		b.Fatal(err)
	}
	defer images.close()
	if s.image, err = images.publish(b.Context(), s, "bench", v1.Config{}, false); err != nil {
		b.Fatal(err)
	}
	s.store = filepath.Join(dir, "store")
	if err := run(b.Context(), program, "--root", s.store, "pull", s.image); err != nil {
		b.Fatal(err)
	}
	tree, err := takeCatalogue(b.Context(), plain)
	if err != nil {
		b.Fatal(err)
	}
	if err := syncFileSystem(dir); err != nil {
		b.Fatal(err)
	}
	return s, tree
}

// benchWork measures one work. What changes the tree, and what is cold, gets a fresh mount each time.
func benchWork(b *testing.B, dir string, s *stack, tree *catalogue, p peer, w *work, state string) {
	var m *mounted
	se := &session{tree: tree, sizes: opsOf(16<<20, false), files: sample(tree.files, "sample", 4000), stop: &atomic.Bool{}}
	unmount := func() {
		if m == nil {
			return
		}
		unix.Close(se.rootFD)
		if err := m.close(); err != nil {
			b.Error(err)
		}
		m = nil
	}
	defer unmount()
	mount := func() {
		unmount()
		var err error
		if m, err = mountFresh(b.Context(), dir, s, p); err != nil {
			b.Fatal(err)
		}
		se.root = m.root
		if se.rootFD, err = openRoot(m.root); err != nil {
			b.Fatal(err)
		}
		se.created = ""
	}
	measure := &depthBench{}
	for i := 0; i < b.N; i++ {
		b.StopTimer()
		if m == nil || w.writes || state == stateCold {
			mount()
		}
		if state == stateCold {
			if err := dropCaches(); err != nil {
				b.Fatal(err)
			}
		}
		if state == stateWarm && !w.writes && i == 0 {
			for range 2 {
				measure.renew(se)
				if _, err := w.run(se); err != nil {
					b.Fatal(err)
				}
			}
		}
		if w.prepare != nil {
			if err := w.prepare(se); err != nil {
				b.Fatal(err)
			}
		}
		measure.renew(se)
		b.StartTimer()
		ops, err := w.run(se)
		if err != nil {
			b.Fatal(err)
		}
		b.ReportMetric(float64(ops), "ops/op")
	}
	b.StopTimer()
}
