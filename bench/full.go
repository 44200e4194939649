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
	Program  string // the unionfs to measure
	Dir      string // where branches, images and mounts are made
	Small    bool   // seconds instead of minutes: to see that everything works, not to learn anything
	Progress *Progress
}

// Full measures everything that the documentation shows, in one report. A benchmark that fails is noted in the report and
// doesn't keep the others from being done.
func Full(ctx context.Context, o FullOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error {
		for _, part := range fullParts(o) {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			made, err := part.measure(ctx)
			if made != nil {
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

type fullPart struct {
	name    string
	measure func(context.Context) (*Report, error)
}

func fullParts(o FullOptions) []fullPart {
	entries, runs, big := 14000, 3, int64(1<<30)
	growing, complete := []int{1, 2, 5, 20, 50, 200, 500}, []int{10, 120}
	copied := []int64{4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20, 1 << 30}
	trees, layers, starts := []int{1000, 14000, 100000}, []int{1, 10, 60}, 20
	if o.Small {
		entries, runs, big = 300, 1, 4<<20
		growing, complete = []int{1}, []int{3}
		copied, trees, layers, starts = []int64{4 << 10, 1 << 20}, []int{300}, []int{3}, 2
	}
	depth := DepthOptions{
		Program: o.Program, Dir: o.Dir, Against: PeerNames(), Cold: true, Warm: true, Entries: entries, Seed: 1, Big: big,
		Limit: 8 * time.Second, Progress: o.Progress, fewOps: o.Small,
	}
	// The tree is the same for both, so that their figures make one line.
	few, all := depth, depth
	few.Depths, few.Runs = growing, min(runs, 2)
	few.Works, few.ColdWorks = []string{"walk", "negative", "open-read", "create"}, []string{"walk"}
	all.Depths, all.Runs = complete, runs
	all.Works, all.ColdWorks = WorkNames(), []string{"walk", "walk-parallel", "walk-read", "seqread", "randread"}
	files := PeerNames()
	container := ContainerOptions{Program: o.Program, Dir: o.Dir, Against: ToolNames(), Runs: starts, Entries: entries, Depths: layers, Progress: o.Progress}
	pull := container
	pull.Runs = runs
	return []fullPart{
		{"depth, every work", func(ctx context.Context) (*Report, error) { return Depth(ctx, all) }},
		{"depth", func(ctx context.Context) (*Report, error) { return Depth(ctx, few) }},
		{"copyup", func(ctx context.Context) (*Report, error) {
			return CopyUp(ctx, CopyUpOptions{Program: o.Program, Dir: o.Dir, Against: files, Runs: runs, Sizes: copied, Progress: o.Progress})
		}},
		{"memory", func(ctx context.Context) (*Report, error) {
			return Memory(ctx, MemoryOptions{Program: o.Program, Dir: o.Dir, Against: files, Runs: 1, Entries: trees, Progress: o.Progress})
		}},
		{"run", func(ctx context.Context) (*Report, error) { return Run(ctx, container) }},
		{"pull", func(ctx context.Context) (*Report, error) { return Pull(ctx, pull) }},
	}
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
	if r.Tree == "" {
		r.Tree, r.Sizes = other.Tree, other.Sizes
	}
}
