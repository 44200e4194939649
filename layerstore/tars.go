package layerstore

import (
	"fmt"
	"os"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// maxTars is how many layer tars a branch keeps open when nobody reads them: an image may have more layers than a
// process may have descriptors.
const maxTars = 64

// tars opens the tars of an image's layers when they are first read and shares the descriptors.
//
// mu guards everything but the descriptor of a tar with refs > 0, which stays as it is until they are released.
type tars struct {
	dir   *os.File // the store's layers directory
	mu    sync.Mutex
	tars  []tarFile // by number of the layer
	open  int
	clock uint64
	done  bool // closed: what is released is closed at once
}

// tarFile is one layer's tar. The zero value is not open.
type tarFile struct {
	fd      int
	opened  bool
	size    int64
	refs    int
	used    uint64 // clock when it was last asked for
	release func() // gives one reference back; made once, so that handing it out allocates nothing
}

// openTars opens the layers directory, for n layers.
func openTars(layers string, n int) (*tars, error) {
	d, err := os.Open(layers)
	if err != nil {
		return nil, err
	}
	return &tars{dir: d, tars: make([]tarFile, n)}, nil
}

// get returns the descriptor and size of the tar of layer number n, whose diff ID is id. Whoever gets it calls release
// once.
func (t *tars) get(n int, id digest.Digest) (fd int, size int64, release func(), err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f := &t.tars[n]
	t.clock++
	f.used = t.clock
	if !f.opened {
		if t.done {
			return 0, 0, nil, unix.EBADF
		}
		if err := t.openLocked(f, id); err != nil {
			return 0, 0, nil, err
		}
		if f.release == nil {
			f.release = func() { t.put(f) }
		}
	}
	f.refs++
	return f.fd, f.size, f.release, nil
}

func (t *tars) openLocked(f *tarFile, id digest.Digest) error {
	if t.open >= maxTars {
		t.evictLocked()
	}
	path := id.Encoded() + "/" + tarName
	fd, err := unix.Openat(int(t.dir.Fd()), path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("opening layer %s: %w: %w", id, unix.EIO, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		unix.Close(fd)
		return fmt.Errorf("opening layer %s: %w", id, err)
	}
	f.fd, f.size, f.opened = fd, st.Size, true
	t.open++
	return nil
}

// evictLocked closes the tar that nobody has asked for the longest, if any isn't being read.
func (t *tars) evictLocked() {
	var oldest *tarFile
	for i := range t.tars {
		f := &t.tars[i]
		if f.opened && f.refs == 0 && (oldest == nil || f.used < oldest.used) {
			oldest = f
		}
	}
	if oldest != nil {
		t.closeLocked(oldest)
	}
}

func (t *tars) closeLocked(f *tarFile) {
	unix.Close(f.fd)
	f.opened, f.fd = false, -1
	t.open--
}

func (t *tars) put(f *tarFile) {
	t.mu.Lock()
	defer t.mu.Unlock()
	f.refs--
	if f.refs == 0 && (t.done || t.open > maxTars) {
		t.closeLocked(f)
	}
}

// close closes all descriptors that nobody uses now, and the others when they are released.
func (t *tars) close() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.done = true
	for i := range t.tars {
		if f := &t.tars[i]; f.opened && f.refs == 0 {
			t.closeLocked(f)
		}
	}
	return t.dir.Close()
}
