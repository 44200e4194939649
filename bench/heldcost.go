package bench

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/perf/benchmath"
	"golang.org/x/sys/unix"
)

// HolderOptions says what [Holder] measures.
type HolderOptions struct {
	Program  string // the unionfs to measure
	Dir      string // where branches and mounts are made
	Entries  int    // of the tree
	Mounts   int    // pairs of mounts, one after the other
	Rounds   int    // of each work on each pair
	Budget   time.Duration
	Progress *Progress
}

// Key.Bench of it: by the clock, and in processor time.
const (
	benchHolder    = "holder"
	benchHolderCPU = "holder-cpu"
)

// leastPairs is how many pairs of mounts there are, whatever the budget. With fewer the median has no interval.
const leastPairs = 6

// heldBranches is the number of branches of the mounts.
const heldBranches = 10

// Holder measures what it costs that a mount outlives its server: the same works on two mounts that are there at the same time, one
// of which has a holder, in rounds so short that whatever else the machine does meets both. The values are lower quartiles of the rounds on
// one pair of mounts, so those of a pair have the same index. The processor time that this process and the server took meanwhile is a
// measurement of its own: unlike seconds it means something where others are at work on the machine.
//
// What is left of noise is in how two mounts fell out: where their files are on disk and in memory. More rounds don't help
// against that, more pairs of mounts do.
func Holder(ctx context.Context, o HolderOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error {
		err := holderInto(ctx, o, r)
		slices.SortStableFunc(r.Measurements, func(a, b Measurement) int { return cmp.Compare(a.Bench, b.Bench) })
		return err
	})
}

func holderInto(ctx context.Context, o HolderOptions, r *Report) (err error) {
	peers := []peer{&unionfsPeer{program: o.Program}, heldPeer{o.Program}}
	for _, p := range peers {
		r.Peers = append(r.Peers, describePeer(ctx, p))
	}
	b := &depthBench{DepthOptions: DepthOptions{Dir: o.Dir, Entries: o.Entries, Seed: 1, Progress: o.Progress}, report: r}
	if b.scratch, err = os.MkdirTemp(o.Dir, "unionfs-bench-"); err != nil {
		return fmt.Errorf("making a directory for the branches: %w", err)
	}
	defer func() { err = errors.Join(err, removeScratch(b.scratch)) }()
	if err := b.makePlain(ctx); err != nil {
		return err
	}
	s, err := splitTree(ctx, b.plain, filepath.Join(b.scratch, "branches"), heldBranches)
	if err != nil {
		return err
	}
	works, err := chooseWorks(heldWorks())
	if err != nil {
		return err
	}
	o.Progress.start(o.Mounts * len(works))
	r.inRounds()
	pace := newPace(r.Started, o.Budget, 1)
	pace.least = leastPairs
	pace.next()
	pace.round()
	for n := range o.Mounts {
		if !pace.more(n) {
			o.Progress.step((o.Mounts - n) * len(works))
			break
		}
		o.Progress.part(fmt.Sprintf("holder, mounts %d of %d", n+1, o.Mounts), "")
		if n%2 == 1 {
			slices.Reverse(peers) // the second mount may be worse off than the first
		}
		if err := b.onePair(ctx, s, peers, works, o.Rounds); err != nil {
			return err
		}
		if n%2 == 1 {
			slices.Reverse(peers)
		}
		pace.round()
	}
	return nil
}

// onePair mounts both, and measures all works.
func (b *depthBench) onePair(ctx context.Context, s *stack, peers []peer, works []*work, rounds int) (err error) {
	if err := syncFileSystem(b.scratch); err != nil {
		return err
	}
	var sides []*side
	for _, p := range peers {
		m, err := mountFresh(ctx, b.scratch, s, p)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name(), err)
		}
		defer func() { err = errors.Join(err, m.close()) }()
		one := &side{name: p.name(), m: m}
		if one.rootFD, err = openRoot(m.root); err != nil {
			return err
		}
		defer unix.Close(one.rootFD)
		if one.server = m.pid(); one.server == 0 {
			if one.server, err = serverOf(m.root); err != nil {
				return err
			}
		}
		sides = append(sides, one)
		mounting := b.report.at(heldKey("mount"), p.name(), "s")
		mounting.Ops, mounting.Values = 1, append(mounting.Values, m.seconds)
	}
	stop, end := neverStopped(ctx)
	defer end()
	for _, one := range sides {
		one.tree, one.stop, one.rounds = b.plainTree, stop, make([]*session, rounds)
		defer one.forget()
	}
	for _, w := range works {
		if err := b.compareSides(sides, w, rounds); err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return fmt.Errorf("%s: %w", w.name, err)
		}
		b.Progress.step(1)
	}
	return nil
}

// side is one of two mounts.
type side struct {
	name   string
	m      *mounted
	server int // process
	rootFD int
	tree   *catalogue
	stop   *atomic.Bool
	rounds []*session // of what makes files, one for each round; nil until it is needed
}

// busy returns the processor time of this process and the server until now.
func (s *side) busy() (total time.Duration, err error) {
	for _, pid := range []int{os.Getpid(), s.server} {
		// The processor time clock of a process, as clock_getcpuclockid(3) makes its number (CPUCLOCK_SCHED in the kernel's
		// posix-timers.h).
		var now unix.Timespec
		if err := unix.ClockGettime(int32(^pid<<3|2), &now); err != nil {
			return 0, fmt.Errorf("the processor time of process %d: %w", pid, err)
		}
		total += time.Duration(now.Nano())
	}
	return total, nil
}

// forget closes what the rounds hold.
func (s *side) forget() {
	for _, se := range s.rounds {
		if se != nil {
			unix.Close(se.rootFD)
		}
	}
}

// making returns the session of a round of what makes files, in a directory of its own: where many files were removed, making one would
// cost more in each round. What one work made the next finds.
func (s *side) making(n int) (*session, error) {
	if s.rounds[n] != nil {
		return s.rounds[n], nil
	}
	dir := "round-" + strconv.Itoa(n)
	if err := unix.Mkdirat(s.rootFD, dir, 0o755); err != nil {
		return nil, fmt.Errorf("making %s: %w", dir, err)
	}
	fd, err := openRoot(filepath.Join(s.m.root, dir))
	if err != nil {
		return nil, err
	}
	s.rounds[n] = &session{rootFD: fd, root: s.m.root, tree: s.tree, stop: s.stop}
	return s.rounds[n], nil
}

// heldSizes are the numbers of operations in a round: some milliseconds' worth.
func heldSizes(files, rounds int) sizes {
	return sizes{Sample: min(200, files), Create: 30, Change: max(1, min(12, files/(3*rounds))), Appends: 800}
}

// compareSides does a work on both mounts in turns.
func (b *depthBench) compareSides(sides []*side, w *work, rounds int) error {
	seconds, busy := map[string][]float64{}, map[string][]float64{}
	ops := 0
	for n := range rounds {
		for i := range sides {
			one := sides[(i+n)%2]
			se, err := one.session(w, n, rounds)
			if err != nil {
				return err
			}
			b.renew(se)
			var before, after time.Duration
			took, done, err := timed(se, &work{name: w.name, prepare: w.prepare, run: func(se *session) (done int, err error) {
				if before, err = one.busy(); err != nil {
					return 0, err
				}
				if done, err = w.run(se); err != nil {
					return 0, err
				}
				after, err = one.busy()
				return done, err
			}})
			if err != nil {
				return err
			}
			ops = done
			seconds[one.name] = append(seconds[one.name], took)
			busy[one.name] = append(busy[one.name], (after - before).Seconds())
		}
	}
	for _, one := range sides {
		for bench, values := range map[string][]float64{benchHolder: seconds[one.name], benchHolderCPU: busy[one.name]} {
			lower, _ := (&Measurement{Values: values}).Quartiles()
			key := heldKey(w.name)
			key.Bench = bench
			m := b.report.at(key, one.name, "s")
			m.Ops, m.Values = ops, append(m.Values, lower)
		}
	}
	return nil
}

// session returns that of a round of a work.
func (s *side) session(w *work, n, rounds int) (*session, error) {
	files := s.tree.files
	sizes := heldSizes(len(files), rounds)
	if !w.writes || w.changesLower {
		// What reads has the same files each time, and so finds the caches filled but for the first.
		se := &session{rootFD: s.rootFD, root: s.m.root, tree: s.tree, sizes: sizes, stop: s.stop, files: sample(files, "sample", sizes.Sample)}
		if w.changesLower {
			se.files = files[n*3*sizes.Change : (n+1)*3*sizes.Change]
		}
		return se, nil
	}
	se, err := s.making(n)
	if err != nil {
		return nil, err
	}
	se.sizes, se.files = sizes, nil
	for i := range sizes.Create { // names that are not there
		se.files = append(se.files, "other-"+strconv.Itoa(i))
	}
	return se, nil
}

func heldKey(work string) Key {
	return Key{Bench: benchHolder, Work: work, State: stateWarm, Depth: heldBranches}
}

// timed does a work once.
func timed(se *session, w *work) (seconds float64, ops int, err error) {
	if w.prepare != nil {
		if err := w.prepare(se); err != nil {
			return 0, 0, err
		}
	}
	runtime.GC() // our own garbage collector must not run meanwhile
	start := time.Now()
	ops, err = w.run(se)
	return time.Since(start).Seconds(), ops, err
}

// pairedRatio is the median of the ratios of values that were measured side by side, and an interval that has the true one with the
// probability confidence.
type pairedRatio struct{ median, low, high, confidence float64 }

func (p pairedRatio) text() string {
	if math.IsInf(p.low, 0) {
		return fmt.Sprintf("%.3f×, of too few for an interval", p.median)
	}
	return fmt.Sprintf("%.3f×, %.3f to %.3f with %.0f %%", p.median, p.low, p.high, math.Floor(100*p.confidence))
}

// paired returns the ratio of a peer to another one whose values belong together; ok is false if there are none.
func (r *Report) paired(key Key, peer, to string) (p pairedRatio, ok bool) {
	a, b := r.find(key, peer), r.find(key, to)
	if a == nil || b == nil || len(a.Values) == 0 || len(b.Values) != len(a.Values) {
		return p, false
	}
	var ratios []float64
	for i := range a.Values {
		ratios = append(ratios, a.Values[i]/b.Values[i])
	}
	median := Measurement{Values: ratios}
	summary := benchmath.AssumeNothing.Summary(benchmath.NewSample(ratios, &benchmath.DefaultThresholds), 0.95)
	return pairedRatio{median.Median(), summary.Lo, summary.Hi, summary.Confidence}, true
}
