package cow

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// finishBatch is how many metadata-only copies are completed between two syncs.
const finishBatch = 512

// finishMetacopies completes all metadata-only copies in the upper branch, unless it is to keep them.
func (u *Union) finishMetacopies() error {
	if u.upper == nil || u.metacopy == MetacopyKeep || !u.upper.metacopies.Load() {
		return nil
	}
	f := finisher{u: u}
	err := f.directory(u.root)
	if err = errors.Join(err, f.flush()); err != nil {
		return fmt.Errorf("copying the data of files of which only the metadata was changed: %w; the next mount of the upper branch goes on with it", err)
	}
	return unix.Unlinkat(u.upper.work, metacopyMark, 0)
}

// finisher completes metadata-only copies in batches: first their data, then one sync for all, then the marks.
type finisher struct {
	u     *Union
	batch []*Node
}

func (f *finisher) directory(dir *Node) error {
	u := f.u
	if err := u.load(dir); err != nil {
		return err
	}
	var names []string
	var failed error
	dir.mu.Lock()
	for name, x := range dir.dir.upper {
		if x.whiteout || x.kind != unix.S_IFDIR && x.kind != unix.S_IFREG {
			continue
		}
		if x.id == 0 {
			if failed = u.identify(dir, x); failed != nil {
				break
			}
		}
		if x.kind == unix.S_IFDIR || x.meta {
			names = append(names, name)
		}
	}
	dir.mu.Unlock()
	if failed != nil {
		return failed
	}
	for _, name := range names {
		var a Attr
		n, err := u.Lookup(dir, name, &a)
		if err != nil {
			return err
		}
		switch {
		case n.isDir():
			err = f.directory(n)
		case !n.whole():
			if err = u.fillKeepingTimes(n); err != nil {
				break
			}
			f.batch = append(f.batch, n) // with the reference
			if n = nil; len(f.batch) >= finishBatch {
				err = f.flush()
			}
		}
		if n != nil {
			u.Forget(n, 1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fillKeepingTimes copies the data of a metadata-only copy to the upper branch, where it does not count yet.
func (u *Union) fillKeepingTimes(n *Node) error {
	var st unix.Stat_t
	err := u.withPlace(n, func(p place) error {
		d, err := u.openUpperFile(p, true)
		if err != nil {
			return err
		}
		defer u.fds.release(d)
		defer u.fds.drop(d)
		if err := unix.Fstat(d.fd, &st); err != nil {
			return err
		}
		if shared, err := u.shareLower(n, d.fd, st.Size); shared || err != nil {
			return err
		}
		return u.fillUpper(n, d.fd, st.Size)
	})
	if err != nil {
		return err
	}
	return u.restoreTimes(n, &st)
}

// flush makes the data of the batch durable and takes the marks away.
func (f *finisher) flush() error {
	u, batch := f.u, f.batch
	f.batch = nil
	defer func() {
		for _, n := range batch {
			u.Forget(n, 1)
		}
	}()
	if len(batch) == 0 {
		return nil
	}
	if !u.volatile {
		if err := unix.Syncfs(u.upper.lock); err != nil {
			return err
		}
	}
	for _, n := range batch {
		if err := u.completed(n, nil); err != nil {
			return err
		}
	}
	return nil
}
