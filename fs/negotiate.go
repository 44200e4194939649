package fs

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

const (
	kernelMajor = 7
	// oldestMinor is that of Linux 5.1, the first that can do without opening directories.
	oldestMinor = 29
	ourMinor    = 28 // what came later depends on capabilities only
)

// wanted are the capabilities that the server makes use of where the kernel has them.
func wanted(h *handler, o *Options) uint64 {
	caps := uint64(fuse.CAP_ASYNC_READ | fuse.CAP_BIG_WRITES | fuse.CAP_READDIRPLUS | fuse.CAP_READDIRPLUS_AUTO |
		fuse.CAP_NO_OPEN_SUPPORT | fuse.CAP_NO_OPENDIR_SUPPORT | fuse.CAP_PARALLEL_DIROPS | fuse.CAP_MAX_PAGES |
		fuse.CAP_CACHE_SYMLINKS | fuse.CAP_ASYNC_DIO | fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_SETXATTR_EXT | fuse.CAP_INIT_EXT)
	// Not CAP_PASSTHROUGH: it excludes writeback and leaving out OPEN, and makes the mount count as a stacked file system, of which
	// the kernel allows only two on each other.
	if o.AttrTimeout == 0 {
		caps |= fuse.CAP_EXPLICIT_INVAL_DATA // drop kept data only when told to
	} else {
		caps |= fuse.CAP_AUTO_INVAL_DATA // somebody else may change it
	}
	if h.writeback {
		caps |= fuse.CAP_WRITEBACK_CACHE
	}
	if h.acl {
		// umask must not be applied where the directory has a default ACL, and only the handler knows.
		caps |= fuse.CAP_POSIX_ACL | fuse.CAP_DONT_MASK
	}
	return caps
}

// readInit reads the request that a mount begins with.
func readInit(fd int) ([]byte, error) {
	buf := make([]byte, fuseMinRead)
	for {
		n, err := unix.Read(fd, buf)
		if err == unix.EINTR || err == unix.ENOENT {
			continue
		}
		if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// negotiate returns the reply to INIT, and sets what follows from it. What a kernel before Linux 5.17 does not say is 0 in settings.
func (h *handler) negotiate(init []byte, o *Options) (settings fuse.InitIn, reply *fuse.InitOut, err error) {
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&settings)), unsafe.Sizeof(settings)), init)
	switch in := &settings; {
	case len(init) < inHeaderSize+16 || in.Opcode != opInit:
		return settings, nil, errors.New("it did not begin with INIT: somebody else has read from the descriptor")
	case in.Major != kernelMajor || in.Minor < oldestMinor:
		return settings, nil, fmt.Errorf("it speaks FUSE %d.%d; this takes %d.%d, which is Linux 5.1", in.Major, in.Minor, kernelMajor, oldestMinor)
	}
	caps := settings.Flags64() & wanted(h, o)
	h.setxattrExt = caps&fuse.CAP_SETXATTR_EXT != 0
	return settings, &fuse.InitOut{
		Major: kernelMajor, Minor: min(ourMinor, settings.Minor),
		Flags: uint32(caps), Flags2: uint32(caps >> 32),
		MaxReadAhead: settings.MaxReadAhead, MaxWrite: uint32(o.MaxWrite),
		MaxBackground: backgroundRequests, CongestionThreshold: backgroundRequests * 3 / 4,
		MaxPages: uint16((o.MaxWrite-1)/os.Getpagesize() + 1),
	}, nil
}

// answerInit begins the conversation with the kernel.
func (c *conn) answerInit(o *Options) error {
	init, err := readInit(c.fd)
	if err != nil {
		return err
	}
	var reply *fuse.InitOut
	if c.settings, reply, err = c.h.negotiate(init, o); err != nil {
		return err
	}
	r := request{in: init}
	*out[fuse.InitOut](&r) = *reply
	return r.send(c, fuse.OK)
}
