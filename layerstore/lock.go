package layerstore

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// fileLock is a flock(2) lock held on an open file or directory. It ends with close, or with the process however that
// dies.
type fileLock struct{ f *os.File }

// errBusy says that a lock is held by someone else.
var errBusy = errors.New("locked by another process")

// lockFile opens path, creating it if create is set, and takes a lock: unix.LOCK_SH or unix.LOCK_EX, with unix.LOCK_NB
// to get errBusy rather than wait.
func lockFile(path string, create bool, how int) (*fileLock, error) {
	flags := os.O_RDONLY
	if create {
		flags = os.O_RDWR | os.O_CREATE
	}
	f, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errBusy
		}
		return nil, fmt.Errorf("locking %s: %w", path, err)
	}
	return &fileLock{f}, nil
}

func (l *fileLock) close() { l.f.Close() }
