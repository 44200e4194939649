package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// CopyUpOptions says what [CopyUp] measures.
type CopyUpOptions struct {
	Program  string   // the unionfs to measure
	Dir      string   // where branches and mounts are made
	Against  []string // of PeerNames
	Runs     int
	Sizes    []int64 // of the files, in bytes
	Progress *Progress
}

// CopyUp measures how long it takes to write one byte into the middle of a file of a lower branch, which grows with the
// size of the file where the whole of it is copied up first.
func CopyUp(ctx context.Context, o CopyUpOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return copyUpInto(ctx, o, r) })
}

func copyUpInto(ctx context.Context, o CopyUpOptions, r *Report) (err error) {
	peers, err := installed(ctx, o.Against, o.Program, r)
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(o.Dir, "unionfs-bench-")
	if err != nil {
		return fmt.Errorf("making a directory for the branches: %w", err)
	}
	defer func() { err = errors.Join(err, removeScratch(scratch)) }()
	o.Progress.part("making the files", "")
	lower := filepath.Join(scratch, "branches", "0")
	if err := os.MkdirAll(lower, 0o755); err != nil {
		return err
	}
	content := bigContent(1)
	for _, size := range o.Sizes {
		if err := makeBigFile(ctx, filepath.Join(lower, sizedName(size)), size, content); err != nil {
			return err
		}
	}
	s := &stack{dir: filepath.Dir(lower), lowers: []string{"0"}}
	touch := &work{name: "touch", writes: true, changesLower: true}
	o.Progress.start(o.Runs * len(peers))
	r.inRounds()
	for run := range o.Runs {
		for i := range peers {
			p := peers[(i+run)%len(peers)]
			o.Progress.part(fmt.Sprintf("copy-up, run %d of %d", run+1, o.Runs), p.name())
			if p.name() != peerUnionfsImage && p.unable(touch) == "" {
				if err := measureCopyUp(ctx, s, p, scratch, o.Sizes, r); err != nil {
					return fmt.Errorf("%s: %w", p.name(), err)
				}
			}
			o.Progress.step(1)
		}
	}
	return nil
}

func sizedName(size int64) string { return fmt.Sprintf("file-of-%d", size) }

func measureCopyUp(ctx context.Context, s *stack, p peer, scratch string, sizes []int64, r *Report) (err error) {
	if err := syncFileSystem(scratch); err != nil {
		return err
	}
	m, err := mountFresh(ctx, scratch, s, p)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	rootFD, err := openRoot(m.root)
	if err != nil {
		return err
	}
	defer unix.Close(rootFD)
	for _, size := range sizes {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		measurement := r.at(Key{Bench: "copyup", Work: "touch", State: stateWarm, Param: size}, p.name(), "s")
		start := time.Now()
		if err := touchByte(rootFD, sizedName(size), size/2); err != nil {
			measurement.Status = "fails: " + err.Error()
			return nil
		}
		measurement.Ops = 1
		measurement.Values = append(measurement.Values, time.Since(start).Seconds())
	}
	return nil
}

// touchByte opens a file for writing, writes one byte at the offset and closes it.
func touchByte(rootFD int, name string, offset int64) error {
	fd, err := unix.Openat(rootFD, name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", name, err)
	}
	_, err = unix.Pwrite(fd, []byte{'x'}, offset)
	return errors.Join(err, unix.Close(fd))
}

// installed returns the peers of those names that can be measured here, and describes all in the report.
func installed(ctx context.Context, names []string, program string, r *Report) ([]peer, error) {
	chosen, err := choosePeers(names, program)
	if err != nil {
		return nil, err
	}
	var peers []peer
	for _, p := range chosen {
		info := describePeer(ctx, p)
		r.Peers = append(r.Peers, info)
		if info.Missing == "" {
			peers = append(peers, p)
		}
	}
	return peers, nil
}

// neverStopped is for works that nothing limits but the context.
func neverStopped(ctx context.Context) (stop *atomic.Bool, end func() bool) {
	stop = &atomic.Bool{}
	return stop, context.AfterFunc(ctx, func() { stop.Store(true) })
}
