package e2e

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"unionfs/internal/testimage"
)

// ownersWork installs packages, adds a user, changes owners, unpacks an archive that has others, and makes devices, as root
// does; in the Debian image's root.
const ownersWork = `set -eu
dpkg -i /deb/first.deb > /dev/null
apt-get install -y -qq /deb/second.deb > /dev/null 2>&1
useradd --create-home --shell /bin/sh joe
echo page > /srv/page
chown www-data:www-data /srv/page
chmod 4750 /srv/page && chown :adm /srv/page
ln -s page /srv/link && chown -h joe: /srv/link
mkdir /srv/dir && chown -R joe:www-data /srv/dir && chmod 2770 /srv/dir
touch /srv/dir/of-the-group
mkfifo /srv/pipe && chown daemon /srv/pipe
mknod /srv/null c 1 3 && chmod 666 /srv/null
mknod -m 660 /srv/disk b 8 1 && chgrp disk /srv/disk
tar -xpf /deb/others.tar -C /srv
chown root:root /srv/others/back
setpriv --reuid=33 --regid=33 --clear-groups true
test -c /srv/null && test -b /srv/disk && test -p /srv/pipe && test -L /srv/link && test "$(cat /srv/link)" = page
`

// TestOwners: where the host gives one ID, what root does about owners and devices in a container comes out of it exactly.
func TestOwners(t *testing.T) {
	debian := testimage.Debian(t)
	c := newCaller(t, "user without subordinate IDs")
	debs := filepath.Join(c.home, "debs")
	const postinst = `#!/bin/sh
set -e
groupadd --system svc
useradd --system --gid svc --home-dir /var/lib/svc svc
install -d -o svc -g svc -m 0750 /var/lib/svc
install -o svc -g adm -m 0640 /dev/null /var/log/svc.log
chgrp svc /usr/bin/second && chmod 2755 /usr/bin/second
`
	for name, script := range map[string]string{"first": "", "second": postinst} {
		deb := testimage.Deb(t, name)
		if script != "" {
			deb = withPostinst(t, deb, script)
		}
		if out, err := exec.Command("install", "-D", "-m", "0644", deb, filepath.Join(debs, name+".deb")).CombinedOutput(); err != nil {
			t.Fatalf("install: %v\n%s", err, out)
		}
	}
	othersTar(t, filepath.Join(debs, "others.tar"))
	rootTar := filepath.Join(c.home, "root.tar")
	if err := errors.Join(os.Link(debian.RootTar, rootTar), os.Chmod(rootTar, 0o644)); err != nil {
		t.Fatal(err)
	}
	c.must(t, "import", rootTar, "debian")

	c.must(t, "run", "--name", "work", "-v", debs+":/deb:ro", "debian", "sh", "-c", ownersWork)
	want := map[string]string{
		"etc/shadow":               "-rw-r----- 0:42",
		"home/joe":                 "drwxr-xr-x 1000:1000",
		"home/joe/.profile":        "-rw-r--r-- 1000:1000",
		"srv/page":                 "-rwxr-x--- 33:4", // the change of the group took setuid away
		"srv/link":                 "Lrwxrwxrwx 1000:1000",
		"srv/dir":                  "dgrwxrwx--- 1000:33",
		"srv/dir/of-the-group":     "-rw-r--r-- 0:33",
		"srv/pipe":                 "prw-r--r-- 1:0",
		"srv/null":                 "Dcrw-rw-rw- 0:0 1:3",
		"srv/disk":                 "Drw-rw---- 0:6 8:1",
		"srv/others":               "drwxr-x--- 10:20",
		"srv/others/file":          "ugrwxr-xr-x 11:22",
		"srv/others/link":          "Lrwxrwxrwx 12:23",
		"srv/others/back":          "-rw-r--r-- 0:0",
		"usr/bin/first":            "-rwxr-xr-x 0:0",
		"usr/bin/second":           "grwxr-xr-x 0:999",
		"var/lib/svc":              "drwxr-x--- 999:999",
		"var/log/svc.log":          "-rw-r----- 999:4",
		"var/log/apt/term.log":     "-rw-r----- 0:4",
		"var/lib/first/configured": "-rw-r--r-- 0:0",
	}
	compare := func(what, file string) {
		t.Helper()
		got := tarOwners(t, file)
		for name, owner := range want {
			if got[name] != owner {
				t.Errorf("%s: %s is %q, want %q", what, name, got[name], owner)
			}
		}
	}
	exported := filepath.Join(c.home, "exported.tar")
	c.must(t, "export", "-o", exported, "work")
	compare("exported", exported)
	if diff := "\n" + c.must(t, "diff", "work"); !strings.Contains(diff, "\nA /srv/page\n") || strings.Contains(diff, "zz-unionfs") || strings.Contains(diff, "override") {
		t.Errorf("the difference is wrong:\n%s", diff)
	}
	c.must(t, "commit", "work", "worked")
	committed := filepath.Join(c.home, "committed.tar")
	c.must(t, "export", "-o", committed, "worked")
	compare("committed", committed)

	// A container of that image begins with those owners, and a copy-up keeps them.
	c.must(t, "run", "--name", "again", "worked", "sh", "-c", "echo more >> /srv/page; chmod 600 /srv/others/file; mv /srv/dir /srv/moved; touch -h /srv/link")
	c.must(t, "export", "-o", exported, "again")
	want["srv/moved"], want["srv/moved/of-the-group"] = want["srv/dir"], want["srv/dir/of-the-group"]
	want["srv/others/file"] = "-rw------- 11:22"
	delete(want, "srv/dir")
	delete(want, "srv/dir/of-the-group")
	compare("copied up", exported)

	// For root, the image has them for the kernel too.
	root := newCaller(t, "root")
	root.must(t, "import", committed, "worked")
	out := root.must(t, "run", "--rm", "worked", "stat", "-c", "%n %a %u:%g %t:%T", "/srv/page", "/srv/link", "/srv/null", "/usr/bin/second", "/home/joe", "/etc/shadow")
	if want := "/srv/page 750 33:4 0:0\n/srv/link 777 1000:1000 0:0\n/srv/null 666 0:0 1:3\n/usr/bin/second 2755 0:999 0:0\n/home/joe 755 1000:1000 0:0\n/etc/shadow 640 0:42 0:0\n"; out != want {
		t.Errorf("as root:\n%s\nwant\n%s", out, want)
	}
	for _, name := range []string{"work", "again"} {
		c.must(t, "rm", name)
	}
}

// withPostinst makes a package again with another postinst.
func withPostinst(t *testing.T, deb, script string) string {
	t.Helper()
	dir := t.TempDir()
	out, err := exec.Command("sh", "-ec", `dpkg-deb -R "$1" "$2/tree"; printf %s "$3" > "$2/tree/DEBIAN/postinst"; dpkg-deb --root-owner-group -b "$2/tree" "$2/new.deb"`, "sh", deb, dir, script).CombinedOutput()
	if err != nil {
		t.Fatalf("dpkg-deb: %v\n%s", err, out)
	}
	return filepath.Join(dir, "new.deb")
}

// othersTar writes an archive of files that belong to many.
func othersTar(t *testing.T, name string) {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for _, h := range []tar.Header{
		{Name: "others/", Typeflag: tar.TypeDir, Mode: 0o750, Uid: 10, Gid: 20},
		{Name: "others/file", Typeflag: tar.TypeReg, Mode: 0o6755, Uid: 11, Gid: 22},
		{Name: "others/link", Typeflag: tar.TypeSymlink, Linkname: "file", Mode: 0o777, Uid: 12, Gid: 23},
		{Name: "others/back", Typeflag: tar.TypeReg, Mode: 0o644, Uid: 13, Gid: 24},
	} {
		err = errors.Join(err, w.WriteHeader(&h))
	}
	if err := errors.Join(err, w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// tarOwners describes the files of an archive by mode, owner, and a device's numbers.
func tarOwners(t *testing.T, name string) map[string]string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	all := map[string]string{}
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		line := fmt.Sprintf("%s %d:%d", h.FileInfo().Mode(), h.Uid, h.Gid)
		if h.Typeflag == tar.TypeChar || h.Typeflag == tar.TypeBlock {
			line += fmt.Sprintf(" %d:%d", h.Devmajor, h.Devminor)
		}
		all[strings.Trim(strings.TrimPrefix(h.Name, "./"), "/")] = line
	}
}
