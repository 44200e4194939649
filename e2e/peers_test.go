package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"unionfs/internal/testimage"
)

// peers is a shell's environment in which podman keeps its images with the kernel's overlayfs, by the configuration of
// preparePodman. Its first argument is podman's directory for what lasts while it runs.
const peers = `
export XDG_RUNTIME_DIR=$1 CONTAINERS_CONF=$PWD/containers.conf CONTAINERS_STORAGE_CONF=$PWD/kernel.conf
grep -v mount_program storage.conf > kernel.conf
skopeo() { command skopeo --insecure-policy "$@"; }
`

// TestSameAsPeers unpacks a Debian root in twelve layers with umoci, mounts it with podman, and compares every file of both
// with those of the image's mount.
func TestSameAsPeers(t *testing.T) {
	t.Parallel()
	fixture := testimage.Debian(t)
	registry := testimage.Registry(t)
	ref := registry + "/debian:split"
	testimage.Push(t, fixture.Image, ref)
	c := newCaller(t, "root")
	runtimeDir := c.preparePodman(t, os.DevNull)
	c.must(t, "pull", "-q", ref)
	// In the mount namespace of the test, which must see the mount.
	script := func(text string) string {
		t.Helper()
		command := exec.Command("sh", "-euc", peers+text, "sh", runtimeDir, ref)
		command.Dir, command.Env = c.home, append(os.Environ(), "HOME="+c.home)
		r := run(t, command)
		if r.code != 0 {
			t.Fatalf("exit code %d\n%s%s", r.code, r.stdout, r.stderr)
		}
		return strings.TrimSpace(r.stdout)
	}
	script("skopeo copy -q --src-tls-verify=false docker://$2 oci:layout:split; umoci unpack --image layout:split bundle >&2")
	image := walkImage(t, c, ref)
	compareTrees(t, image, walk(t, filepath.Join(c.home, "bundle/rootfs")))

	t.Cleanup(func() {
		script("podman image unmount -a -f >&2; podman rmi -a -f >&2; umount -q graph/overlay || true")
	})
	mounted := script("podman pull -q --tls-verify=false $2 >&2; podman image mount $2")
	compareTrees(t, image, walk(t, mounted))
}

// TestExchangeWithPeers has podman, skopeo and umoci read what "save" writes, and "load" read what they write. An image keeps
// its ID on every way.
func TestExchangeWithPeers(t *testing.T) {
	registry := testimage.Registry(t)
	ref := registry + "/team/box:1"
	testimage.Push(t, testimage.Busybox(t, v1.Config{}), ref)
	c := newCaller(t, "root")
	runtimeDir := c.preparePodman(t, os.DevNull)
	id := strings.TrimSpace(c.must(t, "pull", "-q", ref))
	hex := strings.TrimPrefix(id, "sha256:")

	out := c.script(t, peers+`
trap 'podman rmi -a -f >&2' EXIT
for format in docker-archive oci-archive oci-dir; do
	$UNIONFS save -q --format $format -o ours-$format $2
	podman load -q -i ours-$format >&2
	echo podman $format $(podman images -a -q --no-trunc) # of a directory, it makes up a name
	podman rmi -a >&2
done
echo skopeo docker-archive $(skopeo inspect --raw --config docker-archive:ours-docker-archive | sha256sum)
echo skopeo oci-archive $(skopeo inspect --raw --config oci-archive:ours-oci-archive:$2 | sha256sum)
echo skopeo oci $(skopeo inspect --raw --config oci:ours-oci-dir:$2 | sha256sum)
umoci unpack --image ours-oci-dir:$2 bundle >&2
echo umoci $(cat bundle/rootfs/etc/replaced)
`, runtimeDir, ref)
	want := fmt.Sprintf(`podman docker-archive sha256:%[1]s
podman oci-archive sha256:%[1]s
podman oci-dir sha256:%[1]s
skopeo docker-archive %[1]s -
skopeo oci-archive %[1]s -
skopeo oci %[1]s -
umoci from the upper layer
`, hex)
	if out != want {
		t.Errorf("read from \"save\":\n%s\nwant:\n%s", out, want)
	}

	out = c.script(t, peers+`
trap 'podman rmi -a -f >&2' EXIT
skopeo copy -q --src-tls-verify=false docker://$2 docker-archive:skopeo-docker.tar:$2
skopeo copy -q --src-tls-verify=false docker://$2 oci-archive:skopeo-oci.tar:$2
skopeo copy -q --src-tls-verify=false docker://$2 oci:skopeo-oci:$2
skopeo copy -q --src-tls-verify=false docker://$2 dir:skopeo-dir
# Of a Docker image, it makes another configuration for OCI.
echo $(skopeo inspect --raw --config oci:skopeo-oci:$2 | sha256sum)
podman load -q -i skopeo-docker.tar >&2
for format in docker-archive oci-archive oci-dir docker-dir; do
	podman save -q --format $format -o podman-$format $2
done
gzip -k podman-docker-archive
zstd -q podman-oci-archive
mkdir unpacked
tar -C unpacked -xf podman-docker-archive
export UNIONFS_ROOT=$PWD/other
for saved in skopeo-docker.tar skopeo-oci.tar skopeo-oci podman-docker-archive podman-oci-archive podman-oci-dir \
	podman-docker-archive.gz podman-oci-archive.zst unpacked; do
	$UNIONFS load -q -i $saved
	$UNIONFS inspect --format json $2 | grep -o '"Id":"[^"]*"'
	$UNIONFS rmi $2 >&2
done
for saved in skopeo-dir podman-docker-dir; do $UNIONFS load -q -i $saved; done
podman save -q $2 | $UNIONFS load -q
podman save -q $2 | gzip | $UNIONFS load -q
$UNIONFS verify >&2
`, runtimeDir, ref)
	converted, out, _ := strings.Cut(out, " -\n")
	lines := strings.Split(strings.TrimSpace(strings.NewReplacer(id, "ID", "sha256:"+converted, "ID").Replace(out)), "\n")
	var all []string
	for range 9 {
		all = append(all, "Loaded image: "+ref, `"Id":"ID"`)
	}
	all = append(all, "Loaded image ID: ID", "Loaded image ID: ID", "Loaded image: "+ref, "Loaded image: "+ref)
	if !slices.Equal(lines, all) {
		t.Errorf("what \"load\" read:\n%s", lineDiff(all, lines))
	}

	// umoci changes an image, in a layout with several tags.
	out = c.script(t, peers+`
skopeo copy -q --src-tls-verify=false docker://$2 oci:made:old
echo inserted > file
umoci insert --image made:old --tag new --rootless file /etc/inserted >&2
$UNIONFS load -q -i made --base-name box
$UNIONFS diff box:old box:new
`, runtimeDir, ref)
	if lines := strings.Split(strings.TrimSpace(out), "\n"); !slices.Contains(lines, "Loaded image: box:old") || !slices.Contains(lines, "Loaded image: box:new") ||
		!slices.Contains(lines, "A /etc/inserted") {
		t.Errorf("loaded from umoci:\n%s", out)
	}
	if left, _ := exec.Command("grep", c.home, "/proc/self/mounts").Output(); len(left) > 0 {
		t.Errorf("mounts are left:\n%s", left)
	}
}

// TestPullOnTerminal pulls on a terminal, where there are bars, and without one, where each layer that is done has a line.
func TestPullOnTerminal(t *testing.T) {
	registry := testimage.Registry(t)
	ref := registry + "/team/box:1"
	testimage.Push(t, testimage.Busybox(t, v1.Config{}), ref)
	c := newCaller(t, "root")
	out := c.script(t, `TERM=xterm script -qec "stty rows 30 cols 100; $UNIONFS pull $1" /dev/null </dev/null`, ref)
	for _, part := range []string{"Total ", "Pull complete", " MB", "\x1b[", "sha256:"} {
		if !strings.Contains(out, part) {
			t.Errorf("on a terminal, there is no %q:\n%q", part, out)
		}
	}
	c.must(t, "rmi", ref)
	r := c.try(t, "pull", ref)
	if r.code != 0 || strings.Count(r.stderr, ": Pull complete\n") != 2 || strings.Count(r.stderr, "\n") != 2 {
		t.Errorf("without a terminal: exit code %d\n%s", r.code, r.stderr)
	}
	if r := c.try(t, "pull", ref); strings.Count(r.stderr, ": Already exists\n") != 2 {
		t.Errorf("pulled again: %s", r.stderr)
	}
	if r := c.try(t, "pull", "-q", ref); r.stderr != "" || !strings.HasPrefix(r.stdout, "sha256:") {
		t.Errorf("pull -q: %q %q", r.stderr, r.stdout)
	}
}
