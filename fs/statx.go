package fs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"unionfs/cow"
)

// Statx is asked for when somebody wants to know the time of birth, once for each file: that never changes, and the kernel keeps it.
// Everything else GETATTR has too.
func (h *handler) Statx(in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	n := h.node(in.NodeId)
	if n == nil {
		return stale
	}
	a := h.attr()
	defer h.done(a)
	if err := h.u.Getattr(n, a); err != nil {
		return h.status("statx", err)
	}
	out.AttrValid, out.AttrValidNsec = h.attrLife.sec, h.attrLife.nsec
	fillStatx(a, &out.Statx)
	if birth, ok := h.u.Birth(n); ok {
		out.Statx.Mask |= unix.STATX_BTIME
		out.Statx.Btime = sxTime(birth)
	}
	return fuse.OK
}

func fillStatx(a *cow.Attr, out *fuse.Statx) {
	*out = fuse.Statx{
		Mask:      unix.STATX_BASIC_STATS,
		Blksize:   a.Blksize,
		Nlink:     a.Nlink,
		Uid:       a.UID,
		Gid:       a.GID,
		Mode:      uint16(a.Mode),
		Ino:       a.Ino,
		Size:      a.Size,
		Blocks:    a.Blocks,
		Atime:     sxTime(a.Atime),
		Mtime:     sxTime(a.Mtime),
		Ctime:     sxTime(a.Ctime),
		RdevMajor: unix.Major(uint64(a.Rdev)),
		RdevMinor: unix.Minor(uint64(a.Rdev)),
	}
}

func sxTime(t unix.Timespec) fuse.SxTime {
	return fuse.SxTime{Sec: uint64(t.Sec), Nsec: uint32(t.Nsec)}
}
