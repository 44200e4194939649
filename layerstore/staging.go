package layerstore

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"
)

// attempt is one entry of the staging directory: what one command is writing and hasn't published yet. It holds the
// entry's lock from creation to close, so a sweep knows it for alive.
type attempt struct {
	s     *Store
	dir   string
	lock  *fileLock
	trash int64 // bytes that were moved here to be deleted
}

// Files of an attempt that other processes read.
const (
	leaseName   = "lease"   // see lease
	pendingName = "pending" // ID of an image that is being published and may have no name yet
)

// newAttempt makes an attempt. held is the store's lock if the caller holds it, else nil.
func (s *Store) newAttempt(held *fileLock) (*attempt, error) {
	if held == nil {
		// An entry that exists but isn't locked yet would look dead to a sweep.
		l, err := s.lock(unix.LOCK_SH)
		if err != nil {
			return nil, err
		}
		defer l.close()
	}
	dir, err := os.MkdirTemp(s.path(stagingDir), "")
	if err != nil {
		return nil, err
	}
	l, err := lockFile(dir, false, unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		os.Remove(dir)
		return nil, err
	}
	return &attempt{s: s, dir: dir, lock: l}, nil
}

// attempt calls do with a new attempt, of which only that is left which do publishes.
func (s *Store) attempt(do func(a *attempt) error) error {
	a, err := s.newAttempt(nil)
	if err != nil {
		return err
	}
	err = do(a)
	// What couldn't be deleted is swept later.
	a.close()
	return err
}

// exclusively calls do with the store's lock held exclusively and an attempt for what do moves out of the way, which is
// deleted when the lock is free again: deleting large files takes long. how is 0, or unix.LOCK_NB for errBusy if the lock
// isn't free.
func (s *Store) exclusively(how int, do func(trash *attempt) error) error {
	l, err := s.lock(unix.LOCK_EX | how)
	if err != nil {
		return err
	}
	trash, err := s.newAttempt(l)
	if err == nil {
		defer trash.close()
		err = do(trash)
	}
	l.close()
	return err
}

// reclaim frees what no image and no lease needs.
func (s *Store) reclaim() error {
	return s.exclusively(0, func(trash *attempt) error {
		_, err := s.collect(trash)
		return err
	})
}

func (a *attempt) path(name string) string { return filepath.Join(a.dir, name) }

// leave leaves a large attempt for another process to sweep, if there can be one.
func (a *attempt) leave() bool {
	const large = 8 << 20
	if a.s.Sweep == nil || a.trash < large {
		return false
	}
	// Its lock must be free before the other process looks.
	a.lock.close()
	if a.s.Sweep() == nil {
		return true
	}
	a.s.sweep()
	return true
}

// close deletes what of the attempt was not published.
func (a *attempt) close() error {
	if a.leave() {
		return nil
	}
	err := os.RemoveAll(a.dir)
	a.lock.close()
	return err
}

// lease keeps these layers and merged indexes from being collected, published already or later, until the attempt is
// closed. It replaces the lease before it.
func (a *attempt) lease(ids ...digest.Digest) error {
	var b strings.Builder
	for _, id := range ids {
		b.WriteString(id.Encoded() + "\n")
	}
	l, err := a.s.lock(unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer l.close()
	return os.WriteFile(a.path(leaseName), []byte(b.String()), 0o600)
}

// leases returns the encoded digests that living attempts have leased. The caller holds the store's lock exclusively.
func (s *Store) leases() (map[string]bool, error) {
	entries, err := os.ReadDir(s.path(stagingDir))
	if err != nil {
		return nil, err
	}
	leased := make(map[string]bool)
	for _, e := range entries {
		b, err := os.ReadFile(s.path(stagingDir, e.Name(), leaseName))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, id := range strings.Fields(string(b)) {
			leased[id] = true
		}
	}
	return leased, nil
}

// publish moves a finished and flushed file or directory of the attempt to where it belongs in the store, so that it is
// there after a power loss. A directory that is there already, put there by another process, is left as it is: names of
// directories are digests of their content.
func (a *attempt) publish(name string, dest ...string) error {
	to := a.s.path(dest...)
	err := os.Rename(a.path(name), to)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(to))
}

// write makes a file in the attempt and flushes it.
func (a *attempt) write(name string, data []byte) error {
	f, err := os.OpenFile(a.path(name), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("flushing %s: %w", path, err)
	}
	return nil
}

// sweep deletes the attempts of dead processes, and what they published that is of no use. If another process is
// publishing just now, all is left for later.
func (s *Store) sweep() error {
	if err := s.dropStale(); err != nil {
		return err
	}
	entries, err := os.ReadDir(s.path(stagingDir))
	if err != nil || len(entries) == 0 {
		return err
	}
	dead, err := s.bury(entries)
	// Not under the store's lock: deleting large files takes long. The attempts' own locks keep others away.
	for _, a := range dead {
		if cerr := a.close(); cerr != nil && err == nil {
			err = fmt.Errorf("removing what an interrupted command left: %w", cerr)
		}
	}
	return err
}

// bury takes the locks of dead attempts and moves what only they needed into one more. The caller closes them all.
func (s *Store) bury(entries []os.DirEntry) (dead []*attempt, err error) {
	l, err := s.lock(unix.LOCK_EX | unix.LOCK_NB)
	if errors.Is(err, errBusy) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer l.close()
	for _, e := range entries {
		path := s.path(stagingDir, e.Name())
		al, err := lockFile(path, false, unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, errBusy) || errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return dead, err
		}
		dead = append(dead, &attempt{s: s, dir: path, lock: al})
	}
	if len(dead) == 0 {
		return nil, nil
	}
	trash, err := s.newAttempt(l)
	if err != nil {
		return dead, err
	}
	for _, a := range dead {
		if err := s.retract(a, trash); err != nil {
			return append(dead, trash), err
		}
	}
	// A damaged image keeps garbage from being collected, but not the store from being used: Remove and Prune say so.
	s.collect(trash)
	return append(dead, trash), nil
}

// retract deletes the image that a dead attempt published but didn't come to name, and ends its lease. The caller holds
// the store's lock exclusively.
func (s *Store) retract(a, trash *attempt) error {
	if err := os.Remove(a.path(leaseName)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	b, err := os.ReadFile(a.path(pendingName))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	id := digest.Digest(b)
	if checkDigest(id) != nil {
		return nil // the process died writing it, before the image was there
	}
	refs, err := s.refs()
	if err != nil {
		return nil // a name can't be read: it may be the image's
	}
	for _, r := range refs {
		if r.Image == id {
			return nil
		}
	}
	_, err = s.deleteImage(id, trash)
	return err
}
