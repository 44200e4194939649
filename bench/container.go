package bench

import (
	"context"
	"encoding/json"
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

// Names of the container tools that are measured beside unionfs.
const (
	peerPodman      = "podman"
	peerRunc        = "runc"
	peerBubblewrap  = "bubblewrap"
	peerSkopeoUmoci = "skopeo+umoci"
)

// ToolNames lists the container tools that can be measured, in the order of reports. unionfs itself is the first.
func ToolNames() []string {
	return []string{peerUnionfs, peerPodman, peerSkopeoUmoci, peerRunc, peerBubblewrap}
}

// ContainerOptions says what [Run] and [Pull] measure.
type ContainerOptions struct {
	Program  string   // the unionfs to measure
	Dir      string   // where images and containers are kept
	Against  []string // of ToolNames
	Runs     int
	Depths   []int // Pull: numbers of layers
	Entries  int   // Pull: of the image
	Progress *Progress
}

// Run measures how long a command that does nothing takes from the call of the tool to its end.
func Run(ctx context.Context, o ContainerOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return runInto(ctx, o, r) })
}

// Pull measures how long it takes to get an image from a registry on loopback, so that it can be run.
func Pull(ctx context.Context, o ContainerOptions) (*Report, error) {
	return measureInto(ctx, o.Dir, func(r *Report) error { return pullInto(ctx, o, r) })
}

// tool is a container tool with a state of its own in dir.
type tool struct {
	name    string
	about   string                           // how a command is run
	version func() (string, error)           // an error says that it is missing
	pull    func(dir, ref string) [][]string // commands that make the image ready; nil if it doesn't pull
	run     func(dir, ref string) []string   // command that runs true; nil if it doesn't run
	ready   func(dir string) error           // what is to do between pull and run; may be nil
}

func (b *containerBench) tools() []*tool {
	ctx := b.ctx
	skopeoUmoci := func(dir, ref string) [][]string {
		return [][]string{
			{"skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://" + ref, "oci:" + dir + "/oci:latest"},
			{"umoci", "unpack", "--image", dir + "/oci:latest", dir + "/bundle"},
		}
	}
	versionOfBoth := func() (string, error) {
		skopeo, err := programVersion(ctx, "skopeo", "version", "skopeo", "--version")
		if err != nil {
			return "", err
		}
		umoci, err := programVersion(ctx, "umoci", "version", "umoci", "--version")
		return skopeo + ", " + umoci, err
	}
	return []*tool{
		{
			name: peerUnionfs, about: "unionfs run --rm IMAGE /bin/true",
			version: func() (string, error) { return programVersion(ctx, "unionfs", "", b.o.Program, "version") },
			pull: func(dir, ref string) [][]string {
				return [][]string{{b.o.Program, "--root", dir + "/root", "pull", ref}}
			},
			run: func(dir, ref string) []string {
				return []string{b.o.Program, "--root", dir + "/root", "run", "--rm", ref, "/bin/true"}
			},
		},
		{
			name: peerPodman, about: "podman run --rm --network none IMAGE /bin/true, with the kernel's overlayfs and runc",
			version: func() (string, error) { return programVersion(ctx, "podman", "version", "podman", "--version") },
			pull: func(dir, ref string) [][]string {
				return [][]string{b.podman(dir, "pull", "--quiet", "--tls-verify=false", ref)}
			},
			run: func(dir, ref string) []string {
				return b.podman(dir, "run", "--rm", "--network", "none", ref, "/bin/true")
			},
		},
		{
			name: peerSkopeoUmoci, about: "skopeo copy, umoci unpack", version: versionOfBoth, pull: skopeoUmoci,
		},
		{
			name: peerRunc, about: "runc run, on a bundle that umoci unpacked: no copy-on-write",
			version: func() (string, error) {
				if _, err := versionOfBoth(); err != nil {
					return "", fmt.Errorf("needs skopeo and umoci: %w", err)
				}
				return programVersion(ctx, "runc", "version", "runc", "--version")
			},
			pull: skopeoUmoci, ready: makeBundle,
			run: func(dir, _ string) []string {
				return []string{"runc", "--root", dir + "/runc", "run", "--bundle", dir + "/bundle", "bench"}
			},
		},
		{
			name: peerBubblewrap, about: "bwrap --unshare-all --bind ROOT / …: no copy-on-write",
			version: func() (string, error) {
				if _, err := versionOfBoth(); err != nil {
					return "", fmt.Errorf("needs skopeo and umoci: %w", err)
				}
				return programVersion(ctx, "bubblewrap", "bubblewrap", "bwrap", "--version")
			},
			pull: skopeoUmoci,
			run: func(dir, _ string) []string {
				return []string{"bwrap", "--unshare-all", "--bind", dir + "/bundle/rootfs", "/", "--proc", "/proc", "--dev", "/dev", "/bin/true"}
			},
		},
	}
}

// podman is a command line of podman with storage of its own, and nothing that needs systemd.
func (b *containerBench) podman(dir string, args ...string) []string {
	return append([]string{
		"podman", "--root", dir + "/root", "--runroot", b.runRoot, "--tmpdir", dir + "/tmp", "--storage-driver", "overlay",
		"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc", "--log-level", "error",
	}, args...)
}

// podmanConf keeps podman from asking for limits that a container may not raise.
const podmanConf = `[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`

// makeBundle fits the configuration that umoci made to a command that does nothing, without a terminal.
func makeBundle(dir string) error {
	name := filepath.Join(dir, "bundle", "config.json")
	content, err := os.ReadFile(name)
	if err != nil {
		return err
	}
	var config map[string]any
	if err := json.Unmarshal(content, &config); err != nil {
		return err
	}
	process, ok := config["process"].(map[string]any)
	if !ok {
		return fmt.Errorf("%s has no process", name)
	}
	process["terminal"], process["args"] = false, []string{"/bin/true"}
	delete(process, "rlimits")
	if content, err = json.Marshal(config); err != nil {
		return err
	}
	return os.WriteFile(name, content, 0o644)
}

// containerBench is one invocation of Run or Pull.
type containerBench struct {
	ctx     context.Context
	o       ContainerOptions
	report  *Report
	chosen  []*tool
	scratch string
	images  *imageServer
	env     []string
	runRoot string // for podman, which wants its name to have at most 50 characters
}

func newContainerBench(ctx context.Context, o ContainerOptions, r *Report, wanted func(*tool) bool) (b *containerBench, end func() error, err error) {
	b = &containerBench{ctx: ctx, o: o, report: r}
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
		if info.Version, err = t.version(); err != nil {
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
		return errors.Join(b.images.close(), b.endPodman(), os.RemoveAll(b.runRoot), removeScratch(b.scratch))
	}, nil
}

// endPodman unmounts what podman keeps mounted over its storage (containers/storage, drivers/overlay: MakePrivate).
func (b *containerBench) endPodman() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		fields := strings.Fields(line)
		if len(fields) > 4 && strings.HasPrefix(fields[4], b.scratch+"/") && strings.HasSuffix(fields[4], "/root/overlay") {
			err = errors.Join(err, unmountKernel(fields[4]))
		}
	}
	return err
}

// command runs one to its end.
func (b *containerBench) command(args []string) error {
	c := exec.CommandContext(b.ctx, args[0], args[1:]...)
	c.Env, c.Dir = b.env, b.scratch
	c.Cancel = func() error { return c.Process.Signal(os.Interrupt) }
	c.WaitDelay = 20 * time.Second
	var output tailBuffer
	c.Stdout, c.Stderr = &output, &output
	if err := c.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", commandLine(args[:min(len(args), 4)]), err, output.line())
	}
	return nil
}

func (b *containerBench) pull(t *tool, dir, ref string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, command := range t.pull(dir, ref) {
		if err := b.command(command); err != nil {
			return err
		}
	}
	return nil
}

// record keeps a figure, or why there is none.
func (b *containerBench) record(key Key, t *tool, start time.Time, err error) error {
	seconds := time.Since(start).Seconds()
	if b.ctx.Err() != nil {
		return b.ctx.Err()
	}
	m := b.report.at(key, t.name, "s")
	if err != nil {
		m.Status = "fails: " + err.Error()
		return nil
	}
	m.Ops, m.Values = 1, append(m.Values, seconds)
	return nil
}

func runInto(ctx context.Context, o ContainerOptions, r *Report) (err error) {
	b, end, err := newContainerBench(ctx, o, r, func(t *tool) bool { return t.run != nil })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	o.Progress.part("run: making the image", "")
	ref, err := b.busyboxImage()
	if err != nil {
		return err
	}
	key := Key{Bench: "run", Work: "run", State: stateWarm}
	var able []*tool
	for _, t := range b.chosen {
		dir := filepath.Join(b.scratch, t.name)
		err := b.pull(t, dir, ref)
		if err == nil && t.ready != nil {
			err = t.ready(dir)
		}
		if err == nil {
			err = b.command(t.run(dir, ref)) // once unmeasured
		}
		if err == nil {
			able = append(able, t)
		} else if err := b.record(key, t, time.Now(), err); err != nil {
			return err
		}
	}
	o.Progress.start(o.Runs * len(able))
	for run := range o.Runs {
		o.Progress.part(fmt.Sprintf("run, %d times each", o.Runs), "")
		for i := range able {
			t := able[(i+run)%len(able)]
			command := t.run(filepath.Join(b.scratch, t.name), ref)
			start := time.Now()
			if err := b.record(key, t, start, b.command(command)); err != nil {
				return err
			}
			o.Progress.step(1)
		}
	}
	return nil
}

// busyboxImage publishes an image with a static busybox and no more.
func (b *containerBench) busyboxImage() (string, error) {
	busybox, err := exec.LookPath("busybox")
	if err != nil {
		return "", errors.New("busybox is missing, which is run in the containers; install Debian's package busybox-static")
	}
	root := filepath.Join(b.scratch, "busybox", "0")
	for _, dir := range []string{"bin", "dev", "etc", "proc", "root", "sys", "tmp"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			return "", err
		}
	}
	if err := copyNode(busybox, filepath.Join(root, "bin", "busybox")); err != nil {
		return "", err
	}
	for _, name := range []string{"sh", "true"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			return "", err
		}
	}
	s := &stack{dir: filepath.Dir(root), lowers: []string{"0"}}
	return b.images.publish(b.ctx, s, "bench/busybox", v1.Config{Cmd: []string{"/bin/true"}, Env: []string{"PATH=/bin"}}, true)
}

func pullInto(ctx context.Context, o ContainerOptions, r *Report) (err error) {
	b, end, err := newContainerBench(ctx, o, r, func(t *tool) bool { return t.pull != nil && t.name != peerRunc && t.name != peerBubblewrap })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	o.Progress.part("pull: making the images", "")
	plain := filepath.Join(b.scratch, "plain")
	if err := os.Mkdir(plain, 0o755); err != nil {
		return err
	}
	if err := makeTree(ctx, plain, treeShape{seed: 1, entries: o.Entries}); err != nil {
		return err
	}
	o.Progress.start(o.Runs * len(b.chosen) * len(o.Depths))
	for _, depth := range o.Depths {
		branches := filepath.Join(b.scratch, "branches")
		if err := os.Mkdir(branches, 0o755); err != nil {
			return err
		}
		s, err := splitTree(ctx, plain, branches, depth)
		if err != nil {
			return err
		}
		ref, err := b.images.publish(ctx, s, fmt.Sprintf("bench/pull-%d", depth), v1.Config{}, true)
		if err != nil {
			return err
		}
		if err := os.RemoveAll(branches); err != nil {
			return err
		}
		for run := range o.Runs {
			for i := range b.chosen {
				t := b.chosen[(i+run)%len(b.chosen)]
				o.Progress.part(fmt.Sprintf("pull, %d layers, run %d of %d", depth, run+1, o.Runs), t.name)
				if err := syncFileSystem(b.scratch); err != nil {
					return err
				}
				dir := filepath.Join(b.scratch, t.name)
				start := time.Now()
				err := b.pull(t, dir, ref)
				if err := b.record(Key{Bench: "pull", Work: "pull", Depth: depth}, t, start, err); err != nil {
					return err
				}
				if err := errors.Join(b.endPodman(), os.RemoveAll(dir)); err != nil {
					return err
				}
				o.Progress.step(1)
			}
		}
		if err := b.images.forget(); err != nil {
			return err
		}
	}
	return nil
}

func aboutOther(key Key) string {
	switch key.Bench {
	case "run":
		return "start a container, run a command that does nothing, remove the container"
	case "pull":
		return "get an image from a registry on loopback and make it ready to run"
	case "copyup":
		return "write one byte into the middle of a file of a lower branch"
	case "memory":
		return "resident memory of the server when every entry was listed and asked for its attributes"
	}
	if key.Work == "mount" {
		return "from the start of the program to the first answer of the mount"
	}
	return key.Work
}
