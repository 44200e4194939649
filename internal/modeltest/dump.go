package modeltest

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// Dump describes everything beneath a directory, a line a file: path, mode, owner, content, hard links, extended attributes
// but those that a format of the union's keeps for itself, and with times when each was modified.
func Dump(root string, times bool) ([]string, error) {
	var out []string
	links := map[uint64]string{}
	err := filepath.WalkDir(root, func(p string, _ fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		rel := strings.TrimPrefix(p, root)
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return fmt.Errorf("%s is listed but: %w", p, err)
		}
		line := fmt.Sprintf("%s %o %d:%d", rel, st.Mode, st.Uid, st.Gid)
		if times {
			line += fmt.Sprintf(" %d.%09d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := readAll(p)
			if err != nil {
				return fmt.Errorf("reading %s: %w", p, err)
			}
			line += fmt.Sprintf(" %d/%d %x", len(b), st.Size, xxhash.Sum64(b))
		case unix.S_IFLNK:
			buf := make([]byte, unix.PathMax)
			n, err := unix.Readlink(p, buf)
			if err != nil {
				return fmt.Errorf("reading the link %s: %w", p, err)
			}
			line += " -> " + string(buf[:n])
		case unix.S_IFCHR, unix.S_IFBLK:
			line += fmt.Sprintf(" %x", st.Rdev)
		}
		if first, ok := links[st.Ino]; ok && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			line += " = " + first
		} else {
			links[st.Ino] = rel
		}
		x, err := xattrs(p)
		if err != nil {
			return fmt.Errorf("reading the extended attributes of %s: %w", p, err)
		}
		out = append(out, line+x)
		return nil
	})
	return out, err
}

func readAll(path string) ([]byte, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var out []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := unix.Read(fd, buf)
		if err != nil || n == 0 {
			return out, err
		}
		out = append(out, buf[:n]...)
	}
}

func xattrs(path string) (string, error) {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		if err == unix.EOPNOTSUPP {
			err = nil
		}
		return "", err
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	out := ""
	value := make([]byte, 64<<10)
	for _, name := range names {
		// What the union remembers about a file shows only where something else reads its upper branch.
		if name == "" || strings.HasPrefix(name, "user.unionfs.") || strings.HasPrefix(name, "trusted.unionfs.") || strings.HasPrefix(name, "security.") {
			continue
		}
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		out += fmt.Sprintf(" %s=%q", name, value[:n])
	}
	return out, nil
}

// Missing lists the lines of a that b lacks.
func Missing(a, b []string) string {
	var out []string
	for _, x := range a {
		if !slices.Contains(b, x) {
			out = append(out, "  "+x)
		}
	}
	return strings.Join(out, "\n")
}
