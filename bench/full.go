package bench

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// FullOptions says where [Full] measures.
type FullOptions struct {
	Program  string        // the unionfs to measure
	Worker   string        // as in ContainerOptions
	Dir      string        // where branches, images and mounts are made
	Small    bool          // seconds instead of minutes: to see that everything works, not to learn anything
	Parts    []string      // of FullPartNames; nil for all
	Budget   time.Duration // about how long it may take in all; 0 for as long as it takes
	Progress *Progress
}

// DefaultBudget is the time that Full is given if the user says nothing. It takes somewhat longer where a part needs more for its
// first round than its share.
const DefaultBudget = 8 * time.Minute

// Full measures everything that the documentation shows, in one report. A benchmark that fails is noted in the report and
// doesn't keep the others from being done.
func Full(ctx context.Context, o FullOptions) (*Report, error) {
	parts := fullParts(o)
	for _, name := range o.Parts {
		if !slices.Contains(FullPartNames(), name) {
			return nil, fmt.Errorf("unknown part %q; known are %v", name, FullPartNames())
		}
	}
	if len(o.Parts) > 0 {
		parts = slices.DeleteFunc(parts, func(p fullPart) bool { return !slices.Contains(o.Parts, p.name) })
	}
	total := 0.0
	for _, part := range parts {
		total += part.weight
	}
	o.Progress.plan(total)
	return measureInto(ctx, o.Dir, func(r *Report) (err error) {
		kept, err := newStock(o.Dir)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, kept.close()) }()
		start, left := time.Now(), total
		for _, part := range parts {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			o.Progress.section(part.weight)
			// What earlier parts left of their time is for the later ones.
			budget := time.Duration(float64(o.Budget-time.Since(start)) * part.weight / left)
			if o.Budget == 0 {
				budget = 0
			} else if budget <= 0 {
				budget = 1 // one round
			}
			left -= part.weight
			made, err := part.measure(ctx, budget, kept)
			if made != nil {
				took := made.Times[0]
				took.Part = part.name
				o.Progress.say(took.String())
				r.Times = append(r.Times, took)
				r.add(made)
			}
			if err != nil && ctx.Err() == nil {
				r.Notes = append(r.Notes, fmt.Sprintf("The benchmark %s failed: %v", part.name, err))
			}
		}
		if len(r.Measurements) == 0 {
			return errors.New("every benchmark failed")
		}
		return nil
	})
}

// fullPart is one of the benchmarks.
type fullPart struct {
	name    string
	weight  float64 // of its time; about its seconds on the machine of docs/benchmarks.md
	measure func(context.Context, time.Duration, *stock) (*Report, error)
}

// FullPartNames lists the parts of Full, in their order.
func FullPartNames() []string {
	var names []string
	for _, part := range fullParts(FullOptions{}) {
		names = append(names, part.name)
	}
	return names
}

// fullSizes is how much Full does.
type fullSizes struct {
	entries, fewEntries, imageEntries   int
	growing, complete, one, layers      []int
	runs, starts, asleep                int
	big                                 int64
	kills                               int
	heldEntries, heldMounts, heldRounds int
	known                               []int
	copied                              []int64
	trees                               []int
	peers, mainPeers                    []string
}

func sizesOf(small bool) fullSizes {
	if small {
		return fullSizes{
			entries: 300, fewEntries: 200, imageEntries: 300, growing: []int{1, 2, 10}, complete: []int{3}, one: []int{3}, layers: []int{3},
			runs: 1, starts: 2, asleep: 2, big: 4 << 20, copied: []int64{4 << 10, 1 << 20}, trees: []int{300}, kills: 2, heldEntries: 400, heldMounts: 2, heldRounds: 2, known: []int{1500},
			peers: PeerNames(), mainPeers: PeerNames(),
		}
	}
	return fullSizes{
		entries: 14114, fewEntries: 2000, imageEntries: 30000, growing: []int{1, 10, 100, 500}, complete: []int{10, 120}, one: []int{10}, layers: []int{10},
		runs: 5, starts: 20, asleep: 10, big: 1 << 30, copied: []int64{4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20}, trees: []int{1000, 14114, 1000000}, kills: 15, heldEntries: 2500, heldMounts: 12, heldRounds: 10, known: []int{14000, 1000000},
		peers:     slices.DeleteFunc(PeerNames(), func(name string) bool { return name == peerUnionfsFuse }), // too slow at a large tree
		mainPeers: []string{peerOverlayfs, peerFuseOverlayfs, peerPlain},
	}
}

func fullParts(o FullOptions) []fullPart {
	s := sizesOf(o.Small)
	// unions returns a part over branches: all or some works, some of them cold too.
	unions := func(label string, weight float64, change func(*DepthOptions)) fullPart {
		d := DepthOptions{
			Program: o.Program, Dir: o.Dir, Against: s.peers, Cold: true, Warm: true, Entries: s.entries, Seed: 1, Big: s.big,
			Runs: s.runs, Limit: 8 * time.Second, Progress: o.Progress, fewOps: o.Small, label: label,
		}
		change(&d)
		return fullPart{label, weight, func(ctx context.Context, budget time.Duration, _ *stock) (*Report, error) {
			d.Budget = budget
			return Depth(ctx, d)
		}}
	}
	containers := func(name string, weight float64, runs int, measure func(context.Context, ContainerOptions) (*Report, error)) fullPart {
		c := ContainerOptions{
			Program: o.Program, Worker: o.Worker, Dir: o.Dir, Against: ToolNames(), Runs: runs, Entries: s.imageEntries, Depths: s.layers,
			Asleep: s.asleep, Progress: o.Progress,
		}
		return fullPart{name, weight, func(ctx context.Context, budget time.Duration, _ *stock) (*Report, error) {
			c.Budget = budget
			return measure(ctx, c)
		}}
	}
	programs := []string{"tar", "git-status", "build"}
	big := []string{"seqread", "randread", "touch-big", "small", "beside-copyup"}
	others := slices.DeleteFunc(WorkNames(), func(name string) bool { return slices.Contains(programs, name) || slices.Contains(big, name) })
	return []fullPart{
		// Fewer entries, so that many numbers of branches can be measured, and more peers.
		unions("depth", 80, func(d *DepthOptions) {
			d.Entries, d.Depths, d.Against, d.Limit = s.fewEntries, s.growing, PeerNames(), 4*time.Second
			d.Works, d.ColdWorks = []string{"walk", "negative", "open-read"}, []string{"walk"}
		}),
		containers("run", 70, s.starts, Run),
		unions("files", 200, func(d *DepthOptions) {
			d.Depths, d.Works, d.ColdWorks = s.complete, others, []string{"walk"}
			d.coldOnce = []string{"walk-parallel", "walk-read", "negative"}
		}),
		containers("images", 80, s.runs, Images),
		// Its repository is most of the tree: with it there are about as many entries as in files.
		unions("programs", 80, func(d *DepthOptions) {
			d.Depths, d.Works, d.Against, d.Limit, d.Entries = s.one, programs, s.mainPeers, 20*time.Second, s.fewEntries
		}),
		unions("big", 60, func(d *DepthOptions) {
			d.Depths, d.Works, d.Against, d.Entries = s.one, big, s.mainPeers, s.fewEntries
			d.Limit = 20 * time.Second
		}),
		{"copyup", 15, func(ctx context.Context, _ time.Duration, _ *stock) (*Report, error) {
			return CopyUp(ctx, CopyUpOptions{Program: o.Program, Dir: o.Dir, Against: s.peers, Runs: min(s.runs, 3), Sizes: s.copied, Progress: o.Progress})
		}},
		containers("volume", 25, 2*s.runs, Volumes),
		{"memory", 45, func(ctx context.Context, _ time.Duration, kept *stock) (*Report, error) {
			return Memory(ctx, MemoryOptions{Program: o.Program, Dir: o.Dir, Against: s.peers, Runs: 1, Entries: s.trees, Progress: o.Progress, kept: kept})
		}},
		{"holder", 55, func(ctx context.Context, budget time.Duration, _ *stock) (*Report, error) {
			return Holder(ctx, HolderOptions{
				Program: o.Program, Dir: o.Dir, Entries: s.heldEntries, Mounts: s.heldMounts, Rounds: s.heldRounds, Budget: budget, Progress: o.Progress,
			})
		}},
		{"takeover", 40, func(ctx context.Context, _ time.Duration, kept *stock) (*Report, error) {
			return Takeover(ctx, TakeoverOptions{Program: o.Program, Dir: o.Dir, Entries: s.known, Kills: s.kills, Progress: o.Progress, kept: kept})
		}},
	}
}

// heldWorks are those by which the cost of a holder is measured: all that is many small requests.
func heldWorks() []string {
	return []string{"walk", "stat", "negative", "open-read", "create", "rename", "unlink", "append", "chmod", "copyup", "delete", "small"}
}

// add puts the measurements of another report into this one.
func (r *Report) add(other *Report) {
	r.Measurements = append(r.Measurements, other.Measurements...)
	for _, p := range other.Peers {
		if !slices.ContainsFunc(r.Peers, func(have PeerInfo) bool { return have.Name == p.Name }) {
			r.Peers = append(r.Peers, p)
		}
	}
	for _, note := range other.Notes {
		if !slices.Contains(r.Notes, note) {
			r.Notes = append(r.Notes, note)
		}
	}
	if other.Sizes != (sizes{}) {
		r.Sizes = other.Sizes
	}
	if other.Tree != "" {
		for _, m := range other.Measurements {
			if r.Trees == nil {
				r.Trees = map[string]string{}
			}
			r.Trees[m.Bench] = other.Tree
		}
	}
}
