package cow

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// unread has a union take every directory that is not empty for one of many names, and read it in the background only when
// somebody waits for that; if later is false it does nothing.
func unread(o *Options, later bool) {
	if !later {
		return
	}
	o.many = -1
	o.heldBack = func(u *Union, n *Node) {
		for !n.dir.reading.waited.Load() && !u.stopping.Load() {
			time.Sleep(10 * time.Microsecond)
		}
	}
}

// describe says all of what was found that a lookup goes by.
func (f *found) describe(err error) string {
	s := fmt.Sprintf("%v:", err)
	if f.whiteout != nil {
		s += " whiteout"
	}
	if f.upper != nil {
		s += fmt.Sprintf(" upper %o", f.upper.kind)
	}
	if f.hasLower {
		s += fmt.Sprintf(" lower %d %o", f.lower.branch, f.lower.entry.Type)
		for _, m := range f.lower.more {
			s += fmt.Sprintf(" and %d", m.branch)
		}
	}
	return s
}

// compareFinds looks names up in all directories before they are read and after that.
func (w *tree) compareFinds(names []string) (finds int) {
	u := w.u
	var rec func(n *Node, path string)
	rec = func(n *Node, path string) {
		var before []string
		must(w.t, u.prepare(n))
		find := func(name string) string {
			n.mu.RLock()
			defer n.mu.RUnlock()
			f, err := u.find(n, name)
			return f.describe(err)
		}
		n.mu.RLock()
		waiting := n.dir.reading != nil
		n.mu.RUnlock()
		for _, name := range names {
			before = append(before, find(name))
		}
		must(w.t, u.load(n))
		for i, name := range names {
			after := find(name)
			if after != before[i] {
				w.t.Errorf("%s/%s is %q, and before the directory was read %q", path, name, after, before[i])
			}
			if waiting && !strings.Contains(after, "ENOENT") {
				finds++
			}
			var a Attr
			c, err := u.Lookup(n, name, &a)
			if err != nil {
				continue
			}
			if c.isDir() {
				rec(c, path+"/"+name)
			}
			u.Forget(c, 1)
		}
	}
	rec(u.Root(), "")
	return finds
}

// TestUnreadDirectory compares what is found in directories before they are read and after that: random ones, after random
// changes, of all kinds of hosts.
func TestUnreadDirectory(t *testing.T) {
	rng := modeltest.NewRand(t)
	for round := range 24 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			w := newTree(t, 1+rng.IntN(4), modeltest.Layers{Rand: rng})
			w.close()
			w.host = host(round) % hosts
			w.later = true
			names := map[string]bool{"none": true, ".wh.none": true, ".wh.": true, opaqueName: true}
			finds := 0
			for range 5 {
				w.open()
				for range 20 {
					w.step()
				}
				w.close()
				for _, dir := range append([]string{w.upper}, w.lower...) {
					must(t, filepath.WalkDir(dir, func(p string, _ os.DirEntry, err error) error {
						names[filepath.Base(p)] = true
						names[strings.TrimPrefix(filepath.Base(p), whiteoutPrefix)] = true
						return err
					}))
				}
				delete(names, "")
				w.open()
				var sorted []string
				for name := range names {
					sorted = append(sorted, name)
				}
				slices.Sort(sorted)
				finds += w.compareFinds(sorted)
				w.close()
			}
			if finds == 0 {
				t.Error("nothing was found in an unread directory")
			}
		})
	}
}

// TestUnreadMarks is TestUnreadDirectory with every mark that a directory on disk can have.
func TestUnreadMarks(t *testing.T) {
	base := t.TempDir()
	w := &tree{t: t, upper: base + "/upper", work: base + "/work", lower: []string{base + "/1", base + "/2", base + "/3"}, later: true}
	names := []string{"file", "dir", "gone", "device", "both", "sub", "moved", "old", "empty", "marked", "opaque", "data"}
	for _, b := range append([]string{w.upper, w.work}, w.lower...) {
		must(t, os.MkdirAll(b, 0o755))
	}
	for _, b := range w.lower {
		for _, name := range names {
			must(t, os.MkdirAll(b+"/dir/"+name+"/in", 0o755))
			must(t, os.MkdirAll(b+"/old/"+name, 0o755))
		}
	}
	mark := func(path, name, value string) {
		must(t, unix.Lsetxattr(path, "trusted.overlay."+name, []byte(value), 0))
	}
	empty := func(path string) {
		must(t, os.WriteFile(path, nil, 0o644))
	}
	for i, b := range []string{w.upper, w.lower[0], w.lower[1]} {
		d := b + "/dir"
		must(t, os.MkdirAll(d, 0o755))
		must(t, os.MkdirAll(d+"/both", 0o755))
		empty(d + "/.wh.both") // beside the name: it is about those below
		must(t, os.RemoveAll(d+"/gone"))
		if i != 1 {
			empty(d + "/.wh.gone")
		}
		must(t, os.RemoveAll(d+"/device"))
		must(t, unix.Mknod(d+"/device", unix.S_IFCHR, 0))
		must(t, os.RemoveAll(d+"/file"))
		must(t, os.WriteFile(d+"/file", []byte("data"), 0o644))
		must(t, os.RemoveAll(d+"/empty"))
		empty(d + "/empty")
		must(t, os.RemoveAll(d+"/marked"))
		empty(d + "/marked")
		mark(d+"/marked", "whiteout", "y")
		if i > 0 {
			mark(d, "opaque", "x") // marked is a whiteout only here
		}
		must(t, os.MkdirAll(d+"/opaque", 0o755))
		empty(d + "/opaque/" + opaqueName)
		must(t, os.MkdirAll(d+"/sub", 0o755))
		mark(d+"/sub", "opaque", "y")
		must(t, os.MkdirAll(d+"/moved", 0o755))
		mark(d+"/moved", "redirect", "/old")
		must(t, os.RemoveAll(d+"/data"))
		must(t, os.WriteFile(d+"/data", []byte("data"), 0o644))
		mark(d+"/data", "metacopy", "")
	}
	w.open()
	defer func() { w.close() }()
	if finds := w.compareFinds(append(names, "in", "none", ".wh.gone", opaqueName)); finds < 20 {
		t.Errorf("%d names were found in unread directories", finds)
	}
}

// TestReadInBackground looks names up, makes and removes some, while the directory that they are in is read, and again after
// that.
func TestReadInBackground(t *testing.T) {
	base := t.TempDir()
	w := &tree{t: t, upper: base + "/upper", work: base + "/work", lower: []string{base + "/1", base + "/2"}}
	const many = 200
	name := func(i int) string { return fmt.Sprintf("name-%d", i) }
	must(t, errors.Join(os.MkdirAll(w.upper+"/dir", 0o755), os.MkdirAll(w.work, 0o755)))
	for i, b := range w.lower {
		must(t, os.MkdirAll(b+"/dir", 0o755))
		for n := range many {
			if n%(i+2) == 0 {
				must(t, os.WriteFile(b+"/dir/"+name(n), []byte(b), 0o644))
			}
		}
	}
	for round := range 30 {
		w.fds = NewDescriptors(64)
		o := Options{Upper: w.upper, Work: w.work, Descriptors: w.fds, many: 10}
		for _, l := range w.lower {
			b, err := OpenDirBranch(l, DirOptions{Descriptors: w.fds})
			must(t, err)
			o.Lower = append(o.Lower, b)
		}
		var err error
		w.u, err = New(o)
		must(t, err)
		var a Attr
		dir, err := w.u.Lookup(w.u.Root(), "dir", &a)
		must(t, err)
		var all sync.WaitGroup
		for worker := range 4 {
			all.Go(func() {
				var a Attr
				for i := worker; i < many; i += 4 {
					there := i%2 == 0 || i%3 == 0
					if round > 0 && i%5 == 0 {
						there = (round-1)%2 == 0
					}
					n, err := w.u.Lookup(dir, name(i), &a)
					if (err == nil) != there {
						t.Errorf("round %d: %s: %v", round, name(i), err)
						continue
					}
					if err == nil {
						w.u.Forget(n, 1)
					}
					if i%5 != 0 {
						continue
					}
					// In one round it is made where it isn't, in the next removed.
					switch make := round%2 == 0; {
					case make && !there:
						if n, err = w.u.Create(dir, name(i), 0o644, Owner{}, &a); err == nil {
							w.u.Forget(n, 1)
						}
					case !make && there:
						err = w.u.Unlink(dir, name(i))
					default:
						continue
					}
					if err != nil {
						t.Errorf("round %d: changing %s: %v", round, name(i), err)
					}
					if n, err = w.u.Lookup(dir, name(i), &a); (err == nil) == there {
						t.Errorf("round %d: %s after the change: %v", round, name(i), err)
					}
					if err == nil {
						w.u.Forget(n, 1)
					}
				}
			})
		}
		all.Wait()
		w.u.Forget(dir, 1)
		w.close()
	}
}
