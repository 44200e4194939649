package layerstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"github.com/cespare/xxhash/v2"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// index is an index file, mapped into memory. It may have been damaged or written by an enemy: every access is checked
// against the bounds, and following children always leads to higher record numbers, so that no walk is endless.
//
// It is not changed after openIndex and may be used by many goroutines until close.
type index struct {
	header
	data []byte // the whole file
	path string // for messages
}

// openIndex maps the index at path and checks its header. The cost doesn't depend on the size of the index; verify reads
// all of it.
func openIndex(path string) (*index, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() || fi.Size() < headerSize {
		return nil, fmt.Errorf("%s: %w: it has %d bytes", path, errDamaged, fi.Size())
	}
	data, err := unix.Mmap(int(f.Fd()), 0, int(fi.Size()), unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("mapping %s: %w", path, err)
	}
	ix, err := parseIndex(data)
	if err != nil {
		unix.Munmap(data)
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	ix.path = path
	return ix, nil
}

// parseIndex checks the header of an index that is in memory.
func parseIndex(data []byte) (*index, error) {
	ix := &index{data: data}
	if err := ix.decode(data, uint64(len(data))); err != nil {
		return nil, err
	}
	return ix, nil
}

// close unmaps the index. Nothing that the index returned by slice may be used after.
func (ix *index) close() error {
	data := ix.data
	ix.data = nil
	if ix.path == "" || data == nil {
		return nil
	}
	return unix.Munmap(data)
}

// count returns the number of records.
func (ix *index) count() uint32 { return uint32(ix.records.size / recordSize) }

// slice returns size bytes at off of a section.
func (ix *index) slice(s section, off, size uint64) ([]byte, error) {
	if off > s.size || size > s.size-off || s.off+off+size > uint64(len(ix.data)) {
		return nil, ix.damage("%d bytes at %d are outside their section", size, off)
	}
	return ix.data[s.off+off : s.off+off+size : s.off+off+size], nil
}

// damage makes an error that is errDamaged and, for the file system, EIO.
func (ix *index) damage(format string, args ...any) error {
	return fmt.Errorf("%s: %w: %w: %s", ix.path, unix.EIO, errDamaged, fmt.Sprintf(format, args...))
}

// record reads record i.
func (ix *index) record(i uint32, r *record) error {
	b, err := ix.slice(ix.records, uint64(i)*recordSize, recordSize)
	if err != nil {
		return err
	}
	r.decode(b)
	return nil
}

// name returns the bytes of the name of r, which live as long as the mapping.
func (ix *index) name(r *record) ([]byte, error) {
	return ix.slice(ix.names, uint64(r.name), uint64(r.nameLen))
}

// checkedName is name, but refuses what can't be a name: only a damaged index has it, and who lists a directory must
// never see a slash.
func (ix *index) checkedName(r *record) ([]byte, error) {
	b, err := ix.name(r)
	if err != nil {
		return nil, err
	}
	if !validName(b) {
		return nil, ix.damage("%q is no name", b)
	}
	return b, nil
}

func validName(b []byte) bool {
	if len(b) == 0 || len(b) > maxName || b[0] == '.' && (len(b) == 1 || len(b) == 2 && b[1] == '.') {
		return false
	}
	return bytes.IndexByte(b, '/') < 0 && bytes.IndexByte(b, 0) < 0
}

// target returns the target of a symbolic link or unresolved hard link.
func (ix *index) target(r *record) ([]byte, error) {
	if r.b > maxPath {
		return nil, ix.damage("a link target has %d bytes", r.b)
	}
	return ix.slice(ix.targets, r.a, r.b)
}

// layer returns the diff ID of layer number n.
func (ix *index) layer(n uint16) (digest.Digest, error) {
	b, err := ix.slice(ix.layers, uint64(n)*digestSize, digestSize)
	if err != nil {
		return "", err
	}
	return digest.NewDigestFromBytes(digest.SHA256, b), nil
}

// layerCount returns the number of layers that the records may name.
func (ix *index) layerCount() int { return int(ix.layers.size / digestSize) }

// children returns the range of records [first, end) that are in directory d, whose record is r.
func (ix *index) children(d uint32, r *record) (first, end uint32, err error) {
	if r.mode&unix.S_IFMT != unix.S_IFDIR || r.flags&(flagWhiteout|flagLink) != 0 {
		return 0, 0, unix.ENOTDIR
	}
	if r.b == 0 {
		return 0, 0, nil
	}
	n := uint64(ix.count())
	if r.a <= uint64(d) || r.a > n || r.b > n-r.a {
		return 0, 0, ix.damage("directory %d has children %d to %d", d, r.a, r.a+r.b)
	}
	return uint32(r.a), uint32(r.a + r.b), nil
}

// child reads record i, which must be a child of directory d.
func (ix *index) child(d, i uint32, r *record) error {
	if err := ix.record(i, r); err != nil {
		return err
	}
	if r.parent != d {
		return ix.damage("record %d is in directory %d, not %d", i, r.parent, d)
	}
	return nil
}

// lookup finds name in directory d, whose record is dr, by binary search. ENOENT if it isn't there.
func (ix *index) lookup(d uint32, dr *record, name string, r *record) (uint32, error) {
	first, end, err := ix.children(d, dr)
	if err != nil {
		return 0, err
	}
	cookie := cow.Cookie(name)
	lo, err := ix.search(first, end, cookie)
	if err != nil {
		return 0, err
	}
	for ; lo < end; lo++ {
		if err := ix.child(d, lo, r); err != nil {
			return 0, err
		}
		if r.cookie != cookie {
			break
		}
		b, err := ix.name(r)
		if err != nil {
			return 0, err
		}
		if string(b) == name {
			return lo, nil
		}
	}
	return 0, unix.ENOENT
}

// search returns the first record in [first, end) whose cookie is not below cookie.
func (ix *index) search(first, end uint32, cookie uint64) (uint32, error) {
	for first < end {
		mid := first + (end-first)/2
		b, err := ix.slice(ix.records, uint64(mid)*recordSize, 8)
		if err != nil {
			return 0, err
		}
		if binary.LittleEndian.Uint64(b) < cookie {
			first = mid + 1
		} else {
			end = mid
		}
	}
	return first, nil
}

// xattrSet returns the encoded xattrs of r: a count (2 bytes), then for each the lengths of name (2) and value (4), the
// name and the value. Empty if there are none.
func (ix *index) xattrSet(r *record) ([]byte, error) {
	if r.xattr == 0 {
		return nil, nil
	}
	off := uint64(r.xattr)
	if off+2 > ix.xattrs.size {
		return nil, ix.damage("xattrs at %d are outside their section", off)
	}
	return ix.slice(ix.xattrs, off, ix.xattrs.size-off)
}

// eachXattr calls yield for every xattr of r until it returns false.
func (ix *index) eachXattr(r *record, yield func(name, value []byte) bool) error {
	b, err := ix.xattrSet(r)
	if err != nil || b == nil {
		return err
	}
	_, ok := walkXattrs(b, yield)
	if !ok {
		return ix.damage("xattrs at %d run out of their section", r.xattr)
	}
	return nil
}

// walkXattrs calls yield for the xattrs that b starts with and returns how long they are. ok is false if b ends before
// they do. If yield returns false, the length is that of what was walked.
func walkXattrs(b []byte, yield func(name, value []byte) bool) (length int, ok bool) {
	if len(b) < 2 {
		return 0, false
	}
	n := int(binary.LittleEndian.Uint16(b))
	pos := 2
	for range n {
		if len(b)-pos < 6 {
			return 0, false
		}
		nameLen := int(binary.LittleEndian.Uint16(b[pos:]))
		valueLen := int(binary.LittleEndian.Uint32(b[pos+2:]))
		pos += 6
		if nameLen > len(b)-pos || valueLen > len(b)-pos-nameLen {
			return 0, false
		}
		name := b[pos : pos+nameLen]
		value := b[pos+nameLen : pos+nameLen+valueLen]
		pos += nameLen + valueLen
		if !yield(name, value) {
			return pos, true
		}
	}
	return pos, true
}

// verify reads the whole index and checks its checksum.
func (ix *index) verify() error {
	if xxhash.Sum64(ix.data[headerSize:]) != ix.sum {
		return ix.damage("checksum is wrong")
	}
	return nil
}

// rebuildable reports whether an error of openIndex is cured by making the index again.
func rebuildable(err error) bool {
	return errors.Is(err, os.ErrNotExist) || errors.Is(err, errDamaged) || errors.Is(err, errVersion)
}
