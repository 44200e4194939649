package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
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
	o.Progress.part("images: making the tree", "")
	plain := filepath.Join(b.scratch, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		return err
	}
	if err := makeTree(ctx, plain, treeShape{seed: 1, entries: o.Entries}); err != nil {
		return err
	}
	tree, err := takeCatalogue(ctx, plain)
	if err != nil {
		return err
	}
	o.Progress.start(o.Runs * len(b.chosen) * len(o.Depths))
	pace := newPace(o.Budget, len(o.Depths))
	for _, depth := range o.Depths {
		pace.next()
		if err := b.imagesAt(plain, depth, sample(tree.files, "change", 10), pace); err != nil {
			return err
		}
	}
	return nil
}

// imagesAt measures an image of that number of layers.
func (b *containerBench) imagesAt(plain string, depth int, change []string, pace *pace) error {
	b.o.Progress.part(fmt.Sprintf("making images of %d layers", depth), "")
	refs, err := b.publishBoth(plain, depth)
	if err != nil {
		return err
	}
	for run := range b.o.Runs {
		if run > 0 && !pace.more() {
			b.o.Progress.step((b.o.Runs - run) * len(b.chosen))
			break
		}
		for i := range b.chosen {
			t := b.chosen[(i+run)%len(b.chosen)]
			b.o.Progress.part(fmt.Sprintf("images of %d layers, run %d of %d", depth, run+1, b.o.Runs), t.name)
			if err := syncFileSystem(b.scratch); err != nil {
				return err
			}
			err := b.lifeOfImages(t, refs, depth, change)
			if err = errors.Join(err, b.endPodman(), removeTree(b.dir(t))); err != nil {
				return err
			}
			b.o.Progress.step(1)
		}
		pace.round()
	}
	return b.images.forget()
}

// publishBoth publishes an image, and one that differs from it in its top layer.
func (b *containerBench) publishBoth(plain string, depth int) (refs [2]string, err error) {
	branches := filepath.Join(b.scratch, "branches")
	s, err := splitTree(b.ctx, plain, branches, depth)
	if err != nil {
		return refs, err
	}
	if err := busyboxDir(filepath.Join(branches, s.lowers[depth-1])); err != nil {
		return refs, err
	}
	if refs[0], err = b.images.publish(b.ctx, s, fmt.Sprintf("bench/first-%d", depth), busyboxConfig(), true); err != nil {
		return refs, err
	}
	if err := writeFile(filepath.Join(branches, s.lowers[0], "another"), []byte("image\n"), 0o644); err != nil {
		return refs, err
	}
	if refs[1], err = b.images.publish(b.ctx, s, fmt.Sprintf("bench/second-%d", depth), busyboxConfig(), true); err != nil {
		return refs, err
	}
	return refs, os.RemoveAll(branches)
}

// lifeOfImages measures a tool with an empty store. Once something fails, what depends on it is left out.
func (b *containerBench) lifeOfImages(t *tool, refs [2]string, depth int, change []string) error {
	dir := b.dir(t)
	key := func(work string) Key { return Key{Bench: "images", Work: work, Depth: depth} }
	done, err := b.measure(key("pull"), t.name, func() error { return b.pull(t, dir, refs[0]) })
	if !done || t.mount == nil {
		return err
	}
	if err := b.mountAndList(key("mount-ls"), t, refs[0]); err != nil {
		return err
	}
	if err := b.changeAndCommit(key("commit"), t, refs[0], change); err != nil {
		return err
	}
	if done, err = b.measure(key("pull-second"), t.name, func() error { return b.pull(t, dir, refs[1]) }); !done {
		return err
	}
	_, err = b.measure(key("rmi"), t.name, func() error { return b.command(t.remove(dir, refs[1])) })
	return err
}

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
	_, err := b.measure(key, t.name, func() error { return b.command(t.commit(b.dir(t), name, "bench-committed:1")) })
	return err
}
