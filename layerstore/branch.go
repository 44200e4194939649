package layerstore

import (
	"errors"
	"fmt"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// indexBranch is an image, or one of its layers, as a branch of a union. Everything but file data comes from the mapped
// index.
type indexBranch struct {
	ix       *index
	tars     *tars
	describe string
	layers   []string // diff IDs, by layer number, as Describe gives them
	root     *indexDir
	release  func() // the image is not in use any more
	once     sync.Once
}

// indexDir is a directory of an indexBranch. It is not changed after it was made.
type indexDir struct {
	b  *indexBranch
	no uint32
	record
}

var (
	_ cow.Branch = (*indexBranch)(nil)
	_ cow.RefDir = (*indexDir)(nil)
)

// newIndexBranch makes a branch of an open index, which it closes even if it fails. layers is the directory that has the
// tars.
func newIndexBranch(ix *index, layers, describe string, release func()) (_ cow.Branch, err error) {
	b := &indexBranch{ix: ix, describe: describe, release: release}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.Close())
		}
	}()
	for n := range ix.layerCount() {
		id, err := ix.layer(uint16(n))
		if err != nil {
			return nil, err
		}
		b.layers = append(b.layers, string(id))
	}
	if b.tars, err = openTars(layers, ix.layerCount()); err != nil {
		return nil, err
	}
	root := &indexDir{b: b}
	if err := ix.record(0, &root.record); err != nil {
		return nil, err
	}
	if _, _, err := ix.children(0, &root.record); err != nil {
		return nil, ix.damage("the root is no directory")
	}
	b.root = root
	return b, nil
}

// Root implements [cow.Branch].
func (b *indexBranch) Root() (cow.Dir, error) { return b.root, nil }

// Describe implements [cow.Branch].
func (b *indexBranch) Describe() string { return b.describe }

// Indexed implements [cow.Branch].
func (b *indexBranch) Indexed() bool { return true }

// Statfs implements [cow.Branch].
func (b *indexBranch) Statfs(st *unix.Statfs_t) error {
	return unix.Fstatfs(int(b.tars.dir.Fd()), st)
}

// Close implements [cow.Branch]. Data that is still open stays readable.
func (b *indexBranch) Close() error {
	var err error
	b.once.Do(func() {
		if b.tars != nil {
			err = b.tars.close()
		}
		err = errors.Join(err, b.ix.close())
		if b.release != nil {
			b.release()
		}
	})
	return err
}

// Lookup implements [cow.Dir].
func (d *indexDir) Lookup(name string) (cow.Entry, error) {
	var r record
	no, err := d.b.ix.lookup(d.no, &d.record, name, &r)
	if err != nil {
		return cow.Entry{}, err
	}
	return entryOf(no, &r, name), nil
}

// entryOf makes the entry of record no. A link that its layer alone can't resolve is a file of which nothing is known.
func entryOf(no uint32, r *record, name string) cow.Entry {
	if r.flags&flagWhiteout != 0 {
		return cow.Entry{Name: name, Whiteout: true}
	}
	return cow.Entry{Name: name, Ref: uint64(no), Ino: uint64(r.ino), Type: r.mode & unix.S_IFMT}
}

// List implements [cow.Dir].
func (d *indexDir) List(after uint64, yield func(cow.Entry) bool) error {
	ix := d.b.ix
	first, end, err := ix.children(d.no, &d.record)
	if err != nil {
		return err
	}
	if after == math.MaxUint64 {
		return nil
	}
	if after > 0 {
		if first, err = ix.search(first, end, after+1); err != nil {
			return err
		}
	}
	var batch nameBatch
	var r record
	for i := first; i < end; i++ {
		if err := ix.child(d.no, i, &r); err != nil {
			return err
		}
		if r.cookie <= after {
			return ix.damage("directory %d is not sorted", d.no)
		}
		name, err := batch.name(ix, &r, i, end)
		if err != nil {
			return err
		}
		if !yield(entryOf(i, &r, name)) {
			return nil
		}
	}
	return nil
}

// nameBatch makes strings of names: of many with one allocation, as the names of a directory follow each other in the
// index. A string can't just point into the mapping, which ends before the string may.
type nameBatch struct {
	names string
	off   uint64 // of names in the section
}

func (b *nameBatch) name(ix *index, r *record, i, end uint32) (string, error) {
	const most = 64
	raw, err := ix.checkedName(r)
	if err != nil {
		return "", err
	}
	off := uint64(r.name)
	if off < b.off || off+uint64(r.nameLen) > b.off+uint64(len(b.names)) {
		var last record
		if err := ix.record(min(i+most, end)-1, &last); err != nil {
			return "", err
		}
		to := uint64(last.name) + uint64(last.nameLen)
		if to < off+uint64(r.nameLen) || to-off > most*maxName {
			return string(raw), nil // only in an index that we didn't write
		}
		all, err := ix.slice(ix.names, off, to-off)
		if err != nil {
			return "", err
		}
		b.names, b.off = string(all), off
	}
	return b.names[off-b.off:][:r.nameLen], nil
}

// Opaque implements [cow.Dir].
func (d *indexDir) Opaque() (bool, error) { return d.flags&(flagOpaque|flagReplaces) != 0, nil }

// Redirect implements [cow.Dir]. An image has none.
func (d *indexDir) Redirect() (string, error) { return "", nil }

// Self implements [cow.Dir].
func (d *indexDir) Self() cow.Entry {
	return cow.Entry{Ref: uint64(d.no), Ino: uint64(d.no) + 1, Type: unix.S_IFDIR}
}

// Sub implements [cow.Dir].
func (d *indexDir) Sub(e cow.Entry) (cow.Dir, error) {
	sub := &indexDir{b: d.b}
	if err := d.b.entryRecord(e, &sub.record); err != nil {
		return nil, err
	}
	sub.no = uint32(e.Ref)
	if _, _, err := d.b.ix.children(sub.no, &sub.record); err != nil {
		return nil, err
	}
	return sub, nil
}

// Entry implements [cow.RefDir].
func (d *indexDir) Entry(ref uint64) (cow.Entry, error) {
	if ref > math.MaxUint32 {
		return cow.Entry{}, unix.ESTALE
	}
	var r record
	if err := d.b.ix.child(d.no, uint32(ref), &r); err != nil {
		return cow.Entry{}, err
	}
	name, err := d.b.ix.checkedName(&r)
	if err != nil {
		return cow.Entry{}, err
	}
	return entryOf(uint32(ref), &r, string(name)), nil
}

// entryRecord reads the record of an entry.
func (b *indexBranch) entryRecord(e cow.Entry, r *record) error {
	if e.Ref > math.MaxUint32 {
		return unix.ESTALE
	}
	if err := b.ix.record(uint32(e.Ref), r); err != nil {
		return err
	}
	if r.flags&(flagWhiteout|flagLink) != 0 {
		return unix.ENOENT
	}
	return nil
}

// Stat implements [cow.Dir].
func (d *indexDir) Stat(e cow.Entry, a *cow.Attr) error {
	const block, dirSize = 4096, 4096
	var r record
	if err := d.b.entryRecord(e, &r); err != nil {
		return err
	}
	mtime := unix.Timespec{Sec: r.sec, Nsec: int64(r.nsec)}
	*a = cow.Attr{
		Ino: uint64(r.ino), Mode: r.mode, Nlink: r.nlink, UID: r.uid, GID: r.gid, Blksize: block,
		Atime: mtime, Mtime: mtime, Ctime: mtime,
	}
	switch r.mode & unix.S_IFMT {
	case unix.S_IFREG, unix.S_IFLNK:
		a.Size = r.b
	case unix.S_IFDIR:
		a.Size = dirSize
	case unix.S_IFCHR, unix.S_IFBLK:
		a.Rdev = uint32(r.a)
	}
	if r.mode&unix.S_IFMT != unix.S_IFLNK {
		a.Blocks = (a.Size + 511) / 512
	}
	if r.ino == 0 || r.nsec >= 1e9 {
		return d.b.ix.damage("record %d can't be", e.Ref)
	}
	return nil
}

// Open implements [cow.Dir].
func (d *indexDir) Open(e cow.Entry) (*cow.Data, error) {
	var r record
	if err := d.b.entryRecord(e, &r); err != nil {
		return nil, err
	}
	if !isRegular(&r) {
		return nil, unix.EINVAL
	}
	if int(r.layer) >= len(d.b.layers) {
		return nil, d.b.ix.damage("record %d is of layer %d", e.Ref, r.layer)
	}
	id, err := d.b.ix.layer(r.layer)
	if err != nil {
		return nil, err
	}
	fd, size, release, err := d.b.tars.get(int(r.layer), id)
	if err != nil {
		return nil, err
	}
	if r.a > uint64(size) || r.b > uint64(size)-r.a {
		release()
		return nil, fmt.Errorf("layer %s: %w: its tar is shorter than its index says: the image must be removed and pulled again", id, unix.EIO)
	}
	return &cow.Data{FD: fd, Off: int64(r.a), Size: int64(r.b), Release: release}, nil
}

// Readlink implements [cow.Dir].
func (d *indexDir) Readlink(e cow.Entry) (string, error) {
	var r record
	if err := d.b.entryRecord(e, &r); err != nil {
		return "", err
	}
	if r.mode&unix.S_IFMT != unix.S_IFLNK {
		return "", unix.EINVAL
	}
	b, err := d.b.ix.target(&r)
	return string(b), err
}

// Getxattr implements [cow.Dir].
func (d *indexDir) Getxattr(e cow.Entry, name string) ([]byte, error) {
	var r record
	if err := d.b.entryRecord(e, &r); err != nil {
		return nil, err
	}
	var found []byte
	err := d.b.ix.eachXattr(&r, func(n, v []byte) bool {
		if string(n) == name {
			found = append([]byte{}, v...)
		}
		return found == nil
	})
	if err == nil && found == nil {
		err = unix.ENODATA
	}
	return found, err
}

// Listxattr implements [cow.Dir].
func (d *indexDir) Listxattr(e cow.Entry) ([]string, error) {
	var r record
	if err := d.b.entryRecord(e, &r); err != nil {
		return nil, err
	}
	var names []string
	err := d.b.ix.eachXattr(&r, func(n, _ []byte) bool {
		names = append(names, string(n))
		return true
	})
	return names, err
}

// Describe implements [cow.Dir]: the diff ID of the layer that the entry's content and attributes are from.
func (d *indexDir) Describe(e cow.Entry) string {
	var r record
	if err := d.b.entryRecord(e, &r); err != nil || int(r.layer) >= len(d.b.layers) {
		return d.b.describe
	}
	return d.b.layers[r.layer]
}
