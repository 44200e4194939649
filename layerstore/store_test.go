package layerstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// checkEmpty fails the test if anything is in the store.
func checkEmpty(t *testing.T, s *Store) {
	t.Helper()
	for _, d := range []string{layersDir, imagesDir, refsDir, mergedDir, stagingDir, downloadsDir} {
		entries, err := os.ReadDir(s.path(d))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			t.Errorf("%s/%s was left in the store", d, e.Name())
		}
	}
}

// checkPruned fails the test if anything is in the store but what an interrupted pull may leave for the next one.
func checkPruned(t *testing.T, s *Store) {
	t.Helper()
	if _, err := s.Prune(PruneOptions{}); err != nil {
		t.Error(err)
	}
	checkEmpty(t, s)
}

func TestNames(t *testing.T) {
	s := openStore(t)
	id := importBytes(t, s, "foo", tarOf(t, reg("a", "1"))).ID()
	other := importBytes(t, s, "bar:2", tarOf(t, reg("a", "2"))).ID()
	for _, n := range []string{"debian:12", "team/app", "registry.example:5000/x/y:tag", strings.Repeat("long/", 45) + "name:" + strings.Repeat("t", 100)} {
		if err := s.Tag("foo", n); err != nil {
			t.Fatal(err)
		}
		if i, err := s.Image(n); err != nil || i.ID() != id {
			t.Errorf("Image(%s): %v", n, err)
		}
	}
	list, err := s.Images()
	if err != nil || len(list) != 2 {
		t.Fatal(list, err)
	}
	var names []string
	for _, i := range list {
		if i.ID == id {
			names = i.Names
		}
	}
	want := []string{"debian:12", "foo:latest", strings.Repeat("long/", 45) + "name:" + strings.Repeat("t", 100), "registry.example:5000/x/y:tag", "team/app:latest"}
	if !slices.Equal(names, want) {
		t.Errorf("names %q, expected %q", names, want)
	}
	for _, n := range []string{"docker.io/library/debian:12", "index.docker.io/library/foo", "docker.io/team/app:latest"} {
		if i, err := s.Image(n); err != nil || i.ID() != id {
			t.Errorf("Image(%s): %v", n, err)
		}
	}
	for n, is := range map[string]error{"host": ErrReserved, "host:1": ErrReserved, "docker.io/library/host": ErrReserved, "foo:2": ErrNotFound, "abcdefabcdef": ErrNotFound} {
		if _, err := s.Image(n); !errors.Is(err, is) {
			t.Errorf("Image(%s): %v", n, err)
		}
	}
	if err := s.Tag("foo", "host"); !errors.Is(err, ErrReserved) {
		t.Errorf("tagging as host: %v", err)
	}
	if _, err := s.Image("sha256:"); err == nil {
		t.Error("an empty ID is found")
	}
	if _, err := s.Remove(string(id)); err == nil || !strings.Contains(err.Error(), "5 names") {
		t.Errorf("removing an image of many names by ID: %v", err)
	}
	if r, err := s.Remove("debian:12"); err != nil || r.Deleted != "" || !slices.Equal(r.Untagged, []string{"debian:12"}) {
		t.Errorf("removing one name: %+v, %v", r, err)
	}
	if i, err := s.Image(id.Encoded()[:20]); err != nil || i.ID() != id {
		t.Errorf("by the start of the ID: %v", err)
	}
	// A name given to another image is taken from the first.
	if err := s.Tag(string(other), "foo"); err != nil {
		t.Fatal(err)
	}
	if i, err := s.Image("foo"); err != nil || i.ID() != other {
		t.Errorf("a name that was moved: %v", err)
	}
}

func TestSharedLayersStay(t *testing.T) {
	s := openStore(t)
	base, top := tarOf(t, reg("a", "1")), tarOf(t, reg("b", "2"))
	one, err := addStack(s, "one", base)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := addStack(s, "two", base, top); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Remove("two"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(s.layerPath(digest.FromBytes(top))); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the layer of the removed image: %v", err)
	}
	if d := diffSnapshots(imageSnapshot(t, one), stacked(t, [][]byte{base})); d != "" {
		t.Error(d)
	}
	if _, err := s.Remove("one"); err != nil {
		t.Fatal(err)
	}
	checkEmpty(t, s)
	if _, err := one.Acquire(); !errors.Is(err, ErrNotFound) {
		t.Errorf("using an image that was removed: %v", err)
	}
}

// TestBranchKeepsImage removes an image while a branch of it is open.
func TestBranchKeepsImage(t *testing.T) {
	s := openStore(t)
	i := importBytes(t, s, "foo", tarOf(t, reg("a", "1")))
	b, err := i.Branch()
	if err != nil {
		t.Fatal(err)
	}
	if r, err := s.Remove("foo"); err != nil || !r.InUse {
		t.Errorf("Remove: %+v, %v", r, err)
	}
	if got, err := brief(b); err != nil || got != "a=1" {
		t.Errorf("the branch has %q, %v", got, err)
	}
	// Opening the store elsewhere changes nothing as long as it is used.
	if _, err := Open(s.Root()); err != nil {
		t.Error(err)
	}
	if got, err := brief(b); err != nil || got != "a=1" {
		t.Errorf("the branch has %q, %v", got, err)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if _, err := Open(s.Root()); err != nil {
		t.Error(err)
	}
	checkEmpty(t, s)
}

// TestOpenBranch opens images by their IDs, without the rest of the store.
func TestOpenBranch(t *testing.T) {
	s := openStore(t)
	i := importBytes(t, s, "foo", tarOf(t, reg("a", "1")))
	b, err := OpenBranch(s.Root(), i.ID())
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if r, err := s.Remove("foo"); err != nil || !r.InUse {
		t.Errorf("the image is removed while the branch is open: %+v, %v", r, err)
	}
	if got, err := brief(b); err != nil || got != "a=1" {
		t.Errorf("the branch has %q, %v", got, err)
	}
	if _, err := OpenBranch(s.Root(), digest.FromString("another")); !errors.Is(err, ErrNotFound) {
		t.Errorf("an image that there is not: %v", err)
	}
	if _, err := OpenBranch(s.Root(), "sha256:../../etc/passwd"); err == nil || errors.Is(err, ErrNotFound) {
		t.Errorf("what is no ID: %v", err)
	}
	if err := os.WriteFile(s.path(imagesDir, i.ID().Encoded()), []byte(`{"version":1,"config":"e30=","layers":[]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenBranch(s.Root(), i.ID()); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("a file of another image: %v", err)
	}
}

// TestNamedAgainWhileInUse removes an image that is in use and gives it a name again: then it stays.
func TestNamedAgainWhileInUse(t *testing.T) {
	for _, how := range []string{"tag", "import"} {
		t.Run(how, func(t *testing.T) {
			s := openStore(t)
			b := tarOf(t, reg("a", "1"))
			o := ImportOptions{Created: time.Unix(1, 0)}
			i, err := s.Import(context.Background(), bytes.NewReader(b), "foo", o)
			if err != nil {
				t.Fatal(err)
			}
			release, err := i.Acquire()
			if err != nil {
				t.Fatal(err)
			}
			if r, err := s.Remove("foo"); err != nil || !r.InUse {
				t.Fatalf("Remove: %+v, %v", r, err)
			}
			if how == "tag" {
				err = s.Tag(string(i.ID()), "bar")
			} else {
				_, err = s.Import(context.Background(), bytes.NewReader(b), "bar", o)
			}
			if err != nil {
				t.Fatal(err)
			}
			release()
			if _, err := Open(s.Root()); err != nil {
				t.Fatal(err)
			}
			if found, err := s.Image("bar"); err != nil || found.ID() != i.ID() {
				t.Errorf("Image: %v", err)
			}
		})
	}
}

// TestDamage breaks the files of a store one by one.
func TestDamage(t *testing.T) {
	tars := [][]byte{tarOf(t, reg("a", "1"), reg("b", strings.Repeat("x", 5000))), tarOf(t, wh(".wh.a"), reg("c", "2"))}
	const want = "c=2"
	flip := func(at int) func(b []byte) []byte { return func(b []byte) []byte { b[at] ^= 1; return b } }
	cut := func(b []byte) []byte { return b[:len(b)/2] }
	layer := filepath.Join(layersDir, digest.FromBytes(tars[1]).Encoded())
	merged := filepath.Join(mergedDir, chainID([]digest.Digest{digest.FromBytes(tars[0]), digest.FromBytes(tars[1])}).Encoded())
	newer := func(b []byte) []byte { b[8]++; return b }
	gone := func([]byte) []byte { return nil }
	cases := []struct {
		name   string
		breaks map[string]func([]byte) []byte
		fails  string
	}{
		{"merged index gone", map[string]func([]byte) []byte{merged: gone}, ""},
		{"merged index cut", map[string]func([]byte) []byte{merged: cut}, ""},
		{"merged index with a wrong header", map[string]func([]byte) []byte{merged: flip(40)}, ""},
		{"merged index of another version", map[string]func([]byte) []byte{merged: newer}, ""},
		{"both indexes gone", map[string]func([]byte) []byte{merged: gone, layer + "/index": gone}, ""},
		{"both indexes wrong", map[string]func([]byte) []byte{merged: gone, layer + "/index": flip(headerSize + 90)}, ""},
		{"layer's index of another version", map[string]func([]byte) []byte{merged: gone, layer + "/index": newer}, ""},
		{"all wrong", map[string]func([]byte) []byte{merged: gone, layer + "/index": gone, layer + "/layer.tar": flip(1024)}, "tar is damaged"},
		{"all gone", map[string]func([]byte) []byte{merged: gone, layer + "/index": gone, layer + "/layer.tar": gone}, "no such file"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			i, err := addStack(s, "damaged", tars...)
			if err != nil {
				t.Fatal(err)
			}
			for name, f := range c.breaks {
				b, err := os.ReadFile(s.path(name))
				if err != nil {
					t.Fatal(err)
				}
				if b = f(b); b == nil {
					err = os.Remove(s.path(name))
				} else {
					err = os.WriteFile(s.path(name), b, 0o600)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			b, err := i.Branch()
			if c.fails != "" {
				if err == nil || !strings.Contains(err.Error(), c.fails) {
					t.Errorf("error is %v, expected one with %q", err, c.fails)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			got, err := brief(b)
			if err != nil || !strings.HasSuffix(got, want) || strings.Contains(got, "a=") {
				t.Errorf("the branch has %q, %v", got, err)
			}
		})
	}
}

// TestLayerWithoutTar imports a layer again whose tar someone deleted.
func TestLayerWithoutTar(t *testing.T) {
	s := openStore(t)
	b := tarOf(t, reg("a", "1"))
	importBytes(t, s, "foo", b)
	if err := os.Remove(s.layerPath(digest.FromBytes(b), tarName)); err != nil {
		t.Fatal(err)
	}
	if list, err := s.Images(); err == nil || len(list) != 0 {
		t.Errorf("an image without its layer is listed: %v, %v", list, err)
	}
	if d := diffSnapshots(imageSnapshot(t, importBytes(t, s, "foo", b)), stacked(t, [][]byte{b})); d != "" {
		t.Error(d)
	}
}

// TestShortTar reads a file whose tar lost its end.
func TestShortTar(t *testing.T) {
	s := openStore(t)
	b := tarOf(t, reg("a", "1"), reg("b", strings.Repeat("x", 5000)))
	i := importBytes(t, s, "short", b)
	if err := os.Truncate(s.layerPath(digest.FromBytes(b), tarName), 2048); err != nil {
		t.Fatal(err)
	}
	branch, err := i.Branch()
	if err != nil {
		t.Fatal(err)
	}
	defer branch.Close()
	root, err := branch.Root()
	if err != nil {
		t.Fatal(err)
	}
	e, err := root.Lookup("b")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := root.Open(e); !errors.Is(err, unix.EIO) {
		t.Errorf("opening what isn't there: %v", err)
	}
}

// TestManyLayers opens files of more layers than a branch may have descriptors.
func TestManyLayers(t *testing.T) {
	const layers = 200
	var tars [][]byte
	for n := range layers {
		tars = append(tars, tarOf(t, reg(string(rune('A'+n)), strings.Repeat("x", n))))
	}
	i, err := addStack(openStore(t), "many", tars...)
	if err != nil {
		t.Fatal(err)
	}
	b, err := i.Branch()
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	root, err := b.Root()
	if err != nil {
		t.Fatal(err)
	}
	before := descriptors(t)
	var held []*cow.Data
	for round := range 2 {
		for n := range layers {
			e, err := root.Lookup(string(rune('A' + n)))
			if err != nil {
				t.Fatal(err)
			}
			data, err := root.Open(e)
			if err != nil || data.Size != int64(n) {
				t.Fatalf("layer %d: %v", n, err)
			}
			if round == 0 {
				data.Release()
			} else {
				held = append(held, data) // nothing may be closed under the reader
			}
		}
		if round == 0 {
			if n := descriptors(t) - before; n > maxTars {
				t.Errorf("%d descriptors are open, expected at most %d", n, maxTars)
			}
		}
	}
	for n, data := range held {
		buf := make([]byte, n)
		if _, err := unix.Pread(data.FD, buf, data.Off); err != nil || strings.Trim(string(buf), "x") != "" {
			t.Errorf("layer %d: %q, %v", n, buf, err)
		}
		data.Release()
	}
	if n := descriptors(t) - before; n > maxTars {
		t.Errorf("%d descriptors are open after all is released, expected at most %d", n, maxTars)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// TestDiskFull pulls and imports onto a file system that is too small.
func TestDiskFull(t *testing.T) {
	host := testRegistry(t, nil)
	tars := [][]byte{tarOf(t, reg("a", strings.Repeat("small", 1000))), tarOf(t, reg("big", strings.Repeat("0123456789abcdef", 1<<18)))}
	makeImage(t, tars).push(t, host+"/big:1")
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=2m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(mnt, 0); err != nil {
			t.Error(err)
			unix.Unmount(mnt, unix.MNT_DETACH)
		}
	})
	s, err := Open(filepath.Join(mnt, "store"))
	if err != nil {
		t.Fatal(err)
	}
	_, pullErr := s.Pull(context.Background(), host+"/big:1", PullOptions{})
	_, importErr := s.Import(context.Background(), bytes.NewReader(tars[1]), "big", ImportOptions{})
	for _, err := range []error{pullErr, importErr} {
		if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "--root") || strings.Contains(err.Error(), "\n") {
			t.Errorf("error is %v", err)
		}
	}
	checkEmpty(t, s)
	importBytes(t, s, "small", tars[0])
}
