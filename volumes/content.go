package volumes

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"unionfs/archive"
)

// ErrNotThere is what the content of [Store.Fill] returns if there is nothing to take.
var ErrNotThere = errors.New("there is no such directory")

// Fill gives a volume that nothing was put into yet a content, written by content as a tar whose top is "./". Any other is left
// as it is. The content comes in as a whole: if it is cut short, the volume stays empty, and the next Fill does it again.
func (s *Store) Fill(name string, oneID bool, content func(io.Writer) error) error {
	r, err := s.readRecord(name)
	if err != nil {
		return err
	}
	if !r.Fresh {
		return nil
	}
	lock, err := s.lock(name, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := s.fill(name, oneID, content); err != nil {
		return fmt.Errorf("filling volume %s with the image's content: %w", name, err)
	}
	return nil
}

func (s *Store) fill(name string, oneID bool, content func(io.Writer) error) error {
	r, err := s.readRecord(name)
	if err != nil || !r.Fresh {
		return err
	}
	filling, filled := filepath.Join(s.path(name), "filling"), filepath.Join(s.path(name), "filled")
	if _, err := os.Lstat(filled); errors.Is(err, os.ErrNotExist) {
		if used, err := s.used(name); err != nil || used {
			return errors.Join(err, s.settle(name, r))
		}
		if err := os.RemoveAll(filling); err != nil {
			return err
		}
		if err := os.Mkdir(filling, 0o700); err != nil {
			return err
		}
		err := receive(filling, oneID, content)
		if errors.Is(err, ErrNotThere) {
			return os.Remove(filling) // another container's image may have something there
		}
		if err != nil {
			return errors.Join(err, os.RemoveAll(filling))
		}
		if err := os.Rename(filling, filled); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if err := moveContent(filled, s.dataPath(name)); err != nil {
		return err
	}
	return s.settle(name, r)
}

func (s *Store) settle(name string, r *record) error {
	r.Fresh = false
	return writeRecord(s.path(name), r)
}

// used reports whether somebody put something into the volume.
func (s *Store) used(name string) (bool, error) {
	d, err := os.Open(s.dataPath(name))
	if err != nil {
		return false, err
	}
	defer d.Close()
	_, err = d.Readdirnames(1)
	if err == io.EOF {
		return false, nil
	}
	return true, err
}

// receive unpacks what content writes.
func receive(dir string, oneID bool, content func(io.Writer) error) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, w := io.Pipe()
	written := make(chan error, 1)
	go func() {
		err := content(w)
		w.CloseWithError(err)
		written <- err
	}()
	_, err = archive.Unpack(r, fd, archive.UnpackOptions{Base: ".", Owners: true, OneID: oneID})
	r.CloseWithError(errors.New("given up"))
	if werr := <-written; werr != nil && (err == nil || errors.Is(werr, ErrNotThere)) {
		return werr
	}
	return err
}

// moveContent moves what is in from to to, with from's own attributes, and removes from. What is in to already stays. It can be
// done again after it was cut short.
func moveContent(from, to string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	for _, e := range entries {
		old, name := filepath.Join(from, e.Name()), filepath.Join(to, e.Name())
		err := unix.Renameat2(unix.AT_FDCWD, old, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			err = os.RemoveAll(old) // a container that runs was faster
		}
		if err != nil {
			return err
		}
	}
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return err
	}
	if err := unix.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return err
	}
	if err := unix.Chmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	if err := unix.UtimesNano(to, []unix.Timespec{st.Atim, st.Mtim}); err != nil {
		return err
	}
	return os.Remove(from)
}

// Export writes what is in a volume as a tar whose top is "./".
func (s *Store) Export(name string, w io.Writer, skipped func(string)) error {
	fd, done, err := s.openData(name, unix.LOCK_SH)
	if err != nil {
		return err
	}
	defer done()
	if err := archive.Pack(w, fd, "", archive.PackOptions{Skipped: skipped}); err != nil {
		return fmt.Errorf("exporting volume %s: %w", name, err)
	}
	return nil
}

// Import puts a tar into a volume, over what is there. With oneID, all of it belongs to the caller.
func (s *Store) Import(name string, r io.Reader, oneID bool, skipped func(name, why string)) error {
	fd, done, err := s.openData(name, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer done()
	if _, err := archive.Unpack(r, fd, archive.UnpackOptions{Base: ".", Owners: true, OneID: oneID, Skipped: skipped}); err != nil {
		return fmt.Errorf("importing into volume %s: %w", name, err)
	}
	record, err := s.readRecord(name)
	if err != nil || !record.Fresh {
		return err
	}
	return s.settle(name, record)
}

// openData opens a volume's content, with its lock held.
func (s *Store) openData(name string, how int) (fd int, done func(), err error) {
	lock, err := s.lock(name, how)
	if err != nil {
		return -1, nil, err
	}
	info, err := s.Get(name)
	if err == nil {
		fd, err = unix.Open(info.Mountpoint, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		lock.Close()
		return -1, nil, fmt.Errorf("opening volume %s: %w", name, err)
	}
	return fd, func() { unix.Close(fd); lock.Close() }, nil
}

// Size is how many bytes on disk a volume takes up. Files that can't be read don't count, and of a directory of the host nothing does.
func (s *Store) Size(name string) int64 {
	var total int64
	seen := map[[2]uint64]bool{}
	_ = filepath.WalkDir(s.dataPath(name), func(file string, _ os.DirEntry, err error) error {
		var st unix.Stat_t
		if err != nil || unix.Lstat(file, &st) != nil {
			return nil
		}
		if id := [2]uint64{st.Dev, st.Ino}; !seen[id] && !strings.HasSuffix(file, "/_data") {
			seen[id] = true
			total += st.Blocks * 512
		}
		return nil
	})
	return total
}
