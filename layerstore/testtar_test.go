package layerstore

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/cow/branchtest"
)

// tarOf makes an archive of headers and their contents.
func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		h := e.Header
		h.Size = int64(len(e.content))
		if h.ModTime.IsZero() {
			h.ModTime = time.Unix(1_600_000_000, 0)
		}
		if h.Format == 0 {
			h.Format = tar.FormatPAX
		}
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("header of %q: %v", clip(h.Name), err)
		}
		if _, err := w.Write([]byte(e.content)); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

type entry struct {
	tar.Header
	content string
}

func reg(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, content}
}

func folder(name string, mode int64) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name + "/", Mode: mode}, ""}
}

func symlink(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777}, ""}
}

func link(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}

// treeTar is the layer that a tree is.
func treeTar(t testing.TB, tree branchtest.Tree) []byte {
	var entries []entry
	for _, f := range tree {
		h := tar.Header{
			Name: f.Path, Mode: int64(f.Mode & 0o7777), Uid: int(f.UID), Gid: int(f.GID),
			ModTime: time.Unix(f.Mtime.Sec, f.Mtime.Nsec), PAXRecords: map[string]string{},
		}
		if f.Path == "" {
			h.Name = "./"
		}
		for k, v := range f.Xattrs {
			h.PAXRecords[xattrPrefix+k] = v
		}
		dir, base := splitPath(f.Path)
		switch {
		case f.Whiteout:
			h = tar.Header{Typeflag: tar.TypeReg, Name: dir + whiteoutPrefix + base}
		case f.Link != "":
			h = tar.Header{Typeflag: tar.TypeLink, Name: f.Path, Linkname: f.Link}
		default:
			switch f.Mode & unix.S_IFMT {
			case unix.S_IFREG:
				h.Typeflag = tar.TypeReg
			case unix.S_IFDIR:
				h.Typeflag = tar.TypeDir
			case unix.S_IFLNK:
				h.Typeflag, h.Linkname = tar.TypeSymlink, f.Target
			case unix.S_IFIFO:
				h.Typeflag = tar.TypeFifo
			case unix.S_IFCHR, unix.S_IFBLK:
				h.Typeflag = tar.TypeChar
				if f.Mode&unix.S_IFMT == unix.S_IFBLK {
					h.Typeflag = tar.TypeBlock
				}
				h.Devmajor, h.Devminor = int64(unix.Major(uint64(f.Rdev))), int64(unix.Minor(uint64(f.Rdev)))
			}
		}
		entries = append(entries, entry{h, f.Content})
		if f.Opaque {
			entries = append(entries, reg(f.Path+"/"+opaqueName, ""))
		}
	}
	return tarOf(t, entries...)
}

func splitPath(p string) (dir, base string) {
	i := strings.LastIndexByte(p, '/')
	return p[:i+1], p[i+1:]
}

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func importBytes(t testing.TB, s *Store, ref string, b []byte) *Image {
	t.Helper()
	i, err := s.Import(context.Background(), bytes.NewReader(b), ref, ImportOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func TestLayerBranchSuite(t *testing.T) {
	branchtest.Run(t, func(t *testing.T, tree branchtest.Tree) cow.Branch {
		i := importBytes(t, openStore(t), "suite", treeTar(t, tree))
		all, err := i.LayerBranches()
		if err != nil {
			t.Fatal(err)
		}
		return all[0]
	})
}

func TestImageBranchSuite(t *testing.T) {
	branchtest.RunUnmarked(t, func(t *testing.T, tree branchtest.Tree) cow.Branch {
		b, err := importBytes(t, openStore(t), "suite", treeTar(t, tree)).Branch()
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
}

// sparseTar is what GNU tar --sparse makes of a file with a hole.
func sparseTar(t testing.TB, format string) []byte {
	t.Helper()
	dir := t.TempDir()
	f, err := os.Create(dir + "/sparse")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte("end"), 1<<20); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := exec.Command("tar", "--sparse", "--format="+format, "-C", dir, "-c", "sparse").Output()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// endlessHeaders is an archive that goes on with PAX headers and never comes to an entry.
func endlessHeaders() []byte {
	var one bytes.Buffer
	w := tar.NewWriter(&one)
	h := tar.Header{Typeflag: tar.TypeReg, Name: "x", Format: tar.FormatPAX, PAXRecords: map[string]string{"comment": strings.Repeat("c", 900_000)}}
	if err := w.WriteHeader(&h); err != nil {
		panic(err)
	}
	pax := one.Bytes()[:one.Len()-512] // without the entry that it is for
	return bytes.Repeat(pax, 20)
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// headers lists what is in a tar.
func headers(t testing.TB, b []byte) []*tar.Header {
	t.Helper()
	var all []*tar.Header
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, h)
	}
}
