package testimage

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

func goarch() string { return runtime.GOARCH }

// File is an entry of a layer made by [Layer]. The type follows from the fields: a directory if Name ends in a slash, a
// link if one is named, else a regular file.
type File struct {
	Name     string
	Content  []byte
	Mode     int64 // permission bits; 0 means 0755 for directories and 0644 for files
	UID, GID int
	Symlink  string
	Hardlink string
}

// Tar returns the uncompressed tar of the files, in the order given.
func Tar(t testing.TB, files ...File) []byte {
	t.Helper()
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, f := range files {
		h := &tar.Header{
			Name: f.Name, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
			ModTime: time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC),
		}
		switch {
		case f.Symlink != "":
			h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Symlink, 0o777
		case f.Hardlink != "":
			h.Typeflag, h.Linkname = tar.TypeLink, f.Hardlink
		case strings.HasSuffix(f.Name, "/"):
			h.Typeflag = tar.TypeDir
			if h.Mode == 0 {
				h.Mode = 0o755
			}
		default:
			h.Typeflag, h.Size = tar.TypeReg, int64(len(f.Content))
			if h.Mode == 0 {
				h.Mode = 0o644
			}
		}
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(f.Content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes()
}

// Layer makes a gzip layer of the files.
func Layer(t testing.TB, files ...File) v1.Layer {
	t.Helper()
	data := Tar(t, files...)
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return layer
}

// Image puts layers, bottom first, and a config together.
func Image(t testing.TB, config v1.Config, layers ...v1.Layer) v1.Image {
	t.Helper()
	image, err := mutate.AppendLayers(empty.Image, layers...)
	if err != nil {
		t.Fatal(err)
	}
	image, err = mutate.ConfigFile(image, withConfig(image, config))
	if err != nil {
		t.Fatal(err)
	}
	return image
}

// BusyboxFiles is a root with Debian's static BusyBox under the names of all its applets, and the few files that a
// program expects in /etc.
func BusyboxFiles(t testing.TB) []File {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("%v; install busybox-static", err)
	}
	applets, err := exec.Command("/bin/busybox", "--list").Output()
	if err != nil {
		t.Fatal(err)
	}
	files := []File{
		{Name: "./"},
		{Name: "bin/"},
		{Name: "bin/busybox", Content: program, Mode: 0o755},
		{Name: "dev/"},
		{Name: "etc/"},
		{Name: "etc/passwd", Content: []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\nuser:x:1000:1000::/home/user:/bin/sh\n")},
		{Name: "etc/group", Content: []byte("root:x:0:\nnogroup:x:65534:\nuser:x:1000:\nstaff:x:50:user\n")},
		{Name: "home/"},
		{Name: "home/user/", UID: 1000, GID: 1000},
		{Name: "proc/"},
		{Name: "root/", Mode: 0o700},
		{Name: "sys/"},
		{Name: "tmp/", Mode: 0o1777},
		{Name: "usr/"},
		{Name: "usr/bin/"},
		{Name: "var/"},
	}
	for _, applet := range strings.Fields(string(applets)) {
		if applet != "busybox" {
			files = append(files, File{Name: "bin/" + applet, Symlink: "busybox"})
		}
	}
	return files
}

// Busybox is an image of two layers made from [BusyboxFiles]: the lower has a directory /opt/lower that the upper makes
// opaque and a file /etc/removed that it whites out.
func Busybox(t testing.TB, config v1.Config) v1.Image {
	t.Helper()
	lower := append(BusyboxFiles(t),
		File{Name: "etc/removed", Content: []byte("only in the lower layer\n")},
		File{Name: "etc/replaced", Content: []byte("from the lower layer\n")},
		File{Name: "opt/"},
		File{Name: "opt/lower/"},
		File{Name: "opt/lower/hidden", Content: []byte("only in the lower layer\n")},
	)
	upper := Layer(t,
		File{Name: "etc/"},
		File{Name: "etc/.wh.removed"},
		File{Name: "etc/replaced", Content: []byte("from the upper layer\n")},
		File{Name: "opt/"},
		File{Name: "opt/lower/"},
		File{Name: "opt/lower/.wh..wh..opq"},
		File{Name: "opt/lower/shown", Content: []byte("from the upper layer\n")},
	)
	if config.Env == nil {
		config.Env = []string{"PATH=/usr/bin:/bin"}
	}
	if config.Cmd == nil && config.Entrypoint == nil {
		config.Cmd = []string{"sh"}
	}
	return Image(t, config, Layer(t, lower...), upper)
}
