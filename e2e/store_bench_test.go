package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"unionfs/internal/testimage"
)

// BenchmarkStore measures what a user waits for, with podman and skopeo+umoci beside it, as root, on the Debian image and a
// registry on loopback:
//
//	go test -run '^$' -bench Store -benchtime 3x ./e2e
//
// The time is that of the command, from its start to its end.
func BenchmarkStore(b *testing.B) {
	dir := b.TempDir()
	registry := testimage.Registry(b)
	image := testimage.Debian(b).Image
	testimage.Push(b, image, registry+"/debian:1")
	testimage.Push(b, withOtherTop(b, image), registry+"/debian:2")
	env := append(os.Environ(), "UNIONFS="+shared.unionfs, "UNIONFS_ROOT="+dir+"/unionfs", "ONE="+registry+"/debian:1", "TWO="+registry+"/debian:2",
		"CONTAINERS_CONF="+dir+"/containers.conf", "CONTAINERS_STORAGE_CONF="+dir+"/storage.conf", "XDG_RUNTIME_DIR="+dir)
	files := map[string]string{
		"storage.conf":    fmt.Sprintf("[storage]\ndriver = \"overlay\"\ngraphroot = \"%s/graph\"\nrunroot = \"%[1]s/run\"\n[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n", dir),
		"containers.conf": fmt.Sprintf("[containers]\nlog_driver = \"k8s-file\"\ndefault_ulimits = [\"nofile=1000:1000\", \"nproc=1000:1000\"]\n[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nruntime = \"runc\"\ntmp_dir = \"%s/tmp\"\n[network]\nnetwork_backend = \"cni\"\n", dir),
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			b.Fatal(err)
		}
	}
	sh := func(b *testing.B, script string) {
		b.Helper()
		if script == "" {
			return
		}
		command := exec.Command("sh", "-euc", script)
		command.Env, command.Dir = env, dir
		if out, err := command.CombinedOutput(); err != nil {
			b.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	const (
		emptyOurs   = "rm -rf $UNIONFS_ROOT"
		emptyPodman = "podman rm -a -f; podman rmi -a -f"
		pullPodman  = "podman pull -q --tls-verify=false "
		// Ten files of a tree of many, one of them in each tenth of it.
		change = `find /usr -type f | awk "NR % $(($(find /usr -type f | wc -l) / 10)) == 1" | while read f; do echo x >> $f; done`
	)
	cases := []struct{ name, before, timed, after string }{
		{"pull/unionfs", emptyOurs, "$UNIONFS pull -q $ONE", ""},
		{"pull/podman", emptyPodman, pullPodman + "$ONE", emptyPodman},
		{"pull/skopeo+umoci", "rm -rf layout bundle", "skopeo --insecure-policy copy -q --src-tls-verify=false docker://$ONE oci:layout:x; umoci unpack --image layout:x bundle", "rm -rf layout bundle"},
		{"pull of a second image with one new layer/unionfs", "$UNIONFS pull -q $ONE", "$UNIONFS pull -q $TWO", "$UNIONFS rmi $TWO"},
		{"pull of a second image with one new layer/podman", pullPodman + "$ONE", pullPodman + "$TWO", "podman rmi $TWO"},
		{"rmi/unionfs", "$UNIONFS pull -q $ONE; $UNIONFS rmi $TWO || true; sync", "$UNIONFS rmi $ONE", ""},
		{"rmi/podman", pullPodman + "$ONE; sync", "podman rmi $ONE", ""},
		{"df/unionfs", "$UNIONFS pull -q $ONE", "$UNIONFS df", ""},
		{"mount to first ls/unionfs", "$UNIONFS pull -q $ONE; mkdir -p mnt", "$UNIONFS mount $ONE mnt; ls mnt", "$UNIONFS umount mnt"},
		{"mount to first ls/podman", pullPodman + "$ONE", "ls $(podman image mount $ONE)", "podman image unmount -a"},
		{"commit of ten files/unionfs", "$UNIONFS run --name work $ONE sh -c '" + change + "'", "$UNIONFS commit work made", "$UNIONFS rm work; $UNIONFS rmi made"},
		{"commit of ten files/podman", "podman run --name work --network=none $ONE sh -c '" + change + "'", "podman commit -q work made", "podman rm work; podman rmi made"},
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			for range b.N {
				b.StopTimer()
				sh(b, c.before)
				b.StartTimer()
				sh(b, c.timed)
				b.StopTimer()
				sh(b, c.after)
			}
		})
	}
	sh(b, emptyPodman+"; umount -q graph/overlay || true; rm -rf graph")
}

// withOtherTop makes an image that shares all layers but the last.
func withOtherTop(b *testing.B, image v1.Image) v1.Image {
	b.Helper()
	layers, err := image.Layers()
	if err != nil {
		b.Fatal(err)
	}
	config, err := image.ConfigFile()
	if err != nil {
		b.Fatal(err)
	}
	top := testimage.Layer(b, testimage.File{Name: "usr/"}, testimage.File{Name: "usr/other", Content: []byte(strings.Repeat("other\n", 1<<20))})
	return testimage.Image(b, config.Config, append(layers[:len(layers)-1:len(layers)-1], top)...)
}
