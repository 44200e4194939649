package bench

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"
)

// catalogue is what a tree holds. Names are relative to its root and sorted by directory.
type catalogue struct {
	dirs    []string // with "." for the root
	files   []string // regular files but the big one
	entries int      // everything but the root
	big     int64    // size of the big file, 0 if there is none
	sum     [sha256.Size]byte
}

// checksumWhole is the size in bytes up to which a file's whole content is in the checksum. Of larger ones it is a block
// at the start, in the middle and at the end: reading them whole by each peer would take longer than the benchmark.
const checksumWhole = 1 << 20

// takeCatalogue walks the tree at root and reads its files. The checksum is over names, types, permissions, owners,
// sizes, targets of symbolic links, device numbers and content; not over times and sizes of directories, numbers of
// links, and inodes, in which file systems may differ.
func takeCatalogue(ctx context.Context, root string) (*catalogue, error) {
	rootFD, err := openRoot(root)
	if err != nil {
		return nil, err
	}
	defer unix.Close(rootFD)
	c := &catalogue{}
	hash := sha256.New()
	content := make([]byte, checksumWhole)
	var visit func(dir string) error
	visit = func(dir string) error {
		c.dirs = append(c.dirs, dir)
		names, err := listNames(rootFD, dir)
		if err != nil {
			return fmt.Errorf("listing %s: %w", dir, err)
		}
		slices.Sort(names)
		var subs []string
		for _, base := range names {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			name := path.Join(dir, base)
			var st unix.Stat_t
			if err := unix.Fstatat(rootFD, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
				return fmt.Errorf("stat %s: %w", name, err)
			}
			c.entries++
			size := st.Size
			if st.Mode&unix.S_IFMT == unix.S_IFDIR {
				size = 0
			}
			fmt.Fprintf(hash, "%q %o %d:%d %d %x\n", name, st.Mode, st.Uid, st.Gid, size, st.Rdev)
			switch st.Mode & unix.S_IFMT {
			case unix.S_IFDIR:
				subs = append(subs, name)
			case unix.S_IFLNK:
				target := make([]byte, unix.PathMax)
				n, err := unix.Readlinkat(rootFD, name, target)
				if err != nil {
					return fmt.Errorf("reading the link %s: %w", name, err)
				}
				fmt.Fprintf(hash, "%q\n", target[:n])
			case unix.S_IFREG:
				if name == bigName {
					c.big = st.Size
				} else {
					c.files = append(c.files, name)
				}
				if err := sumContent(hash, rootFD, name, st.Size, content); err != nil {
					return fmt.Errorf("reading %s: %w", name, err)
				}
			}
		}
		for _, sub := range subs {
			if err := visit(sub); err != nil {
				return err
			}
		}
		return nil
	}
	if err := visit("."); err != nil {
		return nil, err
	}
	hash.Sum(c.sum[:0])
	return c, nil
}

func sumContent(hash io.Writer, rootFD int, name string, size int64, buffer []byte) error {
	fd, err := unix.Openat(rootFD, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	file := os.NewFile(uintptr(fd), name)
	defer file.Close()
	if size <= checksumWhole {
		n, err := io.ReadFull(file, buffer[:size])
		if err != nil && err != io.ErrUnexpectedEOF && err != io.EOF {
			return err
		}
		_, err = hash.Write(binary.LittleEndian.AppendUint64(buffer[:n:n], uint64(n)))
		return err
	}
	const block = 64 << 10
	for _, at := range []int64{0, size/2 - block/2, size - block} {
		n, err := file.ReadAt(buffer[:block], at)
		if err != nil && err != io.EOF {
			return err
		}
		if _, err := hash.Write(buffer[:n]); err != nil {
			return err
		}
	}
	return nil
}

// sample chooses n of the names, or all if there are fewer, always the same ones. They keep their order.
func sample(names []string, about string, n int) []string {
	if len(names) <= n {
		return names
	}
	chosen := slices.Clone(names)
	slices.SortFunc(chosen, func(a, b string) int {
		return pick(a, about, 1<<40) - pick(b, about, 1<<40)
	})
	chosen = chosen[:n]
	wanted := make(map[string]bool, n)
	for _, name := range chosen {
		wanted[name] = true
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool { return !wanted[name] })
}
