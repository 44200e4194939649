package layerstore

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// seedTars are archives with something of everything in them.
func seedTars(f testing.TB) [][]byte {
	x := reg("x", "content")
	x.PAXRecords = map[string]string{xattrPrefix + "user.a": "v"}
	return append(someTars(f)[1:3],
		tarOf(f, x, link("later", "f"), reg("f", "1"), reg("f", "2"), folder("d", 0o700), wh("d/"+opaqueName), wh("d/.wh.y"), symlink("s", "../..")),
		tarOf(f, reg(strings.Repeat("n", 200)+"/"+strings.Repeat("m", 200), ""), reg("/abs", ""), reg("a/../b", "")),
		sparseTar(f, "gnu"), sparseTar(f, "posix"),
	)
}

// indexBytes is the index of a tar; nil if the tar is refused.
func indexBytes(b []byte) []byte {
	w, err := indexOf(b)
	if err != nil {
		return nil
	}
	return writerBytes(w)
}

func indexOf(b []byte) (*indexWriter, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	r, err := decompress(bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	src := newTarSource(ctx, r, io.Discard)
	tree, err := readTree(src)
	if err != nil {
		return nil, err
	}
	if err := src.drain(); err != nil {
		return nil, err
	}
	return tree.index(src.digest(), src.total)
}

func writerBytes(w *indexWriter) []byte {
	h := w.layout()
	b := make([]byte, headerSize)
	w.sectionsTo(func(p []byte) error { b = append(b, p...); return nil })
	h.sum = xxhash.Sum64(b[headerSize:])
	copy(b, h.encode())
	return b
}

// FuzzIngest reads archives from enemies. What is accepted must make an index that can be read, merged and listed.
func FuzzIngest(f *testing.F) {
	for _, b := range seedTars(f) {
		f.Add(b)
		f.Add(packGzip(f, b))
		f.Add(packZstd(f, b))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		w, err := indexOf(b)
		if err != nil {
			return
		}
		ix, err := parseIndex(writerBytes(w))
		if err != nil {
			t.Fatal(err)
		}
		if err := ix.verify(); err != nil {
			t.Fatal(err)
		}
		id, err := ix.layer(0)
		if err != nil {
			t.Fatal(err)
		}
		merged, err := mergeIndexes([]*index{ix}, []digest.Digest{id})
		if err != nil {
			return // links to nowhere
		}
		walkIndex(t, writerBytes(merged), true)
	})
}

// FuzzIndex reads index files from enemies: there may be errors, but nothing else.
func FuzzIndex(f *testing.F) {
	for _, b := range seedIndexes(f) {
		f.Add(b)
	}
	f.Fuzz(fuzzIndex)
}

// seedIndexes are indexes of both kinds.
func seedIndexes(t testing.TB) [][]byte {
	var all [][]byte
	for _, b := range seedTars(t) {
		ix := indexBytes(b)
		if ix == nil {
			continue
		}
		p, err := parseIndex(ix)
		if err != nil {
			t.Fatal(err)
		}
		id, err := p.layer(0)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, ix)
		if m, err := mergeIndexes([]*index{p}, []digest.Digest{id}); err == nil {
			all = append(all, writerBytes(m))
		}
	}
	return all
}

// TestMutatedIndex changes bytes of sound indexes at random: it finds more in a second than the fuzzer in minutes, as
// it knows that the interesting bytes are numbers.
func TestMutatedIndex(t *testing.T) {
	const rounds = 1500
	random := rand.New(rand.NewPCG(5, 6))
	for _, ix := range seedIndexes(t) {
		for range rounds {
			b := bytes.Clone(ix)
			for range 1 + random.IntN(4) {
				at := random.IntN(len(b))
				switch random.IntN(4) {
				case 0:
					b[at] ^= 1 << random.IntN(8)
				case 1:
					b[at] = byte(random.Int())
				case 2:
					b[at] = byte(random.IntN(12))
				case 3:
					at = at / 4 * 4
					copy(b[at:], []byte{0xff, 0xff, 0xff, 0xff}[:random.IntN(5)])
				}
			}
			fuzzIndex(t, b)
		}
	}
}

func fuzzIndex(t *testing.T, b []byte) {
	// Nothing that is made at random has the right checksum.
	if len(b) >= headerSize {
		b = bytes.Clone(b)
		binary.LittleEndian.PutUint64(b[headerSize-8:], xxhash.Sum64(b[:headerSize-8]))
	}
	walkIndex(t, b, false)
	ix, err := parseIndex(b)
	if err != nil {
		return
	}
	ids := make([]digest.Digest, ix.layerCount())
	for n := range ids {
		if ids[n], err = ix.layer(uint16(n)); err != nil {
			t.Fatal(err)
		}
	}
	m, err := mergeIndexes([]*index{ix}, ids)
	if err == nil && len(m.records) > int(ix.count()) {
		t.Errorf("%d records became %d", ix.count(), len(m.records))
	}
	if ix.kind == kindLayer && len(ids) == 1 {
		mergeIndexes([]*index{ix, ix, ix}, []digest.Digest{ids[0], ids[0], ids[0]})
	}
}

// walkIndex uses an index in every way that a branch does. sound says that nothing may fail.
func walkIndex(t *testing.T, b []byte, sound bool) {
	ix, err := parseIndex(b)
	if err != nil {
		if sound {
			t.Fatal(err)
		}
		return
	}
	branch, err := newIndexBranch(ix, "/", "fuzz", nil)
	if err != nil {
		if sound {
			t.Fatal(err)
		}
		return
	}
	defer branch.Close()
	root, err := branch.Root()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	check := func(err error) {
		if sound && err != nil {
			t.Fatal(err)
		}
	}
	var walk func(d cow.Dir)
	walk = func(d cow.Dir) {
		var last cow.Entry
		err := d.List(0, func(e cow.Entry) bool {
			if seen++; seen > int(ix.count()) {
				t.Fatal("more entries than records")
			}
			if !validName([]byte(e.Name)) {
				t.Fatalf("the name %q", e.Name)
			}
			last = e
			found, err := d.Lookup(e.Name)
			check(err)
			if sound && found != e {
				t.Fatalf("Lookup(%q) is %+v, List has %+v", e.Name, found, e)
			}
			if e.Whiteout {
				return true
			}
			var a cow.Attr
			check(d.Stat(e, &a))
			names, err := d.Listxattr(e)
			check(err)
			for _, n := range names {
				_, err := d.Getxattr(e, n)
				check(err)
			}
			d.Describe(e)
			if e.Type == unix.S_IFLNK {
				_, err := d.Readlink(e)
				check(err)
			}
			if data, err := d.Open(e); err == nil {
				data.Release()
			}
			if e.Type == unix.S_IFDIR {
				sub, err := d.Sub(e)
				check(err)
				if err == nil {
					walk(sub)
				}
			}
			return true
		})
		check(err)
		d.List(cow.Cookie(last.Name), func(cow.Entry) bool { return false })
		d.Lookup("absent")
	}
	walk(root)
}

// FuzzConfig reads configurations, manifests and indexes from enemies.
func FuzzConfig(f *testing.F) {
	i := makeImage(f, seedTars(f)[:2])
	f.Add(mustJSON(f, i.config), ocispec.MediaTypeImageConfig)
	f.Add(mustJSON(f, i.manifest), ocispec.MediaTypeImageManifest)
	f.Add(mustJSON(f, i.asDocker().manifest), i.manifest.MediaType)
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:00","size":1,"platform":{"os":"linux","architecture":"arm64","variant":"v8"}}]}`), ocispec.MediaTypeImageIndex)
	f.Add([]byte(`{"schemaVersion":1,"fsLayers":[]}`), "text/plain")
	f.Fuzz(func(t *testing.T, b []byte, mediaType string) {
		if c, err := parseConfig(b); err == nil {
			if err := checkDigest(chainID(c.RootFS.DiffIDs)); err != nil {
				t.Error(err)
			}
			for _, d := range c.RootFS.DiffIDs {
				if strings.ContainsAny(d.Encoded(), "/.") || len(d.Encoded()) != 64 {
					t.Errorf("diff ID %q", d)
				}
			}
		}
		m, err := parseManifest(b, mediaType)
		if err != nil {
			return
		}
		if m.index {
			m.choose(ocispec.Platform{OS: "linux", Architecture: "amd64"})
			return
		}
		for _, d := range m.Layers {
			if checkDigest(d.Digest) != nil || d.Size < 0 {
				t.Errorf("layer %+v", d)
			}
		}
	})
}
