package layerstore

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
)

// duBytes is what du(1) says about the directories of a store.
func duBytes(t *testing.T, s *Store) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "-B1", s.Root()).Output()
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func mustUsage(t *testing.T, s *Store, active ...digest.Digest) *Usage {
	t.Helper()
	u, err := s.Usage(active)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// TestPruneAndUsage moves names away from images and prunes, and compares what the store says of its size with du.
func TestPruneAndUsage(t *testing.T) {
	s := openStore(t)
	tars := someTars(t)
	var images []*Image
	for _, n := range []int{2, 3, 4} {
		i, err := addStack(s, "moving", tars[:n]...)
		if err != nil {
			t.Fatal(err)
		}
		images = append(images, i)
	}
	if err := s.Tag("moving", "other/name:1"); err != nil {
		t.Fatal(err)
	}
	release, err := images[1].Acquire()
	if err != nil {
		t.Fatal(err)
	}
	defer release()

	u := mustUsage(t, s, images[2].ID())
	du := duBytes(t, s)
	if got := u.Stored + u.Unfinished; got < du*99/100 || got > du*101/100 {
		t.Errorf("usage is %d bytes, du says %d", got, du)
	}
	if u.Layers != 4 || len(u.Images) != 3 {
		t.Fatalf("usage %+v", u)
	}
	for _, i := range u.Images {
		if want := i.ID != images[0].ID(); i.Active != want {
			t.Errorf("image with %d layers: active is %v", i.Layers, i.Active)
		}
		// All layers but the topmost are in several images, the merged index never.
		if i.Shared >= i.Size || i.Shared < int64(len(tars[0])) {
			t.Errorf("image with %d layers: %d of %d bytes are shared", i.Layers, i.Shared, i.Size)
		}
	}

	dry, err := s.Prune(PruneOptions{DryRun: true})
	if err != nil || !slices.Equal(dry.Images, []digest.Digest{images[0].ID()}) || len(dry.Layers) != 0 || dry.Bytes == 0 {
		t.Errorf("dry run: %+v, %v", dry, err)
	}
	if kept, err := s.Prune(PruneOptions{Keep: []digest.Digest{images[0].ID()}}); err != nil || len(kept.Images) != 0 || kept.Bytes != 0 {
		t.Errorf("pruning with a container: %+v, %v", kept, err)
	}
	if again := mustUsage(t, s, images[2].ID()); again.Stored != u.Stored {
		t.Errorf("a dry run changed the usage from %d to %d", u.Stored, again.Stored)
	}
	real, err := s.Prune(PruneOptions{})
	if err != nil || !slices.Equal(real.Images, dry.Images) || real.Bytes != dry.Bytes {
		t.Errorf("prune: %+v, %v; the dry run said %+v", real, err, dry)
	}
	release()
	real, err = s.Prune(PruneOptions{})
	if err != nil || !slices.Equal(real.Images, []digest.Digest{images[1].ID()}) {
		t.Errorf("prune after release: %+v, %v", real, err)
	}

	// With names, where nothing was made from them.
	if named, err := s.Prune(PruneOptions{All: true, Keep: []digest.Digest{images[2].ID()}}); err != nil || len(named.Images) != 0 || len(named.Names) != 0 {
		t.Errorf("pruning all with a container: %+v, %v", named, err)
	}
	all, err := s.Prune(PruneOptions{All: true, DryRun: true})
	if err != nil || !slices.Equal(all.Images, []digest.Digest{images[2].ID()}) || len(all.Names) != 2 || len(all.Layers) == 0 {
		t.Errorf("a dry run of all: %+v, %v", all, err)
	}

	// What a dead command left behind and what one that lives is writing.
	a, err := s.newAttempt(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	if err := a.write("part", make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	if u := mustUsage(t, s); u.Unfinished < 1<<20 {
		t.Errorf("%d bytes are unfinished", u.Unfinished)
	}
	if gone, err := s.Prune(PruneOptions{All: true}); err != nil || !slices.Equal(gone.Images, all.Images) || !slices.Equal(gone.Names, all.Names) {
		t.Errorf("pruning all: %+v, %v; the dry run said %+v", gone, err, all)
	}
	if u := mustUsage(t, s); len(u.Images) != 0 || u.Layers != 0 || u.Reclaimable != 0 {
		t.Errorf("usage of an empty store: %+v", u)
	}
}

// breakFile changes a file of the store; f returns nil for one that is to be gone.
func breakFile(t *testing.T, s *Store, file string, f func([]byte) []byte) {
	t.Helper()
	b, err := os.ReadFile(s.path(file))
	if err != nil {
		t.Fatal(err)
	}
	if b = f(b); b == nil {
		err = os.Remove(s.path(file))
	} else {
		err = os.WriteFile(s.path(file), b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestVerify breaks every kind of file, and looks what is found and what is repaired.
func TestVerify(t *testing.T) {
	host := testRegistry(t, nil)
	ref := host + "/team/app:1"
	tars := someTars(t)
	makeImage(t, tars).push(t, ref)
	flip := func(at int) func(b []byte) []byte {
		return func(b []byte) []byte { b[(at+len(b))%len(b)] ^= 1; return b }
	}
	gone := func([]byte) []byte { return nil }
	diffID := digest.FromBytes(tars[0])
	layer := filepath.Join(layersDir, diffID.Encoded())
	var ids []digest.Digest
	for _, b := range tars {
		ids = append(ids, digest.FromBytes(b))
	}
	parsed, err := parseName(ref)
	if err != nil {
		t.Fatal(err)
	}
	cases := []struct {
		name   string
		file   string
		breaks func([]byte) []byte
		what   string // that is found; empty for nothing
		left   bool   // after a repair
	}{
		{"nothing", layer + "/" + tarName, func(b []byte) []byte { return b }, "", false},
		{"content of a layer", layer + "/" + tarName, flip(2000), "layer " + string(diffID), false},
		{"header of a layer", layer + "/" + tarName, flip(100), "layer " + string(diffID), false},
		{"half a layer", layer + "/" + tarName, func(b []byte) []byte { return b[:len(b)/2] }, "layer " + string(diffID), false},
		{"no layer", layer + "/" + tarName, gone, "layer " + string(diffID), false},
		{"index of a layer", layer + "/" + indexName, flip(-1), "index of layer " + string(diffID), false},
		{"no index of a layer", layer + "/" + indexName, gone, "index of layer " + string(diffID), false},
		{"merged index", filepath.Join(mergedDir, chainID(ids).Encoded()), flip(-1), "merged index of image", false},
		{"no merged index", filepath.Join(mergedDir, chainID(ids).Encoded()), gone, "", false},
		{"image", "", flip(30), "image ", true},
		{"name", filepath.Join(refsDir, refFile(parsed)), flip(0), "name ", false},
	}
	s := openStore(t)
	image := mustPull(t, s, ref, PullOptions{})
	want := imageSnapshot(t, image)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			if c.file == "" {
				c.file = filepath.Join(imagesDir, image.ID().Encoded())
			}
			breakFile(t, s, c.file, c.breaks)
			for _, repair := range []bool{false, true, true} {
				found, err := s.Verify(context.Background(), VerifyOptions{Repair: repair})
				if err != nil {
					t.Fatal(err)
				}
				if c.what == "" {
					if len(found.Faults) != 0 || found.Images != 1 || found.Layers != len(tars) || found.Bytes == 0 {
						t.Errorf("found %+v", found)
					}
					continue
				}
				if len(found.Faults) == 0 || !strings.HasPrefix(found.Faults[0].What, c.what) {
					t.Fatalf("with repair %v found %+v", repair, found.Faults)
				}
				if got := found.Faults[0].Repaired; got != (repair && !c.left) {
					t.Errorf("with repair %v: %+v", repair, found.Faults)
				}
				if repair && !c.left {
					c.what = "" // the third time
				}
			}
			if !c.left && c.name != "name" {
				if d := diffSnapshots(imageSnapshot(t, image), want); d != "" {
					t.Errorf("after the repair the image differs: %s", d)
				}
			}
			image = mustPull(t, s, ref, PullOptions{})
		})
	}
	// Without a registry that has it, a layer stays damaged.
	i := importBytes(t, s, "local", tarOf(t, reg("a", "1")))
	breakFile(t, s, filepath.Join(layersDir, i.Config().RootFS.DiffIDs[0].Encoded(), tarName), flip(512))
	found, err := s.Verify(context.Background(), VerifyOptions{Repair: true})
	if err != nil || len(found.Faults) != 1 || found.Faults[0].Repaired || !strings.Contains(found.Faults[0].Problem.Error(), "can't be fetched") {
		t.Errorf("damaged import: %+v, %v", found, err)
	}
	if left, err := os.ReadDir(s.path(stagingDir)); err != nil || len(left) != 0 {
		t.Errorf("left in staging: %v, %v", left, err)
	}
}

// TestVerifyFindsOtherIndex puts the sound index of another tar in the place of a layer's own.
func TestVerifyFindsOtherIndex(t *testing.T) {
	s := openStore(t)
	id := importBytes(t, s, "x", tarOf(t, reg("a", "1"))).Config().RootFS.DiffIDs[0]
	w, err := indexOf(tarOf(t, reg("b", "1")))
	if err != nil {
		t.Fatal(err)
	}
	w.layers = []digest.Digest{id}
	if err := w.write(s.layerPath(id, indexName)); err != nil {
		t.Fatal(err)
	}
	found, err := s.Verify(context.Background(), VerifyOptions{})
	if err != nil || len(found.Faults) != 1 || !strings.Contains(found.Faults[0].Problem.Error(), "not the index") {
		t.Errorf("found %+v, %v", found, err)
	}
}
