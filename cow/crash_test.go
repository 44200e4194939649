package cow

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// crashVar makes the test binary carry out one of crashCases and kill itself before one of its system calls: its value is
// NAME:CALL:LOWER:UPPER:WORK.
const crashVar = "UNIONFS_CRASH_TEST"

// paths does things to a union by path. The first error stays.
type paths struct {
	u   *Union
	err error
}

// at calls f with a node.
func (p *paths) at(name string, f func(n *Node) error) {
	if p.err != nil {
		return
	}
	w := &tree{u: p.u}
	n, _, err := w.walk(name)
	if err == nil {
		err = f(n)
		p.u.Forget(n, 1)
	}
	if err != nil {
		p.err = fmt.Errorf("%s: %w", name, err)
	}
}

// in calls f with the directory that a name is in.
func (p *paths) in(name string, f func(dir *Node, base string) error) {
	p.at(path.Dir(name), func(dir *Node) error { return f(dir, path.Base(name)) })
}

func (p *paths) chmod(name string) {
	p.at(name, func(n *Node) error { return p.u.Setattr(n, &SetAttr{Valid: SetMode, Mode: 0o711}, &Attr{}) })
}

func (p *paths) truncate(name string, size uint64) {
	p.at(name, func(n *Node) error { return p.u.Setattr(n, &SetAttr{Valid: SetSize, Size: size}, &Attr{}) })
}

func (p *paths) write(name string) {
	p.at(name, func(n *Node) error { _, err := p.u.Write(n, 3, []byte("written")); return err })
}

func (p *paths) setxattr(name string) {
	p.at(name, func(n *Node) error { return p.u.Setxattr(n, "user.mine", []byte("x"), 0) })
}

func (p *paths) unlink(name string) {
	p.in(name, func(dir *Node, base string) error { return p.u.Unlink(dir, base) })
}

func (p *paths) rmdir(name string) {
	p.in(name, func(dir *Node, base string) error { return p.u.Rmdir(dir, base) })
}

func (p *paths) mkdir(name string) {
	p.in(name, func(dir *Node, base string) error {
		n, err := p.u.Mkdir(dir, base, 0o755, Owner{}, &Attr{})
		p.u.Forget(n, 1)
		return err
	})
}

func (p *paths) create(name string) {
	p.in(name, func(dir *Node, base string) error {
		n, err := p.u.Create(dir, base, 0o644, Owner{}, &Attr{})
		p.u.Forget(n, 1)
		return err
	})
}

func (p *paths) link(name, to string) {
	p.at(name, func(n *Node) error {
		p.in(to, func(dir *Node, base string) error {
			err := p.u.Link(n, dir, base, &Attr{})
			if err == nil {
				p.u.Forget(n, 1)
			}
			return err
		})
		return p.err
	})
}

// tmpfile makes a file without a name, and gives it one.
func (p *paths) tmpfile(name string) {
	p.in(name, func(dir *Node, base string) error {
		n, err := p.u.Tmpfile(dir, 0o644, Owner{}, &Attr{})
		if err != nil {
			return err
		}
		if err = p.u.Link(n, dir, base, &Attr{}); err == nil {
			p.u.Forget(n, 1)
		}
		p.u.Forget(n, 1)
		return err
	})
}

func (p *paths) rename(name, to string, flags uint32) {
	p.in(name, func(from *Node, old string) error {
		p.in(to, func(dir *Node, base string) error { return p.u.Rename(from, old, dir, base, flags) })
		return p.err
	})
}

// crashCases are what is interrupted: each at every system call by which it changes something on the host. Before before, nothing is.
var crashCases = []struct {
	name       string
	before, do func(p *paths)
}{
	{"chmod", nil, func(p *paths) { p.chmod("/dir/file") }},
	{"setxattr", nil, func(p *paths) { p.setxattr("/dir/file") }},
	{"chmod of one of two names", nil, func(p *paths) { p.chmod("/linked") }},
	{"chmod of a directory", nil, func(p *paths) { p.chmod("/dir/sub") }},
	{"chmod of a FIFO", nil, func(p *paths) { p.chmod("/dir/fifo") }},
	{"write", nil, func(p *paths) { p.write("/dir/file") }},
	{"write after chmod", func(p *paths) { p.chmod("/dir/file") }, func(p *paths) { p.write("/dir/file") }},
	{"write by one of two names", nil, func(p *paths) { p.write("/dir/linked") }},
	{"write into a large file", nil, func(p *paths) { p.write("/large") }},
	{"write into a large file after chmod", func(p *paths) { p.chmod("/large") }, func(p *paths) { p.write("/large") }},
	{"truncate", nil, func(p *paths) { p.truncate("/dir/file", 7) }},
	{"truncate after chmod", func(p *paths) { p.chmod("/dir/file") }, func(p *paths) { p.truncate("/dir/file", 7) }},
	{"truncate a large file after chmod", func(p *paths) { p.chmod("/large") }, func(p *paths) { p.truncate("/large", partialMin+5) }},
	{"create", nil, func(p *paths) { p.create("/dir/new") }},
	{"create over a whiteout", func(p *paths) { p.unlink("/dir/file") }, func(p *paths) { p.create("/dir/file") }},
	{"mkdir over a whiteout", func(p *paths) { p.unlink("/dir/sub/x"); p.rmdir("/dir/sub") }, func(p *paths) { p.mkdir("/dir/sub") }},
	{"unlink", nil, func(p *paths) { p.unlink("/dir/file") }},
	{"unlink of a symbolic link", nil, func(p *paths) { p.unlink("/symlink") }},
	{"unlink after chmod", func(p *paths) { p.chmod("/dir/file") }, func(p *paths) { p.unlink("/dir/file") }},
	{"unlink of one of two names", func(p *paths) { p.write("/linked") }, func(p *paths) { p.unlink("/linked") }},
	{"unlink of a new file", func(p *paths) { p.create("/new") }, func(p *paths) { p.unlink("/new") }},
	{"rmdir", func(p *paths) { p.unlink("/dir/sub/x") }, func(p *paths) { p.rmdir("/dir/sub") }},
	{"link", nil, func(p *paths) { p.link("/dir/file", "/further") }},
	{"link of one of two names", nil, func(p *paths) { p.link("/linked", "/dir/further") }},
	{"link over a whiteout", func(p *paths) { p.unlink("/linked") }, func(p *paths) { p.link("/dir/file", "/linked") }},
	{"name for a file without one", nil, func(p *paths) { p.tmpfile("/dir/sub/named") }},
	{"name for a file without one over a whiteout", func(p *paths) { p.unlink("/linked") }, func(p *paths) { p.tmpfile("/linked") }},
	{"rename", nil, func(p *paths) { p.rename("/dir/file", "/moved", 0) }},
	{"rename of a new file", func(p *paths) { p.create("/new") }, func(p *paths) { p.rename("/new", "/dir/newer", 0) }},
	{"rename after chmod", func(p *paths) { p.chmod("/dir/file") }, func(p *paths) { p.rename("/dir/file", "/moved", 0) }},
	{"rename over a lower file", nil, func(p *paths) { p.rename("/dir/file", "/symlink", 0) }},
	{"rename over an upper file", func(p *paths) { p.write("/linked") }, func(p *paths) { p.rename("/dir/file", "/linked", 0) }},
	{"rename of one of two names", nil, func(p *paths) { p.rename("/linked", "/dir/moved", 0) }},
	{"rename of a directory", nil, func(p *paths) { p.rename("/dir", "/moved", 0) }},
	{"rename of a directory over a whiteout", func(p *paths) { p.unlink("/symlink") }, func(p *paths) { p.rename("/dir", "/symlink", 0) }},
	{"rename of a directory over an empty one", func(p *paths) { p.unlink("/dir/sub/x"); p.mkdir("/new") },
		func(p *paths) { p.rename("/new", "/dir/sub", 0) }},
	{"exchange", nil, func(p *paths) { p.rename("/dir/file", "/linked", unix.RENAME_EXCHANGE) }},
	{"exchange of a directory and a file", nil, func(p *paths) { p.rename("/dir/sub", "/symlink", unix.RENAME_EXCHANGE) }},
	{"closing", func(p *paths) {
		p.chmod("/dir/file")
		p.chmod("/linked")
		p.rename("/dir/file", "/moved", 0)
		p.write("/large")
	}, func(p *paths) { p.err = errors.Join(p.err, p.u.Close()) }},
}

// crash carries out a case and kills the process before the system call of the given number, which is counted from when the case's
// own part begins.
func crash(args []string) error {
	call, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	lower, err := OpenDirBranch(args[2], DirOptions{})
	if err != nil {
		return err
	}
	u, err := New(Options{Lower: []Branch{lower}, Upper: args[3], Work: args[4]})
	if err != nil {
		return err
	}
	// Nothing is completed in the background: what is interrupted shall be the same every time.
	u.partials.stop, u.partials.done, u.partials.pending = make(chan struct{}), make(chan struct{}), make(chan *partial, partialMax)
	close(u.partials.done)
	for _, c := range crashCases {
		if c.name != args[0] {
			continue
		}
		p := &paths{u: u}
		if c.before != nil {
			c.before(p)
		}
		if err := killBefore(call); err != nil {
			return err
		}
		c.do(p)
		return p.err
	}
	return errors.New("no such case")
}

// killBefore has the kernel tell of every system call from now on that changes something on the host, and kills the process
// instead of letting it make the one of the given number: seccomp_unotify(2), with this process as its own supervisor.
func killBefore(call int) error {
	const (
		listen   = 8 | 1 | 16 // SECCOMP_FILTER_FLAG_NEW_LISTENER, _TSYNC and _TSYNC_ESRCH
		notify   = 0x7fc00000 // SECCOMP_RET_USER_NOTIF
		allow    = 0x7fff0000
		receive  = 0xc0502100 // SECCOMP_IOCTL_NOTIF_RECV
		send     = 0xc0182101 // SECCOMP_IOCTL_NOTIF_SEND
		goOn     = 1          // SECCOMP_USER_NOTIF_FLAG_CONTINUE
		flagsArg = 16 + 2*8   // where struct seccomp_data has openat's flags
	)
	calls := []uint32{unix.SYS_MKDIRAT, unix.SYS_MKNODAT, unix.SYS_SYMLINKAT, unix.SYS_LINKAT, unix.SYS_UNLINKAT, unix.SYS_RENAMEAT,
		unix.SYS_RENAMEAT2, unix.SYS_FCHMODAT, unix.SYS_FCHOWNAT, unix.SYS_UTIMENSAT, unix.SYS_SETXATTRAT, unix.SYS_REMOVEXATTRAT,
		unix.SYS_FTRUNCATE, unix.SYS_PWRITE64, unix.SYS_FALLOCATE, unix.SYS_COPY_FILE_RANGE}
	load := func(off uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
	}
	jump := func(how uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | how, K: k, Jt: yes, Jf: no}
	}
	filter := []unix.SockFilter{load(0)}
	for i, nr := range calls {
		filter = append(filter, jump(unix.BPF_JEQ, nr, uint8(len(calls)-i-1+3), 0))
	}
	filter = append(filter,
		jump(unix.BPF_JEQ, unix.SYS_OPENAT, 0, 3),
		load(flagsArg),
		jump(unix.BPF_JSET, unix.O_CREAT, 0, 1),
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: notify},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: allow})
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, 1, listen, uintptr(unsafe.Pointer(&program)))
	if errno != 0 {
		return errno
	}
	go func() {
		for n := 1; ; n++ {
			var request [80]byte // struct seccomp_notif
			if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, receive, uintptr(unsafe.Pointer(&request))); errno != 0 {
				n-- // whoever made the call was interrupted by a signal of the Go runtime's, and makes it again
				continue
			}
			if n == call {
				unix.Kill(os.Getpid(), unix.SIGKILL)
			}
			var answer struct {
				id    [8]byte
				val   int64
				error int32
				flags uint32
			}
			copy(answer.id[:], request[:8])
			answer.flags = goOn
			unix.Syscall(unix.SYS_IOCTL, fd, send, uintptr(unsafe.Pointer(&answer)))
		}
	}()
	return nil
}

// newCrashTree makes the branches that the cases are about.
func newCrashTree(t *testing.T, base string) *tree {
	w := &tree{t: t, lower: []string{base + "/lower"}, upper: base + "/upper", work: base + "/work", plain: base + "/none"}
	for _, d := range []string{"/lower/dir/sub", "/upper", "/work"} {
		must(t, os.MkdirAll(base+d, 0o755))
	}
	lower := w.lower[0]
	content := strings.Repeat("content of the lower file ", 200)
	for _, p := range []string{"/dir/file", "/dir/sub/x", "/linked"} {
		must(t, os.WriteFile(lower+p, []byte(p+content), 0o644))
	}
	must(t, os.Link(lower+"/linked", lower+"/dir/linked"))
	must(t, os.Symlink("target", lower+"/symlink"))
	must(t, unix.Mkfifo(lower+"/dir/fifo", 0o644))
	must(t, os.WriteFile(lower+"/large", nil, 0o644))
	must(t, os.Truncate(lower+"/large", partialMin+3*partialBlock))
	return w
}

// run carries out a case in another process and reports whether it was killed.
func (w *tree) run(name string, call int) (killed bool) {
	w.t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s:%d:%s:%s:%s", crashVar, name, call, w.lower[0], w.upper, w.work), "GORACE=atexit_sleep_ms=0")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == unix.SIGKILL {
		return true
	}
	if err != nil || len(out) > 0 {
		w.t.Fatalf("%v\n%s", err, out)
	}
	return false
}

// look describes what a new union shows.
func (w *tree) look() []string {
	w.t.Helper()
	w.open()
	defer w.close()
	return w.dump()
}

var everyCall = flag.Bool("every-call", false, "let TestCrashAtEveryCall interrupt everything at every system call, not a random part at some")

// TestCrashAtEveryCall interrupts kinds of changes before their system calls, a random part of them in each run. The next union
// shows the tree as it was before or as it is after, and so does the kernel's overlayfs from what is in the upper branch
// then.
func TestCrashAtEveryCall(t *testing.T) {
	rng := modeltest.NewRand(t)
	for _, c := range crashCases {
		if !*everyCall && rng.IntN(3) > 0 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			base := t.TempDir()
			must(t, unix.Mount("none", base, "tmpfs", 0, "mode=0755"))
			defer modeltest.Unmount(t, base)
			whole := newCrashTree(t, base+"/whole")
			if whole.run(c.name, -1) {
				t.Fatal("killed by something else")
			}
			after := whole.look()
			fresh := newCrashTree(t, base+"/fresh")
			before := fresh.look()
			if c.before != nil {
				if !fresh.run(c.name, 1) {
					t.Fatal("no system call was met")
				}
				before = fresh.look()
			}
			step := func() int { return 1 + rng.IntN(3) }
			if *everyCall {
				step = func() int { return 1 }
			}
			for call := step(); ; call += step() {
				dir := filepath.Join(base, strconv.Itoa(call))
				w := newCrashTree(t, dir)
				killed := w.run(c.name, call)
				if !killed {
					break
				}
				finished := w.finished()
				var kernel []string
				if finished {
					kernel = w.lookByKernel()
				}
				got := w.look()
				if !slices.Equal(got, before) && !slices.Equal(got, after) {
					t.Fatalf("killed before call %d, more than before:\n%s\nless than before:\n%s\nmore than after:\n%s\nless than after:\n%s", call,
						modeltest.Missing(got, before), modeltest.Missing(before, got), modeltest.Missing(got, after), modeltest.Missing(after, got))
				}
				if again := w.look(); !slices.Equal(again, got) {
					t.Fatalf("killed before call %d, the second union has more:\n%s\nless:\n%s", call, modeltest.Missing(again, got), modeltest.Missing(got, again))
				}
				if want := w.lookByKernel(); finished && !slices.Equal(kernel, want) {
					t.Fatalf("killed before call %d, the kernel sees more:\n%s\nless:\n%s", call, modeltest.Missing(kernel, want), modeltest.Missing(want, kernel))
				}
				must(t, os.RemoveAll(dir))
			}
		})
	}
}

// finished reports whether the upper branch by itself is to show all that the union shows: hard links and copies by block are completed
// by the next union only.
func (w *tree) finished() bool {
	for _, d := range []string{"index", "partial"} {
		if entries, err := os.ReadDir(filepath.Join(w.work, d)); err != nil || len(entries) > 0 {
			return false
		}
	}
	return true
}

// lookByKernel describes what the kernel's overlayfs shows, without the inode numbers.
func (w *tree) lookByKernel() []string {
	w.t.Helper()
	mnt, unmount := w.mountKernel(false, "redirect_dir=follow", "metacopy=on")
	defer unmount()
	got, err := modeltest.Dump(mnt, false)
	must(w.t, err)
	return got
}
