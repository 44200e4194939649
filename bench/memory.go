package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// MemoryOptions says what [Memory] measures.
type MemoryOptions struct {
	Program  string   // the unionfs to measure
	Dir      string   // where branches and mounts are made
	Against  []string // of PeerNames; those that have no server are left out
	Runs     int
	Entries  []int // of the trees
	Progress *Progress

	kept *stock // may be nil
}

// memoryBranches is the number of branches that the trees are spread over.
const memoryBranches = 10

// Memory measures the resident memory of servers once every entry of a tree was listed and asked for its attributes, so
// that the kernel knows them all and the server must.
func Memory(ctx context.Context, o MemoryOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return memoryInto(ctx, o, r) })
}

func memoryInto(ctx context.Context, o MemoryOptions, r *Report) (err error) {
	peers, err := installed(ctx, o.Against, o.Program, r)
	if err != nil {
		return err
	}
	o.Progress.start(len(o.Entries) * o.Runs * len(peers))
	for _, entries := range o.Entries {
		if err := measureMemory(ctx, o, peers, entries, r); err != nil {
			return fmt.Errorf("with %d entries: %w", entries, err)
		}
	}
	return nil
}

// plainLimit is the number of entries above which a tree is only of empty files, and no image of it is made: making all
// that would take much longer than what is measured. Few peers are asked then, for the same reason.
const plainLimit = 200000

// memoryLimit is how long a server may take to show all it has.
const memoryLimit = 60 * time.Second

func measureMemory(ctx context.Context, o MemoryOptions, peers []peer, entries int, r *Report) (err error) {
	o.Progress.part(fmt.Sprintf("memory: making %d entries", entries), "")
	b := &depthBench{DepthOptions: DepthOptions{Program: o.Program, Dir: o.Dir, Entries: entries, Seed: 1, Depths: []int{memoryBranches}}, report: &Report{}}
	if b.scratch, err = os.MkdirTemp(o.Dir, "unionfs-bench-"); err != nil {
		return fmt.Errorf("making a directory for the branches: %w", err)
	}
	defer func() { err = errors.Join(err, removeScratch(b.scratch)) }()
	if b.images, err = startImageServer(b.scratch); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.images.close()) }()
	s, tree, err := memoryStack(ctx, b, o.kept)
	if err != nil {
		return err
	}
	r.inRounds()
	defer r.preparing()
	if entries > plainLimit {
		peers = slices.DeleteFunc(slices.Clone(peers), func(p peer) bool { return p.name() != peerUnionfs && p.name() != peerFuseOverlayfs })
	}
	for run := range o.Runs {
		for i := range peers {
			p := peers[(i+run)%len(peers)]
			o.Progress.part(fmt.Sprintf("memory, %d entries, run %d of %d", entries, run+1, o.Runs), p.name())
			bytes, err := memoryOf(ctx, b, s, p, tree)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			key := Key{Bench: "memory", Work: "memory", Depth: memoryBranches, Param: int64(entries)}
			switch {
			case errors.Is(err, errStopped):
				r.at(key, p.name(), "B").Status = fmt.Sprintf("takes longer than %v to show %d entries", memoryLimit, entries)
			case err != nil:
				r.at(key, p.name(), "B").Status = "fails: " + err.Error()
			case bytes > 0:
				m := r.at(key, p.name(), "B")
				m.Ops, m.Values = tree.entries, append(m.Values, float64(bytes))
			}
			o.Progress.step(1)
		}
	}
	return nil
}

// memoryStack makes the branches, and tells how many entries they show.
func memoryStack(ctx context.Context, b *depthBench, kept *stock) (*stack, *catalogue, error) {
	if b.Entries > plainLimit {
		return kept.emptyFiles(ctx, b.scratch, b.Entries, filesInDirectory)
	}
	if err := b.makePlain(ctx); err != nil {
		return nil, nil, err
	}
	s, err := b.makeStack(ctx, memoryBranches)
	return s, b.plainTree, err
}

// filesInDirectory is how many entries the directories of emptyFiles have, each with itself, if nothing else is asked for.
const filesInDirectory = 1000

// emptyFiles makes branches with that many entries: directories of empty files, each directory in one branch.
func emptyFiles(ctx context.Context, dir string, entries, inDirectory int) (*stack, *catalogue, error) {
	s := &stack{dir: dir}
	for i := range memoryBranches {
		s.lowers = append(s.lowers, strconv.Itoa(i))
		if err := os.MkdirAll(filepath.Join(dir, s.lowers[i]), 0o755); err != nil {
			return nil, nil, err
		}
	}
	made := 0
	for i := 0; made < entries; i++ {
		if ctx.Err() != nil {
			return nil, nil, ctx.Err()
		}
		sub := filepath.Join(dir, s.lowers[i%memoryBranches], "dir-"+strconv.Itoa(i))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return nil, nil, err
		}
		fd, err := openRoot(sub)
		if err != nil {
			return nil, nil, err
		}
		for made++; made%inDirectory != 0 && made < entries && err == nil; made++ {
			err = unix.Mknodat(fd, "file-"+strconv.Itoa(made), unix.S_IFREG|0o644, 0)
		}
		if err = errors.Join(err, unix.Close(fd)); err != nil {
			return nil, nil, fmt.Errorf("making files in %s: %w", sub, err)
		}
	}
	return s, &catalogue{entries: entries}, nil
}

// memoryOf returns the resident memory of a server in bytes, 0 if there is no server.
func memoryOf(ctx context.Context, b *depthBench, s *stack, p peer, tree *catalogue) (bytes int64, err error) {
	m, err := b.mount(ctx, s, p, false)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	if m.pid() == 0 {
		return 0, nil
	}
	rootFD, err := openRoot(m.root)
	if err != nil {
		return 0, err
	}
	defer unix.Close(rootFD)
	stop, end := neverStopped(ctx)
	defer end()
	defer time.AfterFunc(memoryLimit, func() { stop.Store(true) }).Stop()
	if _, err := walk(&session{rootFD: rootFD, tree: tree, stop: stop}); err != nil {
		return 0, err
	}
	return residentMemory(m.pid())
}

// residentMemory reads VmRSS (proc_pid_status(5)).
func residentMemory(pid int) (int64, error) {
	status := filepath.Join("/proc", strconv.Itoa(pid), "status")
	text := strings.TrimSuffix(fieldOf(status, "VmRSS", ":"), " kB")
	kib, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("reading VmRSS from %s: %w", status, err)
	}
	return kib << 10, nil
}
