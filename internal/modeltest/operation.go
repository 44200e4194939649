package modeltest

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"github.com/cespare/xxhash/v2"
	"golang.org/x/sys/unix"
)

// slots is how many descriptors a player holds open.
const slots = 6

// Operation is something that can be done to a tree by system calls.
type Operation struct {
	What string // for people
	do   func(p *Player) (result string, err error)
}

// Player does operations to one tree, and holds files of it open.
type Player struct {
	Root string
	fds  [slots]int
}

// NewPlayer returns a player on the tree at root. It is used by one goroutine.
func NewPlayer(root string) *Player {
	p := &Player{Root: root}
	for i := range p.fds {
		p.fds[i] = -1
	}
	return p
}

// Close closes what the player holds open.
func (p *Player) Close() {
	for i := range p.fds {
		p.close(i)
	}
}

func (p *Player) close(i int) error {
	fd := p.fds[i]
	p.fds[i] = -1
	return unix.Close(fd)
}

// Do does the operation. What it returns must be the same on every tree that is the same.
func (p *Player) Do(o Operation) (string, error) { return o.do(p) }

// Random returns a random operation on paths of [Path].
func Random(rng *rand.Rand) Operation {
	switch rng.IntN(22) {
	case 0, 1, 2, 3:
		return randomNew(rng)
	case 4, 5:
		path := Path(rng)
		return simple("unlink "+path, func(root string) error { return unix.Unlink(root + path) })
	case 6:
		path := Path(rng)
		return simple("rmdir "+path, func(root string) error { return unix.Rmdir(root + path) })
	case 7, 8, 9:
		return randomRename(rng)
	case 10:
		path, to := Path(rng), Path(rng)
		return simple("link "+path+" "+to, func(root string) error { return unix.Link(root+path, root+to) })
	case 11, 12:
		path := Path(rng)
		data, off := Data(rng), int64(rng.IntN(30000))
		return opened(fmt.Sprintf("write %s %d at %d", path, len(data), off), path, unix.O_WRONLY, func(fd int) error {
			_, err := unix.Pwrite(fd, data, off)
			return err
		})
	case 13:
		path, size := Path(rng), int64(rng.IntN(30000))
		return opened(fmt.Sprintf("truncate %s to %d", path, size), path, unix.O_WRONLY, func(fd int) error { return unix.Ftruncate(fd, size) })
	case 14, 15:
		return randomMetadata(rng)
	default:
		return randomHeld(rng)
	}
}

// simple is an operation that has no result but its error.
func simple(what string, f func(root string) error) Operation {
	return Operation{what, func(p *Player) (string, error) { return "", f(p.Root) }}
}

// opened is an operation on a regular file that is opened for it.
func opened(what, path string, flags int, f func(fd int) error) Operation {
	return simple(what, func(root string) error {
		fd, err := unix.Open(root+path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return f(fd)
	})
}

func randomNew(rng *rand.Rand) Operation {
	path := Path(rng)
	switch rng.IntN(5) {
	case 0, 1:
		return simple("create "+path, func(root string) error {
			fd, err := unix.Open(root+path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o640)
			if err == nil {
				err = unix.Close(fd)
			}
			return err
		})
	case 2, 3:
		return simple("mkdir "+path, func(root string) error { return unix.Mkdir(root+path, 0o750) })
	default:
		return simple("symlink "+path, func(root string) error { return unix.Symlink("target", root+path) })
	}
}

func randomRename(rng *rand.Rand) Operation {
	path, to := Path(rng), Path(rng)
	var flags uint
	switch rng.IntN(4) {
	case 0:
		flags = unix.RENAME_NOREPLACE
	case 1:
		flags = unix.RENAME_EXCHANGE
	}
	return simple(fmt.Sprintf("rename %s %s flags %d", path, to, flags), func(root string) error {
		return unix.Renameat2(unix.AT_FDCWD, root+path, unix.AT_FDCWD, root+to, flags)
	})
}

func randomMetadata(rng *rand.Rand) Operation {
	path := Path(rng)
	switch rng.IntN(5) {
	case 0:
		mode := uint32(0o700 | rng.IntN(0o100))
		return simple(fmt.Sprintf("chmod %s %o", path, mode), func(root string) error {
			return unix.Fchmodat(unix.AT_FDCWD, root+path, mode, 0)
		})
	case 1:
		id := rng.IntN(3)
		return simple(fmt.Sprintf("chown %s %d", path, id), func(root string) error { return unix.Lchown(root+path, id, id) })
	case 2:
		at := unix.Timespec{Sec: int64(rng.IntN(1 << 30)), Nsec: int64(rng.IntN(1e9))}
		return simple("set times of "+path, func(root string) error {
			return unix.UtimesNanoAt(unix.AT_FDCWD, root+path, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
		})
	case 3:
		name, value := xattrName(rng), []byte{byte('a' + rng.IntN(26))}
		return simple("setxattr "+path+" "+name, func(root string) error { return unix.Lsetxattr(root+path, name, value, 0) })
	default:
		name := xattrName(rng)
		return simple("removexattr "+path+" "+name, func(root string) error { return unix.Lremovexattr(root+path, name) })
	}
}

// xattrName may be one that a union keeps under another name on disk.
func xattrName(rng *rand.Rand) string {
	return []string{"user.one", "user.two", "trusted.one", "trusted.overlay.mine"}[rng.IntN(4)]
}

// randomHeld is an operation on a file that is held open, perhaps since before it was copied up, renamed or removed.
func randomHeld(rng *rand.Rand) Operation {
	i := rng.IntN(slots)
	held := func(what string, f func(fd int) (string, error)) Operation {
		return Operation{fmt.Sprintf("descriptor %d: %s", i, what), func(p *Player) (string, error) { return f(p.fds[i]) }}
	}
	kind := rng.IntN(10)
	switch kind {
	case 0, 1, 2, 3:
		path, flags := Path(rng), []int{unix.O_RDONLY, unix.O_RDWR, unix.O_RDWR | unix.O_APPEND}[rng.IntN(3)]
		if kind == 3 {
			flags = unix.O_RDWR | unix.O_TMPFILE
		}
		return Operation{fmt.Sprintf("descriptor %d: open %s %#x", i, path, flags), func(p *Player) (string, error) {
			fd, err := unix.Open(p.Root+path, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o620)
			if err != nil {
				return "", err
			}
			if p.fds[i] >= 0 {
				p.close(i)
			}
			p.fds[i] = fd
			return "", nil
		}}
	case 4, 5:
		off := int64(rng.IntN(20000))
		return held(fmt.Sprintf("read at %d", off), func(fd int) (string, error) {
			buf := make([]byte, 5000)
			n, err := unix.Pread(fd, buf, off)
			return fmt.Sprintf("%d %x", n, xxhash.Sum64(buf[:max(n, 0)])), err
		})
	case 6:
		data, off := Data(rng), int64(rng.IntN(20000))
		return held(fmt.Sprintf("write %d at %d", len(data), off), func(fd int) (string, error) {
			n, err := unix.Pwrite(fd, data, off)
			return fmt.Sprint(n), err
		})
	case 7:
		to := Path(rng)
		return Operation{fmt.Sprintf("descriptor %d: link to %s", i, to), func(p *Player) (string, error) {
			from := fmt.Sprintf("/proc/self/fd/%d", p.fds[i])
			return "", unix.Linkat(unix.AT_FDCWD, from, unix.AT_FDCWD, p.Root+to, unix.AT_SYMLINK_FOLLOW)
		}}
	case 8:
		return held("fstat", func(fd int) (string, error) {
			var st unix.Stat_t
			err := unix.Fstat(fd, &st)
			if st.Mode&unix.S_IFMT != unix.S_IFREG {
				st.Size = 0
			}
			return fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Size), err
		})
	default:
		size := int64(rng.IntN(20000))
		return held(fmt.Sprintf("truncate to %d and sync", size), func(fd int) (string, error) {
			if err := unix.Ftruncate(fd, size); err != nil {
				return "", err
			}
			return "", unix.Fsync(fd)
		})
	}
}

// Whole is a random operation that a crash can't divide on a file system that is itself whole: it holds nothing open and writes
// no more than the kernel does in one piece.
func Whole(rng *rand.Rand) Operation {
	for {
		if rng.IntN(4) == 0 {
			path, data, off := Path(rng), []byte("written"), int64(rng.IntN(6))*4096
			return opened(fmt.Sprintf("write %s %d at %d", path, len(data), off), path, unix.O_WRONLY, func(fd int) error {
				_, err := unix.Pwrite(fd, data, off)
				return err
			})
		}
		o := Random(rng)
		if !strings.HasPrefix(o.What, "write ") && !strings.HasPrefix(o.What, "descriptor ") {
			return o
		}
	}
}

// Nothing is an operation that does nothing.
func Nothing() Operation { return simple("nothing", func(string) error { return nil }) }
