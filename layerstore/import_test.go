package layerstore

import (
	"bytes"
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func TestImport(t *testing.T) {
	b := tarOf(t, folder("bin", 0o755), reg("bin/sh", "#!"))
	for _, c := range compressions() {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			created := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
			o := ImportOptions{
				Config:  ocispec.ImageConfig{Cmd: []string{"/bin/sh"}, Env: []string{"A=b"}, WorkingDir: "/bin", User: "1:2"},
				Message: "a test", Created: created, Platform: &ocispec.Platform{OS: "linux", Architecture: "riscv64"},
			}
			i, err := s.Import(context.Background(), bytes.NewReader(c.pack(t, b)), "foo", o)
			if err != nil {
				t.Fatal(err)
			}
			found, err := s.Image("foo")
			if err != nil || found.ID() != i.ID() {
				t.Fatalf("Image: %v", err)
			}
			conf := found.Config()
			if conf.Config.User != "1:2" || conf.Architecture != "riscv64" || !conf.Created.Equal(created) || conf.History[0].Comment != "a test" ||
				!slices.Equal(conf.RootFS.DiffIDs, []digest.Digest{digest.FromBytes(b)}) {
				t.Errorf("configuration %+v", conf)
			}
			list, err := s.Images()
			if err != nil || len(list) != 1 || !slices.Equal(list[0].Names, []string{"foo:latest"}) || list[0].Size != int64(len(b)) || list[0].Layers != 1 {
				t.Errorf("Images: %+v, %v", list, err)
			}
			kept, err := os.ReadFile(s.layerPath(digest.FromBytes(b), tarName))
			if err != nil || !bytes.Equal(kept, b) {
				t.Errorf("the tar was not kept byte for byte: %v", err)
			}
			// The same again is the same image.
			if again, err := s.Import(context.Background(), bytes.NewReader(b), "foo", o); err != nil || again.ID() != i.ID() {
				t.Errorf("importing again: %v", err)
			}
			if r, err := s.Remove("foo:latest"); err != nil || r.Deleted != i.ID() || r.Bytes < int64(len(b)) {
				t.Errorf("Remove: %+v, %v", r, err)
			}
			checkEmpty(t, s)
		})
	}
}

func TestImportErrors(t *testing.T) {
	long := strings.Repeat("n", 256)
	huge := reg("x", "")
	huge.PAXRecords = map[string]string{xattrPrefix + "user.big": strings.Repeat("v", maxXattrValue+1)}
	cases := []struct {
		name string
		ref  string
		b    []byte
		want string
		is   error
	}{
		{"reserved name", "host", nil, "", ErrReserved},
		{"reserved name with a tag", "host:latest", nil, "", ErrReserved},
		{"no name", "a b", nil, "is no image reference", nil},
		{"by digest", "a@sha256:" + strings.Repeat("0", 64), nil, "not by digest", nil},
		{"long name", "x", tarOf(t, reg(long, "")), "has 256 bytes, at most 255", unix.ENAMETOOLONG},
		{"long name of a directory", "x", tarOf(t, reg(long+"/a", "")), "has 256 bytes, at most 255", unix.ENAMETOOLONG},
		{"long path", "x", tarOf(t, reg(strings.Repeat("d/", 2048)+"a", "")), "at most 4095", unix.ENAMETOOLONG},
		{"long link", "x", tarOf(t, symlink("l", strings.Repeat("d", 4096))), "target of 4096 bytes", nil},
		{"long xattr", "x", tarOf(t, huge), "the xattr user.big has 65537 bytes", nil},
		{"xz", "x", []byte("\xfd7zXZ\x00 and so on"), "xz -d", nil},
		{"text", "x", bytes.Repeat([]byte("text "), 1000), "not a tar archive", nil},
		{"truncated gzip", "x", packGzip(t, tarOf(t, reg("a", strings.Repeat("xyz", 1000))))[:60], "truncated", nil},
		{"garbage behind the archive, compressed", "x", append(packGzip(t, tarOf(t, reg("a", ""))), "garbage behind"...), "reading the layer", nil},
		{"sparse", "x", sparseTar(t, "posix"), "sparse file in GNU tar's format", nil},
		{"sparse, old format", "x", sparseTar(t, "gnu"), "sparse file in GNU tar's format", nil},
		{"endless headers", "x", endlessHeaders(), "more than 16 MiB of headers", nil},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := openStore(t)
			_, err := s.Import(context.Background(), bytes.NewReader(c.b), c.ref, ImportOptions{})
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("error is %v, expected one with %q", err, c.want)
			}
			checkEmpty(t, s)
		})
	}
}
