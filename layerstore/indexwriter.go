package layerstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"

	"github.com/cespare/xxhash/v2"
	"github.com/opencontainers/go-digest"
)

// indexWriter collects the records of an index. Records must be added in breadth-first order: the children of a
// directory together, sorted by cookie and name, and after the directory.
type indexWriter struct {
	kind    uint32
	layers  []digest.Digest
	records []record
	names   []byte
	targets []byte
	xattrs  []byte
	seen    map[string]uint32 // where a set of xattrs is in xattrs; most files that have any have the same
	tarSize uint64
}

func newIndexWriter(kind uint32, layers []digest.Digest) *indexWriter {
	// Offset 0 means "no xattrs", so nothing may be there.
	return &indexWriter{kind: kind, layers: layers, xattrs: make([]byte, 8), seen: make(map[string]uint32)}
}

// add appends a record and returns its number. It sets the name; the caller has set all else that is known.
func (w *indexWriter) add(r record, name []byte) (uint32, error) {
	if len(w.records) >= maxMerged {
		return 0, fmt.Errorf("more than %d files", maxMerged)
	}
	if len(w.names)+len(name) > math.MaxUint32 {
		return 0, fmt.Errorf("names of more than %d bytes in all", uint32(math.MaxUint32))
	}
	r.name = uint32(len(w.names))
	r.nameLen = uint8(len(name))
	w.names = append(w.names, name...)
	w.records = append(w.records, r)
	return uint32(len(w.records) - 1), nil
}

// addTarget stores a link target and returns where.
func (w *indexWriter) addTarget(t []byte) uint64 {
	off := uint64(len(w.targets))
	w.targets = append(w.targets, t...)
	return off
}

// addXattrs stores an encoded set of xattrs and returns where.
func (w *indexWriter) addXattrs(set []byte) (uint32, error) {
	if len(set) == 0 {
		return 0, nil
	}
	if off, ok := w.seen[string(set)]; ok {
		return off, nil
	}
	if len(w.xattrs)+len(set) > math.MaxUint32 {
		return 0, fmt.Errorf("xattrs of more than %d bytes in all", uint32(math.MaxUint32))
	}
	off := uint32(len(w.xattrs))
	w.xattrs = append(w.xattrs, set...)
	w.seen[string(set)] = off
	return off, nil
}

// encodeXattrs makes the stored form of a set of xattrs; nil if there are none.
func encodeXattrs(m map[string]string) []byte {
	if len(m) == 0 {
		return nil
	}
	names := make([]string, 0, len(m))
	for n := range m {
		names = append(names, n)
	}
	slices.Sort(names)
	b := binary.LittleEndian.AppendUint16(nil, uint16(len(names)))
	for _, n := range names {
		b = binary.LittleEndian.AppendUint16(b, uint16(len(n)))
		b = binary.LittleEndian.AppendUint32(b, uint32(len(m[n])))
		b = append(b, n...)
		b = append(b, m[n]...)
	}
	return b
}

// write makes the index file at path and flushes it.
func (w *indexWriter) write(path string) (err error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, f.Close())
	}()
	h := w.layout()
	sum := xxhash.New()
	out := bufio.NewWriterSize(f, 1<<18)
	if _, err := out.Write(make([]byte, headerSize)); err != nil {
		return err
	}
	put := func(b []byte) error {
		sum.Write(b)
		_, err := out.Write(b)
		return err
	}
	if err := w.sectionsTo(put); err != nil {
		return err
	}
	if err := out.Flush(); err != nil {
		return err
	}
	h.sum = sum.Sum64()
	_, err = f.WriteAt(h.encode(), 0)
	return err
}

// layout says where each section goes.
func (w *indexWriter) layout() header {
	h := header{kind: w.kind, tarSize: w.tarSize, bytes: w.contentBytes()}
	sizes := []int{len(w.layers) * digestSize, len(w.records) * recordSize, len(w.names), len(w.targets), len(w.xattrs)}
	off := uint64(headerSize)
	for i, s := range h.sections() {
		s.off, s.size = off, uint64(sizes[i])
		off += s.size
	}
	return h
}

// contentBytes sums the sizes of the regular files, counting each inode once.
func (w *indexWriter) contentBytes() uint64 {
	var sum uint64
	for i := range w.records {
		r := &w.records[i]
		if isRegular(r) && r.ino == uint32(i)+1 {
			sum += r.b
		}
	}
	return sum
}

func (w *indexWriter) sectionsTo(put func([]byte) error) error {
	var buf []byte
	for _, l := range w.layers {
		buf = append(buf, digestBytes(l)...)
	}
	if err := put(buf); err != nil {
		return err
	}
	const most = 1 << 16
	buf = buf[:0]
	for i := range w.records {
		buf = w.records[i].append(buf)
		if len(buf) >= most {
			if err := put(buf); err != nil {
				return err
			}
			buf = buf[:0]
		}
	}
	for _, b := range [][]byte{buf, w.names, w.targets, w.xattrs} {
		if err := put(b); err != nil {
			return err
		}
	}
	return nil
}
