package fs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hasResend is FUSE_HAS_RESEND of include/uapi/linux/fuse.h, as the kernel says it in the upper half of its flags.
const hasResend = 1 << (39 - 32)

// Resumable reports whether another server could go on with the mount: whether the kernel can send requests again (Linux 6.9).
func (s *Session) Resumable() bool {
	var in fuse.InitIn
	if len(s.Settings) != int(unsafe.Sizeof(in)) {
		return false
	}
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&in)), unsafe.Sizeof(in)), s.Settings)
	return in.Flags2&hasResend != 0
}

// Release stops serving and leaves the mount as it is, for another server to go on with ([Resume]); this process must hold the
// Session's descriptor meanwhile. What is just being carried out is carried out to its end, but not answered, as if this server
// had been killed then: the kernel sends it again, so there must have been an [Options.Journal]. When Release returns nothing uses
// the union any more.
//
// The error is for a mount that is gone, or one of the process (too many open files, say); the server then goes on.
func (s *Server) Release() error {
	select {
	case <-s.done:
		return fmt.Errorf("%s is not mounted any more", s.target)
	default:
	}
	nothing, err := unix.Open("/", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(nothing)
	// Requests are read and answered by its number: from now on there is nothing to be read, and no way to answer.
	if err := unix.Dup3(nothing, s.conn.fd, unix.O_CLOEXEC); err != nil {
		return err
	}
	close(s.released)
	// Threads that wait in the kernel wait for a request of the device that the number was.
	for {
		interruptReaders(s.conn.fd)
		select {
		case <-s.done:
			return nil
		case <-time.After(time.Millisecond):
		}
	}
}

// interruptReaders has those threads of this process that are reading from a descriptor look again what it is: the handler of the
// signal, which Go's runtime installs for itself, does nothing for them, and the kernel then begins the system call anew.
func interruptReaders(fd int) {
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		return // they end with their next request, which is sent again
	}
	reading := fmt.Sprintf("%d 0x%x ", unix.SYS_READ, fd)
	for _, task := range tasks {
		tid, err := strconv.Atoi(task.Name())
		if err != nil {
			continue
		}
		call, err := os.ReadFile("/proc/self/task/" + task.Name() + "/syscall")
		if err != nil || strings.HasPrefix(string(call), reading) { // not every kernel tells
			_ = unix.Tgkill(os.Getpid(), tid, unix.SIGURG)
		}
	}
}
