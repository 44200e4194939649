package layerstore

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// disorder is what many processes do to a store at once, while they are killed or the disk is full.
type disorder struct {
	host    string                     // of a registry
	refs    []string                   // images there
	archive string                     // a docker-archive of another image, "loaded:1"
	tar     string                     // a file to import
	layer   string                     // a file to commit
	want    map[digest.Digest]snapshot // of every image that may come of it, by chain ID
}

func newDisorder(t *testing.T) *disorder {
	t.Helper()
	d := &disorder{host: testRegistry(t, nil), want: map[digest.Digest]snapshot{}}
	dir := t.TempDir()
	base := tarOf(t, folder("etc", 0o755), reg("etc/passwd", "root"), reg("big", strings.Repeat("0123456789abcdef", 5_000)), reg("gone", "x"))
	second := tarOf(t, wh(".wh.gone"), link("etc/passwd-", "etc/passwd"), symlink("l", "etc"))
	stacks := [][][]byte{
		{base, second, tarOf(t, reg("third", "1"))},
		{base, second, tarOf(t, wh("etc/.wh..wh..opq"), reg("etc/new", "2"))},
		{base, tarOf(t, reg("other", strings.Repeat("fedcba9876543210", 2_000)))},
	}
	top := tarOf(t, reg("committed", "3"), wh(".wh.big"))
	imported := tarOf(t, reg("imported", strings.Repeat("x", 30_000)))
	expect := func(tars ...[]byte) {
		var ids []digest.Digest
		for _, b := range tars {
			ids = append(ids, digest.FromBytes(b))
		}
		d.want[chainID(ids)] = stacked(t, tars)
	}
	for n, tars := range stacks {
		d.refs = append(d.refs, fmt.Sprintf("%s/disorder:%d", d.host, n))
		makeImage(t, tars, compressions()[n%3]).push(t, d.refs[n])
		expect(tars...)
		expect(append(tars[:len(tars):len(tars)], top)...)
	}
	expect(imported)
	loaded := [][]byte{base, tarOf(t, reg("loaded", "4"))}
	expect(loaded...)
	elsewhere := openStore(t)
	if _, err := addStack(elsewhere, "loaded:1", loaded...); err != nil {
		t.Fatal(err)
	}
	d.archive, _ = saved(t, elsewhere, SaveDocker, "loaded:1")
	d.tar, d.layer = filepath.Join(dir, "imported.tar"), filepath.Join(dir, "layer.tar")
	for file, b := range map[string][]byte{d.tar: imported, d.layer: top} {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return d
}

// names are those that images may get.
func (d *disorder) names() []string {
	return append([]string{"loaded:1", "imported", "committed", "tagged:0", "tagged:1"}, d.refs...)
}

// next chooses what to do.
func (d *disorder) next(random *rand.Rand) (verb, ref string) {
	names := d.names()
	name := func() string { return names[random.IntN(len(names))] }
	pulled := d.refs[random.IntN(len(d.refs))]
	// What makes images comes more often than what takes them away.
	switch random.IntN(16) {
	case 0, 1, 2, 3, 4:
		return "pull", pulled
	case 5, 6:
		return "load", d.archive
	case 7:
		return "import", d.tar
	case 8, 9, 10:
		return "commit", pulled + "," + d.layer
	case 11:
		return "tag", name() + ",tagged:" + strconv.Itoa(random.IntN(2))
	case 12:
		return "push", name() + "," + d.host + "/pushed:" + strconv.Itoa(random.IntN(100))
	case 13, 14:
		return "remove", name()
	}
	return "prune", "-"
}

// check opens the store as the next command does, and reads every image that is there.
func (d *disorder) check(root string) error {
	s, err := Open(root)
	if err != nil {
		return err
	}
	list, err := s.Images()
	if err != nil {
		return err
	}
	for _, info := range list {
		if err := d.checkImage(s, info.ID); err != nil && !errors.Is(err, ErrNotFound) { // another process may have removed it
			return fmt.Errorf("image %s, named %q: %w", info.ID, info.Names, err)
		}
	}
	return nil
}

func (d *disorder) checkImage(s *Store, id digest.Digest) error {
	i, err := s.Image(string(id))
	if err != nil {
		return err
	}
	b, err := i.Branch()
	if err != nil {
		return err
	}
	defer b.Close()
	got, err := snapshotBranch(b)
	if err != nil {
		return err
	}
	want, ok := d.want[i.ChainID()]
	if !ok {
		return fmt.Errorf("nobody made it: its layers are %v", i.Config().RootFS.DiffIDs)
	}
	if diff := diffSnapshots(got, want); diff != "" {
		return errors.New(diff)
	}
	return nil
}

// end checks what is left when all are done, and that it can be removed.
func (d *disorder) end(t *testing.T, root string) {
	t.Helper()
	if err := d.check(root); err != nil {
		t.Error(err)
	}
	s, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	if v, err := s.Verify(t.Context(), VerifyOptions{}); err != nil || len(v.Faults) > 0 {
		t.Errorf("verify: %+v, %v", v, err)
	}
	if staged, _ := os.ReadDir(s.path(stagingDir)); len(staged) > 0 {
		t.Errorf("%d directories are left in staging", len(staged))
	}
	// One more pull of everything, which takes over what others left.
	for _, ref := range d.refs {
		if err := d.checkImage(s, mustPull(t, s, ref, PullOptions{}).ID()); err != nil {
			t.Errorf("%s: %v", ref, err)
		}
	}
	list, err := s.Images()
	if err != nil {
		t.Fatal(err)
	}
	for _, info := range list {
		for _, name := range info.Names {
			if _, err := s.Remove(name); err != nil {
				t.Error(err)
			}
		}
	}
	checkPruned(t, s)
}

// killCount is how many processes TestKilledAnywhere kills: UNIONFS_TEST_KILLS, or as many as take some twenty seconds.
func killCount(t *testing.T) int64 {
	text := os.Getenv("UNIONFS_TEST_KILLS")
	if text == "" {
		return 200
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("UNIONFS_TEST_KILLS: %v", err)
	}
	return n
}

// TestKilledAnywhere lets processes pull, load, import, commit, tag, push, remove and prune in one store, several at once, and
// kills each at a random instant. After each, another one finds every image whole.
func TestKilledAnywhere(t *testing.T) {
	const atOnce = 4
	d := newDisorder(t)
	root := openStore(t).Root()
	left := atomic.Int64{}
	left.Store(killCount(t))
	var mu sync.Mutex
	took := map[string]time.Duration{} // the mean of each verb
	shortest := time.Second            // of all: much of it is the start of the process
	killed, ended := map[string]int{}, map[string]int{}
	var all sync.WaitGroup
	for worker := range atOnce {
		random := rand.New(rand.NewPCG(7, uint64(worker)))
		all.Go(func() {
			for left.Load() > 0 && !t.Failed() {
				verb, ref := d.next(random)
				mu.Lock()
				delay := time.Hour // the first of each verb shows how long it takes
				if mean, ok := took[verb]; ok {
					delay = shortest/2 + time.Duration(random.Int64N(int64(mean)))
				}
				mu.Unlock()
				cmd, output := startChild(t, "", &Store{root: root}, ref)
				cmd.Env = append(cmd.Env, childVar+"="+strings.Join([]string{verb, root, ref}, " "))
				start := time.Now()
				if err := cmd.Start(); err != nil {
					t.Error(err)
					return
				}
				kill := time.AfterFunc(delay, func() { cmd.Process.Kill() })
				err := cmd.Wait()
				kill.Stop()
				mu.Lock()
				if cmd.ProcessState.Sys().(interface{ Signaled() bool }).Signaled() {
					left.Add(-1)
					killed[verb]++
				} else {
					ended[verb]++
					now := min(time.Since(start), time.Second)
					if before, ok := took[verb]; ok {
						now = (3*before + now) / 4
					}
					took[verb] = now
					shortest = min(shortest, now)
				}
				mu.Unlock()
				if said := output.String(); said != "" && !strings.Contains(said, ErrNotFound.Error()) {
					t.Errorf("%s %s: %v: %s", verb, ref, err, said)
				}
				if err := d.check(root); err != nil {
					t.Errorf("after %s %s: %v", verb, ref, err)
				}
			}
		})
	}
	all.Wait()
	t.Logf("killed %v, came to their end %v, which took them %v", killed, ended, took)
	for _, verb := range []string{"pull", "load", "import", "commit", "tag", "push", "remove", "prune"} {
		if killed[verb] == 0 && killCount(t) >= 200 {
			t.Errorf("no %s was killed", verb)
		}
	}
	d.end(t, root)
}

// TestDiskFullAnywhere lets the same be done while the disk has room for some of it only, or for some files only.
func TestDiskFullAnywhere(t *testing.T) {
	const rounds, atOnce = 60, 3
	d := newDisorder(t)
	disk := t.TempDir()
	if err := unix.Mount("tmpfs", disk, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modeltest.Unmount(t, disk) })
	limit := func(options string) {
		if err := unix.Mount("tmpfs", disk, "tmpfs", unix.MS_REMOUNT, options); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(disk, "store")
	if _, err := Open(root); err != nil {
		t.Fatal(err)
	}
	var full, done atomic.Int32
	random := rand.New(rand.NewPCG(8, 9))
	for range rounds {
		if random.IntN(3) > 0 { // else what is there leaves little to write
			limit("size=100m,nr_inodes=100000")
			s, err := Open(root)
			if err != nil {
				t.Fatal(err)
			}
			for _, name := range d.names() {
				if _, err := s.Remove(name); err != nil && !errors.Is(err, ErrNotFound) {
					t.Fatal(err)
				}
			}
		}
		var st unix.Statfs_t
		if err := unix.Statfs(disk, &st); err != nil {
			t.Fatal(err)
		}
		room, files := st.Blocks-st.Bfree+uint64(random.Int64N(150)), uint64(1<<20)
		if random.IntN(3) == 0 {
			room, files = 1<<20, st.Files-st.Ffree+1+uint64(random.Int64N(40))
		}
		limit(fmt.Sprintf("size=%d,nr_inodes=%d", room*uint64(st.Bsize), files))
		var all sync.WaitGroup
		for range atOnce {
			verb, ref := d.next(random)
			all.Go(func() {
				s, err := Open(root)
				if err == nil {
					err = act(s, verb, ref)
				}
				switch {
				case errors.Is(err, unix.ENOSPC):
					full.Add(1)
				case err == nil:
					done.Add(1)
				case !errors.Is(err, ErrNotFound):
					t.Errorf("%s %s: %v", verb, ref, err)
				}
			})
		}
		all.Wait()
		if err := d.check(root); err != nil {
			t.Fatalf("with %d blocks and %d files: %v", room, files, err)
		}
	}
	t.Logf("%d times the disk was full, %d times it was not", full.Load(), done.Load())
	if full.Load() < 5 || done.Load() < 5 {
		t.Errorf("%d times the disk was full, %d times it was not", full.Load(), done.Load())
	}
	limit("size=100m,nr_inodes=100000")
	d.end(t, root)
}
