package archive

import (
	"archive/tar"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func open(t *testing.T, name string) int {
	t.Helper()
	fd, err := unix.Open(name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	must(t, err)
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func stat(t *testing.T, name string) unix.Stat_t {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Lstat(name, &st))
	return st
}

// TestRoundTrip packs a tree with everything in it and unpacks it elsewhere.
func TestRoundTrip(t *testing.T) {
	from, to := t.TempDir(), t.TempDir()
	in := func(name string) string { return filepath.Join(from, name) }
	must(t, os.MkdirAll(in("dir/deeper"), 0o750))
	must(t, os.WriteFile(in("dir/file"), []byte("content"), 0o640))
	must(t, os.Chmod(in("dir/file"), 0o4755))
	must(t, os.Chown(in("dir/file"), 12, 34))
	must(t, os.Chmod(in("dir/file"), 0o4755|os.ModeSetuid))
	must(t, unix.Setxattr(in("dir/file"), "user.colour", []byte("red\x00"), 0))
	must(t, os.Link(in("dir/file"), in("again")))
	must(t, os.Symlink("/etc/../nowhere", in("link")))
	must(t, unix.Mkfifo(in("pipe"), 0o622))
	must(t, unix.Mknod(in("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(t, os.WriteFile(in(".wh.kept"), nil, 0o600))
	must(t, os.WriteFile(in("sparse"), nil, 0o600))
	must(t, os.Truncate(in("sparse"), 8<<20))
	must(t, os.WriteFile(in(strings.Repeat("x", 255)), []byte{1}, 0o600))
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(l)
	must(t, unix.Bind(l, &unix.SockaddrUnix{Name: in("socket")}))
	old := time.Unix(1e9, 123456789)
	must(t, os.Chtimes(in("dir/file"), old, old))
	must(t, os.Chtimes(in("dir"), old, old))
	must(t, os.Chmod(from, 0o711))

	var tarball bytes.Buffer
	var skipped []string
	must(t, Pack(&tarball, open(t, from), "", PackOptions{Skipped: func(name string) { skipped = append(skipped, name) }}))
	if len(skipped) != 1 || skipped[0] != "socket" {
		t.Errorf("left out: %q", skipped)
	}
	n, err := Unpack(&tarball, open(t, to), UnpackOptions{Base: ".", Owners: true})
	must(t, err)
	if n != 7+8<<20+1 {
		t.Errorf("%d bytes", n)
	}
	out := func(name string) string { return filepath.Join(to, name) }
	for _, name := range []string{".", "dir", "dir/deeper", "dir/file", "again", "pipe", "null", ".wh.kept", "sparse", strings.Repeat("x", 255)} {
		a, b := stat(t, in(name)), stat(t, out(name))
		if a.Mode != b.Mode || a.Uid != b.Uid || a.Gid != b.Gid || a.Rdev != b.Rdev || a.Mtim != b.Mtim || name != "." && a.Nlink != b.Nlink {
			t.Errorf("%.20s: %+v, want %+v", name, b, a)
		}
	}
	if stat(t, out("again")).Ino != stat(t, out("dir/file")).Ino {
		t.Error("the hard link is a file of its own")
	}
	if st := stat(t, out("sparse")); st.Size != 8<<20 || st.Blocks > 16 {
		t.Errorf("sparse file: %d bytes in %d blocks", st.Size, st.Blocks)
	}
	if target, err := os.Readlink(out("link")); err != nil || target != "/etc/../nowhere" {
		t.Errorf("link: %q, %v", target, err)
	}
	value := make([]byte, 10)
	if size, err := unix.Getxattr(out("dir/file"), "user.colour", value); err != nil || string(value[:size]) != "red\x00" {
		t.Errorf("xattr: %q, %v", value[:max(size, 0)], err)
	}
}

func tarOf(t *testing.T, headers ...*tar.Header) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		content := "evil"
		if h.Typeflag == tar.TypeReg {
			h.Size = int64(len(content))
		}
		if h.Mode == 0 {
			h.Mode = 0o644
		}
		must(t, w.WriteHeader(h))
		if h.Typeflag == tar.TypeReg {
			_, err := w.Write([]byte(content))
			must(t, err)
		}
	}
	must(t, w.Close())
	return &b
}

// TestHostile unpacks tars that want to write outside.
func TestHostile(t *testing.T) {
	tests := map[string]struct {
		headers []*tar.Header
		inRoot  bool
		refused bool
	}{
		"dots":                  {headers: []*tar.Header{{Name: "../../outside", Typeflag: tar.TypeReg}}},
		"absolute":              {headers: []*tar.Header{{Name: "/outside", Typeflag: tar.TypeReg}}},
		"through a link":        {headers: []*tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/outside", Typeflag: tar.TypeReg}}, refused: true},
		"through a link inside": {headers: []*tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../../.."}, {Name: "l/outside", Typeflag: tar.TypeReg}}, inRoot: true},
		"onto a link":           {headers: []*tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: "../outside"}, {Name: "l", Typeflag: tar.TypeReg}}},
		"hard link":             {headers: []*tar.Header{{Name: "h", Typeflag: tar.TypeLink, Linkname: "../secret"}}, refused: true},
		"hard link by a link":   {headers: []*tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "h", Typeflag: tar.TypeLink, Linkname: "l/secret"}}, refused: true},
		"directory over a link": {headers: []*tar.Header{{Name: "l", Typeflag: tar.TypeSymlink, Linkname: ".."}, {Name: "l/", Typeflag: tar.TypeDir, Mode: 0o777}}, refused: true},
		"file over a directory": {headers: []*tar.Header{{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o755}, {Name: "d", Typeflag: tar.TypeReg}}, refused: true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			top := t.TempDir()
			root := filepath.Join(top, "root")
			must(t, os.Mkdir(root, 0o755))
			must(t, os.WriteFile(filepath.Join(top, "secret"), []byte("secret"), 0o600))
			before := stat(t, top)
			_, err := Unpack(tarOf(t, test.headers...), open(t, root), UnpackOptions{Base: ".", InRoot: test.inRoot, Owners: true})
			if (err != nil) != test.refused {
				t.Errorf("error: %v", err)
			}
			if _, err := os.Lstat(filepath.Join(top, "outside")); !errors.Is(err, os.ErrNotExist) {
				t.Error("something was written outside")
			}
			if data, err := os.ReadFile(filepath.Join(top, "secret")); err != nil || string(data) != "secret" {
				t.Errorf("secret: %q, %v", data, err)
			}
			if stat(t, top).Mode != before.Mode || stat(t, filepath.Join(top, "secret")).Nlink != 1 {
				t.Error("what is outside was changed")
			}
		})
	}
}

// TestReplace unpacks over what is there.
func TestReplace(t *testing.T) {
	root := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(root, "d/kept"), 0o755))
	must(t, os.WriteFile(filepath.Join(root, "d/file"), []byte("longer than before"), 0o600))
	_, err := Unpack(tarOf(t, &tar.Header{Name: "d/", Typeflag: tar.TypeDir, Mode: 0o711}, &tar.Header{Name: "d/file", Typeflag: tar.TypeReg}, &tar.Header{Name: "new/deep/file", Typeflag: tar.TypeReg}),
		open(t, root), UnpackOptions{Base: "."})
	must(t, err)
	if data, err := os.ReadFile(filepath.Join(root, "d/file")); err != nil || string(data) != "evil" {
		t.Errorf("%q, %v", data, err)
	}
	if stat(t, filepath.Join(root, "d")).Mode != unix.S_IFDIR|0o711 || stat(t, filepath.Join(root, "d/kept")).Mode&unix.S_IFMT != unix.S_IFDIR {
		t.Error("the directory was not merged")
	}
	if stat(t, filepath.Join(root, "new/deep/file")).Size != 4 {
		t.Error("a directory that the tar doesn't say was not made")
	}
	cut := tarOf(t, &tar.Header{Name: "f", Typeflag: tar.TypeReg})
	cut.Truncate(514)
	if _, err := Unpack(cut, open(t, root), UnpackOptions{Base: "."}); err == nil {
		t.Error("a tar that was cut short was taken")
	}
}
