package cow

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

func TestMain(m *testing.M) {
	unix.Umask(0)
	if v := os.Getenv(crashVar); v != "" {
		if err := crash(strings.SplitN(v, ":", 5)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// tree is a union under test beside a plain directory to which the same is done.
type tree struct {
	t     *testing.T
	lower []string
	upper string
	work  string
	u     *Union
	plain string
	rng   *rand.Rand
	fds   *Descriptors
	host  host
	meta  Metacopy
	later bool // no directory is read before somebody has to wait for that; see unread
}

// host is what the machine lets the union do.
type host int

const (
	privileged host = iota
	ordinary        // no trusted xattrs
	noDevices       // nor devices: whiteouts are files beside the name
	noMarks         // nor files that are called as those: whiteouts are marked by xattrs
	hosts
)

// newTree makes random lower directories, with whiteouts and opaque directories among them, and the plain directory that is
// their merge, made by the rules alone.
func newTree(t *testing.T, layers int, l modeltest.Layers) *tree {
	w := &tree{t: t, plain: t.TempDir(), upper: t.TempDir(), work: t.TempDir(), rng: l.Rand}
	unix.Chmod(w.plain, 0o755)
	for range layers {
		dir := t.TempDir()
		unix.Chmod(dir, 0o755)
		w.lower = append([]string{dir}, w.lower...)
		must(t, l.Fill(dir, w.plain, 3, len(w.lower) > 1))
	}
	w.open()
	return w
}

func (w *tree) open() {
	w.t.Helper()
	w.fds = NewDescriptors(64)
	o := Options{Upper: w.upper, Work: w.work, Descriptors: w.fds, Metacopy: w.meta}
	for _, l := range w.lower {
		b, err := OpenDirBranch(l, DirOptions{Descriptors: o.Descriptors})
		if err != nil {
			w.t.Fatal(err)
		}
		o.Lower = append(o.Lower, b)
	}
	unread(&o, w.later)
	u, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.u = u
	if w.host >= ordinary {
		u.upper.prefix = userPrefix
	}
	u.upper.noDevice.Store(w.host >= noDevices)
	u.upper.noFile.Store(w.host >= noMarks)
}

func (w *tree) close() {
	must(w.t, w.u.Close())
	w.fds.Close()
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// walk finds a path in the union; the node holds a reference.
func (w *tree) walk(path string) (*Node, Attr, error) {
	var a Attr
	n := w.u.Root()
	if err := w.u.Getattr(n, &a); err != nil {
		return nil, a, err
	}
	w.u.ref(n)
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		next, err := w.u.Lookup(n, name, &a)
		w.u.Forget(n, 1)
		if err != nil {
			return nil, a, err
		}
		n = next
	}
	return n, a, nil
}

// dump describes everything in the union.
func (w *tree) dump() []string {
	var out []string
	links := map[uint64]string{}
	var rec func(n *Node, path string)
	rec = func(n *Node, path string) {
		var ents []DirEnt
		after := uint64(0)
		for {
			got, err := w.u.ReadDir(n, after, make([]DirEnt, 0, 3))
			if err != nil {
				w.t.Fatalf("listing %s: %v", path, err)
			}
			if len(got) == 0 {
				break
			}
			ents = append(ents, got...)
			after = got[len(got)-1].Cookie
		}
		slices.SortFunc(ents, func(a, b DirEnt) int { return strings.Compare(a.Name, b.Name) })
		for _, e := range ents {
			p := path + "/" + e.Name
			var a Attr
			c, err := w.u.Lookup(n, e.Name, &a)
			if err != nil {
				w.t.Fatalf("%s is listed but: %v", p, err)
			}
			if a.Mode&unix.S_IFMT != e.Type || a.Ino != e.Ino {
				w.t.Fatalf("%s: listed as %o #%x, found as %o #%x", p, e.Type, e.Ino, a.Mode, a.Ino)
			}
			line := fmt.Sprintf("%s %o", p, a.Mode)
			switch e.Type {
			case unix.S_IFREG:
				buf := make([]byte, a.Size+10)
				m, err := w.u.Read(c, 0, buf)
				if err != nil {
					w.t.Fatalf("reading %s: %v", p, err)
				}
				line += fmt.Sprintf(" %d %x", m, checksum(buf[:m]))
				// The count of a lower file is its branch's, names that are hidden included, as in overlayfs.
				var st unix.Stat_t
				if a.Ino < 1<<inoBits && unix.Lstat(w.plain+p, &st) == nil && uint32(st.Nlink) != a.Nlink {
					w.t.Fatalf("%s has %d links, not %d", p, a.Nlink, st.Nlink)
				}
			case unix.S_IFLNK:
				target, err := w.u.Readlink(c)
				if err != nil {
					w.t.Fatalf("readlink %s: %v", p, err)
				}
				line += " -> " + target
			}
			if first, ok := links[a.Ino]; ok && e.Type != unix.S_IFDIR {
				line += " = " + first
			} else {
				links[a.Ino] = p
			}
			out = append(out, line)
			if e.Type == unix.S_IFDIR {
				rec(c, p)
			}
			w.u.Forget(c, 1)
		}
	}
	rec(w.u.Root(), "")
	return out
}

func checksum(b []byte) uint64 { return Cookie(string(b)) }

// dumpPlain describes everything in the plain directory in the same way.
func (w *tree) dumpPlain() []string {
	var out []string
	links := map[uint64]string{}
	must(w.t, filepath.WalkDir(w.plain, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == w.plain {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel := strings.TrimPrefix(p, w.plain)
		line := fmt.Sprintf("%s %o", rel, st.Mode)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			line += fmt.Sprintf(" %d %x", len(b), checksum(b))
		case unix.S_IFLNK:
			target, _ := os.Readlink(p)
			line += " -> " + target
		}
		if first, ok := links[st.Ino]; ok && !d.IsDir() {
			line += " = " + first
		} else {
			links[st.Ino] = rel
		}
		out = append(out, line)
		return nil
	}))
	return out
}

func (w *tree) compare(after string) {
	w.t.Helper()
	got, want := w.dump(), w.dumpPlain()
	// Hard links across branches are not the same file in the plain directory either; the order of names is the same,
	// since both walk a directory in the order of its names.
	if !slices.Equal(got, want) {
		w.t.Fatalf("after %s:\nunion has, the plain directory not:\n%s\nthe plain directory has, the union not:\n%s", after, modeltest.Missing(got, want), modeltest.Missing(want, got))
	}
}

// parent splits a path and finds its directory in the union.
func (w *tree) parent(path string) (*Node, string, error) {
	n, _, err := w.walk(filepath.Dir(path))
	if err == nil && !n.isDir() {
		w.u.Forget(n, 1)
		err = unix.ENOTDIR
	}
	return n, filepath.Base(path), err
}

// step does one random thing to both trees and reports what, and both results.
func (w *tree) step() (what string, got, want error) {
	u, o := w.u, Owner{uint32(os.Getuid()), uint32(os.Getgid())}
	path := modeltest.Path(w.rng)
	plain := w.plain + path
	var a Attr
	// in runs f with the union's directory of path.
	in := func(f func(dir *Node, name string) (*Node, error)) error {
		dir, name, err := w.parent(path)
		if err != nil {
			return err
		}
		defer u.Forget(dir, 1)
		n, err := f(dir, name)
		if n != nil {
			u.Forget(n, 1)
		}
		return err
	}
	on := func(f func(n *Node) error) error {
		n, _, err := w.walk(path)
		if err != nil {
			return err
		}
		defer u.Forget(n, 1)
		return f(n)
	}
	switch w.rng.IntN(16) {
	case 0:
		what = "create " + path
		got = in(func(d *Node, name string) (*Node, error) { return u.Create(d, name, 0o640, o, &a) })
		fd, err := unix.Open(plain, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW, 0o640)
		if want = err; err == nil {
			unix.Close(fd)
		}
	case 1:
		what = "mkdir " + path
		got = in(func(d *Node, name string) (*Node, error) { return u.Mkdir(d, name, 0o750, o, &a) })
		want = unix.Mkdir(plain, 0o750)
	case 2:
		what = "symlink " + path
		got = in(func(d *Node, name string) (*Node, error) { return u.Symlink(d, name, "target", o, &a) })
		want = unix.Symlink("target", plain)
	case 3, 4:
		what = "unlink " + path
		got = in(func(d *Node, name string) (*Node, error) { return nil, u.Unlink(d, name) })
		want = unix.Unlink(plain)
	case 5:
		what = "rmdir " + path
		got = in(func(d *Node, name string) (*Node, error) { return nil, u.Rmdir(d, name) })
		want = unix.Rmdir(plain)
	case 6, 7, 8:
		to := modeltest.Path(w.rng)
		var flags uint32
		switch w.rng.IntN(4) {
		case 0:
			flags = unix.RENAME_NOREPLACE
		case 1:
			flags = unix.RENAME_EXCHANGE
		}
		what = fmt.Sprintf("rename %s %s flags %d", path, to, flags)
		got = in(func(d *Node, name string) (*Node, error) {
			td, tn, err := w.parent(to)
			if err != nil {
				return nil, err
			}
			defer u.Forget(td, 1)
			return nil, u.Rename(d, name, td, tn, flags)
		})
		want = unix.Renameat2(unix.AT_FDCWD, plain, unix.AT_FDCWD, w.plain+to, uint(flags))
	case 9:
		to := modeltest.Path(w.rng)
		what = "link " + path + " " + to
		got = on(func(n *Node) error {
			td, tn, err := w.parent(to)
			if err != nil {
				return err
			}
			defer u.Forget(td, 1)
			if err := u.Link(n, td, tn, &a); err != nil {
				return err
			}
			u.Forget(n, 1)
			return nil
		})
		want = unix.Link(plain, w.plain+to)
	case 10, 11:
		data, off := modeltest.Data(w.rng), int64(w.rng.IntN(30000))
		what = fmt.Sprintf("write %s %d at %d", path, len(data), off)
		got = on(func(n *Node) error {
			if !n.regular() {
				return unix.EINVAL
			}
			_, err := u.Write(n, off, data)
			return err
		})
		fd, err := unix.Open(plain, unix.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			want = err
			break
		}
		_, want = unix.Pwrite(fd, data, off)
		unix.Close(fd)
	case 12:
		size := int64(w.rng.IntN(30000))
		what = fmt.Sprintf("chmod and truncate %s to %d", path, size)
		mode := uint32(0o600 | w.rng.IntN(0o100))
		got = on(func(n *Node) error {
			if !n.regular() {
				return unix.EINVAL
			}
			return u.Setattr(n, &SetAttr{Valid: SetMode | SetSize, Mode: mode, Size: uint64(size)}, &a)
		})
		fd, err := unix.Open(plain, unix.O_WRONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			want = err
			break
		}
		want = errors.Join(unix.Ftruncate(fd, size), unix.Fchmod(fd, mode))
		unix.Close(fd)
	case 13:
		what = "make a file without a name and name it " + path
		got = in(func(d *Node, name string) (*Node, error) {
			n, err := u.Tmpfile(d, 0o604, o, &a)
			if err != nil {
				return nil, err
			}
			defer u.Forget(n, 1)
			if a.Nlink != 0 {
				w.t.Fatalf("%d links of a file without a name", a.Nlink)
			}
			if _, err := u.Write(n, 0, []byte("named later")); err != nil {
				return nil, err
			}
			if err := u.Link(n, d, name, &a); err != nil {
				return nil, err
			}
			return n, nil
		})
		fd, err := unix.Open(w.plain, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o604)
		must(w.t, err)
		_, err = unix.Write(fd, []byte("named later"))
		must(w.t, err)
		want = unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, plain, unix.AT_SYMLINK_FOLLOW)
		unix.Close(fd)
	default:
		what = "chmod " + path
		mode := uint32(0o600 | w.rng.IntN(0o100))
		got = on(func(n *Node) error {
			if n.kind == unix.S_IFLNK {
				return unix.EOPNOTSUPP
			}
			return u.Setattr(n, &SetAttr{Valid: SetMode, Mode: mode}, &a)
		})
		var st unix.Stat_t
		if want = unix.Lstat(plain, &st); want == nil && st.Mode&unix.S_IFMT == unix.S_IFLNK {
			want = unix.EOPNOTSUPP
		} else if want == nil {
			want = unix.Chmod(plain, mode)
		}
	}
	return what, got, want
}

// TestModel does thousands of random operations to unions and to plain directories, and compares results and trees.
func TestModel(t *testing.T) {
	rng := modeltest.NewRand(t)
	for round := range 30 {
		t.Run(fmt.Sprint(round), func(t *testing.T) {
			w := newTree(t, 1+rng.IntN(4), modeltest.Layers{Rand: rng})
			w.close()
			w.host = host(round) % hosts
			w.meta = Metacopy(round) % (MetacopyOff + 1)
			w.later = round/12%2 == 1 // with each host and metacopy once
			w.open()
			defer func() { w.close() }()
			lower := snapshot(t, w.lower)
			w.compare("opening")
			var log []string
			for i := range 150 {
				what, got, want := w.step()
				log = append(log, fmt.Sprintf("%s: %v / %v", what, got, want))
				if (got == nil) != (want == nil) {
					t.Fatalf("%s: the union says %v, the plain directory %v\n%s", what, got, want, strings.Join(log, "\n"))
				}
				if got == nil || i%10 == 0 {
					if a, b := w.dump(), w.dumpPlain(); !slices.Equal(a, b) {
						t.Fatalf("history:\n%s\nunion only:\n%s\nplain only:\n%s", strings.Join(log, "\n"), modeltest.Missing(a, b), modeltest.Missing(b, a))
					}
				}
				if rng.IntN(40) == 0 {
					// Another start sees the same, from what is on disk alone.
					w.close()
					w.open()
					log = append(log, "restart")
					if a, b := w.dump(), w.dumpPlain(); !slices.Equal(a, b) {
						t.Fatalf("after a restart:\n%s\nunion only:\n%s\nplain only:\n%s", strings.Join(log, "\n"), modeltest.Missing(a, b), modeltest.Missing(b, a))
					}
				}
			}
			w.u.stopReading() // which holds what it reads
			if n := w.live(); n != 1 {
				t.Errorf("%d nodes are held after everything was forgotten, not just the root", n)
			}
			if after := snapshot(t, w.lower); !slices.Equal(lower, after) {
				t.Errorf("lower branches changed:\n%s", modeltest.Missing(after, lower))
			}
		})
	}
}

func (w *tree) live() int {
	n := 0
	for i := range w.u.shards {
		n += len(w.u.shards[i].nodes) + len(w.u.shards[i].thin)
	}
	return n
}

// snapshot describes lower branches, times included.
func snapshot(t *testing.T, dirs []string) []string {
	var out []string
	for _, dir := range dirs {
		must(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			var st unix.Stat_t
			if err := unix.Lstat(p, &st); err != nil {
				return err
			}
			line := fmt.Sprintf("%s %o %d %d %v %v", p, st.Mode, st.Nlink, st.Size, st.Mtim, st.Ctim)
			if d.Type().IsRegular() {
				b, err := os.ReadFile(p)
				if err != nil {
					return err
				}
				line += fmt.Sprintf(" %x", checksum(b))
			}
			out = append(out, line)
			return nil
		}))
	}
	return out
}
