package fs_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/fs"
)

func init() {
	roles["serve"] = serve
	// hide makes a mount namespace in which something is missing, and starts the server in it as another user.
	roles["hide"] = func(args []string) error {
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		what, args := args[0], args[1:]
		uid := uint32(otherUID)
		var err error
		switch what {
		case "dev":
			uid = 0
			if err := unix.Mount("none", "/dev", "tmpfs", 0, ""); err != nil {
				return err
			}
			err = unix.Mknod("/dev/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3)))
		case "access":
			private := filepath.Join(filepath.Dir(args[0]), "private")
			if err := os.WriteFile(private, nil, 0o600); err != nil {
				return err
			}
			err = unix.Mount(private, "/dev/fuse", "", unix.MS_BIND, "")
		case "helper":
			err = unix.Mount("/dev/null", "/usr/bin/fusermount3", "", unix.MS_BIND, "")
		}
		if err != nil {
			return err
		}
		cmd := exec.Command("/proc/self/exe", args...)
		cmd.Env = append(os.Environ(), roleVar+"=serve")
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		return cmd.Run()
	}
}

// serve mounts a union of the directories that are the arguments, says so, runs the script that the last argument is, and
// unmounts it when standard input ends.
func serve(args []string) error {
	b := &branches{args[0], args[1], args[2], args[3]}
	u, err := b.union(true)
	if err != nil {
		return err
	}
	s, err := fs.Mount(u, b.mnt, fs.Options{})
	if err != nil {
		return err
	}
	fmt.Println("mounted")
	if len(args) > 4 {
		cmd := exec.Command("sh", "-c", args[4])
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		if err := cmd.Run(); err != nil {
			return errors.Join(err, s.Unmount())
		}
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	if err = errors.Join(err, s.Unmount()); err != nil {
		return err
	}
	s.Wait()
	return u.Close()
}

func (b *branches) args() []string { return []string{b.lower, b.upper, b.work, b.mnt} }

// serve starts another process that serves the union, and returns when it is mounted. It ends when its standard input is
// closed, which the end of the test does.
func (b *branches) serve(t *testing.T, attr *syscall.SysProcAttr) *exec.Cmd {
	t.Helper()
	cmd := roleCommand(t, "serve", b.args()...)
	if attr != nil {
		cmd.SysProcAttr = attr
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if cmd.ProcessState == nil {
			if err := cmd.Wait(); err != nil {
				t.Errorf("the server: %v", err)
				fs.Unmount(b.mnt, true)
			}
		}
	})
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "mounted\n" {
		t.Fatalf("the server says %q, %v", line, err)
	}
	return cmd
}

// namedUID is "nobody": fusermount3 mounts only for users whose name it finds.
const namedUID = 65534

// forUser gives the writable directories to another user and lets everybody open /dev/fuse, as it is on most machines.
func (b *branches) forUser(t *testing.T, uid int) {
	t.Helper()
	for _, d := range []string{b.upper, b.work, b.mnt} {
		if err := os.Chown(d, uid, uid); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod("/dev/fuse", 0o666); err != nil {
		t.Fatal(err)
	}
}

// TestOrdinaryUser mounts, uses and unmounts through fusermount3.
func TestOrdinaryUser(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "dir/file", "lower")
	b.inLower(t, "mine", "lower")
	if err := os.Chown(filepath.Join(b.lower, "mine"), namedUID, namedUID); err != nil {
		t.Fatal(err)
	}
	b.forUser(t, namedUID)
	user := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: namedUID, Gid: namedUID}}
	b.serve(t, user)
	for _, call := range [][]string{
		{"read", filepath.Join(b.mnt, "dir/file")},
		{"write", filepath.Join(b.mnt, "mine")},
		{"create", filepath.Join(b.mnt, "new"), "022"},
	} {
		if err := as(t, namedUID, call...); err != nil {
			t.Errorf("%v: %v", call, err)
		}
	}
	if err := as(t, namedUID, "write", filepath.Join(b.mnt, "dir/file")); err == nil {
		t.Error("the user could write to a file of root")
	}
	busy := exec.Command("sleep", "100")
	busy.Dir = b.mnt
	busy.SysProcAttr = &syscall.SysProcAttr{Credential: user.Credential, Pdeathsig: syscall.SIGKILL}
	if err := busy.Start(); err != nil {
		t.Fatal(err)
	}
	if err := as(t, namedUID, "umount", b.mnt); err == nil || !strings.Contains(err.Error(), "it is in use") {
		t.Errorf("unmounting while it is in use: %v", err)
	}
	if err := busy.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	busy.Wait()
	if err := as(t, namedUID, "umount", b.mnt); err != nil {
		t.Errorf("unmounting from another process: %v", err)
	}
	if got := read(t, filepath.Join(b.upper, "mine")); got != "lowerwritten" {
		t.Errorf("the upper branch has %q", got)
	}
	if st := stat(t, filepath.Join(b.upper, "new")); st.Uid != namedUID || st.Mode&0o7777 != 0o644 {
		t.Errorf("the new file has mode %#o and belongs to %d", st.Mode, st.Uid)
	}
}

// TestUserNamespace mounts as root of a user namespace with one ID, where no helper is needed.
func TestUserNamespace(t *testing.T) {
	b := newBranches(t)
	b.inLower(t, "file", "lower")
	b.forUser(t, otherUID)
	if err := os.Chown(filepath.Join(b.lower, "file"), otherUID, otherGID); err != nil {
		t.Fatal(err)
	}
	script := fmt.Sprintf("cd %s && cat file && echo && echo changed >file && echo x >new && chmod 4755 new && "+
		"mkdir d && mv new d && stat -c %%u:%%a file d/new && grep %s /proc/mounts | cut -d' ' -f3", b.mnt, b.mnt)
	cmd := roleCommand(t, "serve", append(b.args(), script)...)
	one := []syscall.SysProcIDMap{{ContainerID: 0, HostID: otherUID, Size: 1}}
	cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWUSER | syscall.CLONE_NEWNS
	cmd.SysProcAttr.UidMappings, cmd.SysProcAttr.GidMappings = one, one
	cmd.SysProcAttr.Credential = &syscall.Credential{NoSetGroups: true}
	out, err := cmd.CombinedOutput()
	if want := "mounted\nlower\n0:644\n0:4755\nfuse.unionfs\n"; err != nil || string(out) != want {
		t.Errorf("in the namespace: %q, %v; want %q", out, err, want)
	}
	if e, err := os.ReadDir(b.mnt); err != nil || len(e) != 0 {
		t.Errorf("the mount is visible outside its mount namespace: %v, %v", e, err)
	}
	if got := read(t, filepath.Join(b.upper, "file")); got != "changed\n" {
		t.Errorf("the upper branch has %q", got)
	}
	if st := stat(t, filepath.Join(b.upper, "d/new")); st.Uid != otherUID || st.Mode&0o7777 != 0o4755 {
		t.Errorf("the new file belongs to %d and has mode %#o", st.Uid, st.Mode)
	}
}

// TestMissingParts says in one line what is missing and how to get it.
func TestMissingParts(t *testing.T) {
	for what, want := range map[string]string{
		"dev":    "there is no /dev/fuse; load the kernel's FUSE with \"modprobe fuse\"",
		"access": "user 12345 may not open /dev/fuse; have an administrator run \"chmod 666 /dev/fuse\"",
		"helper": "there is no fusermount3, which mounts for those who are not root; install the package fuse3",
	} {
		b := newBranches(t)
		b.inLower(t, "file", "x")
		b.forUser(t, otherUID)
		cmd := roleCommand(t, "hide", append([]string{what}, b.args()...)...)
		cmd.SysProcAttr.Cloneflags = syscall.CLONE_NEWNS
		out, err := cmd.CombinedOutput()
		first, _, _ := strings.Cut(string(out), "\n")
		if err == nil || !strings.Contains(first, want) || !strings.Contains(first, "mounting on "+b.mnt) {
			t.Errorf("%s: %v: %s", what, err, out)
		}
	}
}

// TestHelperRefuses passes on what fusermount3 says.
func TestHelperRefuses(t *testing.T) {
	b := newBranches(t)
	b.forUser(t, namedUID)
	if err := os.Chown(b.mnt, 0, 0); err != nil {
		t.Fatal(err)
	}
	cmd := roleCommand(t, "serve", b.args()...)
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: namedUID, Gid: namedUID}
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "mounting on "+b.mnt+": fusermount3: user has no write access") ||
		strings.Count(string(out), "\n") != 1 {
		t.Errorf("%v: %s", err, out)
	}
}
