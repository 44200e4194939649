package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// daemonLimit is how long a daemon may take until it answers.
const daemonLimit = 30 * time.Second

// startDaemon starts a program that stays in the foreground, and waits until probe works. stop ends it.
func startDaemon(ctx context.Context, env, probe []string, program string, args ...string) (stop func() error, err error) {
	s := &serverCmd{command: exec.Command(program, args...), output: &tailBuffer{}, exited: make(chan struct{})}
	s.command.Env = env
	s.command.Stdout, s.command.Stderr = s.output, s.output
	// As for servers of file systems: the terminal's Ctrl-C isn't meant for it.
	s.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	s.command.WaitDelay = time.Second // its containers may hold its output
	if err := s.command.Start(); err != nil {
		return nil, err
	}
	go func() {
		s.err = s.command.Wait()
		close(s.exited)
	}()
	stop = func() error {
		s.command.Process.Signal(syscall.SIGTERM)
		return s.end()
	}
	for start := time.Now(); ; {
		ask := exec.CommandContext(ctx, probe[0], probe[1:]...)
		ask.Env = env
		if ask.Run() == nil {
			return stop, nil
		}
		select {
		case <-s.exited:
			return nil, fmt.Errorf("%s doesn't run here (%v): %s", filepath.Base(program), s.err, s.output.line())
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), stop())
		case <-time.After(50 * time.Millisecond):
		}
		if time.Since(start) > daemonLimit {
			return nil, errors.Join(fmt.Errorf("%s doesn't answer within %v: %s", filepath.Base(program), daemonLimit, s.output.line()), stop())
		}
	}
}

// dockerTool is Docker's engine, with a daemon of its own.
func (b *containerBench) dockerTool() *tool {
	own := func(name string) string { return filepath.Join(b.runRoot, peerDocker, name) }
	// A newer client on the PATH may refuse the engine that the distribution has.
	client := "/usr/bin/docker"
	if _, err := os.Stat(client); err != nil {
		client = "docker"
	}
	docker := func(args ...string) []string {
		return append([]string{client, "--host", "unix://" + own("sock")}, args...)
	}
	return &tool{
		name: peerDocker, about: "docker run --rm --network none IMAGE /bin/true, with overlay2 and runc, its daemon running and not counted",
		version: func(ctx context.Context) (string, error) {
			if _, err := programVersion(ctx, "docker.io", "version", client, "--version"); err != nil {
				return "", err
			}
			return programVersion(ctx, "docker.io", "version", "dockerd", "--version")
		},
		start: func(dir string) (func() error, error) {
			return startDaemon(b.ctx, b.env, docker("version"), "dockerd", "--bridge=none", "--iptables=false", "--data-root", dir+"/root",
				"--exec-root", own("exec"), "--pidfile", own("pid"), "--host", "unix://"+own("sock"), "--storage-driver", "overlay2", "--log-level", "error")
		},
		pull: func(_, ref string) [][]string { return [][]string{docker("pull", "--quiet", ref)} },
		run: func(_, ref string, l launch) []string {
			return append(append(append(docker("run"), l.options()...), ref), l.args()...)
		},
		exec:   func(_, name string) []string { return docker("exec", name, "/bin/true") },
		end:    func(_, name string) []string { return docker("rm", "--force", name) },
		commit: func(_, name, image string) []string { return docker("commit", name, image) },
		remove: func(_, ref string) []string { return docker("rmi", ref) },
		keeps:  keepsShim,
	}
}

// keepsShim is true of what containerd, and so Docker, keeps beside each container.
func keepsShim(e executable) bool {
	base := filepath.Base(e.path)
	return base == "containerd-shim-runc-v2" || base == "runc"
}

// containerdConf has nothing of Kubernetes, and keeps everything in our directories.
const containerdConf = `version = 2
root = %q
state = %q
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = %q
[plugins."io.containerd.internal.v1.opt"]
  path = %q
`

// containerdTool is containerd, used through ctr, which has no commit.
func (b *containerBench) containerdTool() *tool {
	own := func(name string) string { return filepath.Join(b.runRoot, peerContainerd, name) }
	ctr := func(args ...string) []string { return append([]string{"ctr", "--address", own("sock")}, args...) }
	return &tool{
		name: peerContainerd, about: "ctr run --rm IMAGE NAME /bin/true, with overlayfs and runc, containerd running and not counted",
		version: func(ctx context.Context) (string, error) {
			if _, err := programVersion(ctx, "containerd", "ctr", "ctr", "--version"); err != nil {
				return "", err
			}
			return programVersion(ctx, "containerd", "containerd", "containerd", "--version")
		},
		start: func(dir string) (func() error, error) {
			if err := os.MkdirAll(own("."), 0o755); err != nil {
				return nil, err
			}
			conf := fmt.Sprintf(containerdConf, dir+"/root", own("state"), own("sock"), dir+"/opt")
			if err := os.WriteFile(own("config.toml"), []byte(conf), 0o644); err != nil {
				return nil, err
			}
			return startDaemon(b.ctx, b.env, ctr("version"), "containerd", "--config", own("config.toml"), "--log-level", "error")
		},
		pull: func(_, ref string) [][]string { return [][]string{ctr("images", "pull", "--plain-http", ref)} },
		run: func(_, ref string, l launch) []string {
			args := ctr("run")
			if !l.keep && !l.background {
				args = append(args, "--rm")
			}
			if l.background {
				args = append(args, "--detach")
			}
			return append(append(args, ref, l.name), l.args()...)
		},
		exec: func(_, name string) []string { return ctr("task", "exec", "--exec-id", "measured", name, "/bin/true") },
		end: func(_, name string) []string {
			return []string{"sh", "-c", `ctr --address "$0" task rm --force "$1"; ctr --address "$0" container rm "$1"`, own("sock"), name}
		},
		remove:  func(_, ref string) []string { return ctr("images", "rm", "--sync", ref) },
		mount:   func(_, ref, target string) []string { return ctr("images", "mount", ref, target) },
		unmount: func(_, _, target string) []string { return ctr("images", "unmount", target) },
		keeps:   keepsShim,
	}
}
