package cow

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRecord gives files owners that the union's IDs don't have, and devices, and reads them back from the union, from the
// difference, and from the next union on the same upper branch.
func TestRecord(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"lower/theirs", "lower/mail", "upper", "work"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	low := func(name string) string { return filepath.Join(dir, "lower", name) }
	must(t, os.WriteFile(low("theirs/file"), []byte("text"), 0o640))
	must(t, os.WriteFile(low("theirs/setuid"), []byte("text"), 0o755))
	must(t, os.Symlink("file", low("theirs/link")))
	must(t, unix.Mkfifo(low("theirs/fifo"), 0o622))
	for _, name := range []string{"theirs", "theirs/file", "theirs/setuid", "theirs/link", "theirs/fifo"} {
		must(t, os.Lchown(low(name), 33, 34))
	}
	must(t, os.Lchown(low("mail"), 0, 8))
	must(t, unix.Chmod(low("mail"), 0o2775))
	must(t, unix.Chmod(low("theirs/setuid"), 0o4755))

	open := func() *Union {
		lower, err := OpenDirBranch(filepath.Join(dir, "lower"), DirOptions{})
		must(t, err)
		one := []IDRange{{0, 1}}
		u, err := New(Options{Lower: []Branch{lower}, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"),
			Owners: OwnerPolicy{Record: true, UIDs: one, GIDs: one}})
		must(t, err)
		return u
	}
	u := open()
	var a Attr
	find := func(path string) *Node {
		if path == "/" {
			return u.Root()
		}
		n, err := at(u, path, &a)
		must(t, err)
		return n
	}
	set := func(path string, s SetAttr) { must(t, u.Setattr(find(path), &s, &a)) }
	both := SetUID | SetGID
	root := Owner{}
	create := func(dir, name string, mode, rdev uint32) {
		_, err := u.Mknod(find(dir), name, mode, rdev, root, &a)
		must(t, err)
	}

	create("/theirs", "new", unix.S_IFREG|0o600, 0)
	set("/theirs/file", SetAttr{Valid: SetMode, Mode: 0o660}) // a copy-up keeps the owner
	set("/theirs/setuid", SetAttr{Valid: both | KillPriv, UID: 0, GID: 0})
	set("/theirs/link", SetAttr{Valid: SetUID, UID: 40})
	set("/theirs/fifo", SetAttr{Valid: SetMtimeNow})
	create("/mail", "box", unix.S_IFREG|0o660, 0) // the group is the directory's
	_, err := u.Mkdir(find("/mail"), "dir", 0o755, root, &a)
	must(t, err)
	_, err = u.Symlink(find("/mail"), "link", "box", root, &a)
	must(t, err)
	create("/", "null", unix.S_IFCHR|0o666, uint32(unix.Mkdev(1, 3)))
	create("/", "disk", unix.S_IFBLK|0o660, uint32(unix.Mkdev(8, 257)))
	set("/disk", SetAttr{Valid: SetGID, GID: 6})
	set("/disk", SetAttr{Valid: SetMode, Mode: 0o640})
	create("/", "pipe", unix.S_IFIFO|0o600, 0)
	set("/pipe", SetAttr{Valid: both, UID: 100, GID: 101})
	create("/", "sock", unix.S_IFSOCK|0o700, 0)
	set("/sock", SetAttr{Valid: SetUID, UID: 100})
	_, err = u.Symlink(find("/"), "link", "null", root, &a)
	must(t, err)
	set("/link", SetAttr{Valid: both, UID: 1, GID: 2})
	create("/", "plain", unix.S_IFREG|0o4755, 0)
	set("/plain", SetAttr{Valid: both | KillPriv, UID: 7, GID: 9})
	set("/plain", SetAttr{Valid: SetGID, GID: 10})
	create("/", "again", unix.S_IFREG|0o644, 0)
	set("/again", SetAttr{Valid: both, UID: 7, GID: 9})
	set("/again", SetAttr{Valid: both, UID: 0, GID: 0})
	must(t, u.Link(find("/plain"), find("/"), "other", &a))
	must(t, u.Rename(find("/"), "null", find("/mail"), "null", 0))
	if err := u.Setxattr(find("/plain"), overrideXattr, []byte("0:0:4755"), 0); err != unix.EPERM {
		t.Errorf("setting the xattr: %v", err)
	}
	if _, err := u.Mknod(find("/"), "whiteout", unix.S_IFCHR, 0, root, &a); err != unix.EPERM {
		t.Errorf("a whiteout: %v", err)
	}

	want := []string{
		"again f 644 0:0", "disk b 640 0:6 8:257", "link l 777 1:2 null", "mail d 2775 0:8", "mail/box f 660 0:8",
		"mail/dir d 2755 0:8", "mail/link l 777 0:8 box", "mail/null c 666 0:0 1:3", "other f 755 7:10", "pipe p 600 100:101",
		"plain f 755 7:10", "sock s 700 100:0", "theirs d 755 33:34", "theirs/fifo p 622 33:34", "theirs/file f 660 33:34",
		"theirs/link l 777 40:34 file", "theirs/new f 600 0:0", "theirs/setuid f 755 0:0",
	}
	for _, again := range []bool{false, true} {
		if again {
			must(t, u.Close())
			u = open()
		}
		// The union shows the kinds and modes, and its own IDs.
		for _, line := range want {
			fields := strings.Fields(line)
			find("/" + fields[0])
			got := describeAttr(&a)
			if a.UID != 0 || a.GID != 0 || got[0] != fields[1] || got[1] != fields[2] {
				t.Errorf("shown as %q, want %q of 0:0", got, line)
			}
		}
		var links []string
		must(t, each(u, find("/"), func(e DirEnt) {
			if e.Type == unix.S_IFLNK {
				links = append(links, e.Name)
			}
		}))
		if target, err := u.Readlink(find("/link")); !slices.Equal(links, []string{"link"}) || target != "null" || err != nil {
			t.Errorf("listed as links: %q; the target is %q, %v", links, target, err)
		}
		if got := exported(t, dir); !slices.Equal(got, want) {
			t.Errorf("exported\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	must(t, u.Close())
	if records, err := RecordsOwners(filepath.Join(dir, "upper")); !records || err != nil {
		t.Errorf("the branch says %v, %v", records, err)
	}
	if records, err := RecordsOwners(filepath.Join(dir, "lower")); records || err != nil {
		t.Errorf("another says %v, %v", records, err)
	}
}

// describeAttr gives type, mode and owner.
func describeAttr(a *Attr) []string {
	kind := map[uint32]string{unix.S_IFREG: "f", unix.S_IFDIR: "d", unix.S_IFLNK: "l", unix.S_IFCHR: "c", unix.S_IFBLK: "b", unix.S_IFIFO: "p", unix.S_IFSOCK: "s"}
	return []string{kind[a.Mode&unix.S_IFMT], fmt.Sprintf("%o", a.Mode&0o7777), fmt.Sprintf("%d:%d", a.UID, a.GID)}
}

// exported describes what the upper branch of dir adds.
func exported(t *testing.T, dir string) (out []string) {
	t.Helper()
	lower, err := OpenDirBranch(filepath.Join(dir, "lower"), DirOptions{})
	must(t, err)
	defer lower.Close()
	d, err := Compare(filepath.Join(dir, "upper"), []Branch{lower})
	must(t, err)
	defer d.Close()
	must(t, d.Export(func(x *Exported) error {
		if len(x.Xattrs) > 0 {
			t.Errorf("%s has the xattrs %q", x.Path, x.Xattrs)
		}
		line := append([]string{x.Path}, describeAttr(&x.Attr)...)
		switch x.Attr.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			line = append(line, x.Target)
		case unix.S_IFCHR, unix.S_IFBLK:
			line = append(line, fmt.Sprintf("%d:%d", unix.Major(uint64(x.Attr.Rdev)), unix.Minor(uint64(x.Attr.Rdev))))
		}
		out = append(out, strings.Join(line, " "))
		return nil
	}))
	return out
}
