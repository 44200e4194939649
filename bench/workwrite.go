package bench

import (
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"
)

// makeScratch makes the directory in which files are made.
func makeScratch(s *session) error {
	if err := unix.Mkdirat(s.rootFD, scratchName, 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return fmt.Errorf("making %s: %w", scratchName, err)
	}
	return nil
}

// The names of new files, before and after they are renamed.
const (
	newPrefix     = scratchName + "/new-"
	renamedPrefix = scratchName + "/renamed-"
)

func createFiles(s *session) (int, error) {
	content := make([]byte, 4096)
	for i := range s.sizes.Create {
		fd, err := s.open(newPrefix+strconv.Itoa(i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
		if err != nil {
			return 0, err
		}
		_, err = unix.Write(fd, content)
		if err = errors.Join(err, unix.Close(fd), s.stopped()); err != nil {
			return 0, err
		}
	}
	s.created = newPrefix
	return s.sizes.Create, nil
}

// needCreated makes the files that are to be renamed or removed, unless they are there from the work before.
func needCreated(s *session) error {
	if s.created != "" {
		return nil
	}
	if err := makeScratch(s); err != nil {
		return err
	}
	_, err := createFiles(s)
	return err
}

func renameFiles(s *session) (int, error) {
	for i := range s.sizes.Create {
		n := strconv.Itoa(i)
		if err := unix.Renameat(s.rootFD, newPrefix+n, s.rootFD, renamedPrefix+n); err != nil {
			return 0, fmt.Errorf("renaming %s: %w", newPrefix+n, err)
		}
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	s.created = renamedPrefix
	return s.sizes.Create, nil
}

func unlinkFiles(s *session) (int, error) {
	for i := range s.sizes.Create {
		name := s.created + strconv.Itoa(i)
		if err := unix.Unlinkat(s.rootFD, name, 0); err != nil {
			return 0, fmt.Errorf("removing %s: %w", name, err)
		}
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	s.created = ""
	return s.sizes.Create, nil
}

func appendBytes(s *session) (int, error) {
	fd, err := s.open(scratchName+"/appended", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_APPEND, 0o644)
	if err != nil {
		return 0, err
	}
	content := make([]byte, 100)
	for range s.sizes.Appends {
		if _, err := unix.Write(fd, content); err != nil {
			unix.Close(fd)
			return 0, fmt.Errorf("appending: %w", err)
		}
		if err := s.stopped(); err != nil {
			unix.Close(fd)
			return 0, err
		}
	}
	return s.sizes.Appends, unix.Close(fd)
}

func writeBig(s *session) (int, error) {
	fd, err := s.open(scratchName+"/written", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
	if err != nil {
		return 0, err
	}
	content := make([]byte, 1<<20)
	for left := s.sizes.Write; left > 0; {
		n, err := unix.Write(fd, content[:min(left, int64(len(content)))])
		if err = errors.Join(err, s.stopped()); err != nil {
			unix.Close(fd)
			return 0, fmt.Errorf("writing: %w", err)
		}
		left -= int64(n)
	}
	return 1, unix.Close(fd)
}

// warmSample makes the kernel and the server know the files that are about to be changed.
func warmSample(s *session) error {
	_, err := statFiles(s)
	return err
}

// The works that change files of lower branches take different ones, so that each meets files that are still below.

func (s *session) third(i int) []string {
	n := min(s.sizes.Change, len(s.files)/3)
	return s.files[i*n : (i+1)*n]
}

func chmodLower(s *session) (int, error) {
	names := s.third(0)
	for _, name := range names {
		if err := unix.Fchmodat(s.rootFD, name, 0o600, 0); err != nil {
			return 0, fmt.Errorf("chmod %s: %w", name, err)
		}
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	return len(names), nil
}

func copyUp(s *session) (int, error) {
	names := s.third(1)
	for _, name := range names {
		fd, err := s.open(name, unix.O_WRONLY|unix.O_APPEND, 0)
		if err != nil {
			return 0, err
		}
		_, err = unix.Write(fd, []byte{'x'})
		if err = errors.Join(err, unix.Close(fd), s.stopped()); err != nil {
			return 0, fmt.Errorf("appending to %s: %w", name, err)
		}
	}
	return len(names), nil
}

func deleteLower(s *session) (int, error) {
	names := s.third(2)
	for _, name := range names {
		if err := unix.Unlinkat(s.rootFD, name, 0); err != nil {
			return 0, fmt.Errorf("removing %s: %w", name, err)
		}
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	return len(names), nil
}

func touchBig(s *session) (int, error) {
	fd, err := s.open(bigName, unix.O_WRONLY, 0)
	if err != nil {
		return 0, err
	}
	_, err = unix.Pwrite(fd, []byte{'x'}, s.tree.big/2)
	return 1, errors.Join(err, unix.Close(fd))
}
