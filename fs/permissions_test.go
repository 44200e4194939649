package fs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/fs"
	"unionfs/internal/modeltest"
)

const (
	otherUID = 12345
	otherGID = 12345
)

func init() {
	// do carries out one system call as whoever runs it.
	roles["do"] = func(args []string) error {
		path := args[1]
		switch args[0] {
		case "write", "append":
			f, err := os.OpenFile(path, os.O_RDWR|os.O_APPEND, 0)
			if err != nil {
				return err
			}
			_, err = f.WriteString("written")
			return errors.Join(err, f.Close())
		case "read":
			_, err := os.ReadFile(path)
			return err
		case "truncate":
			return os.Truncate(path, 1)
		case "fallocate":
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				return err
			}
			return errors.Join(unix.Fallocate(int(f.Fd()), 0, 0, 8192), f.Close())
		case "umount":
			return fs.Unmount(path, false)
		case "chown":
			gid, err := strconv.Atoi(args[2])
			if err != nil {
				return err
			}
			return os.Chown(path, -1, gid)
		case "create", "mkdir":
			umask, err := strconv.ParseUint(args[2], 8, 32)
			if err != nil {
				return err
			}
			unix.Umask(int(umask))
			if args[0] == "mkdir" {
				return unix.Mkdir(path, 0o777)
			}
			fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o666)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		case "tmpfile":
			umask, err := strconv.ParseUint(args[2], 8, 32)
			if err != nil {
				return err
			}
			unix.Umask(int(umask))
			fd, err := unix.Open(filepath.Dir(path), unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o666)
			if err != nil {
				return err
			}
			f := os.NewFile(uintptr(fd), path)
			return errors.Join(giveName(f, path), f.Close())
		}
		return fmt.Errorf("no such role: %v", args)
	}
}

// as runs one of the calls above as another user.
func as(t *testing.T, uid uint32, args ...string) error {
	t.Helper()
	cmd := roleCommand(t, "do", args...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s", out)
	}
	return nil
}

// TestPermissionsAreChecked holds that the kernel does: a server that is root could do everything.
func TestPermissionsAreChecked(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "secret", "x")
	b.inLower(t, "public", "x")
	if err := os.Chmod(filepath.Join(b.lower, "secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.mount(t, fs.Options{AllowOther: true})
	for _, c := range []struct {
		call []string
		ok   bool
	}{
		{[]string{"read", "public"}, true},
		{[]string{"read", "secret"}, false},
		{[]string{"write", "public"}, false},
		{[]string{"truncate", "public"}, false},
		{[]string{"create", "new", "022"}, false},
	} {
		args := append([]string{c.call[0], filepath.Join(b.mnt, c.call[1])}, c.call[2:]...)
		if err := as(t, otherUID, args...); (err == nil) != c.ok {
			t.Errorf("%v as another user: %v", c.call, err)
		}
	}
}

// TestWithoutAllowOther holds that nobody else gets in.
func TestWithoutAllowOther(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "public", "x")
	b.mount(t, fs.Options{})
	if err := as(t, otherUID, "read", filepath.Join(b.mnt, "public")); err == nil {
		t.Error("another user could read")
	}
}

// TestSetuidIsCleared has another user change setuid and setgid files: HANDLE_KILLPRIV_V2 leaves the clearing to the server.
func TestSetuidIsCleared(t *testing.T) {
	for _, o := range []fs.Options{{AllowOther: true}, {AllowOther: true, NoWriteback: true}} {
		b := newBranches(t)
		calls := []string{"write", "truncate", "fallocate"}
		for _, name := range calls {
			path := filepath.Join(b.lower, name)
			b.inLower(t, name, "some content")
			if err := unix.Chmod(path, 0o6777); err != nil {
				t.Fatal(err)
			}
		}
		b.mount(t, o)
		for _, name := range calls {
			path := filepath.Join(b.mnt, name)
			if mode := stat(t, path).Mode; mode&0o7777 != 0o6777 {
				t.Errorf("%s: mode %#o before", name, mode)
			}
			if err := as(t, otherUID, name, path); err != nil {
				t.Errorf("%s: %v", name, err)
			}
			if mode := stat(t, path).Mode; mode&0o7777 != 0o777 {
				t.Errorf("NoWriteback %v: mode %#o after %s by another user", o.NoWriteback, mode&0o7777, name)
			}
			if mode := stat(t, filepath.Join(b.lower, name)).Mode; mode&0o7777 != 0o6777 {
				t.Errorf("%s changed the lower branch", name)
			}
		}
	}
}

// TestChownClearsSetuid is about changes of owner, by root too; a directory keeps its setgid bit.
func TestChownClearsSetuid(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	b.inLower(t, "dir/x", "x")
	for _, name := range []string{"file", "dir"} {
		if err := unix.Chmod(filepath.Join(b.lower, name), 0o6755); err != nil {
			t.Fatal(err)
		}
	}
	b.mount(t, fs.Options{})
	for name, want := range map[string]uint32{"file": 0o755, "dir": 0o6755} {
		path := filepath.Join(b.mnt, name)
		if err := os.Chown(path, otherUID, otherGID); err != nil {
			t.Fatal(err)
		}
		st := stat(t, path)
		if st.Uid != otherUID || st.Gid != otherGID || st.Mode&0o7777 != want {
			t.Errorf("%s after chown: %d:%d, mode %#o", name, st.Uid, st.Gid, st.Mode&0o7777)
		}
	}
}

// sharedACL is u::rwx g::rwx o::r-x u:12345:rwx m::rwx, as setfacl -d makes it.
const sharedACL = "\x02\x00\x00\x00" +
	"\x01\x00\x07\x00\xff\xff\xff\xff" +
	"\x02\x00\x07\x00\x39\x30\x00\x00" +
	"\x04\x00\x07\x00\xff\xff\xff\xff" +
	"\x10\x00\x07\x00\xff\xff\xff\xff" +
	"\x20\x00\x05\x00\xff\xff\xff\xff"

// TestUmaskAndDefaultACL holds that the caller's umask counts, and that a default ACL takes its place; in a directory of the
// lower branch, and where a whiteout was.
func TestUmaskAndDefaultACL(t *testing.T) {
	b := newBranches(t)
	for _, dir := range []string{"plain", "shared"} {
		b.inLower(t, dir+"/gone", "")
		if err := unix.Chmod(filepath.Join(b.lower, dir), 0o777); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Setxattr(filepath.Join(b.lower, "shared"), "system.posix_acl_default", []byte(sharedACL), 0); err != nil {
		t.Fatal(err)
	}
	b.mount(t, fs.Options{AllowOther: true})
	for _, dir := range []string{"plain", "shared"} {
		if err := os.Remove(filepath.Join(b.mnt, dir, "gone")); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		call, path, umask string
		want              uint32
	}{
		{"create", "plain/new", "022", 0o644},
		{"create", "plain/gone", "077", 0o600},
		{"create", "plain/open", "0", 0o666},
		{"mkdir", "plain/dir", "027", 0o750},
		{"create", "shared/new", "077", 0o664},
		{"create", "shared/gone", "022", 0o664},
		{"mkdir", "shared/dir", "077", 0o775},
	} {
		path := filepath.Join(b.mnt, c.path)
		if err := as(t, 2000, c.call, path, c.umask); err != nil {
			t.Errorf("%v: %v", c, err)
			continue
		}
		st := stat(t, path)
		if st.Mode&0o7777 != c.want || st.Uid != 2000 {
			t.Errorf("%s %s with umask %s: mode %#o of user %d, want %#o", c.call, c.path, c.umask, st.Mode&0o7777,
				st.Uid, c.want)
		}
	}
	for path, want := range map[string]bool{"shared/new": true, "shared/gone": true, "shared/dir": true, "plain/new": false} {
		// The user that the ACL names gets in where the mode's other class (none, r-x) doesn't let him write.
		path = filepath.Join(b.mnt, path)
		call := []string{"write", path}
		if filepath.Base(path) == "dir" {
			call = []string{"create", filepath.Join(path, "in"), "022"}
		}
		if err := as(t, 12345, call...); (err == nil) != want {
			t.Errorf("%v by the user of the ACL: %v", call, err)
		}
	}
}

// TestACLIsEnforced sets an access ACL through the mount.
func TestACLIsEnforced(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	if err := unix.Chmod(filepath.Join(b.lower, "file"), 0o600); err != nil {
		t.Fatal(err)
	}
	b.mount(t, fs.Options{AllowOther: true})
	path := filepath.Join(b.mnt, "file")
	if err := as(t, 12345, "read", path); err == nil {
		t.Error("another user can read a file of mode 0600")
	}
	acl := []byte{2, 0, 0, 0,
		0x01, 0, 6, 0, 255, 255, 255, 255,
		0x02, 0, 4, 0, 0x39, 0x30, 0, 0,
		0x04, 0, 0, 0, 255, 255, 255, 255,
		0x10, 0, 4, 0, 255, 255, 255, 255,
		0x20, 0, 0, 0, 255, 255, 255, 255}
	if err := unix.Setxattr(path, "system.posix_acl_access", acl, 0); err != nil {
		t.Fatal(err)
	}
	if err := as(t, 12345, "read", path); err != nil {
		t.Errorf("the user that the ACL names can't read: %v", err)
	}
	if err := as(t, 12346, "read", path); err == nil {
		t.Error("a user that the ACL doesn't name can read")
	}
}

// TestXattrs goes through all calls, with sizes asked for first, as programs do.
func TestXattrs(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "x")
	path := filepath.Join(b.mnt, "file")
	if err := unix.Setxattr(filepath.Join(b.lower, "file"), "user.old", []byte("lower"), 0); err != nil {
		t.Fatal(err)
	}
	b.mount(t, fs.Options{})
	get := func(name string) string {
		size, err := unix.Getxattr(path, name, nil)
		if err != nil {
			return err.Error()
		}
		buf := make([]byte, size)
		if _, err := unix.Getxattr(path, name, buf); err != nil {
			return err.Error()
		}
		return string(buf)
	}
	if got := get("user.old"); got != "lower" {
		t.Errorf("user.old of the lower file: %q", got)
	}
	if err := unix.Setxattr(path, "user.new", []byte("value"), unix.XATTR_CREATE); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(path, "user.new", []byte("value"), unix.XATTR_CREATE); err != unix.EEXIST {
		t.Errorf("XATTR_CREATE of one that is there: %v", err)
	}
	if err := unix.Setxattr(path, "user.none", nil, unix.XATTR_REPLACE); err != unix.ENODATA {
		t.Errorf("XATTR_REPLACE of one that is not there: %v", err)
	}
	if get("user.new") != "value" || get("user.old") != "lower" {
		t.Errorf("after copy-up: user.new %q, user.old %q", get("user.new"), get("user.old"))
	}
	size, err := unix.Listxattr(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, size)
	if _, err := unix.Listxattr(path, buf); err != nil || !(string(buf) == "user.old\x00user.new\x00" ||
		string(buf) == "user.new\x00user.old\x00") {
		t.Errorf("list: %q, %v", buf, err)
	}
	if _, err := unix.Getxattr(path, "user.new", make([]byte, 2)); err != unix.ERANGE {
		t.Errorf("into two bytes: %v", err)
	}
	if err := unix.Removexattr(path, "user.new"); err != nil {
		t.Fatal(err)
	}
	if got := get("user.new"); got != unix.ENODATA.Error() {
		t.Errorf("after removal: %q", got)
	}
}

// TestBranchWithoutACLs has a lower branch on a file system that knows no extended attributes. The kernel asks for a file's
// ACL before it lets others in, and takes "not supported" for an error of the access.
func TestBranchWithoutACLs(t *testing.T) {
	b := newBranches(t)
	if err := unix.Mount("none", b.lower, "ramfs", 0, "mode=0755"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modeltest.Unmount(t, b.lower) })
	b.inLower(t, "dir/file", "x")
	b.mount(t, fs.Options{AllowOther: true})
	if err := as(t, otherUID, "read", filepath.Join(b.mnt, "dir/file")); err != nil {
		t.Errorf("reading as another user: %v", err)
	}
	write(t, filepath.Join(b.mnt, "dir/new"), "y")
	if err := as(t, otherUID, "read", filepath.Join(b.mnt, "dir/new")); err != nil {
		t.Errorf("reading a new file as another user: %v", err)
	}
	if _, err := unix.Getxattr(filepath.Join(b.mnt, "dir/file"), "user.x", nil); err != unix.EOPNOTSUPP && err != unix.ENODATA {
		t.Errorf("an xattr of a file that has none: %v", err)
	}
}
