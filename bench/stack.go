package bench

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// stack is a number of branches that peers merge.
type stack struct {
	dir    string   // where relative branch names start; a short argument list holds more of those
	lowers []string // the branches, top first: absolute, or relative to dir
	plain  string   // a directory with the merged tree, or "" if there is none
	image  string   // the same branches as an image in the store, or ""
	store  string   // unionfs --root for it
}

func (s *stack) depth() int { return len(s.lowers) }

// absolute returns the branches' absolute names, top first.
func (s *stack) absolute() []string {
	names := make([]string, len(s.lowers))
	for i, lower := range s.lowers {
		names[i] = lower
		if !filepath.IsAbs(lower) {
			names[i] = filepath.Join(s.dir, lower)
		}
	}
	return names
}

// splitTree spreads the tree over depth branches below dir, which is made if it is missing, and returns them. Which branch has a file follows from a hash
// of its name, so that, as the number of branches grows, directories are in more and more of them: harder than most
// images, whose layers keep to a few directories. One file in ten has an older version in a lower branch.
func splitTree(ctx context.Context, plain, dir string, depth int) (*stack, error) {
	s := &stack{dir: dir, plain: plain}
	for i := range depth {
		s.lowers = append(s.lowers, strconv.Itoa(i))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	made := map[string]bool{}
	err := filepath.WalkDir(plain, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		name, err := filepath.Rel(plain, path)
		if err != nil {
			return err
		}
		branch := pick(name, "branch", depth)
		if entry.IsDir() {
			if name == "." { // every branch's root
				for i := range depth {
					if err := needDir(made, plain, filepath.Join(dir, strconv.Itoa(i)), name); err != nil {
						return err
					}
				}
				return nil
			}
			return needDir(made, plain, filepath.Join(dir, strconv.Itoa(branch)), name)
		}
		if name == bigName {
			branch = depth - 1
		}
		if err := place(made, plain, filepath.Join(dir, strconv.Itoa(branch)), name); err != nil {
			return err
		}
		if below := branch + 1; below < depth && entry.Type().IsRegular() && pick(name, "old", 10) == 0 {
			lower := filepath.Join(dir, strconv.Itoa(below))
			if err := needDir(made, plain, lower, filepath.Dir(name)); err != nil {
				return err
			}
			return writeFile(filepath.Join(lower, name), []byte("an older version of "+name+"\n"), 0o644)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("spreading %s over %d branches: %w", plain, depth, err)
	}
	return s, nil
}

// place copies one file that isn't a directory, with the directories above it.
func place(made map[string]bool, plain, branch, name string) error {
	if err := needDir(made, plain, branch, filepath.Dir(name)); err != nil {
		return err
	}
	from, to := filepath.Join(plain, name), filepath.Join(branch, name)
	if name == bigName && os.Link(from, to) == nil {
		return nil
	}
	return copyNode(from, to)
}

// needDir makes the directory in the branch, and those above it, as they are in the tree.
func needDir(made map[string]bool, plain, branch, name string) error {
	to := filepath.Join(branch, name)
	if made[to] {
		return nil
	}
	if name != "." {
		if err := needDir(made, plain, branch, filepath.Dir(name)); err != nil {
			return err
		}
	}
	made[to] = true
	if err := os.Mkdir(to, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var st unix.Stat_t
	if err := unix.Lstat(filepath.Join(plain, name), &st); err != nil {
		return err
	}
	return copyOwner(to, &st)
}

// copyNode copies anything but a directory: content, mode, time and, for root, owner.
func copyNode(from, to string) error {
	var st unix.Stat_t
	if err := unix.Lstat(from, &st); err != nil {
		return &os.PathError{Op: "lstat", Path: from, Err: err}
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		if err := copyContent(from, to); err != nil {
			return err
		}
	case unix.S_IFLNK:
		target, err := os.Readlink(from)
		if err != nil {
			return err
		}
		if err := os.Symlink(target, to); err != nil {
			return err
		}
	default:
		if err := unix.Mknod(to, st.Mode, int(st.Rdev)); err != nil {
			return &os.PathError{Op: "mknod", Path: to, Err: err}
		}
	}
	if err := copyOwner(to, &st); err != nil {
		return err
	}
	times := []unix.Timespec{st.Mtim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, to, times, unix.AT_SYMLINK_NOFOLLOW)
}

func copyOwner(to string, st *unix.Stat_t) error {
	if os.Geteuid() == 0 {
		if err := os.Lchown(to, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	if err := syscall.Chmod(to, st.Mode&0o7777); err != nil {
		return &os.PathError{Op: "chmod", Path: to, Err: err}
	}
	return nil
}

func copyContent(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// pick chooses one of n by a hash of the name and of what the choice is about.
func pick(name, about string, n int) int {
	h := fnv.New128a()
	io.WriteString(h, about)
	h.Write([]byte{0})
	io.WriteString(h, name)
	return int(binary.LittleEndian.Uint64(h.Sum(nil)[8:]) % uint64(n))
}
