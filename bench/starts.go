package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Run measures containers of a small image: how long a command that does nothing takes from the call of the tool to its
// end, in a new container, in sixteen at once and in one that runs, and what containers that sleep cost.
func Run(ctx context.Context, o ContainerOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return runInto(ctx, o, r) })
}

// atOnce is the number of containers that are started together.
const atOnce = 16

func runInto(ctx context.Context, o ContainerOptions, r *Report) (err error) {
	b, end, err := newContainerBench(ctx, o, r, func(t *tool) bool { return t.run != nil })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	o.Progress.part("containers: making the image", "")
	ref, err := b.busyboxImage()
	if err != nil {
		return err
	}
	able, err := b.prepareToRun(ref)
	if err != nil {
		return err
	}
	r.inRounds()
	together := max(1, min(o.Runs/4, leastRounds))
	o.Progress.start(len(able) * (2*o.Runs + 4*together + o.Asleep))
	// What is done once comes first, so that what is left is for what is done often; and last what takes long and needs few rounds.
	if err := b.measureAsleep(able, ref); err != nil {
		return err
	}
	pace := newPace(r.Started, o.Budget, 3)
	pace.next()
	if err := b.measureExec(able, ref, pace); err != nil {
		return err
	}
	pace.next()
	if err := b.measureRun(able, ref, pace); err != nil {
		return err
	}
	pace.next()
	return b.measureTogether(able, ref, together, pace)
}

// prepareToRun gets the image and runs it once, unmeasured. It returns the tools that can.
func (b *containerBench) prepareToRun(ref string) ([]*tool, error) {
	var able []*tool
	for _, t := range b.chosen {
		dir := b.dir(t)
		stop, err := b.begin(t)
		if err == nil {
			b.stops = append(b.stops, stop)
			err = b.pull(t, dir, ref)
		}
		if err == nil && t.ready != nil {
			err = t.ready(dir)
		}
		if err == nil {
			err = b.command(t.run(dir, ref, launch{name: "first"}))
		}
		if b.ctx.Err() != nil {
			return nil, b.ctx.Err()
		}
		if err != nil {
			b.report.at(Key{Bench: "run", Work: "run", State: stateWarm}, t.name, "s").Status = "fails: " + err.Error()
			continue
		}
		able = append(able, t)
	}
	return able, nil
}

func (b *containerBench) measureRun(able []*tool, ref string, pace *pace) error {
	b.o.Progress.part(fmt.Sprintf("run, %d times each", b.o.Runs), "")
	for run := range b.o.Runs {
		if !pace.more(run) {
			b.o.Progress.step((b.o.Runs - run) * len(able))
			break
		}
		for i := range able {
			t := able[(i+run)%len(able)]
			command := t.run(b.dir(t), ref, launch{name: "run-" + strconv.Itoa(run)})
			if _, err := b.measure(Key{Bench: "run", Work: "run", State: stateWarm}, t.name, func() error { return b.command(command) }); err != nil {
				return err
			}
			b.o.Progress.step(1)
		}
		pace.round()
	}
	return nil
}

func (b *containerBench) measureTogether(able []*tool, ref string, runs int, pace *pace) error {
	b.o.Progress.part(fmt.Sprintf("run, %d at once", atOnce), "")
	costs := map[cell]time.Duration{}
	for i := range able {
		costs[cell{peer: i}] = 0
	}
	for run := range runs {
		chosen := pace.choose(run, costs)
		for i := range able {
			at := cell{peer: (i + run) % len(able)}
			if !chosen[at] {
				b.o.Progress.step(4)
				continue
			}
			t, start := able[at.peer], time.Now()
			_, err := b.measure(Key{Bench: "run", Work: "run-16", State: stateWarm}, t.name, func() error {
				failed := make([]error, atOnce)
				var group sync.WaitGroup
				for n := range atOnce {
					command := t.run(b.dir(t), ref, launch{name: fmt.Sprintf("together-%d-%d", run, n)})
					group.Go(func() { failed[n] = b.command(command) })
				}
				group.Wait()
				return errors.Join(failed...)
			})
			if err != nil {
				return err
			}
			costs[at] = time.Since(start)
			b.o.Progress.step(4)
		}
	}
	return nil
}

func (b *containerBench) measureExec(able []*tool, ref string, pace *pace) error {
	const name = "executed"
	b.o.Progress.part(fmt.Sprintf("exec, %d times each", b.o.Runs), "")
	key := Key{Bench: "run", Work: "exec", State: stateWarm}
	var started []*tool
	for _, t := range able {
		if t.exec == nil {
			b.o.Progress.step(b.o.Runs)
			continue
		}
		defer b.cleanup(t.end(b.dir(t), name))
		err := b.command(t.run(b.dir(t), ref, launch{name: name, background: true}))
		if err == nil {
			err = b.command(t.exec(b.dir(t), name))
		}
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		if err != nil {
			b.report.at(key, t.name, "s").Status = "fails: " + err.Error()
			continue
		}
		started = append(started, t)
	}
	for run := range b.o.Runs {
		if !pace.more(run) {
			b.o.Progress.step((b.o.Runs - run) * len(started))
			break
		}
		for i := range started {
			t := started[(i+run)%len(started)]
			if _, err := b.measure(key, t.name, func() error { return b.command(t.exec(b.dir(t), name)) }); err != nil {
				return err
			}
			b.o.Progress.step(1)
		}
		pace.round()
	}
	return nil
}

// measureAsleep starts containers that sleep, and shares the memory of what the tool keeps beside them out among them.
func (b *containerBench) measureAsleep(able []*tool, ref string) error {
	if b.o.Asleep == 0 {
		return nil
	}
	for _, t := range able {
		if t.keeps == nil || t.name == peerPodmanFuse {
			b.o.Progress.step(b.o.Asleep)
			continue
		}
		b.o.Progress.part(fmt.Sprintf("%d containers that sleep", b.o.Asleep), t.name)
		if err := b.asleep(t, ref); err != nil {
			return err
		}
	}
	return nil
}

func (b *containerBench) asleep(t *tool, ref string) error {
	before, err := processes()
	if err != nil {
		return err
	}
	measurement := func() *Measurement {
		return b.report.at(Key{Bench: "run", Work: "asleep", Param: int64(b.o.Asleep)}, t.name, "B")
	}
	for i := range b.o.Asleep {
		name := "asleep-" + strconv.Itoa(i)
		defer b.cleanup(t.end(b.dir(t), name))
		if err := b.command(t.run(b.dir(t), ref, launch{name: name, background: true})); err != nil {
			if b.ctx.Err() != nil {
				return b.ctx.Err()
			}
			measurement().Status = "fails: " + err.Error()
			return nil
		}
		b.o.Progress.step(1)
	}
	time.Sleep(300 * time.Millisecond) // let the last one come to rest
	after, err := processes()
	if err != nil {
		return err
	}
	var total int64
	for pid, e := range after {
		if _, old := before[pid]; !old && t.keeps(e) {
			total += sharedMemory(pid)
		}
	}
	m := measurement()
	m.Ops, m.Values = b.o.Asleep, append(m.Values, float64(total)/float64(b.o.Asleep))
	return nil
}

// executable is what a process executes.
type executable struct {
	path string      // empty for kernel threads
	file os.FileInfo // nil for them
}

// processes returns the executable of every process.
func processes() (map[int]executable, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	found := map[int]executable{}
	for _, entry := range entries {
		if pid, err := strconv.Atoi(entry.Name()); err == nil {
			exe := filepath.Join("/proc", entry.Name(), "exe")
			var e executable
			e.path, _ = os.Readlink(exe)
			e.file, _ = os.Stat(exe)
			found[pid] = e
		}
	}
	return found, nil
}

// sharedMemory returns a process's memory in bytes, of what it shares its share (Pss in proc_pid_smaps(5)); 0 if it has
// ended.
func sharedMemory(pid int) int64 {
	text := fieldOf(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"), "Pss", ":")
	kib, err := strconv.ParseInt(strings.TrimSuffix(text, " kB"), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}
