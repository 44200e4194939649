package cow

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// A kernel that collects writes (FUSE_WRITEBACK_CACHE) keeps the times of a file itself and tells of them by Setattr. It
// doesn't if the clock by which it counts them, which ticks every few milliseconds, has not gone on since the time that
// it was told or has told last: a file that is made and written to within one tick has the time of its making. The
// writes reach the branch later, and must not give it a time that the kernel doesn't know of.

// WriteBack is Write for data that the kernel has collected: the modification time stays as it is.
func (u *Union) WriteBack(n *Node, off int64, p []byte) (int, error) {
	f, err := u.WriteFD(n)
	if err != nil {
		return 0, err
	}
	defer f.Release()
	written := 0
	err = u.keepingTime(n, &f, true, func() (err error) {
		if f.part != nil {
			written, err = f.part.write(p, off)
		} else {
			written, err = pwriteAll(f.FD, p, off)
		}
		return err
	})
	return written, err
}

// keepingTime does something to the data of an upper file of which, if kept, its modification time shall tell nothing.
func (u *Union) keepingTime(n *Node, f *File, kept bool, do func() error) error {
	if !kept {
		return do()
	}
	// Who sets times holds this as well.
	n.mu.Lock()
	defer n.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Fstat(f.FD, &st); err != nil {
		return err
	}
	err := do()
	if f.part != nil {
		f.part.mu.Lock() // it puts times back too
		defer f.part.mu.Unlock()
	}
	times := [2]unix.Timespec{{Nsec: unix.UTIME_OMIT}, st.Mtim}
	if _, _, errno := unix.Syscall6(unix.SYS_UTIMENSAT, uintptr(f.FD), 0, uintptr(unsafe.Pointer(&times)), 0, 0, 0); errno != 0 && err == nil {
		err = errno
	}
	return err
}
