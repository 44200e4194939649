package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"
)

// DepthOptions says what [Depth] measures. Zero values mean the defaults.
type DepthOptions struct {
	Program   string        // the unionfs to measure
	Dir       string        // where branches and mounts are made, in a directory of their own; the file system is part of what is measured
	Depths    []int         // numbers of branches
	Works     []string      // of WorkNames
	ColdWorks []string      // those of Works that are measured cold; nil for all
	Against   []string      // of PeerNames
	Runs      int           // of each
	Cold      bool          // measure with caches dropped
	Warm      bool          // measure with caches filled
	Entries   int           // of the tree that is made
	Seed      uint64        // from which it is made
	Big       int64         // size in bytes of its large file
	Tree      string        // a directory to spread over the branches instead, or
	Image     string        // an image, from the store at Root
	Root      string        // unionfs --root for Image; "" for unionfs's own choice
	Branches  []string      // directories that are the branches, top first, instead
	Limit     time.Duration // for one run of one work: a peer that takes longer isn't asked again at this depth or a greater one
	Budget    time.Duration // about how long it may take in all: what would take longer is left out of further runs, see pace; 0 for as long as it takes
	Progress  *Progress

	// coldOnce are works that are measured cold at one number of branches only, besides ColdWorks.
	coldOnce []string
	fewOps   bool   // do everything a few times only: to see that it works
	label    string // Key.Bench of what is measured; "" for "depth"
}

// DefaultDepths are the numbers of branches that are measured if none are given.
func DefaultDepths() []int { return []int{1, 2, 5, 10, 20, 50, 100, 200, 500} }

// opsOf returns the numbers of operations of each work.
func opsOf(big int64, few bool) sizes {
	if few {
		return sizes{Sample: 60, Create: 20, Change: 10, Appends: 50, Write: 1 << 20, Random: 20, Big: big, Sources: 6, Tracked: 50}
	}
	return sizes{Sample: 4000, Create: 2000, Change: 1000, Appends: 20000, Write: min(big, 256<<20), Random: 4000, Big: big, Sources: 300, Tracked: 10000}
}

// Depth measures how the cost of a union grows with the number of its branches. When ctx ends, what is mounted is
// unmounted, and the report has what was measured until then, with Interrupted set.
func Depth(ctx context.Context, o DepthOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return depthInto(ctx, o, r) })
}

// measureInto lets measure fill a report, and keeps what it has when ctx ends.
func measureInto(ctx context.Context, dir string, measure func(*Report) error) (*Report, error) {
	r := &Report{Version: reportVersion, Started: time.Now().UTC(), Machine: describeMachine(dir)}
	r.preparing()
	err := measure(r)
	r.Seconds = time.Since(r.Started).Seconds()
	if len(r.Times) == 0 {
		r.Times = []PartTime{r.partTime()}
	}
	if ctx.Err() != nil {
		r.Interrupted = true
		if len(r.Measurements) > 0 {
			return r, nil
		}
		return r, context.Cause(ctx)
	}
	return r, err
}

func depthInto(ctx context.Context, o DepthOptions, r *Report) (err error) {
	if len(o.Branches) > 0 && len(o.Depths) == 0 {
		o.Depths = []int{len(o.Branches)}
	}
	slices.Sort(o.Depths)
	b := &depthBench{DepthOptions: o, report: r, over: map[string]string{}}
	if b.works, err = chooseWorks(o.Works); err != nil {
		return err
	}
	chosen, err := choosePeers(o.Against, o.Program)
	if err != nil {
		return err
	}
	b.sizes = opsOf(o.Big, o.fewOps)
	r.Sizes = b.sizes
	if b.Cold && os.Geteuid() != 0 {
		b.Cold = false
		r.Notes = append(r.Notes, "Only root can drop the kernel's caches, so nothing was measured cold.")
	}
	if !b.Cold && !b.Warm {
		return errors.New("only root can drop the kernel's caches, so there is nothing that can be measured cold; measure warm, or as root")
	}
	for _, p := range chosen {
		info := describePeer(ctx, p)
		r.Peers = append(r.Peers, info)
		if info.Missing == "" {
			b.peers = append(b.peers, p)
		}
	}
	b.scratch, err = os.MkdirTemp(o.Dir, "unionfs-bench-")
	if err != nil {
		return fmt.Errorf("making a directory for the branches: %w", err)
	}
	defer func() { err = errors.Join(err, removeScratch(b.scratch)) }()
	if b.images, err = startImageServer(b.scratch); err != nil {
		return fmt.Errorf("starting a registry on loopback: %w", err)
	}
	defer func() { err = errors.Join(err, b.images.close()) }()
	if err := b.makePlain(ctx); err != nil {
		return err
	}
	b.Progress.start(len(b.Depths) * b.Runs * len(b.peers) * b.steps())
	b.pace = newPace(r.Started, b.Budget, len(b.Depths))
	for _, depth := range b.Depths {
		b.pace.next()
		if err := b.measureDepth(ctx, depth); err != nil {
			return fmt.Errorf("at %d branches: %w", depth, err)
		}
	}
	return nil
}

func describePeer(ctx context.Context, p peer) PeerInfo {
	info := PeerInfo{Name: p.name(), Options: p.options()}
	version, err := p.version(ctx)
	if err != nil {
		info.Missing = err.Error()
	}
	info.Version = version
	return info
}

// depthBench is one invocation of Depth.
type depthBench struct {
	DepthOptions
	report    *Report
	works     []*work
	peers     []peer
	sizes     sizes
	scratch   string
	images    *imageServer
	plain     string     // the tree that is spread over the branches; "" with the user's branches
	plainTree *catalogue // what is in plain, without the large file
	big       string     // the large file, while it is not in the tree
	project   bool       // makeProject's directories are in the tree
	over      map[string]string
	nonce     int
	pace      *pace
}

// bigDepth is the number of branches at which the works on the large file and those of programs are done: one is enough, as
// the former cost the same at each, and both take long.
func (b *depthBench) bigDepth() int {
	best := b.Depths[0]
	for _, depth := range b.Depths {
		if depth <= 10 {
			best = depth
		}
	}
	return best
}

// makePlain makes the tree that is spread over the branches.
func (b *depthBench) makePlain(ctx context.Context) error {
	if len(b.Branches) > 0 {
		b.report.Tree = fmt.Sprintf("the user's own %d branches", len(b.Branches))
		return nil
	}
	b.Progress.part("making the tree", "")
	b.plain = filepath.Join(b.scratch, "plain")
	var err error
	switch {
	case b.Image != "":
		err = b.copyImage(ctx)
	case b.Tree != "":
		err = b.copyTree(ctx, b.Tree)
	default:
		if err = os.Mkdir(b.plain, 0o755); err == nil {
			err = makeTree(ctx, b.plain, treeShape{seed: b.Seed, entries: b.Entries})
		}
	}
	if err != nil {
		return fmt.Errorf("making the tree: %w", err)
	}
	if slices.ContainsFunc(b.works, func(w *work) bool { return w.needsProject }) && b.Image == "" && b.Tree == "" {
		if err := makeProject(ctx, b.plain, projectShape{b.sizes.Sources, b.sizes.Tracked}); err != nil {
			return err
		}
		b.project = true
	}
	if slices.ContainsFunc(b.works, func(w *work) bool { return w.needsBig }) && b.Big > 0 {
		b.big = filepath.Join(b.scratch, bigName)
		if err := makeBigFile(ctx, b.big, b.Big, bigContent(b.Seed)); err != nil {
			return err
		}
	}
	if b.plainTree, err = takeCatalogue(ctx, b.plain); err != nil {
		return err
	}
	tree := b.plainTree
	source := fmt.Sprintf("made from seed %d", b.Seed)
	switch {
	case b.Image != "":
		source = "of image " + b.Image
	case b.Tree != "":
		source = "of " + b.Tree
	}
	b.report.Tree = fmt.Sprintf("a tree %s: %d entries, of which %d directories and %d regular files", source, tree.entries, len(tree.dirs)-1, len(tree.files))
	return nil
}

// copyTree copies a directory, so that nothing is ever written to the user's.
func (b *depthBench) copyTree(ctx context.Context, from string) error {
	copied, err := splitTree(ctx, from, filepath.Join(b.scratch, "copy"), 1)
	if err != nil {
		return err
	}
	return os.Rename(copied.absolute()[0], b.plain)
}

// copyImage copies the tree that an image shows when it is mounted.
func (b *depthBench) copyImage(ctx context.Context) error {
	at, err := makeSite(b.scratch, "image")
	if err != nil {
		return err
	}
	args := []string{"mount", "-f", b.Image, at.target}
	if b.Root != "" {
		args = append([]string{"--root", b.Root}, args...)
	}
	m, err := startServer(ctx, b.scratch, at.target, b.Program, args...)
	if err != nil {
		return err
	}
	return errors.Join(b.copyTree(ctx, m.root), m.close())
}

// makeStack makes the branches, and the image of them.
func (b *depthBench) makeStack(ctx context.Context, depth int) (s *stack, err error) {
	b.Progress.part(fmt.Sprintf("making %d branches", depth), "")
	if len(b.Branches) > 0 {
		if depth > len(b.Branches) {
			return nil, fmt.Errorf("only %d branches were given", len(b.Branches))
		}
		s = &stack{dir: b.scratch}
		for _, branch := range b.Branches[:depth] {
			absolute, err := filepath.Abs(branch)
			if err != nil {
				return nil, err
			}
			s.lowers = append(s.lowers, absolute)
		}
	} else {
		dir := filepath.Join(b.scratch, "branches")
		if err := os.Mkdir(dir, 0o755); err != nil {
			return nil, err
		}
		if s, err = splitTree(ctx, b.plain, dir, depth); err != nil {
			return nil, err
		}
	}
	b.Progress.part(fmt.Sprintf("making an image of %d layers", depth), "")
	reference, err := b.images.publish(ctx, s, fmt.Sprintf("bench/depth-%d", depth), v1.Config{}, false)
	if err != nil {
		return nil, err
	}
	s.store = filepath.Join(b.scratch, "store")
	b.Progress.part(fmt.Sprintf("pulling the image of %d layers", depth), "")
	if err := run(ctx, b.Program, "--root", s.store, "pull", reference); err != nil {
		return nil, err
	}
	s.image = reference
	return s, b.images.forget()
}

// removeStack makes room for the next.
func (b *depthBench) removeStack(s *stack) error {
	return errors.Join(os.RemoveAll(s.store), os.RemoveAll(filepath.Join(b.scratch, "branches")))
}

// removeScratch removes all that was made. A directory that something is still mounted on is not entered.
func removeScratch(dir string) error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	if strings.Contains(string(mounts), " "+dir+"/") {
		return fmt.Errorf("something is still mounted in %s; unmount it and remove that directory", dir)
	}
	return removeTree(dir)
}

// removeTree removes a directory in which somebody may be removing files as well, or writing the last: what a tool started in the
// background before it ended.
func removeTree(dir string) error {
	err := os.RemoveAll(dir)
	for deadline := time.Now().Add(10 * time.Second); errors.Is(err, unix.ENOTEMPTY) && time.Now().Before(deadline); err = os.RemoveAll(dir) {
		time.Sleep(50 * time.Millisecond)
	}
	return err
}

func humanSize(n int64) string { return units.BytesSize(float64(n)) }
