package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// States of the caches.
const (
	stateCold = "cold"
	stateWarm = "warm"
)

func bigContent(seed uint64) []byte {
	return randomBytes(rand.New(rand.NewPCG(seed, 1)), 1<<20)
}

// group is works that are measured on one mount, one after the other.
type group struct {
	state  string
	works  []*work
	mounts bool // how long its mount takes is measured too; of the groups of a peer it is one
}

func (g *group) writes() bool { return g.works[0].writes }

// groups returns what is measured at a number of branches. Cold work gets a mount for each; so does all that changes the
// tree together.
func (b *depthBench) groups(depth int) []group {
	var groups, alone []group
	warm, writes := group{state: stateWarm}, group{state: stateWarm}
	for _, w := range b.works {
		if w.needsBig && (b.big == "" || depth != b.bigDepth()) || w.needsProject && (!b.project || depth != b.bigDepth()) {
			continue
		}
		switch {
		case w.alone:
			if b.Warm {
				alone = append(alone, group{state: stateWarm, works: []*work{w}})
			}
		case w.writes:
			writes.works = append(writes.works, w)
		default:
			if b.Cold && (b.ColdWorks == nil || slices.Contains(b.ColdWorks, w.name) || depth == b.bigDepth() && slices.Contains(b.coldOnce, w.name)) {
				groups = append(groups, group{state: stateCold, works: []*work{w}})
			}
			if b.Warm && !w.coldOnly {
				warm.works = append(warm.works, w)
			}
		}
	}
	if len(warm.works) > 0 {
		groups = append(groups, warm)
	}
	if b.Warm && len(writes.works) > 0 {
		groups = append(groups, writes)
	}
	groups = append(groups, alone...)
	// One that reads, if there is one.
	if i := slices.IndexFunc(groups, func(g group) bool { return g.state == stateWarm }); i >= 0 {
		groups[i].mounts = true
	}
	return groups
}

// steps returns the number of groups at most depths, for the progress.
func (b *depthBench) steps() int { return len(b.groups(0)) }

// candidate is a peer at one number of branches.
type candidate struct {
	peer
	tree *catalogue // nil: it can't be measured here
}

func (b *depthBench) measureDepth(ctx context.Context, depth int) (err error) {
	if b.big != "" && depth == b.bigDepth() {
		inside := filepath.Join(b.plain, bigName)
		if err := os.Rename(b.big, inside); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.Rename(inside, b.big)) }()
	}
	s, err := b.makeStack(ctx, depth)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.removeStack(s)) }()
	candidates, err := b.check(ctx, s)
	if err != nil {
		return err
	}
	b.report.inRounds()
	defer b.report.preparing()
	groups := b.groups(depth)
	costs := map[cell]time.Duration{}
	for i, c := range candidates {
		for g := range groups {
			if c.tree != nil {
				costs[cell{i, g}] = 0
			}
		}
	}
	for run := range b.Runs {
		chosen := b.pace.choose(run, costs)
		if len(chosen) == 0 {
			b.Progress.step((b.Runs - run) * len(candidates) * b.steps())
			break
		}
		for i := range candidates {
			// Another one is first each time, so that nobody always has the others' leftovers.
			n := (i + run) % len(candidates)
			c := candidates[n]
			b.Progress.part(fmt.Sprintf("%d branches, run %d of %d", depth, run+1, b.Runs), c.name())
			for g := range groups {
				if at := (cell{n, g}); chosen[at] {
					start := time.Now()
					if err := b.measureGroup(ctx, s, c, groups[g]); err != nil {
						return fmt.Errorf("%s: %w", c.name(), err)
					}
					costs[at] = time.Since(start)
				}
				if ctx.Err() != nil {
					return ctx.Err()
				}
			}
			b.Progress.step(b.steps())
		}
	}
	return nil
}

// check mounts every peer once and compares what it shows, two or more of them at the same time, as nothing is timed yet. The
// plain tree is right, or, if there is none, what the first peer shows.
func (b *depthBench) check(ctx context.Context, s *stack) ([]candidate, error) {
	b.Progress.part(fmt.Sprintf("%d branches: comparing what everyone shows", s.depth()), "")
	var right *catalogue
	rightBy := "the plain tree"
	if s.plain != "" {
		var err error
		if right, err = b.plainCatalogue(ctx, s); err != nil {
			return nil, err
		}
	}
	candidates, failed := make([]candidate, len(b.peers)), make([]error, len(b.peers))
	var group errgroup.Group
	group.SetLimit(runtime.NumCPU())
	for i, p := range b.peers {
		candidates[i].peer = p
		if p.name() == peerPlain && right != nil {
			candidates[i].tree = right
			continue
		}
		group.Go(func() error {
			candidates[i].tree, failed[i] = b.catalogueOf(ctx, s, p)
			return nil
		})
	}
	_ = group.Wait() // nobody returns an error there
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	for i := range candidates {
		c, err := &candidates[i], failed[i]
		if err == nil && right == nil {
			right, rightBy = c.tree, c.name()
		}
		if err == nil && c.tree.sum != right.sum {
			err = unable("it shows another tree than %s", rightBy)
		}
		if err != nil {
			c.tree = nil
			for _, g := range b.groups(s.depth()) {
				for _, w := range g.works {
					b.report.at(b.key(s, w, g.state), c.name(), "s").Status = err.Error()
				}
			}
		}
	}
	// What was just read has a new access time. From here on it isn't updated any more (relatime in mount(8)), so that
	// nothing of it is dirty when caches are dropped.
	return candidates, syncFileSystem(b.scratch)
}

// plainCatalogue returns what is in the plain tree. It is read once, and once more if the large file is in it.
func (b *depthBench) plainCatalogue(ctx context.Context, s *stack) (*catalogue, error) {
	if b.plainTree != nil && (b.big == "" || s.depth() != b.bigDepth()) {
		return b.plainTree, nil
	}
	return takeCatalogue(ctx, s.plain)
}

// compareLimit is how long a peer may take to show all it has once.
const compareLimit = 40 * time.Second

func (b *depthBench) catalogueOf(ctx context.Context, s *stack, p peer) (*catalogue, error) {
	m, err := b.mount(ctx, s, p, false)
	if err != nil {
		return nil, err
	}
	// A peer that hangs on what should take seconds is as good as one that fails.
	limited, cancel := context.WithTimeout(ctx, compareLimit)
	defer cancel()
	tree, err := takeCatalogue(limited, m.root)
	if limited.Err() != nil && ctx.Err() == nil {
		err = unable("reading its tree takes longer than %v", compareLimit)
	}
	return tree, errors.Join(err, m.close())
}

// mount mounts a stack: on a file system of its own if something will be written, see mountFresh.
func (b *depthBench) mount(ctx context.Context, s *stack, p peer, writes bool) (*mounted, error) {
	if writes {
		return mountFresh(ctx, b.scratch, s, p)
	}
	at, err := makeSite(b.scratch, p.name())
	if err != nil {
		return nil, err
	}
	return p.mount(ctx, s, at)
}

func (b *depthBench) key(s *stack, w *work, state string) Key {
	return Key{Bench: cmp.Or(b.label, "depth"), Work: w.name, State: state, Depth: s.depth()}
}

// measureGroup mounts, measures and unmounts. Only what keeps the benchmark from going on is an error.
func (b *depthBench) measureGroup(ctx context.Context, s *stack, c candidate, g group) error {
	var todo []*work
	for _, w := range g.works {
		m := b.report.at(b.key(s, w, g.state), c.name(), "s")
		if reason := c.unable(w); reason != "" {
			m.Status = reason
		} else if reason := b.over[overKey(c.name(), w, g.state)]; reason != "" {
			m.Status = reason
		} else {
			todo = append(todo, w)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	if g.writes() {
		if err := syncFileSystem(b.scratch); err != nil {
			return err
		}
	}
	m, err := b.mount(ctx, s, c.peer, g.writes())
	if err != nil {
		return err
	}
	if g.mounts && m.seconds > 0 {
		mounting := b.report.at(Key{Bench: cmp.Or(b.label, "depth"), Work: "mount", State: stateWarm, Depth: s.depth()}, c.name(), "s")
		mounting.Values = append(mounting.Values, m.seconds)
	}
	err = b.measureWorks(ctx, s, c, g.state, todo, m)
	return errors.Join(err, m.close())
}

func (b *depthBench) measureWorks(ctx context.Context, s *stack, c candidate, state string, todo []*work, m *mounted) error {
	rootFD, err := openRoot(m.root)
	if err != nil {
		return err
	}
	defer unix.Close(rootFD)
	var stop atomic.Bool
	defer context.AfterFunc(ctx, func() { stop.Store(true) })()
	se := &session{rootFD: rootFD, root: m.root, tree: c.tree, sizes: b.sizes, files: sample(c.tree.files, "sample", b.sizes.Sample), stop: &stop}
	for _, w := range todo {
		stop.Store(ctx.Err() != nil)
		if state == stateCold {
			if err := dropCaches(); err != nil {
				return err
			}
		}
		limits := []*time.Timer{
			time.AfterFunc(b.Limit, func() { stop.Store(true) }),
			time.AfterFunc(b.Limit+30*time.Second, m.abort), // it hangs in one operation
		}
		seconds, ops, err := b.once(se, w, state)
		for _, limit := range limits {
			limit.Stop()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		measurement := b.report.at(b.key(s, w, state), c.name(), "s")
		switch {
		case errors.Is(err, errStopped):
			reason := fmt.Sprintf("takes longer than %v at %d branches", b.Limit, s.depth())
			measurement.Status = reason
			b.over[overKey(c.name(), w, state)] = reason
			return nil // what was left half done would change what the next work finds
		case err != nil:
			measurement.Status = "fails: " + err.Error()
			return nil
		default:
			measurement.Ops = ops
			measurement.Values = append(measurement.Values, seconds)
		}
	}
	return nil
}

// once does the work, after having done it without measuring if the caches must be warm.
func (b *depthBench) once(se *session, w *work, state string) (seconds float64, ops int, err error) {
	if state == stateWarm && !w.writes {
		// Twice: a kernel may need one round to know what is worth keeping and another to keep it.
		for range 2 {
			b.renew(se)
			if _, err := w.run(se); err != nil {
				return 0, 0, err
			}
		}
	}
	b.renew(se)
	return timed(se, w)
}

// renew gives the session names that nobody asked for before.
func (b *depthBench) renew(se *session) {
	b.nonce++
	se.nonce = fmt.Sprintf(".missing-%d", b.nonce)
}

func overKey(peer string, w *work, state string) string { return peer + " " + w.name + " " + state }

// dropCaches empties the kernel's caches of file content, names and inodes (drop_caches in the kernel's sysctl/vm
// documentation). Only what is clean is dropped: sync first.
func dropCaches() error {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil {
		return fmt.Errorf("dropping caches: %w", err)
	}
	return nil
}

// syncFileSystem writes back what is left to be written, so that it doesn't disturb what comes.
func syncFileSystem(dir string) error {
	fd, err := openRoot(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}
