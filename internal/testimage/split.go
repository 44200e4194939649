package testimage

import (
	"archive/tar"
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"hash/fnv"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// splitVersion is part of the cache's key: raise it with every change to what split makes.
const splitVersion = 2

// split writes the root in the tar as count gzip layers to dir and returns them, bottom first. Applied in order
// they give exactly that root. Where a file goes follows from a hash of its path; on top of it the layers have what
// real ones have: old versions of files (also of another type), files and directories that a later layer whites out,
// whiteouts next to a new version of the same name, and opaque directories over what must not show.
func split(rootTar, dir string, count int) ([]v1.Layer, error) {
	plan, err := planSplit(rootTar, count)
	if err != nil {
		return nil, err
	}
	layers := make([]*layerWriter, count)
	for i := range layers {
		if layers[i], err = newLayerWriter(filepath.Join(dir, fmt.Sprintf("layer-%02d.tar.gz", i))); err != nil {
			return nil, err
		}
		defer layers[i].abandon()
	}

	err = eachEntry(rootTar, func(h *tar.Header, name string, content io.Reader) error {
		if h.Typeflag != tar.TypeDir {
			return layers[plan.layerOf[name]].write(h, content)
		}
		for i := range layers {
			if !plan.dirs[i][name] {
				continue
			}
			if err := layers[i].write(h, nil); err != nil {
				return err
			}
			for _, x := range plan.extras[i][name] {
				if err := layers[i].writeExtra(x); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	finished := make([]v1.Layer, count)
	for i, layer := range layers {
		for _, x := range plan.late[i] {
			if err := layer.writeExtra(x); err != nil {
				return nil, err
			}
		}
		if finished[i], err = layer.finish(); err != nil {
			return nil, err
		}
	}
	return finished, nil
}

// splitPlan says what goes into which layer. Names are clean, relative, and "." for the root.
type splitPlan struct {
	count   int
	layerOf map[string]int       // of everything but directories
	dirs    []map[string]bool    // by layer: the directories that have an entry in it
	extras  []map[string][]extra // by layer and directory: what to write right after the directory's entry
	late    [][]extra            // by layer: what to write at its end
	minimum map[string]int       // opaque directory: the layer in which it is made opaque
}

// extra is an entry that isn't in the root: a regular file if content is set, a symbolic link if target is, else a
// directory.
type extra struct {
	name, content, target string
}

func planSplit(rootTar string, count int) (*splitPlan, error) {
	p := &splitPlan{
		count:   count,
		layerOf: map[string]int{},
		dirs:    make([]map[string]bool, count),
		extras:  make([]map[string][]extra, count),
		late:    make([][]extra, count),
		minimum: map[string]int{},
	}
	for i := range count {
		p.dirs[i], p.extras[i] = map[string]bool{}, map[string][]extra{}
	}

	// Hard links of one file stay in one layer: the highest that one of them must be in.
	type file struct {
		name, group string
		regular     bool
	}
	var files []file
	var dirs []string
	groupMinimum := map[string]int{}
	err := eachEntry(rootTar, func(h *tar.Header, name string, _ io.Reader) error {
		if h.Typeflag == tar.TypeDir {
			dirs = append(dirs, name)
			if strings.Count(name, "/") >= 1 && pick(name, "opaque", 40) == 0 {
				p.minimum[name] = max(p.lowest(name), 2+pick(name, "opaque layer", count-4))
			}
			return nil
		}
		f := file{name: name, group: name, regular: h.Typeflag == tar.TypeReg}
		if h.Typeflag == tar.TypeLink {
			f.group = clean(h.Linkname)
		}
		groupMinimum[f.group] = max(groupMinimum[f.group], p.lowest(name))
		files = append(files, f)
		return nil
	})
	if err != nil {
		return nil, err
	}

	for _, f := range files {
		low := groupMinimum[f.group]
		layer := low + pick(f.group, "layer", count-low)
		p.layerOf[f.name] = layer
		p.needDir(layer, path.Dir(f.name))
		if f.regular {
			p.addHistory(f.name, layer)
		}
	}
	for _, dir := range dirs {
		p.needDir(p.lowest(dir)+pick(dir, "layer", count-p.lowest(dir)), dir)
		p.addStale(dir)
	}
	for dir, layer := range p.minimum {
		p.hide(dir, layer)
	}
	return p, nil
}

// lowest returns the lowest layer in which what is at name shows: no lower than any opaque directory above it.
func (p *splitPlan) lowest(name string) int {
	low := 0
	for ; name != "."; name = path.Dir(name) {
		low = max(low, p.minimum[name])
	}
	return low
}

// needDir gives the directory and all above it an entry in the layer.
func (p *splitPlan) needDir(layer int, dir string) {
	for ; !p.dirs[layer][dir]; dir = path.Dir(dir) {
		p.dirs[layer][dir] = true
	}
}

func (p *splitPlan) add(layer int, dir string, extras ...extra) {
	p.needDir(layer, dir)
	p.extras[layer][dir] = append(p.extras[layer][dir], extras...)
}

// addHistory gives some files a past: an old version, of each kind, in the layer below, and for some a whiteout between
// the two or beside the new one.
func (p *splitPlan) addHistory(name string, layer int) {
	dir := path.Dir(name)
	if layer < 2 || pick(name, "history", 25) != 0 {
		return
	}
	switch pick(name, "old kind", 3) {
	case 0:
		p.add(layer-2, dir, extra{name: name, content: "an old version of " + name + "\n"})
	case 1:
		p.add(layer-2, dir, extra{name: name, target: "/nowhere"})
	case 2:
		p.add(layer-2, dir, extra{name: name}, extra{name: name + "/inside", content: "under an old directory\n"})
	}
	switch pick(name, "whiteout", 3) {
	case 0:
		p.add(layer-1, dir, whiteout(name))
	case 1:
		p.add(layer, dir, whiteout(name))
	}
}

// addStale gives some directories a file and a directory that a higher layer deletes.
func (p *splitPlan) addStale(dir string) {
	if pick(dir, "stale", 15) != 0 {
		return
	}
	born := pick(dir, "born", p.count-1)
	died := born + 1 + pick(dir, "died", p.count-born-1)
	file, sub := path.Join(dir, "stale-file"), path.Join(dir, "stale-directory")
	p.add(born, dir,
		extra{name: file, content: "deleted later\n"},
		extra{name: sub}, extra{name: sub + "/below"}, extra{name: sub + "/below/file", content: "deleted later\n"})
	p.add(died, dir, whiteout(file), whiteout(sub))
}

// hide makes the directory opaque in the layer and puts into lower ones what must not show for it. The mark stands right
// after the directory, or at the layer's end.
func (p *splitPlan) hide(dir string, layer int) {
	mark := extra{name: path.Join(dir, ".wh..wh..opq"), content: whiteoutContent}
	p.needDir(layer, dir)
	if pick(dir, "mark", 2) == 0 {
		p.add(layer, dir, mark)
	} else {
		p.late[layer] = append(p.late[layer], mark)
	}
	for low := range layer {
		if pick(dir, fmt.Sprint("hidden in ", low), 2) == 0 {
			p.add(low, dir,
				extra{name: path.Join(dir, fmt.Sprint("hidden-", low)), content: "below an opaque directory\n"},
				extra{name: path.Join(dir, "hidden-directory")},
				extra{name: path.Join(dir, "hidden-directory/file"), content: "below an opaque directory\n"})
		}
	}
}

// whiteoutContent makes an extra a regular, empty file.
const whiteoutContent = "\x00"

func whiteout(name string) extra {
	return extra{name: path.Join(path.Dir(name), ".wh."+path.Base(name)), content: whiteoutContent}
}

// pick chooses one of n by a hash of the name and of what the choice is about.
func pick(name, about string, n int) int {
	h := fnv.New64a()
	io.WriteString(h, about)
	h.Write([]byte{0})
	io.WriteString(h, name)
	sum := h.Sum64()
	return int((sum ^ sum>>32) % uint64(n))
}

func clean(name string) string { return path.Clean(strings.TrimLeft(name, "/")) }

func eachEntry(rootTar string, visit func(h *tar.Header, name string, content io.Reader) error) error {
	file, err := os.Open(rootTar)
	if err != nil {
		return err
	}
	defer file.Close()
	r := tar.NewReader(bufio.NewReaderSize(file, 1<<20))
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := visit(h, clean(h.Name), r); err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
	}
}

// layerWriter writes one layer. gzip(1) compresses it: it needs no instrumentation for races, which makes Go's own slow.
type layerWriter struct {
	file   string
	gzip   *exec.Cmd
	pipe   io.WriteCloser
	buffer *bufio.Writer
	diffID hash.Hash
	tar    *tar.Writer
}

func newLayerWriter(name string) (*layerWriter, error) {
	out, err := os.Create(name)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	w := &layerWriter{file: name, gzip: exec.Command("gzip", "-1", "-n"), diffID: sha256.New()}
	w.gzip.Stdout = out
	if w.pipe, err = w.gzip.StdinPipe(); err != nil {
		return nil, err
	}
	if err := w.gzip.Start(); err != nil {
		return nil, err
	}
	w.buffer = bufio.NewWriterSize(io.MultiWriter(w.pipe, w.diffID), 1<<18)
	w.tar = tar.NewWriter(w.buffer)
	return w, nil
}

// abandon ends what finish hasn't.
func (w *layerWriter) abandon() {
	w.pipe.Close()
	w.gzip.Wait()
}

func (w *layerWriter) finish() (v1.Layer, error) {
	if err := errors.Join(w.tar.Close(), w.buffer.Flush(), w.pipe.Close(), w.gzip.Wait()); err != nil {
		return nil, err
	}
	file, err := os.Open(w.file)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	digest, size, err := v1.SHA256(file)
	if err != nil {
		return nil, err
	}
	diffID := v1.Hash{Algorithm: "sha256", Hex: hex.EncodeToString(w.diffID.Sum(nil))}
	return fileLayer{file: w.file, digest: digest, diffID: diffID, size: size}, nil
}

// fileLayer is a layer in a gzip file, of which everything is known.
type fileLayer struct {
	file           string
	digest, diffID v1.Hash
	size           int64
}

func (l fileLayer) Digest() (v1.Hash, error)            { return l.digest, nil }
func (l fileLayer) DiffID() (v1.Hash, error)            { return l.diffID, nil }
func (l fileLayer) Compressed() (io.ReadCloser, error)  { return os.Open(l.file) }
func (l fileLayer) Size() (int64, error)                { return l.size, nil }
func (l fileLayer) MediaType() (types.MediaType, error) { return types.DockerLayer, nil }
func (l fileLayer) Uncompressed() (io.ReadCloser, error) {
	return nil, errors.New("nobody needs it uncompressed")
}

func (w *layerWriter) write(h *tar.Header, content io.Reader) error {
	copied := *h
	copied.Format = tar.FormatPAX
	if err := w.tar.WriteHeader(&copied); err != nil {
		return err
	}
	if h.Typeflag != tar.TypeReg {
		return nil
	}
	_, err := io.Copy(w.tar, content)
	return err
}

func (w *layerWriter) writeExtra(x extra) error {
	h := &tar.Header{Name: x.name, ModTime: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC)}
	content := x.content
	switch {
	case content == whiteoutContent:
		content = ""
		h.Typeflag, h.Mode = tar.TypeReg, 0o600
	case content != "":
		h.Typeflag, h.Mode, h.Size = tar.TypeReg, 0o644, int64(len(content))
	case x.target != "":
		h.Typeflag, h.Mode, h.Linkname = tar.TypeSymlink, 0o777, x.target
	default:
		h.Typeflag, h.Mode, h.Name = tar.TypeDir, 0o755, x.name+"/"
	}
	return w.write(h, strings.NewReader(content))
}
