package cow

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// mountKernel mounts the kernel's overlayfs over the branches of a tree, which no union has open: with its upper branch, or read
// only with that as the topmost lower one.
func (w *tree) mountKernel(writable bool, options ...string) (mnt string, unmount func()) {
	w.t.Helper()
	mnt = w.t.TempDir()
	if writable {
		work := w.t.TempDir()
		options = append(options, "lowerdir="+strings.Join(w.lower, ":"), "upperdir="+w.upper, "workdir="+work)
	} else {
		options = append(options, "lowerdir="+strings.Join(append([]string{w.upper}, w.lower...), ":"))
	}
	options = append(options, "index=off", "nfs_export=off")
	if err := unix.Mount("overlay", mnt, "overlay", 0, strings.Join(options, ",")); err != nil {
		w.t.Fatalf("mounting the kernel's overlayfs with %s: %v", options, err)
	}
	mounted := true
	unmount = func() {
		if mounted {
			mounted = false
			modeltest.Unmount(w.t, mnt)
		}
	}
	w.t.Cleanup(unmount)
	return mnt, unmount
}

// kernelShows fails unless the kernel's overlayfs shows what the plain directory has. With metacopy "off" it refuses the
// metadata-only copies that it made with "on".
func (w *tree) kernelShows(metacopy, after string) {
	w.t.Helper()
	want, err := modeltest.Dump(w.plain, false)
	must(w.t, err)
	for _, c := range []struct {
		writable bool
		options  string
	}{{true, "redirect_dir=on"}, {false, "redirect_dir=follow"}} {
		mnt, unmount := w.mountKernel(c.writable, c.options, "metacopy="+metacopy)
		got, err := modeltest.Dump(mnt, false)
		must(w.t, err)
		unmount()
		if !slices.Equal(got, want) {
			w.t.Fatalf("%s, the kernel with %s (writable %v) has, the plain directory not:\n%s\nthe plain directory has, the kernel not:\n%s",
				after, c.options, c.writable, modeltest.Missing(got, want), modeltest.Missing(want, got))
		}
	}
}

// withoutLinks leaves out which names a description of a tree says to be hard links of which.
func withoutLinks(tree []string) []string {
	out := make([]string, len(tree))
	for i, line := range tree {
		out[i] = hardLink.ReplaceAllString(line, "")
	}
	return out
}

var hardLink = regexp.MustCompile(` = /\S+`)

// TestKernelOverlay passes the same upper branch back and forth between this union and the kernel's overlayfs, each of which
// does random operations to it, and finds the same tree every time.
func TestKernelOverlay(t *testing.T) {
	rng := modeltest.NewRand(t)
	for round := range 8 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			w := newTree(t, 1+rng.IntN(3), modeltest.Layers{Rand: rng, Devices: true, NoHardLinks: true})
			w.close()
			w.meta = Metacopy(round) % 2 // completed at the end, or left to the kernel
			w.later = round/2%2 == 1
			w.open()
			lower := snapshot(t, w.lower)
			var log []string
			play := func(what string, got, want error) {
				log = append(log, fmt.Sprintf("%s: %v / %v", what, got, want))
				if (got == nil) != (want == nil) {
					t.Fatalf("the results differ:\n%s", strings.Join(log, "\n"))
				}
			}
			for pass := range 3 {
				for range 60 {
					play(w.step())
				}
				w.close()
				log = append(log, "the kernel looks at it")
				metacopy := "off"
				if pass > 0 || w.meta == MetacopyKeep {
					metacopy = "on" // the kernel refuses metadata-only copies otherwise, its own among them
				}
				w.kernelShows(metacopy, fmt.Sprintf("pass %d:\n%s", pass, strings.Join(log, "\n")))

				mnt, unmount := w.mountKernel(true, "redirect_dir=on,metacopy=on")
				kernel, plain := modeltest.NewPlayer(mnt), modeltest.NewPlayer(w.plain)
				for range 60 {
					op := modeltest.Random(rng)
					got, gotErr := kernel.Do(op)
					want, wantErr := plain.Do(op)
					play("kernel: "+op.What, gotErr, wantErr)
					if got != want && gotErr == nil {
						t.Fatalf("the kernel has %s, the plain directory %s\n%s", got, want, strings.Join(log, "\n"))
					}
				}
				kernel.Close()
				plain.Close()
				kernelTree, err := modeltest.Dump(mnt, false)
				must(t, err)
				plainTree, err := modeltest.Dump(w.plain, false)
				must(t, err)
				// The kernel gives the names of one file of the upper branch different inode numbers in some cases. They are still
				// one file, as the union shows.
				if !slices.Equal(withoutLinks(kernelTree), withoutLinks(plainTree)) {
					// The kernel's own difference: a plain directory is no measure of the union then.
					t.Logf("the kernel alone has:\n%s\nthe plain directory alone:\n%s", modeltest.Missing(kernelTree, plainTree), modeltest.Missing(plainTree, kernelTree))
					w.copyPlain(mnt)
				}
				unmount()
				w.open()
				if got, want := w.dump(), w.dumpPlain(); !slices.Equal(got, want) {
					t.Fatalf("history:\n%s\nunion only:\n%s\nplain only:\n%s", strings.Join(log, "\n"), modeltest.Missing(got, want), modeltest.Missing(want, got))
				}
			}
			w.close()
			if after := snapshot(t, w.lower); !slices.Equal(lower, after) {
				t.Errorf("lower branches changed:\n%s", modeltest.Missing(after, lower))
			}
		})
	}
}

// copyPlain makes the plain directory a copy of another.
func (w *tree) copyPlain(from string) {
	w.t.Helper()
	must(w.t, os.RemoveAll(w.plain))
	must(w.t, os.Mkdir(w.plain, 0o755))
	if out, err := exec.Command("cp", "-a", from+"/.", w.plain).CombinedOutput(); err != nil {
		w.t.Fatalf("copying %s: %v: %s", from, err, out)
	}
}
