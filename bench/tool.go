package bench

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

// Names of the container tools that are measured beside unionfs.
const (
	peerPodman      = "podman"
	peerPodmanFuse  = "podman+fuse"
	peerRunc        = "runc"
	peerBubblewrap  = "bubblewrap"
	peerSkopeoUmoci = "skopeo+umoci"
	peerDocker      = "docker"
	peerContainerd  = "containerd"
	peerHost        = "host"
)

// ToolNames lists the container tools that can be measured, in the order of reports. unionfs itself is the first.
func ToolNames() []string {
	return []string{peerUnionfs, peerPodman, peerPodmanFuse, peerDocker, peerContainerd, peerSkopeoUmoci, peerRunc, peerBubblewrap}
}

// tool is a container tool with a state of its own in dir. What it can't do is nil. Each function returns command lines.
type tool struct {
	name    string
	about   string                                   // how a command is run
	version func(context.Context) (string, error)    // an error says that it is missing
	start   func(dir string) (func() error, error)   // start a daemon, and return what stops it
	pull    func(dir, ref string) [][]string         // make the image ready to run
	ready   func(dir string) error                   // what is to do between pull and run
	run     func(dir, ref string, l launch) []string // run a command in a new container
	exec    func(dir, name string) []string          // run true in a container
	end     func(dir, name string) []string          // kill and remove a container
	commit  func(dir, name, image string) []string   // make an image of a container
	remove  func(dir, ref string) []string           // remove an image
	mount   func(dir, ref, target string) []string   // mount an image; what it prints is where, unless it is target
	unmount func(dir, ref, target string) []string   //
	keeps   func(e executable) bool                  // whether a process beside a container is this tool's
}

// launch is a container to start. A command that is empty does nothing, or sleeps in the background.
type launch struct {
	name       string
	keep       bool // don't remove it when it ends
	background bool
	volumes    []string // SOURCE:TARGET[:ro]
	command    []string
}

// options are those that unionfs and podman share.
func (l launch) options() []string {
	var options []string
	if l.name != "" {
		options = append(options, "--name", l.name)
	}
	if !l.keep && !l.background {
		options = append(options, "--rm")
	}
	if l.background {
		options = append(options, "--detach")
	}
	for _, volume := range l.volumes {
		options = append(options, "--volume", volume)
	}
	return append(options, "--network", "none")
}

// args is the command.
func (l launch) args() []string {
	switch {
	case len(l.command) > 0:
		return l.command
	case l.background:
		return []string{"/bin/sleep", "100000"}
	}
	return []string{"/bin/true"}
}

func (b *containerBench) tools() []*tool {
	return []*tool{b.unionfsTool(), b.podmanTool(false), b.podmanTool(true), b.dockerTool(), b.containerdTool(), skopeoUmociTool(), runcTool(), bubblewrapTool()}
}

func (b *containerBench) unionfsTool() *tool {
	program := b.o.Program
	ours := func(dir string, args ...string) []string {
		return append([]string{program, "--root", dir + "/root"}, args...)
	}
	return &tool{
		name: peerUnionfs, about: "unionfs run --rm --network none IMAGE /bin/true",
		version: func(ctx context.Context) (string, error) {
			return programVersion(ctx, "unionfs", "", program, "version")
		},
		pull: func(dir, ref string) [][]string { return [][]string{ours(dir, "pull", ref)} },
		run: func(dir, ref string, l launch) []string {
			return append(append(append(ours(dir, "run"), l.options()...), ref), l.args()...)
		},
		exec:    func(dir, name string) []string { return ours(dir, "exec", name, "/bin/true") },
		end:     func(dir, name string) []string { return ours(dir, "rm", "--force", name) },
		commit:  func(dir, name, image string) []string { return ours(dir, "commit", name, image) },
		remove:  func(dir, ref string) []string { return ours(dir, "rmi", ref) },
		mount:   func(dir, ref, target string) []string { return ours(dir, "mount", ref, target) },
		unmount: func(dir, _, target string) []string { return ours(dir, "umount", target) },
		keeps: func(e executable) bool {
			real, err := filepath.EvalSymlinks(program)
			if err != nil {
				return false
			}
			// By the files: an init's is on a mount that has no path.
			dir := filepath.Dir(real)
			for _, own := range []string{real, filepath.Join(dir, "unionfs-supervisor"), filepath.Join(dir, "unionfs-init")} {
				if file, err := os.Stat(own); err == nil && e.file != nil && os.SameFile(file, e.file) {
					return true
				}
			}
			return false
		},
	}
}

// podmanTool is podman, on the kernel's overlayfs or, as for ordinary users, on fuse-overlayfs.
func (b *containerBench) podmanTool(fuse bool) *tool {
	name, about := peerPodman, "podman run --rm --network none IMAGE /bin/true, with the kernel's overlayfs and runc"
	var storage []string
	if fuse {
		name, about = peerPodmanFuse, "podman, with fuse-overlayfs as its storage driver's mount program"
		storage = []string{"--storage-opt", "overlay.mount_program=/usr/bin/fuse-overlayfs"}
	}
	// Storage of its own, and nothing that needs systemd.
	podman := func(dir string, args ...string) []string {
		own := append([]string{
			"podman", "--root", dir + "/root", "--runroot", filepath.Join(b.runRoot, name), "--tmpdir", dir + "/tmp", "--storage-driver", "overlay",
			"--cgroup-manager", "cgroupfs", "--events-backend", "file", "--runtime", "runc", "--log-level", "error",
		}, storage...)
		return append(own, args...)
	}
	return &tool{
		name: name, about: about,
		version: func(ctx context.Context) (string, error) {
			version, err := programVersion(ctx, "podman", "version", "podman", "--version")
			if fuse && err == nil {
				_, err = programVersion(ctx, "fuse-overlayfs", "fuse-overlayfs", "fuse-overlayfs", "--version")
			}
			return version, err
		},
		pull: func(dir, ref string) [][]string {
			return [][]string{podman(dir, "pull", "--quiet", "--tls-verify=false", ref)}
		},
		run: func(dir, ref string, l launch) []string {
			return append(append(append(podman(dir, "run"), l.options()...), ref), l.args()...)
		},
		exec:    func(dir, name string) []string { return podman(dir, "exec", name, "/bin/true") },
		end:     func(dir, name string) []string { return podman(dir, "rm", "--force", "--time", "0", name) },
		commit:  func(dir, name, image string) []string { return podman(dir, "commit", "--quiet", name, image) },
		remove:  func(dir, ref string) []string { return podman(dir, "rmi", ref) },
		mount:   func(dir, ref, _ string) []string { return podman(dir, "image", "mount", ref) },
		unmount: func(dir, ref, _ string) []string { return podman(dir, "image", "unmount", ref) },
		keeps: func(e executable) bool {
			base := filepath.Base(e.path)
			return base == "conmon" || base == "podman" || base == "runc" || fuse && base == "fuse-overlayfs"
		},
	}
}

func skopeoAndUmoci(dir, ref string) [][]string {
	return [][]string{
		{"skopeo", "--insecure-policy", "copy", "--quiet", "--src-tls-verify=false", "docker://" + ref, "oci:" + dir + "/oci:latest"},
		{"umoci", "unpack", "--image", dir + "/oci:latest", dir + "/bundle"},
	}
}

func versionOfBoth(ctx context.Context) (string, error) {
	skopeo, err := programVersion(ctx, "skopeo", "version", "skopeo", "--version")
	if err != nil {
		return "", err
	}
	umoci, err := programVersion(ctx, "umoci", "version", "umoci", "--version")
	return skopeo + ", " + umoci, err
}

// unpackedVersion is the version of a tool that runs what umoci unpacked.
func unpackedVersion(debianPackage, word, program string) func(context.Context) (string, error) {
	return func(ctx context.Context) (string, error) {
		if _, err := versionOfBoth(ctx); err != nil {
			return "", fmt.Errorf("needs skopeo and umoci: %w", err)
		}
		return programVersion(ctx, debianPackage, word, program, "--version")
	}
}

func skopeoUmociTool() *tool {
	return &tool{name: peerSkopeoUmoci, about: "skopeo copy, umoci unpack", version: versionOfBoth, pull: skopeoAndUmoci}
}

func runcTool() *tool {
	runc := func(dir string, args ...string) []string {
		return append([]string{"runc", "--root", dir + "/runc"}, args...)
	}
	return &tool{
		name: peerRunc, about: "runc run, on a bundle that umoci unpacked: no copy-on-write",
		version: unpackedVersion("runc", "version", "runc"),
		pull:    skopeoAndUmoci, ready: makeBundles,
		run: func(dir, _ string, l launch) []string {
			if l.background {
				return runc(dir, "run", "--detach", "--bundle", dir+"/asleep", l.name)
			}
			return runc(dir, "run", "--bundle", dir+"/bundle", l.name)
		},
		exec: func(dir, name string) []string { return runc(dir, "exec", name, "/bin/true") },
		end:  func(dir, name string) []string { return runc(dir, "delete", "--force", name) },
	}
}

func bubblewrapTool() *tool {
	return &tool{
		name: peerBubblewrap, about: "bwrap --unshare-all --bind ROOT / …: no copy-on-write",
		version: unpackedVersion("bubblewrap", "bubblewrap", "bwrap"),
		pull:    skopeoAndUmoci,
		run: func(dir, _ string, l launch) []string {
			return append([]string{"bwrap", "--unshare-all", "--bind", dir + "/bundle/rootfs", "/", "--proc", "/proc", "--dev", "/dev"}, l.args()...)
		},
	}
}

// podmanConf keeps podman from asking for limits that a container may not raise.
const podmanConf = `[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
`

// makeBundles fits the configuration that umoci made to a command that does nothing, without a terminal, and makes another
// bundle of the same root whose command sleeps.
func makeBundles(dir string) error {
	for bundle, l := range map[string]launch{"bundle": {}, "asleep": {background: true}} {
		content, err := os.ReadFile(filepath.Join(dir, "bundle", "config.json"))
		if err != nil {
			return err
		}
		var config map[string]any
		if err := json.Unmarshal(content, &config); err != nil {
			return err
		}
		process, ok := config["process"].(map[string]any)
		root, hasRoot := config["root"].(map[string]any)
		if !ok || !hasRoot {
			return fmt.Errorf("%s/bundle/config.json has no process or no root", dir)
		}
		process["terminal"], process["args"] = false, l.args()
		delete(process, "rlimits")
		root["path"] = filepath.Join(dir, "bundle", "rootfs")
		if content, err = json.Marshal(config); err != nil {
			return err
		}
		if err := os.MkdirAll(filepath.Join(dir, bundle), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, bundle, "config.json"), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}
