package bench

import (
	"fmt"
	"math/rand/v2"
	"path"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

func walk(s *session) (int, error) {
	return s.all(s.walkBelow(s.rootFD, ".", true, make([]byte, listingBuffer)))
}

func readDirs(s *session) (int, error) {
	return s.all(s.walkBelow(s.rootFD, ".", false, make([]byte, listingBuffer)))
}

// all checks that a walk met the whole tree.
func (s *session) all(count int, err error) (int, error) {
	if err == nil && count != s.tree.entries {
		err = fmt.Errorf("%d entries were listed, but the tree has %d", count, s.tree.entries)
	}
	return count, err
}

// walkBelow lists a directory and all below it, and stats every entry if so told. It returns the number of entries.
func (s *session) walkBelow(parent int, name string, stat bool, buffer []byte) (int, error) {
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open %s: %w", name, err)
	}
	defer unix.Close(fd)
	subs, count, err := s.listAndStat(fd, stat, buffer)
	for _, sub := range subs {
		if err != nil {
			break
		}
		var below int
		below, err = s.walkBelow(fd, sub, stat, buffer)
		count += below
	}
	return count, err
}

// listAndStat lists an open directory. It returns the names of the directories in it and the number of entries.
func (s *session) listAndStat(fd int, stat bool, buffer []byte) (subs []string, count int, err error) {
	var st unix.Stat_t
	err = eachEntry(fd, buffer, func(name []byte, kind byte) error {
		count++
		if kind == unix.DT_DIR {
			subs = append(subs, string(name))
		}
		if stat {
			if err := unix.Fstatat(fd, string(name), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return fmt.Errorf("stat %s: %w", name, err)
			}
		}
		return s.stopped()
	})
	return subs, count, err
}

// walkers is the number of threads of walkParallel.
const walkers = 8

func walkParallel(s *session) (int, error) {
	var (
		mu     sync.Mutex
		change = sync.NewCond(&mu)
		queue  = []string{"."}
		busy   int // directories that are being listed, which may bring more
		count  int
		failed error
	)
	// Each waits in system calls nearly all the time, and the runtime would have the others wait with it.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(2 * walkers))
	var group sync.WaitGroup
	for range walkers {
		group.Go(func() {
			buffer := make([]byte, listingBuffer)
			mu.Lock()
			defer mu.Unlock()
			for {
				for len(queue) == 0 && busy > 0 && failed == nil {
					change.Wait()
				}
				if len(queue) == 0 || failed != nil {
					change.Broadcast()
					return
				}
				dir := queue[len(queue)-1]
				queue = queue[:len(queue)-1]
				busy++
				mu.Unlock()
				subs, n, err := s.listByName(dir, buffer)
				mu.Lock()
				busy--
				count += n
				if err != nil {
					failed = err
				}
				for _, sub := range subs {
					queue = append(queue, path.Join(dir, sub))
				}
				change.Broadcast()
			}
		})
	}
	group.Wait()
	return s.all(count, failed)
}

func (s *session) listByName(dir string, buffer []byte) ([]string, int, error) {
	fd, err := s.open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, 0, err
	}
	defer unix.Close(fd)
	return s.listAndStat(fd, true, buffer)
}

func statFiles(s *session) (int, error) {
	var st unix.Stat_t
	for _, name := range s.files {
		if err := unix.Fstatat(s.rootFD, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return 0, fmt.Errorf("stat %s: %w", name, err)
		}
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	return len(s.files), nil
}

func lookupMissing(s *session) (int, error) {
	var st unix.Stat_t
	for _, name := range s.files {
		if err := unix.Fstatat(s.rootFD, name+s.nonce, &st, unix.AT_SYMLINK_NOFOLLOW); err != unix.ENOENT {
			return 0, fmt.Errorf("stat %s, which doesn't exist: %v", name+s.nonce, err)
		}
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	return len(s.files), nil
}

func readFiles(s *session) (int, error) {
	buffer := make([]byte, 1<<20)
	for _, name := range s.files {
		fd, err := s.open(name, unix.O_RDONLY, 0)
		if err != nil {
			return 0, err
		}
		for {
			n, err := unix.Read(fd, buffer)
			if err == unix.EINTR {
				continue
			}
			if err != nil {
				unix.Close(fd)
				return 0, fmt.Errorf("reading %s: %w", name, err)
			}
			if n < len(buffer) {
				break
			}
		}
		unix.Close(fd)
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	return len(s.files), nil
}

func walkAndRead(s *session) (int, error) {
	if _, err := walk(s); err != nil {
		return 0, err
	}
	return readFiles(s)
}

func readBig(s *session) (int, error) {
	fd, err := s.open(bigName, unix.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	buffer := make([]byte, 1<<20)
	var total int64
	for {
		n, err := unix.Read(fd, buffer)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("reading %s: %w", bigName, err)
		}
		if n == 0 {
			break
		}
		total += int64(n)
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	if total != s.tree.big {
		return 0, fmt.Errorf("%s ended after %d of %d bytes", bigName, total, s.tree.big)
	}
	return 1, nil
}

func readBigRandomly(s *session) (int, error) {
	fd, err := s.open(bigName, unix.O_RDONLY, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	const block = 4096
	buffer := make([]byte, block)
	rng := rand.New(rand.NewPCG(1, 1)) // the same offsets for everyone
	for range s.sizes.Random {
		at := rng.Int64N(s.tree.big/block) * block
		if n, err := unix.Pread(fd, buffer, at); err != nil || n != block {
			return 0, fmt.Errorf("reading %s at %d: %d bytes, %v", bigName, at, n, err)
		}
		if err := s.stopped(); err != nil {
			return 0, err
		}
	}
	return s.sizes.Random, nil
}
