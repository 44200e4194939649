package layerstore

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"
)

// The index format, version 1. docs/layerstore.md says it to the byte; this file is the only one that knows the
// offsets. Everything is little-endian.
const (
	indexMagic   = "unionfsI"
	indexVersion = 1
	headerSize   = 256
	recordSize   = 72
	digestSize   = 32
)

// Kinds of index.
const (
	kindLayer  = 1 // of one layer: whiteouts, opaque directories, links into lower layers
	kindMerged = 2 // of an image: what a container sees
)

// errDamaged says that an index is not what its checksums or its own rules say. It can be rebuilt from the tars.
var errDamaged = errors.New("index is damaged")

// errVersion says that an index is of a version that this program doesn't write.
var errVersion = errors.New("index is of another version")

// section is a range of bytes of an index file.
type section struct{ off, size uint64 }

// header is the first 256 bytes of an index.
type header struct {
	kind    uint32
	layers  section // 32-byte diff IDs, bottom first
	records section
	names   section // names of the entries, in the order of the records
	targets section // targets of symbolic links and of unresolved hard links
	xattrs  section
	bytes   uint64 // sum of the sizes of the regular files, each inode once
	tarSize uint64 // of a layer's tar; 0 in a merged index
	sum     uint64 // xxhash of everything after the header
}

func (h *header) sections() []*section {
	return []*section{&h.layers, &h.records, &h.names, &h.targets, &h.xattrs}
}

func (h *header) encode() []byte {
	b := make([]byte, headerSize)
	copy(b, indexMagic)
	le := binary.LittleEndian
	le.PutUint32(b[8:], indexVersion)
	le.PutUint32(b[12:], h.kind)
	le.PutUint32(b[16:], recordSize)
	for i, s := range h.sections() {
		le.PutUint64(b[32+16*i:], s.off)
		le.PutUint64(b[40+16*i:], s.size)
	}
	le.PutUint64(b[112:], h.bytes)
	le.PutUint64(b[120:], h.tarSize)
	le.PutUint64(b[128:], h.sum)
	le.PutUint64(b[headerSize-8:], xxhash.Sum64(b[:headerSize-8]))
	return b
}

// decode reads a header and checks all that can be checked without reading more of the file, whose length is size.
func (h *header) decode(b []byte, size uint64) error {
	le := binary.LittleEndian
	if len(b) < headerSize {
		return fmt.Errorf("%w: it has %d bytes", errDamaged, len(b))
	}
	if string(b[:8]) != indexMagic {
		return fmt.Errorf("%w: it doesn't start with %q", errDamaged, indexMagic)
	}
	if v := le.Uint32(b[8:]); v != indexVersion {
		return fmt.Errorf("%w: %d", errVersion, v)
	}
	if le.Uint64(b[headerSize-8:]) != xxhash.Sum64(b[:headerSize-8]) {
		return fmt.Errorf("%w: checksum of the header is wrong", errDamaged)
	}
	h.kind = le.Uint32(b[12:])
	if h.kind != kindLayer && h.kind != kindMerged {
		return fmt.Errorf("%w: unknown kind %d", errDamaged, h.kind)
	}
	if r := le.Uint32(b[16:]); r != recordSize {
		return fmt.Errorf("%w: records of %d bytes", errDamaged, r)
	}
	end := uint64(headerSize)
	for i, s := range h.sections() {
		s.off = le.Uint64(b[32+16*i:])
		s.size = le.Uint64(b[40+16*i:])
		if s.off < end || s.off > size || s.size > size-s.off {
			return fmt.Errorf("%w: section %d is outside the file", errDamaged, i)
		}
		end = s.off + s.size
	}
	if end != size {
		return fmt.Errorf("%w: it has %d bytes, expected %d", errDamaged, size, end)
	}
	h.bytes = le.Uint64(b[112:])
	h.tarSize = le.Uint64(b[120:])
	h.sum = le.Uint64(b[128:])
	n := h.records.size / recordSize
	if h.records.size%recordSize != 0 || n == 0 || n > maxMerged {
		return fmt.Errorf("%w: %d bytes of records", errDamaged, h.records.size)
	}
	if h.layers.size%digestSize != 0 || h.layers.size == 0 || h.layers.size > maxLayers*digestSize {
		return fmt.Errorf("%w: %d bytes of layer digests", errDamaged, h.layers.size)
	}
	return nil
}

// Flags of a record.
const (
	flagWhiteout = 1 << 0 // no entry: only hides the name in the layers below
	flagOpaque   = 1 << 1 // directory: hides the content of the layers below
	flagReplaces = 1 << 2 // hides the name in the layers below, attributes and all, besides being an entry
	flagImplied  = 1 << 3 // directory that the layer has no header of: attributes are those of the layer below
	flagLink     = 1 << 4 // hard link to a path that is not earlier in the same layer; a and b are its target
)

// record is one name. Its mode says what a and b are:
//
//	regular file        a: offset of the data in the layer's tar   b: size
//	directory           a: number of its first child's record      b: number of children
//	symbolic link       a: offset in the targets section           b: length
//	device              a: rdev                                    b: 0
//	hard link (flag)    as a symbolic link
type record struct {
	cookie  uint64 // cow.Cookie of the name
	a, b    uint64
	sec     int64 // mtime
	nsec    uint32
	mode    uint32 // with S_IFMT bits
	uid     uint32
	gid     uint32
	ino     uint32 // number of the first record of the inode, plus 1
	nlink   uint32
	parent  uint32 // record number of the directory
	name    uint32 // offset in the names section
	xattr   uint32 // offset in the xattrs section; 0: none
	layer   uint16 // index into the layers section
	flags   uint8
	nameLen uint8
}

func (r *record) append(b []byte) []byte {
	le := binary.LittleEndian
	b = le.AppendUint64(b, r.cookie)
	b = le.AppendUint64(b, r.a)
	b = le.AppendUint64(b, r.b)
	b = le.AppendUint64(b, uint64(r.sec))
	b = le.AppendUint32(b, r.nsec)
	b = le.AppendUint32(b, r.mode)
	b = le.AppendUint32(b, r.uid)
	b = le.AppendUint32(b, r.gid)
	b = le.AppendUint32(b, r.ino)
	b = le.AppendUint32(b, r.nlink)
	b = le.AppendUint32(b, r.parent)
	b = le.AppendUint32(b, r.name)
	b = le.AppendUint32(b, r.xattr)
	b = le.AppendUint16(b, r.layer)
	return append(b, r.flags, r.nameLen)
}

func (r *record) decode(b []byte) {
	_ = b[recordSize-1]
	le := binary.LittleEndian
	r.cookie = le.Uint64(b)
	r.a = le.Uint64(b[8:])
	r.b = le.Uint64(b[16:])
	r.sec = int64(le.Uint64(b[24:]))
	r.nsec = le.Uint32(b[32:])
	r.mode = le.Uint32(b[36:])
	r.uid = le.Uint32(b[40:])
	r.gid = le.Uint32(b[44:])
	r.ino = le.Uint32(b[48:])
	r.nlink = le.Uint32(b[52:])
	r.parent = le.Uint32(b[56:])
	r.name = le.Uint32(b[60:])
	r.xattr = le.Uint32(b[64:])
	r.layer = le.Uint16(b[68:])
	r.flags = b[70]
	r.nameLen = b[71]
}
