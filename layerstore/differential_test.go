package layerstore

import (
	"archive/tar"
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// TestAgainstNaiveApplier makes random stacks of layers and compares the merged index, entry by entry, with what an
// applier that knows nothing of indexes makes of them in a real directory.
func TestAgainstNaiveApplier(t *testing.T) {
	const seeds = 40
	for seed := range uint64(seeds) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { compareWithNaive(t, seed) })
		if t.Failed() {
			return
		}
	}
}

func compareWithNaive(t *testing.T, seed uint64) {
	g := &generator{rand.New(rand.NewPCG(seed, 1))}
	n := newNaive(t)
	var tars [][]byte
	for range 2 + g.IntN(5) {
		entries := n.apply(g.layer())
		tars = append(tars, tarOf(t, entries...))
	}
	want := snapshotDir(t, n.root, n.times)
	s := openStore(t)
	image, err := addStack(s, "random", tars...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := image.Branch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	got, err := snapshotBranch(b)
	if err != nil {
		t.Fatal(err)
	}
	if d := diffSnapshots(got, want); d != "" {
		for i, b := range tars {
			t.Logf("layer %d:\n%s", i, listTar(b))
		}
		t.Fatalf("seed %d:\n%s", seed, d)
	}
	compareIncremental(t, s, image.Config().RootFS.DiffIDs)
}

// compareIncremental merges the layers one after the other, each onto the index of those below. It must give the same
// bytes as all at once.
func compareIncremental(t *testing.T, s *Store, diffIDs []digest.Digest) {
	t.Helper()
	final := s.path(mergedDir, chainID(diffIDs).Encoded())
	want, err := os.ReadFile(final)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(final); err != nil {
		t.Fatal(err)
	}
	for n := 1; n <= len(diffIDs); n++ {
		ix, err := s.openMerged(diffIDs[:n])
		if err != nil {
			t.Fatal(err)
		}
		ix.close()
	}
	got, err := os.ReadFile(final)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("merging layer by layer gives another index than merging all at once")
	}
}

func listTar(b []byte) string {
	var out strings.Builder
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err != nil {
			return out.String()
		}
		fmt.Fprintf(&out, "  %c %.20q %.20q\n", h.Typeflag, h.Name, h.Linkname)
	}
}

// generator makes random layers. Few names, so that the same ones meet often.
type generator struct{ *rand.Rand }

func (g *generator) name() string {
	names := []string{"a", "b", "c", strings.Repeat("L", 240), "ü\n"}
	return names[min(g.IntN(8), g.IntN(8), len(names)-1)]
}

func (g *generator) path() string {
	p := g.name()
	for g.IntN(5) < 2 && strings.Count(p, "/") < 3 {
		p += "/" + g.name()
	}
	return p
}

func (g *generator) layer() []entry {
	var layer []entry
	for range 1 + g.IntN(25) {
		layer = append(layer, g.entry())
	}
	return layer
}

func (g *generator) entry() entry {
	p := g.path()
	h := tar.Header{
		Name: p, Mode: int64(g.IntN(0o10000)), Uid: g.IntN(3) * 100000, Gid: g.IntN(3),
		ModTime: time.Unix(int64(g.IntN(2_000_000_000)), int64(g.IntN(1_000_000_000))), PAXRecords: map[string]string{},
	}
	if g.IntN(4) == 0 {
		h.PAXRecords[xattrPrefix+"trusted.x"+g.name()[:1]] = fmt.Sprint(g.IntN(3), "\x00\xff")
	}
	content := ""
	switch g.IntN(20) {
	case 0, 1, 2, 3, 4:
		h.Typeflag = tar.TypeReg
		content = strings.Repeat(fmt.Sprint(g.IntN(10)), g.IntN(1200))
	case 5, 6, 7, 8:
		h.Typeflag = tar.TypeDir
		if g.IntN(10) == 0 {
			h.Name = "./"
		}
	case 9, 10:
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, g.path(), 0o777
		if g.IntN(5) == 0 {
			h.Linkname = strings.Repeat("../", 100) + h.Linkname
		}
	case 11:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeChar, 1, int64(g.IntN(1000))
	case 12:
		h.Typeflag = tar.TypeFifo
	case 13, 14, 15:
		return link(p, g.path())
	case 16, 17:
		d, base := path.Split(p)
		return wh(d + whiteoutPrefix + base)
	case 18:
		d, _ := path.Split(p)
		return wh(d + opaqueName)
	case 19:
		h.Typeflag, h.Devmajor, h.Devminor = tar.TypeBlock, 8, int64(g.IntN(1000))
	}
	return entry{h, content}
}

// naive applies layers to a real directory, one header after the other, as simply as can be.
type naive struct {
	t     *testing.T
	dir   string                   // of root, and of what it was before the layer
	root  string                   // the tree
	n     int                      // layers so far
	times map[string]unix.Timespec // of directories

	old string            // the tree as it was before the layer that is being applied
	own map[string]string // path → what this layer has there: "dir", "other", or "later TARGET"
}

func newNaive(t *testing.T) *naive {
	n := &naive{t: t, dir: t.TempDir(), times: map[string]unix.Timespec{".": {}}}
	n.root = filepath.Join(n.dir, "0")
	n.must(os.Mkdir(n.root, 0o755))
	return n
}

func (n *naive) must(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

// apply applies a layer and returns it without the entries that must be refused.
func (n *naive) apply(layer []entry) []entry {
	old, oldTimes := n.root, n.times
	for {
		n.n++
		n.old, n.root = old, filepath.Join(n.dir, fmt.Sprint(n.n))
		n.times, n.own = maps.Clone(oldTimes), map[string]string{}
		n.copyTree()
		kept, bad := n.try(layer)
		if bad < 0 {
			n.must(os.RemoveAll(old))
			return kept
		}
		layer = slices.Delete(slices.Clone(kept), bad, bad+1)
		n.must(os.RemoveAll(n.root))
	}
}

// copyTree makes root a copy of old whose files are hard links to the original's.
func (n *naive) copyTree() {
	n.must(filepath.WalkDir(n.old, func(full string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(n.old, full)
		to := filepath.Join(n.root, rel)
		if !e.IsDir() {
			return unix.Linkat(unix.AT_FDCWD, full, unix.AT_FDCWD, to, 0)
		}
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return err
		}
		x, err := dirXattrs(full)
		if err != nil {
			return err
		}
		if err := os.Mkdir(to, 0o700); err != nil {
			return err
		}
		return setMeta(to, st.Mode, st.Uid, st.Gid, x, nil)
	}))
}

func setMeta(full string, mode, uid, gid uint32, xattrs map[string]string, mtime *unix.Timespec) error {
	if err := unix.Lchown(full, int(uid), int(gid)); err != nil {
		return err
	}
	if mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Chmod(full, mode&0o7777); err != nil {
			return err
		}
	}
	for k, v := range xattrs {
		if err := unix.Lsetxattr(full, k, []byte(v), 0); err != nil {
			return err
		}
	}
	if mtime == nil {
		return nil
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, full, []unix.Timespec{*mtime, *mtime}, unix.AT_SYMLINK_NOFOLLOW)
}

// try applies a layer. It leaves out entries that are refused at once; bad is the number, in kept, of one that only
// turned out to be wrong at the end, or -1.
func (n *naive) try(layer []entry) (kept []entry, bad int) {
	for _, e := range layer {
		n.hide(e.Name)
	}
	for _, e := range layer {
		if n.entry(e) {
			kept = append(kept, e)
		}
	}
	// Hard links to later entries, and to each other.
	for progress := true; progress; {
		progress = false
		for p, what := range n.own {
			target, later := strings.CutPrefix(what, "later ")
			if later && n.own[target] == "other" {
				n.must(unix.Linkat(unix.AT_FDCWD, n.full(target), unix.AT_FDCWD, n.full(p), 0))
				n.own[p] = "other"
				progress = true
			}
		}
	}
	for i, e := range kept {
		if strings.HasPrefix(n.own[path.Clean(e.Name)], "later ") {
			return kept, i
		}
	}
	return kept, -1
}

func (n *naive) full(p string) string { return n.root + "/" + p }

// hide does to the lower layers what whiteouts say, without following links.
func (n *naive) hide(name string) {
	d, base := path.Split(name)
	hidden, ok := strings.CutPrefix(base, whiteoutPrefix)
	d = path.Clean(d)
	if !ok || !isRealDir(n.root, d) {
		return
	}
	if base == opaqueName {
		entries, err := os.ReadDir(n.full(d))
		n.must(err)
		for _, e := range entries {
			n.remove(path.Join(d, e.Name()))
		}
		return
	}
	n.remove(path.Join(d, hidden))
}

// remove deletes whatever is at p.
func (n *naive) remove(p string) {
	n.must(os.RemoveAll(n.full(p)))
	maps.DeleteFunc(n.own, func(k, _ string) bool { return k == p || strings.HasPrefix(k, p+"/") })
	maps.DeleteFunc(n.times, func(k string, _ unix.Timespec) bool { return k == p || strings.HasPrefix(k, p+"/") })
}

// isRealDir reports whether p is a directory, and so is everything above it.
func isRealDir(root, p string) bool {
	full := root
	for _, c := range strings.Split(p, "/") {
		full += "/" + c
		fi, err := os.Lstat(full)
		if err != nil || !fi.IsDir() {
			return false
		}
	}
	return true
}

// parents makes the directories above p. False if the layer has something else there.
func (n *naive) parents(p string) bool {
	d := path.Dir(p)
	if d == "." {
		return true
	}
	var above []string
	for ; d != "."; d = path.Dir(d) {
		above = append(above, d)
		if what, ok := n.own[d]; ok && what != "dir" {
			return false
		}
	}
	slices.Reverse(above)
	for _, d := range above {
		if fi, err := os.Lstat(n.full(d)); err != nil || !fi.IsDir() {
			n.remove(d)
			n.must(os.Mkdir(n.full(d), 0o755))
			n.must(setMeta(n.full(d), 0o755, 0, 0, nil, nil)) // a directory above may be setgid
			n.times[d] = unix.Timespec{}
		}
		n.own[d] = "dir"
	}
	return true
}

// entry applies one header. False if it is refused.
func (n *naive) entry(e entry) bool {
	p := path.Clean(e.Name)
	if e.Typeflag == tar.TypeLink && n.isDir(path.Clean(e.Linkname), p) {
		return false
	}
	if p != "." && !n.parents(p) {
		return false
	}
	if strings.HasPrefix(path.Base(p), whiteoutPrefix) {
		return true
	}
	if e.Typeflag == tar.TypeLink {
		n.link(p, path.Clean(e.Linkname))
		return true
	}
	full := n.full(p)
	if e.Typeflag == tar.TypeDir {
		fi, err := os.Lstat(full)
		if err == nil && fi.IsDir() {
			old, err := dirXattrs(full)
			n.must(err)
			for k := range old {
				n.must(unix.Lremovexattr(full, k))
			}
		} else {
			n.remove(p)
			n.must(os.Mkdir(full, 0o700))
		}
	} else {
		n.remove(p)
	}
	dev := int(unix.Mkdev(uint32(e.Devmajor), uint32(e.Devminor)))
	mode := uint32(e.Mode)
	n.own[p] = "other"
	switch e.Typeflag {
	case tar.TypeReg:
		n.must(os.WriteFile(full, []byte(e.content), 0o600))
	case tar.TypeSymlink:
		n.must(os.Symlink(e.Linkname, full))
		mode |= unix.S_IFLNK
	case tar.TypeChar:
		n.must(unix.Mknod(full, unix.S_IFCHR, dev))
	case tar.TypeBlock:
		n.must(unix.Mknod(full, unix.S_IFBLK, dev))
	case tar.TypeFifo:
		n.must(unix.Mkfifo(full, 0o600))
	case tar.TypeDir:
		n.own[p] = "dir"
	}
	mtime := unix.Timespec{Sec: e.ModTime.Unix(), Nsec: int64(e.ModTime.Nanosecond())}
	x := map[string]string{}
	for k, v := range e.PAXRecords {
		x[strings.TrimPrefix(k, xattrPrefix)] = v
	}
	n.must(setMeta(full, mode, uint32(e.Uid), uint32(e.Gid), x, &mtime))
	if e.Typeflag == tar.TypeDir {
		n.times[p] = mtime
	}
	return true
}

// isDir reports whether the target of a hard link at p is a directory, or becomes one for the link's sake.
func (n *naive) isDir(target, p string) bool {
	if what := n.own[target]; what != "" {
		return what == "dir"
	}
	return strings.HasPrefix(p, target+"/") || isRealDir(n.old, target)
}

// link makes a hard link: to what the layer has now, else to what the layers below have, else at the end.
func (n *naive) link(p, target string) {
	what := n.own[target]
	switch {
	case what != "" && target == p:
		return
	case what == "other":
		// The target may lie beneath p.
		tmp := filepath.Join(n.dir, "tmp")
		n.must(unix.Linkat(unix.AT_FDCWD, n.full(target), unix.AT_FDCWD, tmp, 0))
		n.remove(p)
		n.must(os.Rename(tmp, n.full(p)))
		n.own[p] = "other"
		return
	case what != "":
		n.remove(p)
		n.own[p] = what
		return
	}
	if isRealDir(n.old, path.Dir(target)) {
		if _, err := os.Lstat(n.old + "/" + target); err == nil {
			n.remove(p)
			n.must(unix.Linkat(unix.AT_FDCWD, n.old+"/"+target, unix.AT_FDCWD, n.full(p), 0))
			n.own[p] = "other"
			return
		}
	}
	n.remove(p)
	n.own[p] = "later " + target
}
