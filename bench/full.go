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
	entries, fewEntries, runs, big := 14000, 2000, 3, int64(256<<20)
	growing, complete := []int{1, 5, 20, 100, 500}, []int{10, 120}
	copied := []int64{4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20}
	trees, layers, starts := []int{1000, 14000, 50000}, []int{1, 10, 60}, 20
	if o.Small {
		entries, fewEntries, runs, big = 300, 200, 1, 4<<20
		growing, complete = []int{1, 2}, []int{3}
		copied, trees, layers, starts = []int64{4 << 10, 1 << 20}, []int{300}, []int{3}, 2
	}
	all := DepthOptions{
		Program: o.Program, Dir: o.Dir, Against: PeerNames(), Cold: true, Warm: true, Entries: entries, Seed: 1, Big: big,
		Depths: complete, Works: WorkNames(), ColdWorks: []string{"walk", "walk-parallel", "walk-read", "seqread", "randread"},
		Runs: runs, Limit: 8 * time.Second, Progress: o.Progress, fewOps: o.Small, label: "files",
	}
	// Fewer entries, so that many numbers of branches can be measured.
	few := all
	few.label, few.Entries, few.Depths = "depth", fewEntries, growing
	few.Works, few.ColdWorks = []string{"walk", "negative", "open-read"}, []string{"walk"}
	files := PeerNames()
	container := ContainerOptions{Program: o.Program, Dir: o.Dir, Against: ToolNames(), Runs: starts, Entries: entries, Depths: layers, Progress: o.Progress}
	pull := container
	pull.Runs = runs
	return []fullPart{
		{"depth", func(ctx context.Context) (*Report, error) { return Depth(ctx, few) }},
		{"run", func(ctx context.Context) (*Report, error) { return Run(ctx, container) }},
		{"files", func(ctx context.Context) (*Report, error) { return Depth(ctx, all) }},
		{"copyup", func(ctx context.Context) (*Report, error) {
			return CopyUp(ctx, CopyUpOptions{Program: o.Program, Dir: o.Dir, Against: files, Runs: runs, Sizes: copied, Progress: o.Progress})
		}},
		{"memory", func(ctx context.Context) (*Report, error) {
			return Memory(ctx, MemoryOptions{Program: o.Program, Dir: o.Dir, Against: files, Runs: 1, Entries: trees, Progress: o.Progress})
		}},
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
	if other.Tree != "" {
		r.Sizes = other.Sizes
		if r.Tree != "" {
			r.Tree += "; where it says large tree, "
		}
		r.Tree += other.Tree
	}
}
