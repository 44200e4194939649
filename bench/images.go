package bench

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// Images measures what is done with an image of a tree: pulling it from a registry on loopback, mounting it, committing a
// container of it, pulling another one that has all its layers but one, and removing that.
func Images(ctx context.Context, o ContainerOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return imagesInto(ctx, o, r) })
}

func imagesInto(ctx context.Context, o ContainerOptions, r *Report) (err error) {
	b, end, err := newContainerBench(ctx, o, r, func(t *tool) bool { return t.pull != nil && t.name != peerRunc && t.name != peerBubblewrap })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	o.Progress.start(o.Runs * len(b.chosen) * len(o.Depths))
	pace := newPace(r.Started, o.Budget, len(o.Depths))
	for _, depth := range o.Depths {
		pace.next()
		if err := b.imagesAt(depth, pace); err != nil {
			return err
		}
	}
	return nil
}

// imagesAt measures an image of that number of layers.
func (b *containerBench) imagesAt(depth int, pace *pace) error {
	b.o.Progress.part(fmt.Sprintf("making images of %d layers", depth), "")
	made := newSeededImage(1, b.o.Entries, depth)
	refs, err := b.publishBoth(made)
	if err != nil {
		return err
	}
	change := sample(made.files(), "change", 10)
	b.report.inRounds()
	defer b.report.preparing()
	costs := map[cell]time.Duration{}
	for i := range b.chosen {
		costs[cell{peer: i}] = 0
	}
	for run := range b.o.Runs {
		chosen := pace.choose(run, costs)
		for i := range b.chosen {
			at := cell{peer: (i + run) % len(b.chosen)}
			if !chosen[at] {
				b.o.Progress.step(1)
				continue
			}
			t, start := b.chosen[at.peer], time.Now()
			b.o.Progress.part(fmt.Sprintf("images of %d layers, run %d of %d", depth, run+1, b.o.Runs), t.name)
			if err := syncFileSystem(b.scratch); err != nil {
				return err
			}
			err := b.lifeOfImages(t, refs, depth, change)
			b.empty(t)
			if err != nil {
				return err
			}
			costs[at] = time.Since(start)
			b.o.Progress.step(1)
		}
	}
	return b.images.forget()
}

// publishBoth publishes an image, with busybox in its lowest layer, and one that differs from it in its top layer.
func (b *containerBench) publishBoth(made *seededImage) (refs [2]string, err error) {
	busybox := filepath.Join(b.scratch, "busybox")
	if err := busyboxDir(busybox); err != nil {
		return refs, err
	}
	var layers []v1.Layer
	add := func(n int, more func(*tar.Writer) error) error {
		layer, err := b.images.addLayer(true, func(out *tar.Writer) error {
			if err := more(out); err != nil {
				return err
			}
			return made.writeLayer(b.ctx, out, n)
		})
		layers = append(layers, layer)
		return err
	}
	for n := range made.layers {
		err := add(n, func(out *tar.Writer) error {
			if n > 0 {
				return nil
			}
			return writeBranch(b.ctx, out, busybox)
		})
		if err != nil {
			return refs, err
		}
	}
	if refs[0], err = b.images.publishLayers(b.ctx, layers, fmt.Sprintf("bench/first-%d", made.layers), busyboxConfig()); err != nil {
		return refs, err
	}
	top := made.layers - 1
	layers = layers[:top]
	err = add(top, func(out *tar.Writer) error {
		if top == 0 {
			if err := writeBranch(b.ctx, out, busybox); err != nil {
				return err
			}
		}
		return writeSeeded(out, "another", 0o644, []byte("image\n"))
	})
	if err != nil {
		return refs, err
	}
	if refs[1], err = b.images.publishLayers(b.ctx, layers, fmt.Sprintf("bench/second-%d", made.layers), busyboxConfig()); err != nil {
		return refs, err
	}
	return refs, os.RemoveAll(busybox)
}

// lifeOfImages measures a tool with an empty store. Once something fails, what depends on it is left out.
func (b *containerBench) lifeOfImages(t *tool, refs [2]string, depth int, change []string) error {
	key := func(work string) Key { return Key{Bench: "images", Work: work, Depth: depth} }
	dir := b.dir(t)
	// What a tool started in the background may have made it again.
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if canMakeDisks() { // as for the upper branches of mounts; see mountFresh
		if _, err := mountDisk(dir); err != nil {
			return err
		}
	}
	stop, err := b.begin(t)
	if err != nil {
		b.report.at(key("pull"), t.name, "s").Status = "fails: " + err.Error()
		return b.ctx.Err()
	}
	defer stop()
	done, err := b.measure(key("pull"), t.name, func() error { return b.pull(t, dir, refs[0]) })
	if !done {
		return err
	}
	if t.mount != nil {
		if err := b.settle(); err != nil {
			return err
		}
		if err := b.mountAndList(key("mount-ls"), t, refs[0]); err != nil {
			return err
		}
	}
	if t.commit != nil {
		if err := b.changeAndCommit(key("commit"), t, refs[0], change); err != nil {
			return err
		}
	}
	if t.remove == nil {
		return nil
	}
	if err := b.settle(); err != nil {
		return err
	}
	if done, err = b.measure(key("pull-second"), t.name, func() error { return b.pull(t, dir, refs[1]) }); !done {
		return err
	}
	if err := b.settle(); err != nil {
		return err
	}
	_, err = b.measure(key("rmi"), t.name, func() error { return b.command(t.remove(dir, refs[1])) })
	return err
}

// settle writes out what the work before has left to the kernel, and is not this one's: some tools flush nothing.
func (b *containerBench) settle() error { return syncFileSystem(b.scratch) }

func (b *containerBench) mountAndList(key Key, t *tool, ref string) error {
	target := filepath.Join(b.dir(t), "target")
	if err := os.Mkdir(target, 0o755); err != nil {
		return err
	}
	_, err := b.measure(key, t.name, func() error {
		printed, err := b.output(b.ctx, t.mount(b.dir(t), ref, target))
		if err != nil {
			return err
		}
		at := target
		if strings.HasPrefix(printed, "/") {
			at = printed
		}
		listed, err := os.ReadDir(at)
		if err == nil && len(listed) < 3 {
			err = fmt.Errorf("its root shows only %d entries", len(listed))
		}
		return err
	})
	b.cleanup(t.unmount(b.dir(t), ref, target))
	return err
}

func (b *containerBench) changeAndCommit(key Key, t *tool, ref string, change []string) error {
	const name = "committed"
	script := "for f in \"$@\"; do echo changed >>\"/$f\" || exit 1; done"
	l := launch{name: name, keep: true, command: append([]string{"/bin/sh", "-c", script, "sh"}, change...)}
	defer b.cleanup(t.end(b.dir(t), name))
	if err := b.command(t.run(b.dir(t), ref, l)); err != nil {
		if b.ctx.Err() != nil {
			return b.ctx.Err()
		}
		b.report.at(key, t.name, "s").Status = "fails: " + err.Error()
		return nil
	}
	if err := b.settle(); err != nil {
		return err
	}
	_, err := b.measure(key, t.name, func() error { return b.command(t.commit(b.dir(t), name, "bench-committed:1")) })
	return err
}
