package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// linkNames gives the program the names that others call it by, in a directory of the caller's.
func (c *caller) linkNames(t *testing.T) (bin string) {
	t.Helper()
	bin = filepath.Join(c.home, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"unionfs", "fuse-overlayfs", "mount.unionfs", "mount.fuse.unionfs", "unionfs-runtime"} {
		if err := os.Symlink(shared.unionfs, filepath.Join(bin, name)); err != nil {
			t.Fatal(err)
		}
	}
	return bin
}

// TestDropInCommandLine calls the program as fuse-overlayfs and mount helpers are called.
func TestDropInCommandLine(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		c.linkNames(t)
		got := c.script(t, `
			PATH=$PWD/bin:$PATH
			mkdir -p layers/real:1 layers/real2 l upper work merged
			echo one > layers/real:1/one; echo both > layers/real:1/both; echo two > layers/real2/two; echo hidden > layers/real2/both
			ln -s ../layers/real:1 l/ID1; ln -s ../layers/real2 l/ID2
			unmount() {
				fusermount3 -u merged
				# The upper branch is complete when its lock is free.
				test ! -e work/lock || flock work/lock true
			}

			echo == relative lowers through links, several -o, options after the target
			fuse-overlayfs -o lowerdir=l/ID1:l/ID2 merged -o upperdir=upper,workdir=work -o volatile,nodev
			cat merged/one merged/two merged/both
			echo new > merged/new; rm merged/two
			unmount
			ls -A merged; cat upper/new

			echo == escaped colon, read only
			fuse-overlayfs -o 'lowerdir=layers/real\:1' merged
			ls merged; touch merged/x 2> /dev/null && exit 1
			unmount

			echo == as a mount helper, and by the arguments alone
			mount.fuse.unionfs overlay merged -o rw,suid,dev,lowerdir=l/ID1 -n
			grep -o "^overlay $PWD/merged fuse.unionfs" /proc/self/mounts | cut -d ' ' -f 1,3
			unmount
			mount.unionfs none merged -o lowerdir=l/ID1; ls merged; unmount
			unionfs -o lowerdir=l/ID2 merged; ls merged; unmount
			unionfs -f -o lowerdir=l/ID1 merged & server=$!
			until [ -e merged/one ]; do sleep 0.01; done
			kill -TERM $server; wait $server
			ls -A merged

			echo == mounted again and again on the same upper branch
			for i in 1 2 3 4 5; do
				fuse-overlayfs -o lowerdir=l/ID2,upperdir=upper,workdir=work,foo=bar,noatime merged 2>&1
				echo $i >> merged/count
				fusermount3 -u merged
			done
			flock work/lock true
			tr -d '\n' < upper/count; echo

			echo == the streams are closed
			out=$(fuse-overlayfs -o lowerdir=l/ID1 merged 7>&1 2>&1 | cat)
			echo "$out"
			for process in $(pgrep -u $(id -u) -f "[s]erve-overlay -o lowerdir=l/ID1 merged"); do # the holder and the server
				readlink /proc/$process/cwd; readlink /proc/$process/fd/0 /proc/$process/fd/1 /proc/$process/fd/2 | sort -u
				ls -l /proc/$process/fd | grep pipe: || true
			done
			unmount

			echo == mistakes
			for args in '-o lowerdir=l/none merged' '-o lowerdir=l/ID1,upperdir=upper merged' '-o lowerdir=l/ID1' merged \
				'-o lowerdir=l/ID1 l/none' '-o lowerdir=.,upperdir=upper,workdir=work merged' '-o lowerdir=l/ID1,uidmapping=1:2 merged'; do
				fuse-overlayfs $args 2>&1 && exit 1
			done
			grep -c "$PWD/merged" /proc/self/mounts || true`)
		want := `== relative lowers through links, several -o, options after the target
one
two
both
new
== escaped colon, read only
both
one
== as a mount helper, and by the arguments alone
overlay fuse.unionfs
both
one
both
two
== mounted again and again on the same upper branch
fuse-overlayfs: warning: the mount option "foo=bar" is unknown and ignored
fuse-overlayfs: warning: the mount option "foo=bar" is unknown and ignored
fuse-overlayfs: warning: the mount option "foo=bar" is unknown and ignored
fuse-overlayfs: warning: the mount option "foo=bar" is unknown and ignored
fuse-overlayfs: warning: the mount option "foo=bar" is unknown and ignored
12345
== the streams are closed

/
/dev/null
/
/dev/null
== mistakes
fuse-overlayfs: branch l/none doesn't exist
fuse-overlayfs: upperdir needs workdir=DIR, an otherwise unused directory on the same file system; see fuse-overlayfs --help
fuse-overlayfs: there is no TARGET, the directory to mount on; see fuse-overlayfs --help
fuse-overlayfs: there is nothing to mount; name the branches with -o lowerdir=DIR[:DIR]...[,upperdir=DIR,workdir=DIR]; see fuse-overlayfs --help
fuse-overlayfs: mounting on HOME/l/none: there is no such directory; make it first
fuse-overlayfs: the target is inside the branch .; take a directory outside of it
fuse-overlayfs: mount option "uidmapping=1:2": want INSIDE:OUTSIDE:SIZE, once or several times; see fuse-overlayfs --help
0
`
		if got = strings.ReplaceAll(got, c.home, "HOME"); got != want {
			t.Errorf("got:\n%s\nwant:\n%s", got, want)
		}
	})
}

// TestDropInVersion asks for the version and the help, as podman info and people do.
func TestDropInVersion(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	got := c.script(t, `
		for flag in --version -V; do
			bin/fuse-overlayfs $flag | grep -c '^fuse-overlayfs: version [0-9]'
			bin/mount.unionfs $flag | grep -c '^unionfs: version '
		done
		bin/fuse-overlayfs --help | grep -o 'lowerdir=DIR.*TARGET'
		bin/unionfs --version | grep -c fuse-overlayfs || true`)
	want := "1\n1\n1\n1\nlowerdir=DIR[:DIR]...[,upperdir=DIR,workdir=DIR][,OPTION]... [SOURCE] TARGET\n0\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestDropInMountHelper has mount(8) and mount.fuse3 call the program, which they find in PATH.
func TestDropInMountHelper(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	// mount(8) takes PATH away, and the shell that mount.fuse3 starts looks in /usr/local first. The mount namespace is the
	// script's own.
	got := c.script(t, `
		PATH=$PWD/bin:$PATH
		mkdir lower upper work merged 'low er'
		echo below > lower/file; echo spaced > 'low er/file'
		mount.fuse3 overlay $PWD/merged -o "rw,lowerdir=$PWD/lower,upperdir=$PWD/upper,workdir=$PWD/work" -t unionfs
		grep $PWD/merged /proc/self/mounts | cut -d , -f 1
		echo more >> merged/file
		umount merged
		flock work/lock true
		cat upper/file
		mount --bind bin /usr/local/bin
		mount -t fuse.unionfs -o "ro,noexec,lowerdir=$PWD/low er:$PWD/lower" overlay $PWD/merged
		grep $PWD/merged /proc/self/mounts | cut -d , -f 1
		cat merged/file
		umount merged`)
	want := `overlay HOME/merged fuse.unionfs rw
below
more
overlay HOME/merged fuse.unionfs ro
spaced
`
	if got = strings.ReplaceAll(got, c.home, "HOME"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestDropInOptions checks what options do that say how the union works: ACLs, redirects and metadata-only copies.
func TestDropInOptions(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	got := c.script(t, `
		PATH=$PWD/bin:$PATH
		mkdir -p lower/shared lower/dir/sub merged; echo content > lower/file; chmod 777 lower/shared
		setfacl -d -m u:7:rwx,g::rwx,o::r lower/shared
		with() {
			echo "== ${1-}"
			mkdir upper work
			fuse-overlayfs -o "lowerdir=lower,upperdir=upper,workdir=work${1:+,$1}" merged
		}
		end() { fusermount3 -u merged; flock work/lock true; }
		has() { getfattr --absolute-names -n trusted.overlay.$1 upper/$2 2> /dev/null | grep -c "^trusted" || true; }
		acls() {
			setfacl -m u:7:r merged/file 2>&1 || true
			umask 077; touch merged/shared/new; umask 022
			stat -c %a merged/shared/new; getfacl -nc merged/shared/new | grep -c user:7 || true
			end
			getfacl -nc upper/file 2> /dev/null | grep user:7 || true
			rm -r upper work
		}
		with; acls
		with noacl; acls

		moves() { mv merged/dir merged/moved; ls merged merged/moved; has redirect moved; end; rm -r upper work; }
		with redirect_dir=on; moves
		with redirect_dir=off; moves

		changes() { chmod 600 merged/file; has metacopy file; end; has metacopy file; cat upper/file | tr -d '\0'; rm -r upper work; }
		with; changes
		with metacopy=on; changes
		with metacopy=off; changes`)
	moved := "file\nmoved\nshared\n\nmerged/moved:\nsub\n"
	want := "== \n664\n1\nuser:7:r--\n" +
		"== noacl\nsetfacl: merged/file: Operation not supported\n600\n0\n" +
		"== redirect_dir=on\nmerged:\n" + moved + "1\n" +
		"== redirect_dir=off\nmerged:\n" + moved + "0\n" +
		"== \n1\n0\ncontent\n" +
		"== metacopy=on\n1\n1\n" +
		"== metacopy=off\n0\n0\ncontent\n"
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestDropInOwners checks which owners a mount shows and which it stores. The first number of a map is the ID on disk.
func TestDropInOwners(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	got := c.script(t, `
		PATH=$PWD/bin:$PATH
		mkdir lower merged; touch lower/a lower/b lower/c
		chown 0:0 lower lower/a; chown 1:1 lower/b; chown 5:70000 lower/c
		setfacl -m u:1:r,g:70000:r lower/b
		with() {
			echo "== $1"
			mkdir upper work
			fuse-overlayfs -o "lowerdir=lower,upperdir=upper,workdir=work,$1" merged
			(cd merged; stat -c '%n %u:%g' . *)
		}
		end() { fusermount3 -u merged; flock work/lock true; (cd upper; stat -c 'upper %n %u:%g' *); rm -r upper work; }

		with uidmapping=0:1000:1:1:110000:100,gidmapping=0:1000:1:1:110000:100
		getfacl -nc merged/b | grep -E '^(user|group):[0-9]'
		setpriv --reuid 1000 --regid 1000 --clear-groups touch merged/a merged/user
		chown 110005:110006 merged/b
		chown 7:7 merged/c 2>&1 || true
		chmod 600 merged/c
		setfacl -m u:110009:rw merged/b
		getfacl -nc upper/b | grep -E '^(user|group):[0-9]'
		touch merged/root
		(cd merged; stat -c '%n %u:%g' *)
		end

		with squash_to_root
		chown 7:7 merged/c; touch merged/new; chmod 600 merged/b
		end
		with squash_to_uid=33,squash_to_root
		end 2> /dev/null || true
		with squash_to_gid=44
		end 2> /dev/null || true`)
	want := `== uidmapping=0:1000:1:1:110000:100,gidmapping=0:1000:1:1:110000:100
. 1000:1000
a 1000:1000
b 110000:110000
c 110004:65534
user:110000:r--
group:65534:r--
chown: changing ownership of 'merged/c': Invalid argument
user:1:r--
user:10:rw-
group:65534:r--
a 1000:1000
b 110005:110006
c 110004:65534
root 65534:65534
user 1000:1000
upper a 0:0
upper b 6:7
upper c 5:70000
upper root 65534:65534
upper user 0:0
== squash_to_root
. 0:0
a 0:0
b 0:0
c 0:0
upper b 1:1
upper c 7:7
upper new 0:0
== squash_to_uid=33,squash_to_root
. 33:0
a 33:0
b 33:0
c 33:0
== squash_to_gid=44
. 0:44
a 0:44
b 1:44
c 5:44
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}

// TestDropInVirtualOwners keeps owners and modes in xattrs, where inodes are the server's, and finds them again.
func TestDropInVirtualOwners(t *testing.T) {
	c := newCaller(t, "root")
	c.linkNames(t)
	got := c.script(t, `
		PATH=$PWD/bin:$PATH
		mkdir lower upper work merged lower/dir; echo x > lower/a; echo x > lower/dir/b; echo x > lower/plain
		setfattr -n user.containers.override_stat -v 12:34:104751 lower/a
		setfattr -n user.containers.override_stat -v 5:6:2750 lower/dir
		setfattr -n user.containers.override_stat -v nonsense lower/plain
		again() {
			fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work,xattr_permissions=2 merged
			(cd merged; stat -c '%n %u:%g %a' a dir plain "$@"; getfattr -d a)
		}
		end() { fusermount3 -u merged; flock work/lock true; }
		again
		cd merged
		chown 7:8 plain; chmod 4711 plain
		mkdir dir/sub; touch dir/sub/new
		setpriv --reuid 12 --regid 34 --clear-groups sh -c 'echo owned by 12 >> a'
		setpriv --reuid 99 --regid 99 --clear-groups cat dir/b 2>&1 || true
		cp -p plain copy; ln copy link; chown -h 3:4 link; ln -s x symbolic; chown -h 3:4 symbolic
		cd ..
		end
		echo == on disk
		(cd upper; stat -c '%n %u:%g %a' *; getfattr -n user.containers.override_stat * dir/sub dir/sub/new 2> /dev/null | grep .)
		echo == again
		again copy link symbolic dir/sub dir/sub/new
		end`)
	want := `a 12:34 4751
dir 5:6 2750
plain 0:0 644
cat: dir/b: Permission denied
== on disk
a 0:0 755
copy 0:0 755
dir 0:0 755
link 0:0 755
plain 0:0 755
symbolic 3:4 777
# file: a
user.containers.override_stat="12:34:751"
# file: copy
user.containers.override_stat="3:4:711"
# file: dir
user.containers.override_stat="5:6:2750"
# file: link
user.containers.override_stat="3:4:711"
# file: plain
user.containers.override_stat="7:8:4711"
# file: dir/sub
user.containers.override_stat="0:6:2755"
# file: dir/sub/new
user.containers.override_stat="0:6:644"
== again
a 12:34 751
dir 5:6 2750
plain 7:8 4711
copy 3:4 711
link 3:4 711
symbolic 3:4 777
dir/sub 0:6 2755
dir/sub/new 0:6 644
`
	if got != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
}
