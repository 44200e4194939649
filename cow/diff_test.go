package cow

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// naiveDiff compares two dumps of plain directories by their paths, and folds what was in deleted or replaced directories.
func naiveDiff(was, now []string) []string {
	type file struct{ kind, rest string }
	parse := func(lines []string) map[string]file {
		m := map[string]file{}
		for _, l := range lines {
			path, rest, _ := strings.Cut(l, " ")
			kind, _, _ := strings.Cut(rest, " ")
			rest, _, _ = strings.Cut(rest, " = ") // layers can't say it of files in other layers
			m[path] = file{kind[:len(kind)-4], rest}
		}
		return m
	}
	a, b := parse(was), parse(now)
	found := map[string]byte{}
	for p, x := range b {
		y, ok := a[p]
		switch {
		case !ok:
			found[p] = 'A'
		case x != y:
			found[p] = 'C'
		}
	}
	for p := range a {
		if _, ok := b[p]; ok {
			continue
		}
		// Listed only if the directory that it was in is still one.
		if dir, ok := b[filepath.Dir(p)]; filepath.Dir(p) == "/" || ok && dir.kind == "4" {
			found[p] = 'D'
		}
	}
	// A file that is touched under one of its names is so under all of them.
	names := map[string][]string{}
	for _, l := range now {
		path, rest, _ := strings.Cut(l, " ")
		first := path
		if _, f, ok := strings.Cut(rest, " = "); ok {
			first = f
		}
		names[first] = append(names[first], path)
	}
	for _, n := range names {
		if slices.ContainsFunc(n, func(p string) bool { return found[p] != 0 }) {
			for _, p := range n {
				if found[p] == 0 {
					found[p] = 'C'
				}
			}
		}
	}
	for p := range found {
		for d := filepath.Dir(p); d != "/"; d = filepath.Dir(d) {
			if _, ok := found[d]; !ok {
				found[d] = 'C'
			}
		}
	}
	var out []string
	for p, k := range found {
		out = append(out, fmt.Sprintf("%c %s", k, p))
	}
	slices.Sort(out)
	return out
}

// TestDiffAndApply does random things to a union; then Compare must list what a comparison of two whole trees finds, and
// Apply must turn a copy of the lower tree into the merged one.
func TestDiffAndApply(t *testing.T) {
	rng := modeltest.NewRand(t)
	for round := range 15 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			w := newTree(t, 1+rng.IntN(3), modeltest.Layers{Rand: rng})
			// The model writes times of its own, so they are made equal on both sides.
			settle := func(root string) {
				must(t, filepath.Walk(root, func(p string, _ os.FileInfo, err error) error {
					if err != nil {
						return err
					}
					return unix.UtimesNanoAt(unix.AT_FDCWD, p, make([]unix.Timespec, 2), unix.AT_SYMLINK_NOFOLLOW)
				}))
			}
			for _, l := range w.lower {
				settle(l)
			}
			before := w.dumpPlain()
			target := filepath.Join(t.TempDir(), "copy")
			clone(t, w.plain, target)
			for range 40 {
				w.step()
			}
			w.close()
			settle(w.upper)
			after := w.dumpPlain()

			var lower []Branch
			for _, l := range w.lower {
				b, err := OpenDirBranch(l, DirOptions{})
				must(t, err)
				defer b.Close()
				lower = append(lower, b)
			}
			d, err := Compare(w.upper, lower)
			must(t, err)
			defer d.Close()
			var got []string
			for _, c := range d.Changes {
				got = append(got, fmt.Sprintf("%c %s", c.Kind, c.Path))
			}
			slices.Sort(got)
			if want := naiveDiff(before, after); !slices.Equal(got, want) {
				t.Fatalf("Compare only:\n%s\nfound by comparing all:\n%s", modeltest.Missing(got, want), modeltest.Missing(want, got))
			}
			must(t, d.Apply(target))
			w.plain = target
			if got, want := strip(w.dumpPlain()), strip(after); !slices.Equal(got, want) {
				t.Fatalf("after Apply, target only:\n%s\nmerged only:\n%s", modeltest.Missing(got, want), modeltest.Missing(want, got))
			}
			w.open()
			w.close()
		})
	}
}

// strip takes the notes of which names are hard links out of a dump: layers can't say it of files in other layers.
func strip(lines []string) []string {
	out := slices.Clone(lines)
	for i, l := range out {
		out[i], _, _ = strings.Cut(l, " = ")
	}
	return out
}

// clone makes target what from is, modes included.
func clone(t *testing.T, from, target string) {
	must(t, os.RemoveAll(target))
	must(t, filepath.Walk(from, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		to := filepath.Join(target, strings.TrimPrefix(p, from))
		switch {
		case fi.IsDir():
			return os.Mkdir(to, fi.Mode().Perm())
		case fi.Mode()&os.ModeSymlink != 0:
			l, err := os.Readlink(p)
			if err != nil {
				return err
			}
			return os.Symlink(l, to)
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		return os.WriteFile(to, b, fi.Mode().Perm())
	}))
}
