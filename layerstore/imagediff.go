package layerstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// Diff lists what the other image has that is not as in this one, in the order and with the meaning of
// [cow.Difference.Changes]. Files of the same layer are told to be the same without reading them.
func (i *Image) Diff(other *Image) (_ []cow.Change, err error) {
	d := &imageDiff{}
	for _, one := range []struct {
		image *Image
		into  **indexBranch
	}{{i, &d.was}, {other, &d.now}} {
		b, err := one.image.Branch()
		if err != nil {
			return nil, err
		}
		defer b.Close()
		*one.into = b.(*indexBranch)
	}
	changes, err := d.directory("", d.was.root, d.now.root)
	if err != nil {
		return nil, fmt.Errorf("comparing image %s with %s: %w", i.id, other.id, err)
	}
	return changes, nil
}

// imageDiff compares two images.
type imageDiff struct{ was, now *indexBranch }

// directory compares two directories of the same path; was is nil if there was none.
func (d *imageDiff) directory(path string, was, now *indexDir) ([]cow.Change, error) {
	type pair struct{ was, now cow.Entry } // without a name where there is none
	pairs := make(map[string]pair)
	if was != nil {
		if err := was.List(0, func(e cow.Entry) bool { pairs[e.Name] = pair{was: e}; return true }); err != nil {
			return nil, err
		}
	}
	err := now.List(0, func(e cow.Entry) bool {
		pairs[e.Name] = pair{pairs[e.Name].was, e}
		return true
	})
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(pairs))
	for name := range pairs {
		names = append(names, name)
	}
	slices.Sort(names)
	var changes []cow.Change
	for _, name := range names {
		p := pairs[name]
		full := path + "/" + name
		if p.now.Name == "" {
			changes = append(changes, cow.Change{Path: full, Kind: cow.Deleted})
			continue
		}
		c, err := d.entry(full, p.was, p.now)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", full, err)
		}
		changes = append(changes, c...)
	}
	return changes, nil
}

// entry compares what has the same path; was has no name if there was none.
func (d *imageDiff) entry(path string, was, now cow.Entry) ([]cow.Change, error) {
	kind, same := cow.Added, false
	var old record
	var err error
	if was.Name != "" {
		kind = cow.Changed
		if err := d.was.entryRecord(was, &old); err != nil {
			return nil, err
		}
		if same, err = d.same(was, now, &old); err != nil {
			return nil, err
		}
	}
	var inside []cow.Change
	if now.Type == unix.S_IFDIR {
		var before *indexDir
		if was.Name != "" && was.Type == unix.S_IFDIR {
			before = &indexDir{b: d.was, no: uint32(was.Ref), record: old}
		}
		sub, err := d.now.root.Sub(now)
		if err != nil {
			return nil, err
		}
		if inside, err = d.directory(path, before, sub.(*indexDir)); err != nil {
			return nil, err
		}
	}
	if same && len(inside) == 0 {
		return nil, nil
	}
	return append([]cow.Change{{Path: path, Kind: kind}}, inside...), nil
}

// same reports whether two files can't be told apart.
func (d *imageDiff) same(was, now cow.Entry, a *record) (bool, error) {
	var b record
	if err := d.now.entryRecord(now, &b); err != nil {
		return false, err
	}
	if a.mode != b.mode || a.uid != b.uid || a.gid != b.gid || a.sec != b.sec || a.nsec != b.nsec {
		return false, nil
	}
	if same, err := d.sameXattrs(a, &b); err != nil || !same {
		return false, err
	}
	switch a.mode & unix.S_IFMT {
	case unix.S_IFREG:
		if a.b != b.b {
			return false, nil
		}
		if a.a == b.a && d.was.root.Describe(was) == d.now.root.Describe(now) {
			return true, nil
		}
		return d.sameData(was, now)
	case unix.S_IFLNK:
		x, err := d.was.ix.target(a)
		if err != nil {
			return false, err
		}
		y, err := d.now.ix.target(&b)
		return bytes.Equal(x, y), err
	case unix.S_IFCHR, unix.S_IFBLK:
		return a.a == b.a, nil
	}
	return true, nil
}

func (d *imageDiff) sameXattrs(a, b *record) (bool, error) {
	var sets [2][]byte
	for n, one := range []struct {
		ix *index
		r  *record
	}{{d.was.ix, a}, {d.now.ix, b}} {
		set, err := one.ix.xattrSet(one.r)
		if err != nil {
			return false, err
		}
		if len(set) == 0 {
			continue
		}
		length, ok := walkXattrs(set, func(_, _ []byte) bool { return true })
		if !ok {
			return false, one.ix.damage("xattrs at %d run out of their section", one.r.xattr)
		}
		sets[n] = set[:length]
	}
	return bytes.Equal(sets[0], sets[1]), nil
}

// sameData compares the content of two files of the same size.
func (d *imageDiff) sameData(was, now cow.Entry) (bool, error) {
	x, err := d.was.root.Open(was)
	if err != nil {
		return false, err
	}
	defer x.Release()
	y, err := d.now.root.Open(now)
	if err != nil {
		return false, err
	}
	defer y.Release()
	const step = 256 << 10
	a, b := make([]byte, min(step, x.Size)), make([]byte, min(step, x.Size))
	for off := int64(0); off < x.Size; off += step {
		n := min(step, x.Size-off)
		err := errors.Join(preadFull(x.FD, a[:n], x.Off+off), preadFull(y.FD, b[:n], y.Off+off))
		if err != nil || !bytes.Equal(a[:n], b[:n]) {
			return false, err
		}
	}
	return true, nil
}

// preadFull reads len(b) bytes at an offset.
func preadFull(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pread(fd, b, off)
		if err == unix.EINTR {
			continue
		}
		if err == nil && n == 0 {
			err = unix.EIO
		}
		if err != nil {
			return err
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}
