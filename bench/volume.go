package bench

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Sizes of what is done on a volume.
const (
	volumeBytes = 64 << 20
	volumeFiles = 2000
)

// Volumes measures what a command in a container does in a directory of the host's, beside the same without a container.
// All let the same program work, which takes the time itself: starts aren't part of it.
func Volumes(ctx context.Context, o ContainerOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return volumesInto(ctx, o, r) })
}

func volumesInto(ctx context.Context, o ContainerOptions, r *Report) (err error) {
	b, end, err := newContainerBench(ctx, o, r, func(t *tool) bool { return t.name == peerUnionfs || t.name == peerPodman })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	r.Peers = append(r.Peers, PeerInfo{Name: peerHost, Version: r.Machine.FileSystem, Options: "the same program in the same directory, without a container"})
	o.Progress.part("volumes: making the image", "")
	ref, err := b.busyboxImage()
	if err != nil {
		return err
	}
	able, err := b.prepareToRun(ref)
	if err != nil {
		return err
	}
	data := filepath.Join(b.scratch, "data")
	if err := os.Mkdir(data, 0o755); err != nil {
		return err
	}
	runs := map[string]func() []string{peerHost: func() []string { return []string{o.Worker, "volume-work", data} }}
	names := []string{peerHost}
	for _, t := range able {
		names = append(names, t.name)
		runs[t.name] = func() []string {
			return t.run(b.dir(t), ref, launch{
				name:    "volume",
				volumes: []string{data + ":/data", o.Worker + ":/worker:ro"}, command: []string{"/worker", "volume-work", "/data"},
			})
		}
	}
	o.Progress.start(o.Runs * len(names))
	r.inRounds()
	pace := newPace(r.Started, o.Budget, 1)
	pace.least = leastRounds // one says nothing of an ext4 that is now fast and now slow at making files
	pace.next()
	for run := range o.Runs {
		if !pace.more(run) {
			o.Progress.step((o.Runs - run) * len(names))
			break
		}
		for i := range names {
			name := names[(i+run)%len(names)]
			o.Progress.part(fmt.Sprintf("volumes, run %d of %d", run+1, o.Runs), name)
			if err := syncFileSystem(b.scratch); err != nil {
				return err
			}
			printed, err := b.output(ctx, runs[name]())
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err := b.recordVolume(name, printed, err); err != nil {
				return err
			}
			o.Progress.step(1)
		}
		pace.round()
	}
	return nil
}

// recordVolume takes the seconds of each work from what the worker printed.
func (b *containerBench) recordVolume(peer, printed string, failed error) error {
	seconds := map[string]float64{}
	if failed == nil {
		if err := json.Unmarshal([]byte(printed), &seconds); err != nil {
			failed = fmt.Errorf("it printed %q: %w", printed, err)
		}
	}
	for _, work := range []string{"volume-write", "volume-read", "volume-create"} {
		m := b.report.at(Key{Bench: "volume", Work: work, State: stateWarm}, peer, "s")
		if failed != nil {
			m.Status = "fails: " + failed.Error()
			continue
		}
		m.Ops, m.Values = 1, append(m.Values, seconds[work])
	}
	return nil
}

// WorkOnVolume does in dir what [Volumes] measures, and returns the seconds of each work. Only its shortest of three rounds
// counts for each: what takes longer is the disk's doing, which is the same for everyone.
func WorkOnVolume(dir string) (map[string]float64, error) {
	seconds := map[string]float64{}
	for range 3 {
		for _, work := range []struct {
			name string
			do   func(dir string) error
		}{{"volume-write", writeVolume}, {"volume-read", readVolume}, {"volume-create", createOnVolume}} {
			start := time.Now()
			if err := work.do(dir); err != nil {
				return nil, err
			}
			took := time.Since(start).Seconds()
			if least, done := seconds[work.name]; !done || took < least {
				seconds[work.name] = took
			}
		}
	}
	return seconds, os.Remove(filepath.Join(dir, "large"))
}

func writeVolume(dir string) error {
	file, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for range volumeBytes / len(block) {
		if _, err := file.Write(block); err != nil {
			return err
		}
	}
	return errors.Join(file.Sync(), file.Close())
}

func readVolume(dir string) error {
	file, err := os.Open(filepath.Join(dir, "large"))
	if err != nil {
		return err
	}
	defer file.Close()
	block := make([]byte, 1<<20)
	for range 4 { // long enough to measure
		for at := int64(0); at < volumeBytes; at += int64(len(block)) {
			if _, err := file.ReadAt(block, at); err != nil {
				return err
			}
		}
	}
	return nil
}

func createOnVolume(dir string) error {
	var st unix.Stat_t
	for i := range volumeFiles {
		name := filepath.Join(dir, "file-"+strconv.Itoa(i))
		if err := os.WriteFile(name, []byte("content"), 0o644); err != nil {
			return err
		}
		if err := unix.Lstat(name, &st); err != nil {
			return err
		}
	}
	for i := range volumeFiles {
		if err := os.Remove(filepath.Join(dir, "file-"+strconv.Itoa(i))); err != nil {
			return err
		}
	}
	return nil
}
