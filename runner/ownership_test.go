package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ownersAnnotation has the supervisor of the tests keep owners: one line for each call in the file "owners" of the container.
const ownersAnnotation = "test.owners"

func keepOwnersInLog(c *Container, hooks *Hooks) error {
	f, err := os.OpenFile(filepath.Join(c.Dir(), "owners"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	hooks.SetOwner = func(file uint64, uid, gid uint32) error {
		_, err := fmt.Fprintf(f, "owner %d %d:%d\n", file, int32(uid), int32(gid))
		return err
	}
	hooks.MakeDevice = func(dir uint64, name string, mode, rdev uint32) error {
		if name == "taken" {
			return fmt.Errorf("making %s: %w", name, unix.EEXIST)
		}
		_, err := fmt.Fprintf(f, "device %d %q %o %x\n", dir, name, mode, rdev)
		return err
	}
	return nil
}

// changeOwners is the verb test-owners.
func changeOwners([]string) (int, error) {
	errs := map[string]string{}
	do := func(name string, err error) {
		var errno unix.Errno
		switch {
		case err == nil:
			errs[name] = ""
		case errors.As(err, &errno):
			errs[name] = unix.ErrnoName(errno)
		}
	}
	fd, err := unix.Open("/tmp/file", unix.O_RDONLY, 0)
	if err != nil {
		return 1, err
	}
	dir, err := unix.Open("/tmp", unix.O_PATH, 0)
	if err != nil {
		return 1, err
	}
	if err := unix.Chdir("/tmp/dir"); err != nil {
		return 1, err
	}
	unix.Umask(0o027)
	do("chown", unix.Chown("/tmp/file", 1, 101))
	do("lchown", unix.Lchown("/tmp/link", 2, 102))
	do("through a link", unix.Chown("/tmp/link", 3, 103))
	do("fchown", unix.Fchown(fd, 4, 104))
	do("fchownat", unix.Fchownat(dir, "file", 5, 105, 0))
	do("fchownat of a link", unix.Fchownat(dir, "link", 6, 106, unix.AT_SYMLINK_NOFOLLOW))
	do("fchownat with no path", unix.Fchownat(fd, "", 7, 107, unix.AT_EMPTY_PATH))
	do("relative", unix.Chown("../file", 8, 108))
	do("beyond the root", unix.Chown("../../../../tmp/file", 9, 109))
	do("group only", unix.Chown("/tmp/file", -1, 110))
	do("to root", unix.Chown("/tmp/file", 0, 0))
	do("nothing", unix.Chown("/tmp/file", -1, -1))
	do("in memory", unix.Chown("/dev/shm", 33, 33))
	do("missing", unix.Chown("/tmp/missing", 33, 33))
	do("no path", unix.Chown("", 33, 33))
	do("too long", unix.Chown(strings.Repeat("x", 5000), 33, 33))
	do("not a directory", unix.Chown("/tmp/file/x", 33, 33))
	do("no descriptor", unix.Fchown(77, 33, 33))
	do("bad flags", unix.Fchownat(dir, "file", 33, 33, 1<<30))
	do("by a descriptor's path", unix.Chown(fmt.Sprintf("/proc/self/fd/%d", fd), 33, 33))
	_, _, errno := unix.Syscall(unix.SYS_FCHOWNAT, uintptr(dir), uintptr(unsafe.Pointer(nil))+8, 33)
	do("bad address", errno)

	do("device", unix.Mknod("/tmp/null", unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	do("relative device", unix.Mknodat(dir, "dir/disk\xff", unix.S_IFBLK|0o660, int(unix.Mkdev(8, 257))))
	do("taken device", unix.Mknod("taken", unix.S_IFCHR|0o666, 5))
	do("device in memory", unix.Mknod("/dev/shm/null", unix.S_IFCHR|0o666, 5))
	do("device nowhere", unix.Mknod("/missing/null", unix.S_IFCHR|0o666, 5))
	do("pipe", unix.Mknod("pipe", unix.S_IFIFO|0o600, 0))
	do("become another", unix.Setuid(33))
	do("and another group", errors.Join(unix.Setgroups([]int{33}), unix.Setresgid(33, 33, 33)))
	if unix.Getuid() != 0 || unix.Getgid() != 0 {
		do("still root", unix.EPERM)
	}

	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // which ends with this
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		do("without a capability", errors.Join(unix.Capget(&hdr, &data[0]), func() error {
			data[0].Effective &^= 1 << unix.CAP_CHOWN
			return unix.Capset(&hdr, &data[0])
		}(), unix.Chown("/tmp/file", 33, 33)))
	}()
	<-done
	var wait sync.WaitGroup
	for i := range 8 {
		wait.Go(func() {
			for j := range 20 {
				if err := unix.Fchown(fd, 1000+i, 1000+j); err != nil {
					do("many at once", err)
				}
			}
		})
	}
	wait.Wait()
	do("chroot", errors.Join(unix.Chroot("/tmp/dir"), unix.Chown("/within", 10, 200), unix.Chown("within", 11, 201)))
	return 0, json.NewEncoder(os.Stdout).Encode(errs)
}

// TestOwnership changes owners in all ways that the kernel knows, where there is one ID, and looks what is kept.
func TestOwnership(t *testing.T) {
	inWorlds(t, worlds()[2:], func(t *testing.T, w *ward) {
		tmp := func(name string) string { return filepath.Join(w.root, "tmp", name) }
		must(t, os.Mkdir(tmp("dir"), 0o755))
		must(t, os.WriteFile(tmp("file"), nil, 0o644))
		must(t, os.WriteFile(tmp("dir/within"), nil, 0o644))
		must(t, os.Symlink("/tmp/file", tmp("link")))
		for _, name := range []string{"dir", "file", "dir/within", "link"} {
			must(t, os.Lchown(tmp(name), testUID, testUID))
		}
		must(t, unix.Chmod(tmp("file"), 0o4755))
		inode := func(name string) uint64 {
			var st unix.Stat_t
			must(t, unix.Lstat(tmp(name), &st))
			return st.Ino
		}
		file, link, dir := inode("file"), inode("link"), inode("dir")

		r := w.probe()
		r.Spec.Process.Args = []string{"/probe", "test-owners"}
		r.Spec.Annotations = map[string]string{ownersAnnotation: "true"}
		got := w.probed(setDefaultSeccomp(t, r))
		want := map[string]string{
			"chown": "", "lchown": "", "through a link": "", "fchown": "", "fchownat": "", "fchownat of a link": "", "fchownat with no path": "",
			"relative": "", "beyond the root": "", "group only": "", "to root": "", "nothing": "", "in memory": "", "chroot": "",
			"missing": "ENOENT", "no path": "ENOENT", "too long": "ENAMETOOLONG", "not a directory": "ENOTDIR", "no descriptor": "EBADF", "bad flags": "EINVAL",
			"bad address": "EFAULT", "by a descriptor's path": "EINVAL", "without a capability": "EINVAL",
			"device": "", "relative device": "", "taken device": "EEXIST", "device in memory": "EPERM", "device nowhere": "ENOENT", "pipe": "",
			"become another": "", "and another group": "",
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("answers\n%q\nwant\n%q", got, want)
		}
		all, err := (&State{root: w.state}).List()
		must(t, err)
		log, err := os.ReadFile(filepath.Join(all[0].Dir(), "owners"))
		must(t, err)
		lines := strings.Split(strings.TrimSpace(string(log)), "\n")
		var first, last []string
		for _, line := range lines {
			if strings.Contains(line, " 10") && strings.Contains(line, ":10") && len(strings.Fields(line)[2]) == 9 {
				last = append(last, line)
			} else {
				first = append(first, line)
			}
		}
		wantLog := []string{
			fmt.Sprintf("owner %d 1:101", file), fmt.Sprintf("owner %d 2:102", link), fmt.Sprintf("owner %d 3:103", file),
			fmt.Sprintf("owner %d 4:104", file), fmt.Sprintf("owner %d 5:105", file), fmt.Sprintf("owner %d 6:106", link),
			fmt.Sprintf("owner %d 7:107", file), fmt.Sprintf("owner %d 8:108", file), fmt.Sprintf("owner %d 9:109", file),
			fmt.Sprintf("owner %d -1:110", file),
			fmt.Sprintf(`device %d "null" 20640 103`, inode(".")), fmt.Sprintf(`device %d "disk\xff" 60640 100801`, dir),
			fmt.Sprintf("owner %d 10:200", inode("dir/within")), fmt.Sprintf("owner %d 11:201", inode("dir/within")),
		}
		if !reflect.DeepEqual(first, wantLog) || len(last) != 160 {
			t.Errorf("kept\n%s\nwant\n%s\nand of 160 at once %d", strings.Join(first, "\n"), strings.Join(wantLog, "\n"), len(last))
		}
		var st unix.Stat_t
		if must(t, unix.Stat(tmp("file"), &st)); st.Mode&0o7777 != 0o755 {
			t.Errorf("the mode is %o: setuid must go with the owner", st.Mode&0o7777)
		}

		// A command beside the first has it too; another user and one without the capability have not.
		change := func(r *request) *request {
			r.Spec.Annotations = map[string]string{ownersAnnotation: "true"}
			return r
		}
		d := w.detach(change(w.shell("sleep 1000")))
		if res := d.exec("chown 33:34 /tmp/file && mknod /tmp/zero c 1 5"); res.code != 0 {
			t.Errorf("beside the first: %+v", res)
		}
		must(t, d.container.Kill(time.Minute))
		log, err = os.ReadFile(filepath.Join(d.container.Dir(), "owners"))
		if want := fmt.Sprintf("owner %d 33:34\ndevice %d \"zero\" 20644 105\n", file, inode(".")); err != nil || string(log) != want {
			t.Errorf("beside the first: kept %q, %v, want %q", log, err, want)
		}
		alice := change(w.shell("chown 33 /tmp/file"))
		alice.Options.User = "alice"
		without := change(w.shell("chown 33 /tmp/file"))
		without.Spec.Process.Capabilities.Bounding, without.Spec.Process.Capabilities.Effective, without.Spec.Process.Capabilities.Permitted = nil, nil, nil
		for name, r := range map[string]*request{"another user": alice, "no capabilities": without} {
			if res := w.run(r); res.code == 0 {
				t.Errorf("%s: %+v", name, res)
			}
		}
	})
}
