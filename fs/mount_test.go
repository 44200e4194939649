package fs_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"unionfs/fs"
)

func TestMountErrors(t *testing.T) {
	b := newBranches(t)
	u, err := b.union(true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { u.Close() })
	file := filepath.Join(b.lower, "file")
	write(t, file, "")
	dangling := filepath.Join(b.lower, "dangling")
	symlink(t, "/nowhere", dangling)
	for _, c := range []struct{ target, want string }{
		{"/no/such/directory", "no such directory; make it first"},
		{file, "not a directory"},
		{dangling, "no such directory"},
	} {
		s, err := fs.Mount(u, c.target, fs.Options{})
		if err == nil {
			t.Errorf("%s: mounted", c.target)
			s.Unmount()
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), c.target) ||
			strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", c.target, err)
		}
	}
}

// TestMountTwice holds that a second union on the same directory is refused, and the first goes on.
func TestMountTwice(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	b.mount(t, fs.Options{})
	u, err := b.union(false)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := fs.Mount(u, b.mnt, fs.Options{}); err == nil || !strings.Contains(err.Error(), "mounted there already") {
		t.Errorf("mounting a second time: %v", err)
	}
	if got := read(t, filepath.Join(b.mnt, "file")); got != "x" {
		t.Errorf("read %q", got)
	}
}

func TestUnmountErrors(t *testing.T) {
	dir := publicDir(t)
	if err := unix.Mount("none", dir, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	for _, c := range []struct{ target, want string }{
		{"/no/such/directory", "no such file or directory"},
		{t.TempDir(), "nothing is mounted there"},
		{dir, "no union but tmpfs"},
	} {
		if err := fs.Unmount(c.target, false); err == nil || !strings.Contains(err.Error(), c.want) ||
			!strings.Contains(err.Error(), c.target) {
			t.Errorf("%s: %v", c.target, err)
		}
	}
}

// TestBusy unmounts while a file is open: an error, and lazily not. The server goes on until the file is closed.
func TestBusy(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "content")
	s := b.mount(t, fs.Options{})
	f := open(t, filepath.Join(b.mnt, "file"), os.O_RDONLY)
	if err := fs.Unmount(b.mnt, false); !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("unmounting while a file is open: %v", err)
	}
	if err := fs.Unmount(b.mnt, true); err != nil {
		t.Fatal(err)
	}
	if e, err := os.ReadDir(b.mnt); err != nil || len(e) != 0 {
		t.Errorf("after unmounting lazily: %v, %v", e, err)
	}
	buf := make([]byte, 7)
	if _, err := f.ReadAt(buf, 0); err != nil || string(buf) != "content" {
		t.Errorf("the open file: %q, %v", buf, err)
	}
	select {
	case <-s.Done():
		t.Error("the server has ended while a file is open")
	default:
	}
	f.Close()
	select {
	case <-s.Done():
	case <-time.After(2 * time.Minute):
		t.Error("the server goes on after the last file was closed")
	}
	if _, err := s.Device(); err == nil {
		t.Error("there is still a descriptor of the mount")
	}
}

// TestReadOnly is a union without an upper branch, and one that has it but is mounted read only.
func TestReadOnly(t *testing.T) {
	for _, writable := range []bool{false, true} {
		b := newBranches(t)
		b.inLower(t, "file", "x")
		b.inLower(t, "dir/file", "x")
		b.mountUnion(t, writable, fs.Options{ReadOnly: writable})
		path := func(name string) string { return filepath.Join(b.mnt, name) }
		for what, err := range map[string]error{
			"create": os.WriteFile(path("new"), nil, 0o644),
			"open for writing": func() error {
				_, err := os.OpenFile(path("file"), os.O_WRONLY, 0)
				return err
			}(),
			"truncate": os.Truncate(path("file"), 0),
			"chmod":    os.Chmod(path("file"), 0o600),
			"chown":    os.Chown(path("file"), 1, 1),
			"times":    os.Chtimes(path("file"), time.Now(), time.Now()),
			"unlink":   os.Remove(path("file")),
			"rmdir":    unix.Rmdir(path("dir")),
			"mkdir":    os.Mkdir(path("new"), 0o755),
			"symlink":  os.Symlink("x", path("new")),
			"link":     os.Link(path("file"), path("new")),
			"rename":   os.Rename(path("file"), path("new")),
			"mknod":    unix.Mknod(path("new"), unix.S_IFIFO|0o644, 0),
			"setxattr": unix.Setxattr(path("file"), "user.x", []byte("y"), 0),
		} {
			if !errors.Is(err, unix.EROFS) {
				t.Errorf("writable union %v: %s: %v", writable, what, err)
			}
		}
		if read(t, path("dir/file")) != "x" {
			t.Error("can't read")
		}
	}
}

func TestMountOptions(t *testing.T) {
	b := newBranches(t)
	b.mount(t, fs.Options{FsName: "a,b\\c d", NoSuid: true, NoDev: true, NoExec: true, NoAtime: true, AllowOther: true})
	infos, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(b.mnt))
	if err != nil || len(infos) != 1 {
		t.Fatalf("%d mounts, %v", len(infos), err)
	}
	m := infos[0]
	if m.FSType != "fuse.unionfs" || m.Source != "a,b\\c d" {
		t.Errorf("type %q, source %q", m.FSType, m.Source)
	}
	for _, opt := range []string{"nosuid", "nodev", "noexec", "noatime", "rw"} {
		if !strings.Contains(","+m.Options+",", ","+opt+",") {
			t.Errorf("option %s is not among %q", opt, m.Options)
		}
	}
	for _, opt := range []string{"default_permissions", "allow_other"} {
		if !strings.Contains(","+m.VFSOptions+",", ","+opt+",") {
			t.Errorf("option %s is not among %q", opt, m.VFSOptions)
		}
	}
	var st, up unix.Statfs_t
	if err := unix.Statfs(b.mnt, &st); err != nil {
		t.Fatal(err)
	}
	if err := unix.Statfs(b.upper, &up); err != nil {
		t.Fatal(err)
	}
	if st.Blocks != up.Blocks || st.Namelen != 255 || st.Bsize != up.Bsize {
		t.Errorf("statfs: %+v, of the upper branch: %+v", st, up)
	}
}

// TestDescriptorStaysHere holds that a child process doesn't get the FUSE descriptor: it would keep a dead mount alive.
func TestDescriptorStaysHere(t *testing.T) {
	b := newBranches(t)
	b.mount(t, fs.Options{})
	out, err := exec.Command("ls", "-l", "/proc/self/fd").Output()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), "/dev/fuse") {
		t.Errorf("a child process has the descriptor:\n%s", out)
	}
}

// TestDeadMount kills a server. The mount that it leaves says so, and can be taken away.
func TestDeadMount(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	srv := b.serve(t, nil)
	if got := read(t, filepath.Join(b.mnt, "file")); got != "x" {
		t.Errorf("read %q", got)
	}
	if err := srv.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	srv.Wait()
	u, err := b.union(false)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := fs.Mount(u, b.mnt, fs.Options{}); err == nil || !strings.Contains(err.Error(), "server is gone") {
		t.Errorf("mounting on the dead mount: %v", err)
	}
	if err := fs.Unmount(b.mnt, false); err != nil {
		t.Errorf("unmounting the dead mount: %v", err)
	}
	if _, err := os.ReadDir(b.mnt); err != nil {
		t.Error(err)
	}
}

// TestGivenDevice serves a descriptor that somebody else mounted.
func TestGivenDevice(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	dev, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	data := fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions", dev.Fd())
	if err := unix.Mount("given", b.mnt, "fuse.unionfs", 0, data); err != nil {
		t.Fatal(err)
	}
	s := b.mount(t, fs.Options{Device: dev})
	if got := read(t, filepath.Join(b.mnt, "file")); got != "x" {
		t.Errorf("read %q", got)
	}
	held, err := s.Device()
	if err != nil {
		t.Fatal(err)
	}
	held.Close()
}
