package e2e

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"unionfs/internal/testimage"
)

// work is what is done in a container of the Debian image: look at the packages, run Python, compile and run C, install
// a local package, and change, replace, rename and delete things of each kind.
const work = `set -eu
dpkg -l | grep -c '^ii'
python3 -c 'import sys; print("python", sum(range(10)), sys.version_info[0])'
cat > /root/answer.c <<'END'
#include <stdio.h>
int main(void) { printf("the answer is %d\n", 6 * 7); return 0; }
END
gcc -O2 -o /usr/local/bin/answer /root/answer.c
answer
apt-get install -y -qq /deb/greeter.deb >/root/apt.log 2>&1 || { cat /root/apt.log; exit 1; }
greeter
dpkg -s greeter | grep ^Status
rm -rf /usr/share/doc/gcc-12-base /usr/share/bug
mkdir /usr/share/bug
echo new > /usr/share/bug/new
mv /usr/share/common-licenses /usr/share/licenses
rm /etc/issue; mkdir /etc/issue; echo in > /etc/issue/in
rm -r /etc/skel; echo file > /etc/skel
ln -sf /nowhere /etc/motd
chmod 0600 /etc/debian_version
echo more >> /etc/profile
mkfifo /var/tmp/fifo
ln /etc/profile /etc/profile.link
touch -d 2001-01-01 /usr/share/info
`

// TestDebian pulls a Debian root in twelve layers from a real registry and works in it, as each kind of caller. Afterwards
// the stored layers are byte for byte what they were, and "unionfs diff" is what a naive comparison finds.
func TestDebian(t *testing.T) {
	fixture := testimage.Debian(t)
	registry := testimage.Registry(t)
	ref := registry + "/debian:split"
	testimage.Push(t, fixture.Image, ref)
	deb := testimage.Deb(t, "greeter")

	// The naive way: unpack the root, whole.
	unpacked := filepath.Join(shared.dir, "unpacked")
	if err := os.Mkdir(unpacked, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(unpacked) })
	if out, err := exec.Command("tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "-C", unpacked, "-xpf", fixture.RootTar).CombinedOutput(); err != nil {
		t.Fatalf("tar: %v\n%s", err, out)
	}
	plain := walk(t, unpacked)

	// Before there are commands of others, whose mount namespaces would have the image's mount for as long as they run.
	t.Run("the image is the root", func(t *testing.T) {
		c := newCaller(t, "root")
		c.must(t, "pull", ref)
		compareTrees(t, walkImage(t, c, ref), plain)
	})
	eachKind(t, func(t *testing.T, c *caller) {
		debs := filepath.Join(c.home, "debs")
		if out, err := exec.Command("install", "-D", "-m", "0644", deb, filepath.Join(debs, "greeter.deb")).CombinedOutput(); err != nil {
			t.Fatalf("install: %v\n%s", err, out)
		}
		c.must(t, "pull", ref)
		before := sums(t, c.root)
		out := c.must(t, "run", "--name", "work", "-v", debs+":/deb:ro", ref, "sh", "-c", work)
		for _, want := range []string{"python 45 3\n", "the answer is 42\n", "Hello from greeter\n", "Status: install ok installed\n"} {
			if !strings.Contains(out, want) {
				t.Errorf("the output lacks %q:\n%s", want, out)
			}
		}
		if after := sums(t, c.root); !maps.Equal(before, after) {
			t.Errorf("the stored layers changed: %v, were %v", after, before)
		}

		got := strings.Split(strings.TrimSpace(c.must(t, "diff", "work")), "\n")
		upper := containerUpper(t, c)
		merged := filepath.Join(c.home, "merged")
		overlay(t, c, upper, unpacked, merged)
		shift := func(id uint32) uint32 {
			switch {
			case c.uid == 0 || id == 0:
				return id
			case id == uint32(c.uid):
				return 0
			case c.subordinates && id >= 200000:
				return id - 200000 + 1
			}
			return id
		}
		want := naiveDiff(t, plain, walkShifted(t, merged, shift))
		if c.uid != 0 && !c.subordinates {
			// A mount point that the runner made, and the directories that it changed by that.
			const apt = "/etc/apt/apt.conf.d/zz-unionfs"
			want = slices.DeleteFunc(want, func(line string) bool { return strings.HasPrefix(apt, line[2:]) && line != "C /etc" })
		}
		if !slices.Equal(got, want) {
			t.Errorf("unionfs diff differs from the naive comparison:\n%s", lineDiff(want, got))
		}
		if err := unix.Unmount(merged, 0); err != nil {
			t.Error(err)
		}
		c.must(t, "rm", "work")
		c.must(t, "rmi", ref)
		if left := sums(t, c.root); len(left) != 0 {
			t.Errorf("rmi leaves %v", left)
		}
	})
}

// walkImage mounts the image and reads everything in it.
func walkImage(t *testing.T, c *caller, ref string) map[string]file {
	t.Helper()
	merged := filepath.Join(c.home, "image")
	if err := os.Mkdir(merged, 0o755); err != nil {
		t.Fatal(err)
	}
	// Not through c.must: the mount must be seen here.
	command := exec.Command(shared.unionfs, "--root", c.root, "mount", ref, merged)
	if r := run(t, command); r.code != 0 {
		t.Fatalf("mount: %s", r.stderr)
	}
	mounted := walk(t, merged)
	if out, err := exec.Command(shared.unionfs, "umount", merged).CombinedOutput(); err != nil {
		t.Errorf("umount: %v\n%s", err, out)
	}
	return mounted
}

// compareTrees compares every file of two trees.
func compareTrees(t *testing.T, mounted, plain map[string]file) {
	t.Helper()
	wrong := 0
	for _, name := range slices.Sorted(maps.Keys(plain)) {
		if got, ok := mounted[name]; !ok {
			t.Errorf("%s is missing", name)
		} else if got != plain[name] {
			t.Errorf("%s: %+v, want %+v", name, got, plain[name])
		} else {
			continue
		}
		if wrong++; wrong > 20 {
			t.Fatal("and so on")
		}
	}
	for _, name := range slices.Sorted(maps.Keys(mounted)) {
		if _, ok := plain[name]; !ok {
			t.Errorf("%s should not be there", name)
		}
	}
}

// overlay mounts the kernel's own overlayfs of the container's upper branch over the unpacked root: what it shows is
// nothing of ours but the upper branch.
func overlay(t *testing.T, c *caller, upper, lower, target string) {
	t.Helper()
	for _, dir := range []string{target, target + ".work"} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if c.uid != 0 {
		trustMarks(t, upper)
	}
	options := "ro,redirect_dir=follow,lowerdir=" + upper + ":" + lower
	if err := unix.Mount("overlay", target, "overlay", unix.MS_RDONLY, options); err != nil {
		t.Fatalf("mounting the kernel's overlay (%s): %v", options, err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
}

// trustMarks gives the marks that an ordinary user's upper branch has in user.overlay.* the names that root's have: with
// the former the kernel follows no redirect.
func trustMarks(t *testing.T, upper string) {
	t.Helper()
	err := filepath.WalkDir(upper, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		for _, mark := range []string{"opaque", "redirect"} {
			var value [4096]byte
			n, err := unix.Lgetxattr(path, "user.overlay."+mark, value[:])
			if err != nil {
				continue
			}
			if err := unix.Lsetxattr(path, "trusted.overlay."+mark, value[:n], 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// containerUpper finds the upper branch of the caller's only container.
func containerUpper(t *testing.T, c *caller) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(c.root, "containers", "*", "upper"))
	if err != nil || len(found) != 1 {
		t.Fatalf("containers: %v, %v", found, err)
	}
	return found[0]
}

// file is all of a file that a comparison looks at.
type file struct {
	mode, uid, gid uint32
	rdev           uint64
	mtime          unix.Timespec
	size           int64 // 0 for directories
	content        string
	xattrs         string
}

func walk(t *testing.T, root string) map[string]file {
	t.Helper()
	return walkShifted(t, root, func(id uint32) uint32 { return id })
}

// walkShifted reads everything in a tree by lstat, readlink, listxattr and read. Paths have a leading slash.
func walkShifted(t *testing.T, root string, shift func(id uint32) uint32) map[string]file {
	t.Helper()
	all := map[string]file{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || path == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		f := file{mode: st.Mode, uid: shift(st.Uid), gid: shift(st.Gid), rdev: st.Rdev, mtime: st.Mtim, size: st.Size}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFDIR:
			f.size = 0
		case unix.S_IFLNK:
			f.content, err = os.Readlink(path)
		case unix.S_IFREG:
			f.content, err = sum(path)
		}
		if err != nil {
			return err
		}
		f.xattrs = xattrs(path)
		// What the host can't have as owner is recorded.
		var recorded [64]byte
		if n, err := unix.Lgetxattr(path, recordXattr, recorded[:]); err == nil {
			if _, err := fmt.Sscanf(string(recorded[:n]), "%d:%d:", &f.uid, &f.gid); err != nil {
				return fmt.Errorf("%s: %q: %w", path, recorded[:n], err)
			}
		}
		all[strings.TrimPrefix(path, root)] = f
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

const recordXattr = "user.containers.override_stat"

func sum(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// xattrs returns the names and values of the attributes of users and of security.
func xattrs(path string) string {
	var buf [4096]byte
	n, err := unix.Llistxattr(path, buf[:])
	if err != nil || n == 0 {
		return ""
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	var all strings.Builder
	for _, name := range names {
		// The union's own marks are no part of what it shows.
		if strings.HasPrefix(name, "user.overlay.") || strings.HasPrefix(name, "trusted.") || strings.HasPrefix(name, "user.unionfs.") || name == recordXattr {
			continue
		}
		var value [4096]byte
		n, err := unix.Lgetxattr(path, name, value[:])
		if err == nil {
			fmt.Fprintf(&all, "%s=%q ", name, value[:n])
		}
	}
	return all.String()
}

// naiveDiff compares two trees as "unionfs diff" describes it: what is in a deleted or replaced directory isn't listed,
// and a directory has changed if something in it has.
func naiveDiff(t *testing.T, was, now map[string]file) []string {
	t.Helper()
	kinds := map[string]string{}
	isDir := func(f file) bool { return f.mode&unix.S_IFMT == unix.S_IFDIR }
	for path, f := range now {
		old, ok := was[path]
		switch {
		case !ok:
			kinds[path] = "A"
		case old != f:
			kinds[path] = "C"
		}
	}
	for path := range was {
		if _, ok := now[path]; ok {
			continue
		}
		parent, ok := now[filepath.Dir(path)]
		if filepath.Dir(path) == "/" || ok && isDir(parent) {
			kinds[path] = "D"
		}
	}
	for path := range maps.Clone(kinds) {
		for dir := filepath.Dir(path); dir != "/"; dir = filepath.Dir(dir) {
			if kinds[dir] == "" {
				kinds[dir] = "C"
			}
		}
	}
	// Mount points that the root lacked are not the command's doing.
	for _, path := range []string{"/deb", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf"} {
		if kinds[path] == "A" {
			delete(kinds, path)
		}
	}
	var lines []string
	for path, kind := range kinds {
		lines = append(lines, kind+" "+path)
	}
	slices.SortFunc(lines, func(a, b string) int { return comparePaths(a[2:], b[2:]) })
	return lines
}

// comparePaths orders a directory before what is in it, and names by their bytes.
func comparePaths(a, b string) int {
	return slices.Compare(strings.Split(a, "/"), strings.Split(b, "/"))
}

func lineDiff(want, got []string) string {
	var out strings.Builder
	for _, line := range want {
		if !slices.Contains(got, line) {
			fmt.Fprintln(&out, "missing:", line)
		}
	}
	for _, line := range got {
		if !slices.Contains(want, line) {
			fmt.Fprintln(&out, "too many:", line)
		}
	}
	if out.Len() == 0 {
		return "only the order differs"
	}
	return out.String()
}

// sums hashes every layer and index of a store.
func sums(t *testing.T, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, dir := range []string{"layers", "merged", "images"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			all[strings.TrimPrefix(path, root)], err = sum(path)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}
