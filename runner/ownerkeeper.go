package runner

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// ownerRequest is what P2 has P1 keep, and with ID alone the answer.
type ownerRequest struct {
	ID       uint64 `json:"id"`
	File     uint64 `json:"file,omitempty"` // inode number of the file, or of the directory that a device is made in
	UID, GID uint32 `json:",omitempty"`     // ^0 leaves it
	Name     []byte `json:"name,omitempty"` // of a device
	Mode     uint32 `json:"mode,omitempty"`
	Device   uint32 `json:"device,omitempty"`
}

// ownerKeeper is the part of P2 that answers the system calls which the filter of ownership.go passes on. It is PID 1 that
// does it and not P1: paths must be looked up as the caller sees them, and P1, which serves the root, must not wait for
// itself. It resolves every path itself and acts on what it found, by descriptor, and never lets the kernel go on with a call
// that only this check would make harmless: what the caller's other threads write over its arguments meanwhile changes nothing.
type ownerKeeper struct {
	wire *wire
	proc int    // a procfs of the container's PID namespace that nothing in the container can mount over
	root uint64 // the device number of the union

	mu      sync.Mutex
	last    uint64
	waiting map[uint64]chan<- unix.Errno // by ownerRequest.ID

	calls func() map[seccompCall]string
}

// seccompCall is a system call as the kernel tells of it.
type seccompCall struct{ arch, number uint32 }

func newOwnerKeeper(r *rootfs, w *wire) (*ownerKeeper, error) {
	var st unix.Stat_t
	if err := unix.Fstat(r.root, &st); err != nil {
		return nil, err
	}
	var proc int
	var err error
	if guarded(r.cfg.Spec) {
		proc, err = cloneTree(r.proc, "", true)
	} else {
		proc, err = newFileSystem("proc", 0)
	}
	if err != nil {
		return nil, err
	}
	return &ownerKeeper{wire: w, proc: proc, root: st.Dev, waiting: map[uint64]chan<- unix.Errno{}, calls: sync.OnceValue(seccompCalls)}, nil
}

// seccompCalls names the system calls that ownershipRules passes on.
func seccompCalls() map[seccompCall]string {
	names := map[seccompCall]string{}
	machines, _ := seccompMachines(runtime.GOARCH)
	for _, m := range machines {
		for name, number := range m.calls() {
			if strings.Contains(name, "chown") || strings.HasPrefix(name, "mknod") {
				if name == "chown" || name == "lchown" || name == "fchown" {
					if m.name == specs.ArchX86 || m.name == specs.ArchARM {
						name += "16"
					}
				}
				names[seccompCall{m.audit, number}] = name
			}
		}
	}
	return names
}

// watch installs the filter on the calling thread, and answers what it passes on for as long as there are processes under it.
func (k *ownerKeeper) watch(f *seccompFilter) error {
	// Without the second flag (Linux 5.19), a signal makes the caller repeat a call that is already done.
	fd, err := f.listen(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER | unix.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV)
	if errors.Is(err, unix.EINVAL) {
		fd, err = f.listen(unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
	}
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return err
	}
	go k.serve(os.NewFile(uintptr(fd), "seccomp listener"))
	return nil
}

// seccompNotice is struct seccomp_notif, and seccompReply struct seccomp_notif_resp (include/uapi/linux/seccomp.h).
type seccompNotice struct {
	id      uint64
	pid     uint32
	flags   uint32
	number  uint32
	arch    uint32
	pointer uint64
	args    [6]uint64
}

type seccompReply struct {
	id    uint64
	value int64
	err   int32
	flags uint32
}

func (k *ownerKeeper) serve(listener *os.File) {
	defer listener.Close()
	raw, err := listener.SyscallConn()
	if err != nil {
		return
	}
	ownThread := false
	for {
		var n seccompNotice
		gone := false
		errno := unix.ENOENT
		err := raw.Read(func(fd uintptr) bool {
			events := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if c, err := unix.Poll(events, 0); c <= 0 {
				return err != nil && err != unix.EINTR
			}
			if gone = events[0].Revents&unix.POLLIN == 0; !gone {
				errno = ioctlPointer(fd, unix.SECCOMP_IOCTL_NOTIF_RECV, unsafe.Pointer(&n))
			}
			return true
		})
		if err != nil || gone {
			return
		}
		if errno != 0 {
			continue // the caller was killed
		}
		if !ownThread {
			// Never unlocked: its root will be the callers'.
			runtime.LockOSThread()
			ownThread = true
			err = unix.Unshare(unix.CLONE_FS)
		}
		reply := seccompReply{id: n.id}
		if err == nil {
			err = k.answer(&n, func() bool {
				valid := false
				_ = raw.Control(func(fd uintptr) {
					valid = ioctlPointer(fd, unix.SECCOMP_IOCTL_NOTIF_ID_VALID, unsafe.Pointer(&n.id)) == 0
				})
				return valid
			})
		}
		if errors.Is(err, errKernels) {
			reply.flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		} else {
			reply.err = -int32(errnoOf(err))
		}
		_ = raw.Control(func(fd uintptr) { _ = ioctlPointer(fd, unix.SECCOMP_IOCTL_NOTIF_SEND, unsafe.Pointer(&reply)) })
	}
}

func ioctlPointer(fd uintptr, request uint, p unsafe.Pointer) unix.Errno {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(request), uintptr(p))
		if errno != unix.EINTR {
			return errno
		}
	}
}

// errnoOf is the error number that a system call answers with; 0 for none.
func errnoOf(err error) unix.Errno {
	var errno unix.Errno
	switch {
	case err == nil:
		return 0
	case errors.As(err, &errno):
		return errno
	}
	return unix.EIO
}

// errKernels says that the call is one that the kernel can answer itself, with no more than what the caller may do.
var errKernels = errors.New("the kernel's")

// answer does what a system call asks for. valid reports whether its caller still waits: only then is what was opened by its
// number its own. No call can wait for another here, so a file system in the container that doesn't answer stops the
// changes of owners of one command.
func (k *ownerKeeper) answer(n *seccompNotice, valid func() bool) error {
	c := &ownerCall{keeper: k, notice: n, valid: valid}
	var err error
	if c.caller, err = unix.Openat(k.proc, strconv.Itoa(int(n.pid)), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return unix.ESRCH
	}
	defer unix.Close(c.caller)
	args := n.args
	const here = unix.AT_FDCWD
	switch name := k.calls()[seccompCall{n.arch, n.number}]; name {
	case "chown", "chown32", "chown16":
		return c.chown(here, args[0], owners(name, args[1], args[2]), 0)
	case "lchown", "lchown32", "lchown16":
		return c.chown(here, args[0], owners(name, args[1], args[2]), unix.AT_SYMLINK_NOFOLLOW)
	case "fchown", "fchown32", "fchown16":
		return c.chown(int32(args[0]), 0, owners(name, args[1], args[2]), unix.AT_EMPTY_PATH)
	case "fchownat":
		return c.chown(int32(args[0]), args[1], owners(name, args[2], args[3]), uint32(args[4]))
	case "mknod":
		return c.mknod(here, args[0], uint32(args[1]), uint32(args[2]))
	case "mknodat":
		return c.mknod(int32(args[0]), args[1], uint32(args[2]), uint32(args[3]))
	}
	return errKernels
}

// owners are the IDs of a system call; those of 16 bits have their own way to say "none".
func owners(call string, uid, gid uint64) [2]uint32 {
	ids := [2]uint32{uint32(uid), uint32(gid)}
	if strings.HasSuffix(call, "16") {
		for i := range ids {
			if ids[i] &= 0xffff; ids[i] == 0xffff {
				ids[i] = keepID
			}
		}
	}
	return ids
}

// keepID is what chown(2) takes for "leave it".
const keepID = ^uint32(0)

// ownerCall is one system call.
type ownerCall struct {
	keeper *ownerKeeper
	notice *seccompNotice
	valid  func() bool
	caller int // its directory in procfs
}

func (c *ownerCall) chown(dir int32, path uint64, ids [2]uint32, flags uint32) error {
	if flags&^(unix.AT_SYMLINK_NOFOLLOW|unix.AT_EMPTY_PATH) != 0 {
		return unix.EINVAL
	}
	if _, err := c.permitted(unix.CAP_CHOWN); err != nil {
		return err
	}
	name := ""
	if path != 0 {
		var err error
		if name, err = c.text(path); err != nil {
			return err
		}
	}
	var fd int
	var err error
	switch {
	case name == "" && flags&unix.AT_EMPTY_PATH != 0:
		fd, err = c.base(dir)
	case name == "":
		return unix.ENOENT
	default:
		fd, err = c.open(dir, name, flags&unix.AT_SYMLINK_NOFOLLOW != 0)
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !c.valid() {
		return unix.ESRCH
	}
	// What it is never changes: no need to ask P1 for the rest.
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st); err != nil {
		return err
	}
	// The kernel does first what it can: check, clear setuid and setgid, and note the time.
	own := func(id uint32) int {
		if id == keepID {
			return -1
		}
		return 0
	}
	if err := unix.Fchownat(fd, "", own(ids[0]), own(ids[1]), unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if unix.Mkdev(st.Dev_major, st.Dev_minor) != c.keeper.root {
		return nil // a volume, or a file system in memory, can't have another owner
	}
	return c.keeper.ask(msgOwner, &ownerRequest{File: st.Ino, UID: ids[0], GID: ids[1]})
}

func (c *ownerCall) mknod(dir int32, where uint64, mode, device uint32) error {
	umask, err := c.permitted(unix.CAP_MKNOD)
	if err != nil {
		return err
	}
	name, err := c.text(where)
	if err != nil {
		return err
	}
	parent, base := path.Split(name)
	if base == "" || base == "." || base == ".." {
		return errKernels
	}
	if parent == "" {
		parent = "."
	}
	fd, err := c.open(dir, parent, false)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if !c.valid() {
		return unix.ESRCH
	}
	var st unix.Stat_t
	if err := unix.Fstatat(fd, "", &st, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return err
	}
	switch {
	case st.Dev != c.keeper.root || st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errKernels
	case fs.Flags&unix.ST_RDONLY != 0:
		return unix.EROFS
	}
	return c.keeper.ask(msgDevice, &ownerRequest{File: st.Ino, Name: []byte(base), Mode: mode &^ umask, Device: device})
}

// permitted returns errKernels unless the caller has a capability in the container's own user namespace; and its umask.
func (c *ownerCall) permitted(capability uint) (umask uint32, err error) {
	var own, theirs unix.Stat_t
	if err := errors.Join(unix.Fstatat(c.keeper.proc, "self/ns/user", &own, 0), unix.Fstatat(c.caller, "ns/user", &theirs, 0)); err != nil || own.Ino != theirs.Ino {
		return 0, errKernels
	}
	status, err := c.read("status", 0, 16<<10)
	if err != nil {
		return 0, err
	}
	var effective uint64
	for line := range bytes.Lines(status) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), ":")
		switch value = strings.TrimSpace(value); name {
		case "Umask":
			n, _ := strconv.ParseUint(value, 8, 32)
			umask = uint32(n)
		case "CapEff":
			effective, _ = strconv.ParseUint(value, 16, 64)
		}
	}
	if effective&(1<<capability) == 0 {
		return 0, errKernels
	}
	return umask, nil
}

// read reads from a file of the caller's directory in procfs.
func (c *ownerCall) read(name string, at int64, most int) ([]byte, error) {
	fd, err := unix.Openat(c.caller, name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	buf := make([]byte, most)
	n, err := unix.Pread(fd, buf, at)
	if err != nil {
		return nil, err
	}
	return buf[:n], nil
}

// text reads a path from the caller's memory.
func (c *ownerCall) text(address uint64) (string, error) {
	data, err := c.read("mem", int64(address), unix.PathMax)
	if err != nil {
		return "", unix.EFAULT
	}
	end := bytes.IndexByte(data, 0)
	switch {
	case end >= 0:
		return string(data[:end]), nil
	case len(data) == unix.PathMax:
		return "", unix.ENAMETOOLONG
	}
	return "", unix.EFAULT
}

// base opens what a descriptor of the caller's is, or AT_FDCWD.
func (c *ownerCall) base(dir int32) (int, error) {
	if dir == unix.AT_FDCWD {
		return unix.Openat(c.caller, "cwd", unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	fd, err := unix.Openat(c.caller, fmt.Sprintf("fd/%d", dir), unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		err = unix.EBADF
	}
	return fd, err
}

// open looks a path up as the caller would, from its root and its working directory, but for links of procfs: they would lead
// to our own files.
func (c *ownerCall) open(dir int32, name string, noFollow bool) (int, error) {
	root, err := unix.Openat(c.caller, "root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	if err := unix.Fchdir(root); err != nil {
		return -1, err
	}
	if err := unix.Chroot("."); err != nil {
		return -1, err
	}
	base := root
	if !strings.HasPrefix(name, "/") {
		if base, err = c.base(dir); err != nil {
			return -1, err
		}
		defer unix.Close(base)
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS}
	if noFollow {
		how.Flags |= unix.O_NOFOLLOW
	}
	fd, err := unix.Openat2(base, name, &how)
	if err == unix.ELOOP {
		return -1, errKernels
	}
	return fd, err
}

// ask has P1 do something, and waits for its answer.
func (k *ownerKeeper) ask(kind string, r *ownerRequest) error {
	answer := make(chan unix.Errno, 1)
	k.mu.Lock()
	k.last++
	r.ID = k.last
	k.waiting[r.ID] = answer
	k.mu.Unlock()
	if err := k.wire.send(message{Kind: kind, Owner: r}); err != nil {
		return unix.EIO // P1 is gone, and so will we be
	}
	if errno := <-answer; errno != 0 {
		return errno
	}
	return nil
}

// owned takes P1's answer.
func (k *ownerKeeper) owned(id uint64, errno unix.Errno) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if answer, ok := k.waiting[id]; ok {
		delete(k.waiting, id)
		answer <- errno
	}
}
