package runner

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// A container's lock is a write lock on the whole of ROOT/containers/ID/lock, of the "open file description" kind
// (fcntl_locking(2)): it ends with the supervisor whatever it died of, and unlike flock(2) it can be asked about without
// being taken, so that a "ps" never makes a start or a removal fail.

// tryLock takes the container's lock without waiting. The error wraps [ErrRunning] if someone holds it, and
// [ErrNotFound] if the container was removed.
func (c *Container) tryLock() (*os.File, error) {
	f, err := os.OpenFile(c.lockPath(), os.O_RDWR|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, c.ID)
	}
	if err != nil {
		return nil, err
	}
	switch err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK}); err {
	case nil:
	case unix.EAGAIN, unix.EACCES:
		f.Close()
		return nil, fmt.Errorf("%w: stop it first", ErrRunning)
	default:
		f.Close()
		return nil, fmt.Errorf("locking %s: %w", c.lockPath(), err)
	}
	// It may have been removed, or its directory renamed for removal, before we had the lock.
	if !sameFile(f, c.lockPath()) {
		f.Close()
		return nil, fmt.Errorf("%w: %s", ErrNotFound, c.ID)
	}
	return f, nil
}

// lockHeld reports whether someone holds the container's lock.
func (c *Container) lockHeld() (bool, error) {
	f, err := os.Open(c.lockPath())
	if errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("%w: %s", ErrNotFound, c.ID)
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, fmt.Errorf("asking for the lock %s: %w", c.lockPath(), err)
	}
	return lk.Type != unix.F_UNLCK, nil
}

// sameFile reports whether path still names the open file f.
func sameFile(f *os.File, path string) bool {
	open, err := f.Stat()
	if err != nil {
		return false
	}
	there, err := os.Lstat(path)
	return err == nil && os.SameFile(open, there)
}
