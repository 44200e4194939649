package e2e

import (
	"archive/tar"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"unionfs/internal/testimage"
)

// buildSteps are the RUN lines of the image that TestPodmanAndBuildah builds. Each is a layer that changes what those
// below have made.
var buildSteps = []string{
	`mkdir -p /app/data /app/keep && echo one > /app/data/one && chown 12:34 /app/data/one && chmod 4750 /app/data/one && echo k > /app/keep/k && mkfifo /app/fifo`,
	`rm -r /opt/lower && echo changed >> /etc/replaced && chmod 1777 /home && touch -d 2001-02-03 /etc/passwd`,
	`mv /app/data /app/moved && ln -s moved /app/link && touch /app/moved/two && mv /app/keep/k /app/keep/renamed`,
	`rm -r /app/moved && mkdir -p /app/moved/deep && echo new > /app/moved/deep/new && ln /app/moved/deep/new /app/moved/hard`,
	`rm /app/link && mkdir /app/link && touch /app/link/f && rm -r /app/keep && echo file > /app/keep && ln -sf /nowhere /app/fifo`,
	`cd /bin && rm sha512sum && mv sha256sum sum256 && chown -h 5:6 sum256 && rm -r /app/moved/deep && head -c 300000 /dev/zero > /var/zero`,
}

// TestPodmanAndBuildah lets Debian's podman and buildah load, build, run and commit images on top of the program, and
// compares each image with what the same commands make of a plain directory.
func TestPodmanAndBuildah(t *testing.T) {
	archive := filepath.Join(t.TempDir(), "base.tar")
	tag, err := name.NewTag("localhost/base:1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, tag, testimage.Busybox(t, v1.Config{})); err != nil {
		t.Fatal(err)
	}
	want := builtPlainly(t)

	for _, kind := range []string{"root", "user with subordinate IDs"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := newCaller(t, kind)
			got := c.script(t, podmanScript, c.preparePodman(t, archive))
			checkTree(t, "podman build", filepath.Join(c.home, "podman.tar"), want)
			checkTree(t, "buildah bud", filepath.Join(c.home, "buildah.tar"), want)
			expected := `== run
from the upper layer
shown
0
== diff
C /app
C /app/moved
D /app/moved/hard
C /etc
C /home
C /home/user
A /made
A /made/inside
== commit
inside
ls: /app/moved/hard: No such file or directory
55:66 /home/user
`
			inside := "0"
			if kind != "root" {
				inside = fmt.Sprint(c.uid)
			}
			expected += "== other IDs\n" + inside + "\n5:6 /bin/sum256\n== nothing is left\n"
			if got != expected {
				t.Errorf("got:\n%s\nwant:\n%s", got, expected)
			}
		})
	}
}

// podmanScript prints what the test compares, and everything else to standard error.
const podmanScript = `
export XDG_RUNTIME_DIR=$1 CONTAINERS_CONF=$PWD/containers.conf CONTAINERS_STORAGE_CONF=$PWD/storage.conf BUILDAH_ISOLATION=chroot
finish() {
	# Of an ordinary user's, podman leaves a process that keeps the user namespace.
	for pid in $(find $XDG_RUNTIME_DIR -name pause.pid -exec cat {} +); do kill $pid; done
}
trap finish EXIT
podman load -q -i base.tar >&2
echo == run
podman run --rm --network=none localhost/base:1 sh -c '
	cat /etc/replaced; ls /opt/lower; ! test -e /etc/removed
	rm -r /etc /opt; grep -c "^unionfs / fuse.unionfs" /proc/mounts | grep -v 1; id -u'
podman build -q --network=host --layers -t localhost/podman:1 context >&2
buildah bud -q --network=host --layers=false -t localhost/buildah:1 context >&2
for image in podman buildah; do
	container=$(podman create localhost/$image:1 sh)
	podman export -o $image.tar $container
	podman rm $container >&2
done
podman run --name changed --network=none localhost/podman:1 sh -c '
	mkdir /made; touch /made/inside; rm /app/moved/hard; chown 55:66 /home/user'
echo == diff
# What it makes for the container itself comes and goes with versions.
podman diff changed | grep -Ev '/(etc|run)/.|/(dev|proc|run|sys)$' | sort -k 2
podman commit -q changed localhost/committed:1 >&2
podman rm changed >&2
echo == commit
podman run --rm --network=none localhost/committed:1 sh -c 'ls /made; ls /app/moved/hard 2>&1; stat -c "%u:%g %n" /home/user'
# With IDs other than the storage's; then podman passes uidmapping and gidmapping.
maps=--userns=keep-id
test $(id -u) != 0 || maps="--uidmap=0:300000:65536 --gidmap=0:300000:65536"
echo == other IDs
podman run --rm --network=none $maps localhost/podman:1 sh -c 'id -u; stat -c "%u:%g %n" /bin/sum256'
podman rmi -f -a >&2
echo == nothing is left
grep $PWD /proc/self/mounts | grep fuse || true`

// preparePodman writes the configuration that podman and buildah work with on any host, and what they shall build. It
// returns their directory for what lasts while they run: podman refuses one of more than 50 characters.
func (c *caller) preparePodman(t *testing.T, archive string) (runtimeDir string) {
	t.Helper()
	c.linkNames(t)
	runtimeDir, err := os.MkdirTemp("", "p")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(runtimeDir) })
	files := map[string]string{
		"storage.conf": `[storage]
driver = "overlay"
graphroot = "HOME/graph"
runroot = "RUNROOT"
[storage.options.overlay]
mount_program = "HOME/bin/fuse-overlayfs"
`,
		// No systemd, no cgroup v2 and a low limit on open files must be no obstacle.
		"containers.conf": `[containers]
log_driver = "k8s-file"
default_ulimits = ["nofile=1000:1000", "nproc=1000:1000"]
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
lock_type = "file"
num_locks = 32
runtime = "runc"
tmp_dir = "RUNROOT/libpod"
[network]
network_backend = "cni"
`,
		"context/Containerfile": "FROM localhost/base:1\nRUN " + strings.Join(buildSteps, "\nRUN ") + "\nCOPY --chown=7:8 file /copied/file\n",
		"context/file":          "copied\n",
	}
	if err := errors.Join(os.Mkdir(filepath.Join(c.home, "context"), 0o755), os.Chown(runtimeDir, c.uid, c.uid)); err != nil {
		t.Fatal(err)
	}
	paths := strings.NewReplacer("HOME", c.home, "RUNROOT", runtimeDir)
	for path, content := range files {
		if err := os.WriteFile(filepath.Join(c.home, path), []byte(paths.Replace(content)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(archive)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.home, "base.tar"), data, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	return runtimeDir
}

// builtPlainly is what the build steps make of the base image in a plain directory.
func builtPlainly(t *testing.T) map[string]string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "root")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// What testimage.Busybox's upper layer leaves of its lower one.
	files := append(testimage.BusyboxFiles(t),
		testimage.File{Name: "etc/replaced", Content: []byte("from the upper layer\n")},
		testimage.File{Name: "opt/"},
		testimage.File{Name: "opt/lower/"},
		testimage.File{Name: "opt/lower/shown", Content: []byte("from the upper layer\n")},
		testimage.File{Name: "copied/", UID: 7, GID: 8},
		testimage.File{Name: "copied/file", Content: []byte("copied\n"), UID: 7, GID: 8},
	)
	unpack := exec.Command("tar", "-x", "-p", "--numeric-owner", "-C", dir)
	unpack.Stdin = strings.NewReader(string(testimage.Tar(t, files...)))
	if out, err := unpack.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	script := "export PATH=/bin; umask 022\n"
	for _, step := range buildSteps {
		script += "(" + strings.ReplaceAll(step, "/dev/zero", "/zeros") + ") || exit 1\n"
	}
	if err := os.WriteFile(filepath.Join(dir, "zeros"), make([]byte, 300000), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("chroot", dir, "/bin/sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := os.Remove(filepath.Join(dir, "zeros")); err != nil {
		t.Fatal(err)
	}
	packed := filepath.Join(t.TempDir(), "root.tar")
	if out, err := exec.Command("tar", "-c", "--numeric-owner", "-C", dir, "-f", packed, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return readTree(t, packed)
}

// readTree describes every file of a tar but those that a container's manager makes. Hard links are described as the file
// that they are: layers take them apart.
func readTree(t *testing.T, path string) map[string]string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	tree := map[string]string{}
	reader := tar.NewReader(file)
	for {
		h, err := reader.Next()
		if err == io.EOF {
			return tree
		}
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		name := strings.Trim(filepath.Clean("/"+h.Name), "/")
		top, _, _ := strings.Cut(name, "/")
		if slices.Contains([]string{"dev", "proc", "run", "sys"}, top) ||
			slices.Contains([]string{"", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"}, name) {
			continue
		}
		if h.Typeflag == tar.TypeLink {
			tree[name] = tree[strings.Trim(filepath.Clean("/"+h.Linkname), "/")]
			continue
		}
		sum := sha256.New()
		if _, err := io.Copy(sum, reader); err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		tree[name] = fmt.Sprintf("type %c mode %o owner %d:%d link %q content %.4x", h.Typeflag, h.Mode&0o7777, h.Uid, h.Gid, h.Linkname, sum.Sum(nil))
		if name == "etc/passwd" || name == "bin/busybox" {
			tree[name] += " " + h.ModTime.UTC().Format("2006-01-02")
		}
	}
}

// checkTree compares an exported tar with what it should be.
func checkTree(t *testing.T, what, path string, want map[string]string) {
	t.Helper()
	got := readTree(t, path)
	for name, w := range want {
		if g, ok := got[name]; !ok {
			t.Errorf("%s: /%s is missing", what, name)
		} else if g != w {
			t.Errorf("%s: /%s is %s, want %s", what, name, g, w)
		}
	}
	for name, g := range got {
		if _, ok := want[name]; !ok {
			t.Errorf("%s: /%s should not be there: %s", what, name, g)
		}
	}
}
