package cow

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

const metacopyContent = "what the lower branch has, and all of it"

// newMetacopies is a union over a lower branch with some files.
func newMetacopies(t *testing.T, meta Metacopy) *tree {
	w := &tree{t: t, upper: t.TempDir(), work: t.TempDir(), lower: []string{t.TempDir()}, meta: meta}
	must(t, os.MkdirAll(filepath.Join(w.lower[0], "dir"), 0o755))
	must(t, os.Mkdir(filepath.Join(w.lower[0], "other"), 0o755))
	for _, p := range []string{"dir/file", "linked"} {
		must(t, os.WriteFile(filepath.Join(w.lower[0], p), []byte(metacopyContent), 0o644))
	}
	must(t, os.Link(filepath.Join(w.lower[0], "linked"), filepath.Join(w.lower[0], "dir", "linked")))
	w.open()
	return w
}

// do does something to a node of a path.
func (w *tree) do(path string, f func(n *Node) error) {
	w.t.Helper()
	n, _, err := w.walk(path)
	must(w.t, err)
	defer w.u.Forget(n, 1)
	must(w.t, f(n))
}

func (w *tree) chmod(path string, mode uint32) {
	w.t.Helper()
	var a Attr
	w.do(path, func(n *Node) error { return w.u.Setattr(n, &SetAttr{Valid: SetMode, Mode: mode}, &a) })
}

// has fails unless the union has a file with this mode and content.
func (w *tree) has(path string, mode uint32, content string) {
	w.t.Helper()
	n, a, err := w.walk(path)
	must(w.t, err)
	defer w.u.Forget(n, 1)
	buf := make([]byte, len(content)+10)
	m, err := w.u.Read(n, 0, buf)
	if err != nil || a.Mode&0o7777 != mode || string(buf[:m]) != content || a.Size != uint64(m) || a.Blocks == 0 {
		w.t.Errorf("%s: mode %o, %d blocks, size %d, %q, %v; want mode %o, %q", path, a.Mode&0o7777, a.Blocks, a.Size, buf[:m], err, mode, content)
	}
}

// onDisk reports what the upper branch has under a path: whether it has data, and whether it is marked as not having any.
func (w *tree) onDisk(path string) (data, marked bool) {
	w.t.Helper()
	var st unix.Stat_t
	must(w.t, unix.Lstat(w.upper+path, &st))
	marked, _, err := metadataOnly(unix.AT_FDCWD, w.upper+path)
	must(w.t, err)
	fd, err := unix.Open(w.upper+path, unix.O_RDONLY, 0)
	must(w.t, err)
	defer unix.Close(fd)
	_, err = unix.Seek(fd, 0, unix.SEEK_DATA)
	return err == nil, marked
}

// letGo gives back of a union's upper branch what a kill gives back by itself, and the next union needs.
func letGo(u *Union) {
	unix.Close(u.upper.lock)
	unix.Close(u.upper.own)
}

// kill leaves the union as a SIGKILL does.
func (w *tree) kill() {
	w.u.stopPartials()
	letGo(w.u)
}

// TestMetadataOnly: what changes no data copies none, under every name and after every other change, also over a kill, and the
// upper branch is complete when the union is closed.
func TestMetadataOnly(t *testing.T) {
	stamp := unix.Timespec{Sec: 1e9, Nsec: 5}
	var a Attr
	changes := map[string]func(u *Union, n *Node) error{
		"chmod": func(u *Union, n *Node) error { return u.Setattr(n, &SetAttr{Valid: SetMode, Mode: 0o644}, &a) },
		"chown": func(u *Union, n *Node) error {
			return u.Setattr(n, &SetAttr{Valid: SetUID | SetGID, UID: 1, GID: 2}, &a)
		},
		"utimens": func(u *Union, n *Node) error {
			return u.Setattr(n, &SetAttr{Valid: SetMtime, Mtime: stamp}, &a)
		},
		"setxattr": func(u *Union, n *Node) error { return u.Setxattr(n, "user.mine", []byte("x"), 0) },
	}
	for name, change := range changes {
		t.Run(name, func(t *testing.T) {
			w := newMetacopies(t, MetacopyUntilClose)
			w.do("/dir/file", func(n *Node) error { return change(w.u, n) })
			if data, marked := w.onDisk("/dir/file"); data || !marked {
				t.Errorf("the upper branch has data: %v, marked as without: %v", data, marked)
			}
			w.has("/dir/file", 0o644, metacopyContent)
			w.kill()
			w.open()
			w.has("/dir/file", 0o644, metacopyContent)
			w.do("/dir/file", func(n *Node) error {
				attrs, err := w.u.Listxattr(n)
				if want := []string{"user.mine"}; name == "setxattr" && !slices.Equal(attrs, want) || name != "setxattr" && len(attrs) > 0 {
					t.Errorf("shown attributes: %v", attrs)
				}
				return err
			})
			w.close()
			if data, marked := w.onDisk("/dir/file"); !data || marked {
				t.Errorf("after the end, the upper branch has data: %v, marked as without: %v", data, marked)
			}
			var st, low unix.Stat_t
			must(t, unix.Stat(w.upper+"/dir/file", &st))
			must(t, unix.Stat(w.lower[0]+"/dir/file", &low))
			want := low.Mtim
			if name == "utimens" {
				want = stamp
			}
			if st.Mtim != want {
				t.Errorf("completing it changed its time to %v, want %v", st.Mtim, want)
			}
			if left, err := os.ReadDir(w.work + "/new"); err != nil || len(left) > 0 {
				t.Errorf("work/new has %v, %v", left, err)
			}
			if _, err := os.Stat(w.work + "/metacopy"); err == nil {
				t.Error("the mark in the work directory is left")
			}
		})
	}
}

// TestMetadataOnlyThen does something to a file of which only the mode was changed, and looks at it at once, after a kill and
// after a whole end.
func TestMetadataOnlyThen(t *testing.T) {
	changed := strings.Replace(metacopyContent, "what", "WHAT", 1)
	var a Attr
	for _, c := range []struct {
		name, path string
		do         func(w *tree, n *Node) error
		copied     bool // whether that takes data
		want       map[string]string
	}{
		{"write", "/dir/file", func(w *tree, n *Node) error { _, err := w.u.Write(n, 0, []byte("WHAT")); return err }, true,
			map[string]string{"/dir/file": changed}},
		{"write by one of two names", "/linked", func(w *tree, n *Node) error { _, err := w.u.Write(n, 0, []byte("WHAT")); return err }, true,
			map[string]string{"/linked": changed, "/dir/linked": changed}},
		{"truncate", "/dir/file", func(w *tree, n *Node) error {
			return w.u.Setattr(n, &SetAttr{Valid: SetSize, Size: 4}, &a)
		}, true, map[string]string{"/dir/file": "what"}},
		{"extend", "/dir/file", func(w *tree, n *Node) error {
			return w.u.Setattr(n, &SetAttr{Valid: SetSize, Size: uint64(len(metacopyContent)) + 3}, &a)
		}, true, map[string]string{"/dir/file": metacopyContent + "\x00\x00\x00"}},
		{"link", "/dir/file", func(w *tree, n *Node) error {
			defer w.u.Forget(n, 1)
			return w.u.Link(n, w.u.Root(), "further", &a)
		}, false, map[string]string{"/dir/file": metacopyContent, "/further": metacopyContent}},
		{"nothing, with two names", "/linked", func(*tree, *Node) error { return nil }, false,
			map[string]string{"/linked": metacopyContent, "/dir/linked": metacopyContent}},
		{"rename", "/dir/file", func(w *tree, n *Node) error {
			return w.u.Rename(n.links[0].parent, "file", w.u.Root(), "moved", 0)
		}, false, map[string]string{"/moved": metacopyContent}},
		{"rename of one of two names", "/linked", func(w *tree, n *Node) error {
			return w.u.Rename(w.u.Root(), "linked", w.u.Root(), "moved", 0)
		}, false, map[string]string{"/moved": metacopyContent, "/dir/linked": metacopyContent}},
		{"rename of its directory", "/dir/file", func(w *tree, n *Node) error {
			return w.u.Rename(w.u.Root(), "dir", w.u.Root(), "moved", 0)
		}, false, map[string]string{"/moved/file": metacopyContent}},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newMetacopies(t, MetacopyUntilClose)
			w.chmod(c.path, 0o600)
			w.do(c.path, func(n *Node) error { return c.do(w, n) })
			check := func() {
				t.Helper()
				for p, content := range c.want {
					w.has(p, 0o600, content)
				}
			}
			check()
			w.kill()
			for p := range c.want {
				if _, err := os.Lstat(w.upper + p); err != nil {
					continue // in the index of hard links only
				}
				if data, marked := w.onDisk(p); data != c.copied || marked == c.copied {
					t.Errorf("%s in the upper branch: data %v, marked as without %v", p, data, marked)
				}
			}
			w.open()
			check()
			w.close()
			for p, content := range c.want {
				if b, err := os.ReadFile(w.upper + p); err != nil || string(b) != content {
					t.Errorf("the upper branch by itself has in %s: %q, %v", p, b, err)
				}
				if attrs, err := listxattrAt(unix.AT_FDCWD, w.upper+p); err != nil || slices.Contains(attrs, trustedPrefix+"redirect") {
					t.Errorf("%s has %v, %v", p, attrs, err)
				}
			}
			w.open()
			check()
			w.close()
		})
	}
}

// TestMetadataOnlyRemoved: what is deleted after its mode was changed has cost no data, and who holds it can still read it.
func TestMetadataOnlyRemoved(t *testing.T) {
	w := newMetacopies(t, MetacopyUntilClose)
	w.chmod("/dir/file", 0o600)
	n, _, err := w.walk("/dir/file")
	must(t, err)
	must(t, w.u.Unlink(n.links[0].parent, "file"))
	buf := make([]byte, 100)
	if m, err := w.u.Read(n, 0, buf); err != nil || string(buf[:m]) != metacopyContent {
		t.Errorf("the deleted file has %q, %v", buf[:m], err)
	}
	if _, err := w.u.Write(n, 0, []byte("WHAT")); err != nil {
		t.Errorf("writing to the deleted file: %v", err)
	}
	if m, err := w.u.Read(n, 0, buf); err != nil || !bytes.HasPrefix(buf[:m], []byte("WHAT the")) {
		t.Errorf("the deleted file has %q, %v", buf[:m], err)
	}
	w.u.Forget(n, 1)
	w.close()
	var st unix.Stat_t
	if err := unix.Lstat(w.upper+"/dir/file", &st); err != nil || !isWhiteoutDevice(&st) {
		t.Errorf("the upper branch has no whiteout: %o, %v", st.Mode, err)
	}
}

// TestMetadataOnlyModes: the option to copy at once, and the one to leave the data where it is, which the next union respects.
func TestMetadataOnlyModes(t *testing.T) {
	w := newMetacopies(t, MetacopyOff)
	w.chmod("/dir/file", 0o600)
	if data, marked := w.onDisk("/dir/file"); !data || marked {
		t.Errorf("copied at once: data %v, marked as without %v", data, marked)
	}
	w.close()
	w = newMetacopies(t, MetacopyKeep)
	w.chmod("/dir/file", 0o600)
	w.do("/linked", func(n *Node) error { return w.u.Rename(w.u.Root(), "linked", w.u.Root(), "moved", 0) })
	for range 2 {
		w.close()
		for _, p := range []string{"/dir/file", "/moved", "/dir/linked"} {
			if data, marked := w.onDisk(p); data || !marked {
				t.Errorf("%s is to be kept as it is: data %v, marked as without %v", p, data, marked)
			}
		}
		w.open()
		w.has("/dir/file", 0o600, metacopyContent)
		w.has("/moved", 0o644, metacopyContent)
	}
	w.close()
	w.meta = MetacopyUntilClose
	w.open()
	w.close()
	if data, marked := w.onDisk("/moved"); !data || marked {
		t.Errorf("completed by a later union: data %v, marked as without %v", data, marked)
	}
}

// TestMetadataOnlyDifference: a file of which only the mode was changed is Changed, with its data, while the union is in use.
func TestMetadataOnlyDifference(t *testing.T) {
	w := newMetacopies(t, MetacopyUntilClose)
	defer w.close()
	w.chmod("/dir/file", 0o600)
	w.do("/linked", func(n *Node) error { return w.u.Rename(w.u.Root(), "linked", w.u.Root(), "moved", 0) })
	lower, err := OpenDirBranch(w.lower[0], DirOptions{})
	must(t, err)
	defer lower.Close()
	d, err := Compare(w.upper, []Branch{lower})
	must(t, err)
	defer d.Close()
	want := []Change{{"/dir", Changed}, {"/dir/file", Changed}, {"/linked", Deleted}, {"/moved", Added}}
	if !slices.Equal(d.Changes, want) {
		t.Errorf("changes: %v, want %v", d.Changes, want)
	}
	must(t, d.Export(func(x *Exported) error {
		if x.Deleted || x.Attr.IsDir() || x.Link != "" {
			return nil
		}
		var b bytes.Buffer
		if _, err := x.WriteTo(&b); err != nil {
			return err
		}
		if b.String() != metacopyContent || len(x.Xattrs) > 0 {
			t.Errorf("%s is exported with %q, attributes %v", x.Path, b.String(), x.Xattrs)
		}
		return nil
	}))
}

// TestMetadataOnlyLarge: a large file of which first the mode and then a byte is changed is completed block by block, over kills
// between.
func TestMetadataOnlyLarge(t *testing.T) {
	f := newLargeFile(t, modeltest.NewRand(t))
	f.chmod("/dir/large", 0o600)
	if data, marked := f.onDisk("/dir/large"); data || !marked {
		t.Errorf("chmod: data %v, marked as without %v", data, marked)
	}
	f.check("after chmod")
	f.u.partials.stop = make(chan struct{}) // keeps the background from completing it
	f.u.partials.done = make(chan struct{})
	close(f.u.partials.done)
	f.u.partials.pending = make(chan *partial, partialMax)
	f.write(partialBlock+5, []byte("written"))
	f.check("after a write")
	var st unix.Stat_t
	must(t, unix.Stat(f.upper+"/dir/large", &st))
	if got, most := st.Blocks*512, int64(2*partialBlock); got > most {
		t.Errorf("writing a few bytes copied %d, more than %d", got, most)
	}
	f.kill()
	f.open()
	f.hold()
	f.check("after a kill")
	f.u.Forget(f.n, 1)
	f.close()
	r, err := os.Open(f.upper + "/dir/large")
	must(t, err)
	defer r.Close()
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, f.want) {
		t.Errorf("the upper branch has %d bytes, %v", len(got), err)
	}
}
