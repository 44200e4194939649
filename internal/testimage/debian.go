package testimage

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
)

const (
	debianSuite    = "bookworm"
	debianPackages = "python3-minimal,gcc,libc6-dev"
	// DebianLayers is the number of layers that the Debian image is split over.
	DebianLayers = 12
)

// DebianFixture is a Debian root, as one tar and as an image of [DebianLayers] layers with the same content.
type DebianFixture struct {
	RootTar string   // the tar as mmdebstrap wrote it
	Image   v1.Image // gzip layers; whiteouts and opaque directories among them
}

// Debian returns the Debian root with dpkg, apt, Python and a C compiler. The first call on a machine takes about a
// minute and needs Debian's package mirror (or the one that UNIONFS_TEST_MIRROR names).
func Debian(t testing.TB) DebianFixture {
	t.Helper()
	mirror := cmp.Or(os.Getenv("UNIONFS_TEST_MIRROR"), "http://deb.debian.org/debian")
	recipe := sha256.Sum256(fmt.Appendln(nil, splitVersion, debianSuite, debianPackages, mirror, DebianLayers))
	dir := cached(t, "debian-"+hex.EncodeToString(recipe[:6]), func(dir string) error {
		return buildDebian(dir, mirror)
	})

	index, err := layout.ImageIndexFromPath(filepath.Join(dir, "oci"))
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		t.Fatal(err)
	}
	image, err := index.Image(manifest.Manifests[0].Digest)
	if err != nil {
		t.Fatal(err)
	}
	return DebianFixture{RootTar: filepath.Join(dir, "root.tar"), Image: image}
}

func buildDebian(dir, mirror string) error {
	rootTar := filepath.Join(dir, "root.tar")
	build := exec.Command("mmdebstrap", "--variant=minbase", "--include="+debianPackages, debianSuite, rootTar, mirror)
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("mmdebstrap: %w\n%s", err, out)
	}

	layersDir := filepath.Join(dir, "layers")
	if err := os.Mkdir(layersDir, 0o700); err != nil {
		return err
	}
	layers, err := split(rootTar, layersDir, DebianLayers)
	if err != nil {
		return fmt.Errorf("splitting %s: %w", rootTar, err)
	}

	image := empty.Image
	for i, layer := range layers {
		image, err = mutate.Append(image, mutate.Addendum{
			Layer:   layer,
			History: v1.History{CreatedBy: fmt.Sprintf("layer %d of the split Debian root", i)},
		})
		if err != nil {
			return err
		}
	}
	image, err = mutate.ConfigFile(image, withConfig(image, v1.Config{
		Env:    []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"},
		Cmd:    []string{"bash"},
		Labels: map[string]string{"org.opencontainers.image.title": "split Debian " + debianSuite},
	}))
	if err != nil {
		return err
	}
	path, err := layout.Write(filepath.Join(dir, "oci"), empty.Index)
	if err != nil {
		return err
	}
	if err := path.AppendImage(image); err != nil {
		return err
	}
	return os.RemoveAll(layersDir)
}

// withConfig returns the image's config file with config and a fixed creation time set.
func withConfig(image v1.Image, config v1.Config) *v1.ConfigFile {
	file, err := image.ConfigFile()
	if err != nil {
		panic(err) // only images made in memory by this package come here
	}
	file = file.DeepCopy()
	file.OS, file.Architecture = "linux", goarch()
	file.Created = v1.Time{Time: time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)}
	file.Config = config
	return file
}

// Deb makes a small Debian package and returns its path. It installs the program /usr/bin/NAME, which prints "Hello
// from NAME", a configuration file, some data, and what its postinst makes.
func Deb(t testing.TB, name string) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{
		"DEBIAN/control":                      "Package: " + name + "\nVersion: 1.0\nArchitecture: all\nMaintainer: unionfs tests <root@localhost>\nDescription: a package for tests\n",
		"DEBIAN/conffiles":                    "/etc/" + name + ".conf\n",
		"DEBIAN/postinst":                     "#!/bin/sh\nset -e\ninstall -d /var/lib/" + name + "\ntouch /var/lib/" + name + "/configured\n",
		"etc/" + name + ".conf":               "greeting=Hello\n",
		"usr/bin/" + name:                     "#!/bin/sh\n. /etc/" + name + ".conf\necho \"$greeting from " + name + "\"\n",
		"usr/share/doc/" + name + "/README":   "Nothing to read.\n",
		"usr/share/" + name + "/data/one.txt": strings.Repeat("1", 5000),
	}
	for path, content := range files {
		path = filepath.Join(dir, "tree", path)
		mode := os.FileMode(0o644)
		if strings.HasPrefix(content, "#!") {
			mode = 0o755
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	deb := filepath.Join(dir, name+".deb")
	if out, err := exec.Command("dpkg-deb", "--root-owner-group", "--build", filepath.Join(dir, "tree"), deb).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	return deb
}
