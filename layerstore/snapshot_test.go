package layerstore

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// addStack makes an image of layers, bottom first, without a registry.
func addStack(s *Store, ref string, layers ...[]byte) (*Image, error) {
	a, err := s.newAttempt(nil)
	if err != nil {
		return nil, err
	}
	defer a.close()
	fresh := map[digest.Digest]string{}
	config := ocispec.Image{RootFS: ocispec.RootFS{Type: "layers"}, Platform: ocispec.Platform{OS: "linux", Architecture: "amd64"}}
	r := &imageRecord{Version: recordVersion, Manifest: []byte("{}")}
	for i, b := range layers {
		dir := a.path(fmt.Sprint("layer-", i))
		if err := os.Mkdir(dir, 0o700); err != nil {
			return nil, err
		}
		id, size, err := ingest(context.Background(), bytes.NewReader(b), dir)
		if err != nil {
			return nil, err
		}
		fresh[id] = dir
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, id)
		r.Layers = append(r.Layers, layerRecord{DiffID: id, Digest: id, Size: size})
	}
	if r.Config, err = json.Marshal(config); err != nil {
		return nil, err
	}
	parsed, err := parseName(ref)
	if err != nil {
		return nil, err
	}
	return s.publishImage(a, newImage{record: r, fresh: fresh, names: []refRecord{{Version: recordVersion, Name: parsed.Name()}}})
}

// snapshot is everything that can be seen of a tree: a line for each path, "." being the root.
type snapshot map[string]string

// line writes what is known of a file. Directories have no size and no links.
func line(a *cow.Attr, content string, xattrs map[string]string, group string) string {
	kind := kindName(a.Mode)
	var b strings.Builder
	fmt.Fprintf(&b, "%s %04o %d:%d mtime %d.%09d", kind, a.Mode&0o7777, a.UID, a.GID, a.Mtime.Sec, a.Mtime.Nsec)
	if !a.IsDir() {
		fmt.Fprintf(&b, " nlink %d rdev %#x size %d", a.Nlink, a.Rdev, a.Size)
		if a.Nlink > 1 {
			fmt.Fprintf(&b, " linked with %s", group)
		}
	}
	if content != "" {
		fmt.Fprintf(&b, " %q", content)
	}
	for _, k := range slices.Sorted(maps.Keys(xattrs)) {
		fmt.Fprintf(&b, " %s=%q", k, xattrs[k])
	}
	return b.String()
}

// snapshotBranch reads all of a branch.
func snapshotBranch(b cow.Branch) (snapshot, error) {
	root, err := b.Root()
	if err != nil {
		return nil, err
	}
	s := snapshot{}
	groups := map[uint64]string{}
	var lines []func()
	var walk func(d cow.Dir, p string) error
	visit := func(d cow.Dir, e cow.Entry, p string) error {
		if e.Whiteout {
			s[p] = "whiteout"
			return nil
		}
		var a cow.Attr
		if err := d.Stat(e, &a); err != nil {
			return err
		}
		if e.Ino != a.Ino || e.Type != a.Mode&unix.S_IFMT {
			return fmt.Errorf("%s: entry and attributes differ", p)
		}
		xattrs, err := branchXattrs(d, e)
		if err != nil {
			return err
		}
		content := ""
		switch e.Type {
		case unix.S_IFREG:
			data, err := d.Open(e)
			if err != nil {
				return err
			}
			b, err := io.ReadAll(io.NewSectionReader(pread(data.FD), data.Off, data.Size))
			data.Release()
			if err != nil {
				return err
			}
			content = string(b)
		case unix.S_IFLNK:
			if content, err = d.Readlink(e); err != nil {
				return err
			}
		}
		if g, ok := groups[a.Ino]; !ok || p < g {
			groups[a.Ino] = p
		}
		lines = append(lines, func() { s[p] = line(&a, content, xattrs, groups[a.Ino]) })
		if e.Type == unix.S_IFDIR {
			sub, err := d.Sub(e)
			if err != nil {
				return err
			}
			return walk(sub, p)
		}
		return nil
	}
	walk = func(d cow.Dir, p string) error {
		var failed error
		err := d.List(0, func(e cow.Entry) bool {
			found, err := d.Lookup(e.Name)
			if err == nil && found != e {
				err = fmt.Errorf("%s: Lookup and List differ", path.Join(p, e.Name))
			}
			if err == nil {
				err = visit(d, e, path.Join(p, e.Name))
			}
			failed = err
			return failed == nil
		})
		return errors.Join(failed, err)
	}
	var a cow.Attr
	if err := root.Stat(root.Self(), &a); err != nil {
		return nil, err
	}
	x, err := branchXattrs(root, root.Self())
	if err != nil {
		return nil, err
	}
	s["."] = line(&a, "", x, "")
	if err := walk(root, ""); err != nil {
		return nil, err
	}
	for _, f := range lines {
		f()
	}
	return s, nil
}

func branchXattrs(d cow.Dir, e cow.Entry) (map[string]string, error) {
	names, err := d.Listxattr(e)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, n := range names {
		v, err := d.Getxattr(e, n)
		if err != nil {
			return nil, err
		}
		m[n] = string(v)
	}
	return m, nil
}

type pread int

func (fd pread) ReadAt(p []byte, off int64) (int, error) {
	n, err := unix.Pread(int(fd), p, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return max(n, 0), err
}

// snapshotDir reads all of a directory. dirTimes has the times of directories, which can't be kept right in the tree
// itself while it is being made.
func snapshotDir(t *testing.T, root string, dirTimes map[string]unix.Timespec) snapshot {
	t.Helper()
	s := snapshot{}
	groups := map[uint64]string{}
	var lines []func()
	err := filepath.WalkDir(root, func(full string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		p, err := filepath.Rel(root, full)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(full, &st); err != nil {
			return err
		}
		a := cow.Attr{Mode: st.Mode, UID: st.Uid, GID: st.Gid, Mtime: st.Mtim, Nlink: uint32(st.Nlink), Size: uint64(st.Size), Rdev: uint32(st.Rdev)}
		content := ""
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(full)
			if err != nil {
				return err
			}
			content = string(b)
		case unix.S_IFLNK:
			if content, err = os.Readlink(full); err != nil {
				return err
			}
		case unix.S_IFDIR:
			a.Mtime = dirTimes[p]
		}
		xattrs, err := dirXattrs(full)
		if err != nil {
			return err
		}
		if g, ok := groups[st.Ino]; !ok || p < g {
			groups[st.Ino] = p
		}
		lines = append(lines, func() { s[p] = line(&a, content, xattrs, groups[st.Ino]) })
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range lines {
		f()
	}
	return s
}

func dirXattrs(full string) (map[string]string, error) {
	buf := make([]byte, 1<<16)
	n, err := unix.Llistxattr(full, buf)
	if err != nil {
		return nil, err
	}
	m := map[string]string{}
	for _, name := range strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" {
			continue
		}
		v := make([]byte, 1<<16)
		n, err := unix.Lgetxattr(full, name, v)
		if err != nil {
			return nil, err
		}
		m[name] = string(v[:n])
	}
	return m, nil
}

// diffSnapshots says where two trees differ; empty if nowhere.
func diffSnapshots(got, want snapshot) string {
	var b strings.Builder
	for _, p := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[p]; !ok {
			fmt.Fprintf(&b, "%q is missing: %.300s\n", p, want[p])
		} else if g != want[p] {
			fmt.Fprintf(&b, "%q\n  is     %.300s\n  expect %.300s\n", p, g, want[p])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[p]; !ok {
			fmt.Fprintf(&b, "%q is too much: %.300s\n", p, got[p])
		}
	}
	return b.String()
}
