package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"golang.org/x/sys/unix"

	"unionfs/internal/testimage"
)

// containerdConf has nothing of Kubernetes, and keeps everything in the directory that is given.
const containerdConf = `version = 2
root = "%[1]s/containerd/root"
state = "%[1]s/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "%[1]s/containerd/sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "%[1]s/containerd/opt"
`

// ctrScript has containerd's shim use the program in runc's place. It prints what the test compares, and everything else to standard
// error. What ctr reads from a pipe it may never end, with runc too (1.6), so nothing is.
const ctrScript = `
cgroup=$1 image=localhost/base:1
ctr() { command ctr --address $PWD/containerd/sock "$@" < /dev/null; }
run() { ctr run --snapshotter native --runc-binary $PWD/bin/unionfs-runtime --runc-root $PWD/runc --cgroup /$cgroup/any "$@"; }
code() { set +e; "$@" 2>> errors; echo "code $?"; set -e; }
finish() {
	for task in $(ctr task ls -q); do ctr task rm -f $task; done >&2
	for container in $(ctr container ls -q); do ctr container rm $container; done >&2
}
trap finish EXIT
ctr images import --snapshotter native base.tar >&2
echo == run
run --rm $image a sh -c 'echo $$; id -u; cat /proc/1/comm; grep -c '$cgroup' /proc/self/cgroup > /dev/null && echo grouped'
code run --rm $image a sh -c 'exit 7'
code run --rm $image a nosuchcommand
run --rm --cwd /tmp --env A=b --read-only --mount type=bind,src=$PWD/volume,dst=/v,options=rbind:ro $image a \
	sh -c 'pwd; echo $A; touch /x 2> /dev/null || echo refused; cat /v/file; touch /v/x 2> /dev/null || echo refused'
run --rm --privileged $image a sh -c 'grep -c CapEff:.*1ff /proc/self/status'
echo == detached
run -d $image one sh -c 'trap "exit 3" TERM; touch /trapped; while :; do sleep 0.05; done'
ctr task ls | awk '/^one/ { print $3 }'
ctr task exec --exec-id x one sh -c 'echo exec; kill -0 1 && echo other'
code ctr task exec --exec-id x one sh -c 'exit 9'
code ctr task exec --exec-id x one nosuchcommand
ctr task ps one | grep -q '^[0-9]' && echo listed
ctr task metrics one | grep -q memory && echo measured
ctr task pause one
ctr task ls | awk '/^one/ { print $3 }'
ctr task resume one
ctr task ls | awk '/^one/ { print $3 }'
until ctr task exec --exec-id y one test -e /trapped; do sleep 0.05; done
ctr task kill -s TERM one
until ctr task ls | grep -q 'one.*STOPPED'; do sleep 0.05; done
ctr task rm one 2>&1 | grep -o 'exit code 3'
ctr container rm one
echo == killed
run -d $image two sleep 1000
ctr task kill -s KILL two
until ctr task ls | grep -q 'two.*STOPPED'; do sleep 0.05; done
ctr task rm two 2>&1 | grep -o 'exit code 137'
ctr container rm two
ctr task ls -q
ctr container ls -q
find runc -mindepth 2`

const ctrOutput = `== run
1
0
sh
grouped
code 7
code 1
/tmp
b
refused
volume
refused
1
== detached
RUNNING
exec
other
code 9
code 1
listed
measured
PAUSED
RUNNING
exit code 3
== killed
exit code 137
`

// TestContainerdRuntime lets Debian's containerd use the program as its OCI runtime.
func TestContainerdRuntime(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	tag, err := name.NewTag("localhost/base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(filepath.Join(c.home, "base.tar"), tag, testimage.Busybox(t, v1.Config{Env: []string{"PATH=/bin"}})); err != nil {
		t.Fatal(err)
	}
	conf := filepath.Join(c.home, "containerd.toml")
	if err := os.WriteFile(conf, fmt.Appendf(nil, containerdConf, c.home), 0o644); err != nil {
		t.Fatal(err)
	}
	c.script(t, "mkdir volume; echo volume > volume/file")
	log, err := os.Create(filepath.Join(c.home, "containerd.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	daemon := exec.Command("containerd", "--config", conf, "--log-level", "error")
	daemon.Stdout, daemon.Stderr, daemon.Dir = log, log, c.home
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	group := filepath.Base(c.home)
	t.Cleanup(func() {
		daemon.Process.Signal(unix.SIGTERM)
		daemon.Wait()
		for _, dir := range append(paths(filepath.Glob("/sys/fs/cgroup/*/"+group)), "/sys/fs/cgroup/"+group) {
			os.Remove(dir)
		}
	})
	waitFor(t, func() bool {
		return exec.Command("ctr", "--address", filepath.Join(c.home, "containerd/sock"), "version").Run() == nil
	})
	if got := c.script(t, ctrScript, group); got != ctrOutput {
		said, _ := os.ReadFile(filepath.Join(c.home, "errors"))
		t.Errorf("got:\n%s\nwant:\n%s\nerrors: %s", got, ctrOutput, said)
	}
}
