package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// ContainerOptions says what [Run], [Images] and [Volumes] measure.
type ContainerOptions struct {
	Program  string   // the unionfs to measure
	Worker   string   // the program that has [WorkOnVolume] as its verb "volume-work"
	Dir      string   // where images and containers are kept
	Against  []string // of ToolNames
	Runs     int
	Depths   []int // Images: numbers of layers
	Entries  int   // Images: of the image
	Asleep   int   // Run: number of containers that sleep
	Budget   time.Duration
	Progress *Progress
}

// containerBench is one invocation of Run, Images or Volumes.
type containerBench struct {
	ctx     context.Context
	o       ContainerOptions
	report  *Report
	chosen  []*tool
	scratch string
	images  *imageServer
	env     []string
	runRoot string         // for podman, which wants its name to have at most 50 characters, and for sockets
	lives   map[string]int // by tool: how many directories it had that couldn't be removed
	stops   []func() error // end daemons
}

func newContainerBench(ctx context.Context, o ContainerOptions, r *Report, wanted func(*tool) bool) (b *containerBench, end func() error, err error) {
	b = &containerBench{ctx: ctx, o: o, report: r, lives: map[string]int{}}
	for _, name := range o.Against {
		if !slices.Contains(ToolNames(), name) {
			return nil, nil, fmt.Errorf("unknown peer %q; known are %s", name, strings.Join(ToolNames(), ", "))
		}
	}
	for _, t := range b.tools() {
		if !wanted(t) || t.name != peerUnionfs && !slices.Contains(o.Against, t.name) {
			continue
		}
		info := PeerInfo{Name: t.name, Options: t.about}
		if info.Version, err = t.version(ctx); err != nil {
			info.Missing = err.Error()
		} else {
			b.chosen = append(b.chosen, t)
		}
		r.Peers = append(r.Peers, info)
	}
	if b.scratch, err = os.MkdirTemp(o.Dir, "unionfs-bench-"); err != nil {
		return nil, nil, fmt.Errorf("making a directory for the images: %w", err)
	}
	if b.runRoot, err = os.MkdirTemp("", "podman-"); err != nil {
		return nil, nil, errors.Join(err, removeScratch(b.scratch))
	}
	conf := filepath.Join(b.scratch, "containers.conf")
	if err := os.WriteFile(conf, []byte(podmanConf), 0o644); err != nil {
		return nil, nil, errors.Join(err, removeScratch(b.scratch))
	}
	b.env = append(os.Environ(), "CONTAINERS_CONF="+conf)
	if b.images, err = startImageServer(b.scratch); err != nil {
		return nil, nil, errors.Join(err, removeScratch(b.scratch))
	}
	return b, func() error {
		err := b.images.close()
		for _, stop := range b.stops {
			err = errors.Join(err, stop())
		}
		return errors.Join(err, discard(b.runRoot, b.scratch))
	}, nil
}

// dir is where a tool keeps its state.
func (b *containerBench) dir(t *tool) string {
	if n := b.lives[t.name]; n > 0 {
		return filepath.Join(b.scratch, fmt.Sprintf("%s-%d", t.name, n))
	}
	return filepath.Join(b.scratch, t.name)
}

// begin makes a tool ready, with nothing in its store. stop must be called before its directory is removed.
func (b *containerBench) begin(t *tool) (stop func() error, err error) {
	if err := os.MkdirAll(b.dir(t), 0o755); err != nil {
		return nil, err
	}
	if t.start == nil {
		return func() error { return nil }, nil
	}
	return t.start(b.dir(t))
}

// empty removes all that a tool has. What can't be removed now is left for the benchmark's end, and the tool gets another
// directory: what was measured counts all the same.
func (b *containerBench) empty(t *tool) {
	dir := b.dir(t)
	if err := discard(dir, dir+".ext4", filepath.Join(b.runRoot, t.name)); err != nil {
		b.report.Notes = append(b.report.Notes, fmt.Sprintf("%s left something behind that can't be removed: %v", t.name, err))
		b.lives[t.name]++
	}
}

// command runs one to its end.
func (b *containerBench) command(args []string) error {
	_, err := b.output(b.ctx, args)
	return err
}

// cleanup runs a command also when the benchmark was ended. What it removes may be gone already.
func (b *containerBench) cleanup(args []string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(b.ctx), 20*time.Second)
	defer cancel()
	_, _ = b.output(ctx, args)
}

// output runs a command to its end and returns the last line that it printed.
func (b *containerBench) output(ctx context.Context, args []string) (string, error) {
	c := exec.CommandContext(ctx, args[0], args[1:]...)
	c.Env, c.Dir = b.env, b.scratch
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 20 * time.Second
	// Files, not pipes: what a command leaves in the background may hold them open.
	printed, err := os.CreateTemp(b.scratch, "output-")
	if err != nil {
		return "", err
	}
	defer os.Remove(printed.Name())
	defer printed.Close()
	c.Stdout, c.Stderr = printed, printed
	failed := c.Run()
	content, err := os.ReadFile(printed.Name())
	if err != nil {
		return "", err
	}
	line := lastLine(string(content))
	if failed != nil {
		return "", fmt.Errorf("%s: %w: %s", commandLine(args[:min(len(args), 4)]), failed, line)
	}
	return line, nil
}

func (b *containerBench) pull(t *tool, dir, ref string) error {
	for _, command := range t.pull(dir, ref) {
		if err := b.command(command); err != nil {
			return err
		}
	}
	return nil
}

// measure records how long do takes, or why it can't be done. An error is the benchmark's end.
func (b *containerBench) measure(key Key, peer string, do func() error) (done bool, err error) {
	start := time.Now()
	failed := do()
	seconds := time.Since(start).Seconds()
	if b.ctx.Err() != nil {
		return false, b.ctx.Err()
	}
	m := b.report.at(key, peer, "s")
	if failed != nil {
		m.Status = "fails: " + failed.Error()
		return false, nil
	}
	m.Ops, m.Values = 1, append(m.Values, seconds)
	return true, nil
}

// busyboxDir makes the branch of an image with a static busybox and no more.
func busyboxDir(root string) error {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return errors.New("busybox is missing, which is run in the containers; install Debian's package busybox-static")
	}
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return err
		}
	}
	if err := copyNode(busybox, filepath.Join(root, "bin", "busybox")); err != nil {
		return err
	}
	for _, name := range []string{"sh", "true", "sleep"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return err
		}
	}
	return nil
}

// busyboxImage publishes an image of that.
func (b *containerBench) busyboxImage() (string, error) {
	root := filepath.Join(b.scratch, "busybox", "0")
	if err := busyboxDir(root); err != nil {
		return "", err
	}
	s := &stack{dir: filepath.Dir(root), lowers: []string{"0"}}
	return b.images.publish(b.ctx, s, "bench/busybox", busyboxConfig(), true)
}

func busyboxConfig() v1.Config {
	return v1.Config{Cmd: []string{"/bin/true"}, Env: []string{"PATH=/bin"}}
}

func aboutOther(key Key) string {
	switch key.Work {
	case "run":
		return "start a container, run a command that does nothing, remove the container"
	case "run-16":
		return "the same 16 times at once"
	case "exec":
		return "run a command that does nothing in a container that runs"
	case "asleep":
		return "memory beside the command of each container that sleeps (PSS of the tool's processes)"
	case "pull":
		return "get an image from a registry on loopback and make it ready to run"
	case "pull-second":
		return "get an image that has all layers but one in common with one that is there"
	case "mount-ls":
		return "mount an image by name and list its root"
	case "commit":
		return "make an image of a container that changed ten files"
	case "rmi":
		return "remove an image of which another one has most layers"
	case "touch":
		return "write one byte into the middle of a file of a lower branch"
	case "memory":
		return "resident memory of the server when every entry was listed and asked for its attributes"
	case "mount":
		return "from the start of the program to the first answer of the mount"
	case "volume-write":
		return "write a file of 64 MiB and sync it"
	case "volume-read":
		return "read a file of 64 MiB, warm"
	case "volume-create":
		return "create, stat and remove 2,000 files"
	}
	return key.Work
}
