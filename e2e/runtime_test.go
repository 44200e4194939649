package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"unionfs/internal/testimage"
)

// runtimeScript lets podman run containers by the program under its name as an OCI runtime, in all the ways in which podman
// calls one. It prints what the test compares, and everything else to standard error.
const runtimeScript = `
export XDG_RUNTIME_DIR=$1 CONTAINERS_CONF=$PWD/containers.conf CONTAINERS_STORAGE_CONF=$PWD/storage.conf
image=localhost/base:1
podman() { command podman --runtime=$PWD/bin/unionfs-runtime "$@"; }
finish() {
	podman rm -f -a -t 0 >&2
	# Of an ordinary user's, podman leaves a process that keeps the user namespace.
	for pid in $(find $XDG_RUNTIME_DIR -name pause.pid -exec cat {} +); do kill $pid; done
}
trap finish EXIT
code() { set +e; "$@" 2>> errors; echo "code $?"; set -e; }
podman load -q -i base.tar >&2
echo == run
podman run --rm --network=none $image sh -c 'echo $$; id -u; cat /proc/1/comm; true'
code podman run --rm --network=none $image sh -c 'exit 7'
code podman run --rm --init --network=none $image sh -c 'kill -9 $$'
code podman run --rm --network=none $image /no/such/file
code podman run --rm --network=none $image nosuchcommand
code podman run --rm --network=none $image /etc/passwd
echo hello | podman run -i --rm --network=none $image cat
podman run --rm --network=none -u 12:34 -w /tmp --umask 0077 -e A=b -h name $image sh -c 'id -u; id -g; pwd; umask; echo $A; hostname'
podman run --rm -t --network=none $image sh -c 'tty; test -t 0 && test -t 1 && test -t 2 && echo terminal' | tr -d '\r'
echo == isolation
podman run --rm --network=none --read-only $image sh -c 'touch /file 2>&1 || true; touch /tmp/file && echo written'
podman run --rm --network=none --cap-drop=all --security-opt=no-new-privileges $image grep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status
podman run --rm --network=none --privileged $image sh -c 'grep -c fff /proc/self/status; grep Seccomp: /proc/self/status' | tail -n 1
podman run --rm --network=none --ulimit nofile=77:88 --ulimit nproc=99:99 --sysctl kernel.msgmax=7777 $image sh -c 'ulimit -n; ulimit -H -n; cat /proc/sys/kernel/msgmax'
podman run --rm --network=none -v $PWD/volume:/v:ro --tmpfs /etc $image sh -c 'cat /v/file; touch /v/no 2>&1 || true; grep -c root /etc/passwd; touch /etc/new; grep -c "^tmpfs /etc" /proc/mounts'
podman run --rm --network=none $image sh -c 'ls /proc/self/fd | wc -l; ls -a /proc/acpi | wc -l; stat -c %t:%T /dev/null /dev/zero; ls -l /dev/ptmx | sed "s/.*-> //"'
echo == init
podman run --rm --init --network=none $image sh -c 'cat /proc/1/comm; echo $$ | grep -v "^1$" > /dev/null && echo child'
echo == detached
podman run -d --name one --network=none $image sh -c 'trap "echo got TERM; exit 3" TERM; echo ready; while true; do sleep 0.05; done' >&2
until podman logs one 2>&1 | grep -q ready; do sleep 0.05; done
podman inspect -f '{{.Id}}' one > created
podman inspect -f '{{.State.Status}} {{.OCIRuntime}}' one | sed "s|$PWD|DIR|"
podman exec one sh -c 'echo exec; echo $$ | grep -v "^1$" > /dev/null && echo other'
code podman exec one sh -c 'exit 9'
code podman exec one nosuchcommand
podman exec -u 12:34 -e C=d -w /bin one sh -c 'id -u; id -g; echo $C; pwd'
podman exec -t one sh -c 'tty' | tr -d '\r'
echo input | podman exec -i one cat
podman exec -d one sh -c 'sleep 0.1; echo x > /made' >&2
until podman exec one test -e /made; do sleep 0.05; done
podman top one pid comm | grep -c '^1 *sh'
podman run --rm --network=container:one --ipc=container:one --pid=container:one $image cat /proc/1/comm
podman stop -t 60 one >&2
podman logs one
podman inspect -f '{{.State.Status}} {{.State.ExitCode}}' one
podman start one >&2
podman kill one >&2
podman wait one
podman rm one >&2
echo == other runs
podman run -d --name two --network=none $image sleep 1000 >&2
podman stop -t 0 two >&2
podman inspect -f '{{.State.ExitCode}}' two
podman rm two >&2
podman create --name three --network=none $image echo three >&2
podman start -a three
podman start -a three
podman rm three >&2
podman ps -aq
podman rmi -f -a >&2
echo == nothing is left
find /run/unionfs-runtime $XDG_RUNTIME_DIR/unionfs-runtime -mindepth 1 2> /dev/null | grep -f created || true
grep $PWD /proc/self/mounts | grep fuse || true`

const runtimeOutput = `== run
1
0
sh
code 7
code 137
code 127
code 127
code 126
hello
12
34
/tmp
0077
b
name
/dev/pts/0
terminal
== isolation
touch: /file: Read-only file system
written
CapEff:	0000000000000000
CapBnd:	0000000000000000
NoNewPrivs:	1
Seccomp:	2
Seccomp:	0
77
88
7777
volume
touch: /v/no: Read-only file system
1
1
4
2
1:3
1:5
pts/ptmx
== init
podman-init
child
== detached
running DIR/bin/unionfs-runtime
exec
other
code 9
code 127
12
34
d
/bin
/dev/pts/0
input
1
sh
ready
got TERM
exited 3
137
== other runs
137
three
three
== nothing is left
`

// TestPodmanRuntime lets Debian's podman use the program as its OCI runtime.
func TestPodmanRuntime(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "base.tar")
	tag, err := name.NewTag("localhost/base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, tag, testimage.Busybox(t, v1.Config{})); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"root", "user with subordinate IDs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := newCaller(t, kind)
			runtimeDir := c.preparePodman(t, archive)
			volume := filepath.Join(c.home, "volume")
			if err := os.Mkdir(volume, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(volume, "file"), []byte("volume\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			got := c.script(t, runtimeScript, runtimeDir)
			if got != runtimeOutput {
				t.Errorf("got:\n%s\nwant:\n%s", got, runtimeOutput)
			}
		})
	}
}
