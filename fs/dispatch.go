package fs

import (
	"runtime/debug"
	"strconv"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// The kinds of requests that are answered (enum fuse_opcode of include/uapi/linux/fuse.h). To all others the answer is ENOSYS,
// which the kernel remembers for the life of the mount: see the package's documentation before adding one.
const (
	opLookup        = 1
	opForget        = 2
	opGetattr       = 3
	opSetattr       = 4
	opReadlink      = 5
	opSymlink       = 6
	opMknod         = 8
	opMkdir         = 9
	opUnlink        = 10
	opRmdir         = 11
	opRename        = 12
	opLink          = 13
	opRead          = 15
	opWrite         = 16
	opStatfs        = 17
	opRelease       = 18
	opFsync         = 20
	opSetxattr      = 21
	opGetxattr      = 22
	opListxattr     = 23
	opRemovexattr   = 24
	opInit          = 26
	opReaddir       = 28
	opReleasedir    = 29
	opFsyncdir      = 30
	opInterrupt     = 36
	opDestroy       = 38
	opIoctl         = 39
	opBatchForget   = 42
	opFallocate     = 43
	opReaddirplus   = 44
	opRename2       = 45
	opLseek         = 46
	opCopyFileRange = 47
	opTmpfile       = 51
	opStatx         = 52
)

// opName is what a kind of request is called in include/uapi/linux/fuse.h.
func opName(op uint32) string {
	names := [...]string{
		opLookup: "LOOKUP", opForget: "FORGET", opGetattr: "GETATTR", opSetattr: "SETATTR", opReadlink: "READLINK", opSymlink: "SYMLINK", opMknod: "MKNOD", opMkdir: "MKDIR", opUnlink: "UNLINK", opRmdir: "RMDIR",
		opRename: "RENAME", opLink: "LINK", 14: "OPEN", opRead: "READ", opWrite: "WRITE", opStatfs: "STATFS", opRelease: "RELEASE", opFsync: "FSYNC", opSetxattr: "SETXATTR",
		opGetxattr: "GETXATTR", opListxattr: "LISTXATTR", opRemovexattr: "REMOVEXATTR", 25: "FLUSH", opInit: "INIT", 27: "OPENDIR", opReaddir: "READDIR", opReleasedir: "RELEASEDIR",
		opFsyncdir: "FSYNCDIR", 31: "GETLK", 32: "SETLK", 33: "SETLKW", 34: "ACCESS", 35: "CREATE", opInterrupt: "INTERRUPT", 37: "BMAP", opDestroy: "DESTROY",
		opIoctl: "IOCTL", 40: "POLL", 41: "NOTIFY_REPLY", opBatchForget: "BATCH_FORGET", opFallocate: "FALLOCATE", opReaddirplus: "READDIRPLUS", opRename2: "RENAME2", opLseek: "LSEEK",
		opCopyFileRange: "COPY_FILE_RANGE", 48: "SETUPMAPPING", 49: "REMOVEMAPPING", 50: "SYNCFS", opTmpfile: "TMPFILE", opStatx: "STATX", 53: "COPY_FILE_RANGE_64",
	}
	if int(op) < len(names) && names[op] != "" {
		return names[op]
	}
	return strconv.Itoa(int(op))
}

// unanswered reports whether the kernel wants no reply. An INTERRUPT has none: what is under way here is carried out to its end, and the
// kernel takes a late answer.
func unanswered(op uint32) bool { return op == opForget || op == opBatchForget || op == opInterrupt }

// carryOut does what a request asks for, and puts the reply into r. A panic costs the one request: with the process the mount would go.
func (h *handler) carryOut(r *request) (status fuse.Status) {
	hdr := r.header()
	defer func() {
		if p := recover(); p != nil {
			h.log.Error("a request failed badly", "request", opName(hdr.Opcode), "panic", p, "stack", string(debug.Stack()))
			status = fuse.EIO
		}
	}()
	status = h.dispatch(hdr, r)
	if r.short {
		h.log.Error("the kernel sent a request that is too short", "request", opName(hdr.Opcode), "length", hdr.Length)
		return fuse.EIO
	}
	return status
}

func (h *handler) dispatch(hdr *fuse.InHeader, r *request) fuse.Status {
	switch hdr.Opcode {
	case opLookup:
		return h.Lookup(hdr, r.name(), out[fuse.EntryOut](r))
	case opGetattr:
		return h.GetAttr(body[fuse.GetAttrIn](r), out[fuse.AttrOut](r))
	case opSetattr:
		return h.SetAttr(body[fuse.SetAttrIn](r), out[fuse.AttrOut](r))
	case opStatx:
		return h.Statx(body[fuse.StatxIn](r), out[fuse.StatxOut](r))
	case opForget:
		h.Forget(hdr.NodeId, body[fuse.ForgetIn](r).Nlookup)
		return fuse.OK
	case opBatchForget:
		h.batchForget(r)
		return fuse.OK

	case opRead:
		return h.Read(body[fuse.ReadIn](r), r)
	case opWrite:
		in := body[fuse.WriteIn](r)
		o := out[fuse.WriteOut](r)
		var status fuse.Status
		o.Size, status = h.Write(in, r.payload())
		return status
	case opReaddir, opReaddirplus:
		in := body[fuse.ReadIn](r)
		list := fuse.NewDirEntryList(r.room(int(in.Size)), in.Offset)
		status := fuse.OK
		if hdr.Opcode == opReaddir {
			status = h.ReadDir(in, list)
		} else {
			status = h.ReadDirPlus(in, list)
		}
		r.data = list.Bytes()
		return status
	case opReadlink:
		var status fuse.Status
		r.data, status = h.Readlink(hdr)
		return status

	case opMknod:
		return h.Mknod(body[fuse.MknodIn](r), r.name(), out[fuse.EntryOut](r))
	case opMkdir:
		return h.Mkdir(body[fuse.MkdirIn](r), r.name(), out[fuse.EntryOut](r))
	case opSymlink:
		name, target := r.name(), r.name()
		return h.Symlink(hdr, target, name, out[fuse.EntryOut](r))
	case opLink:
		return h.Link(body[fuse.LinkIn](r), r.name(), out[fuse.EntryOut](r))
	case opTmpfile:
		return h.Tmpfile(body[fuse.CreateIn](r), out[fuse.CreateOut](r))
	case opUnlink:
		return h.Unlink(hdr, r.name())
	case opRmdir:
		return h.Rmdir(hdr, r.name())
	case opRename:
		// struct fuse_rename_in is the beginning of struct fuse_rename2_in, and has no flags.
		in := fuse.RenameIn{InHeader: *hdr, Newdir: body[renameIn](r).newdir}
		return h.Rename(&in, r.name(), r.name())
	case opRename2:
		return h.Rename(body[fuse.RenameIn](r), r.name(), r.name())

	case opGetxattr:
		size := body[fuse.GetXAttrIn](r).Size
		name := r.name()
		return r.sized(size, func(dest []byte) (uint32, fuse.Status) { return h.GetXAttr(hdr, name, dest) })
	case opListxattr:
		return r.sized(body[fuse.GetXAttrIn](r).Size, func(dest []byte) (uint32, fuse.Status) { return h.ListXAttr(hdr, dest) })
	case opSetxattr:
		in := h.setxattrIn(r)
		return h.SetXAttr(in, r.name(), r.payload())
	case opRemovexattr:
		return h.RemoveXAttr(hdr, r.name())

	case opStatfs:
		return h.StatFs(out[fuse.StatfsOut](r))
	case opFsync, opFsyncdir:
		return h.Fsync(body[fuse.FsyncIn](r))
	case opFallocate:
		return h.Fallocate(body[fuse.FallocateIn](r))
	case opLseek:
		return h.Lseek(body[fuse.LseekIn](r), out[fuse.LseekOut](r))
	case opCopyFileRange:
		in := body[fuse.CopyFileRangeIn](r)
		o := out[fuse.WriteOut](r)
		var status fuse.Status
		o.Size, status = h.CopyFileRange(in)
		return status
	case opIoctl:
		return h.Ioctl()
	case opRelease, opReleasedir, opDestroy, opInterrupt:
		return fuse.OK
	}
	return fuse.ENOSYS
}

// renameIn is the struct of RENAME.
type renameIn struct {
	fuse.InHeader
	newdir uint64
}

// setxattrIn returns the struct of SETXATTR, which is shorter where the kernel doesn't know SETXATTR_EXT.
func (h *handler) setxattrIn(r *request) *fuse.SetXAttrIn {
	if h.setxattrExt {
		return body[fuse.SetXAttrIn](r)
	}
	short := body[struct {
		fuse.InHeader
		size, flags uint32
	}](r)
	return &fuse.SetXAttrIn{InHeader: short.InHeader, Size: short.size, Flags: short.flags}
}

// sized answers GETXATTR and LISTXATTR: with the value, or if the kernel has room for none with its size.
func (r *request) sized(size uint32, get func(dest []byte) (uint32, fuse.Status)) fuse.Status {
	if size == 0 {
		n, status := get(nil)
		if status == fuse.OK || status == fuse.ERANGE {
			out[fuse.GetXAttrOut](r).Size = n
			return fuse.OK
		}
		return status
	}
	dest := r.room(int(size))
	n, status := get(dest)
	if status == fuse.OK {
		r.data = dest[:n]
	}
	return status
}

func (h *handler) batchForget(r *request) {
	type one struct{ node, count uint64 }
	in := body[struct {
		fuse.InHeader
		count, _ uint32
	}](r)
	b := r.payload()
	for i := 0; i < int(in.count) && len(b) >= int(unsafe.Sizeof(one{})); i++ {
		f := (*one)(unsafe.Pointer(&b[0]))
		h.Forget(f.node, f.count)
		b = b[unsafe.Sizeof(one{}):]
	}
}
