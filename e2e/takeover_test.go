package e2e

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// takeoverKills is how many servers each of the tests under load kills at least.
var takeoverKills = flag.Int("takeover-kills", 60, "how often the takeover tests kill the server of a mount")

// takeoverStress is how long stress-ng runs meanwhile.
var takeoverStress = flag.Duration("takeover-stress", 6*time.Second, "how long stress-ng runs in the takeover tests")

// TestServerKilledUnderModel does random operations to a mount, on files too that are open and have no name any more, and to a
// plain directory; both must say the same all the time, though the mount's server is killed all the time.
func TestServerKilledUnderModel(t *testing.T) {
	rng := modeltest.NewRand(t)
	m := newMounted(t, rng)
	kills, stop := m.killing(t, rng)
	stopped := false
	defer func() {
		if !stopped {
			stop()
		}
	}()
	a, b := modeltest.NewPlayer(m.mnt), modeltest.NewPlayer(m.plain)
	defer a.Close()
	defer b.Close()
	var history []string
	for i := 0; int(kills.Load()) < *takeoverKills || i < 1000; i++ {
		op := modeltest.Random(rng)
		got, gotErr := a.Do(op)
		want, wantErr := b.Do(op)
		history = append(history, fmt.Sprintf("%d (%d kills) %s: %s %v", i, kills.Load(), op.What, got, gotErr))
		history = history[max(0, len(history)-100):]
		if got != want || gotErr != wantErr {
			t.Fatalf("%s\nthe plain directory: %s %v", strings.Join(history, "\n"), want, wantErr)
		}
		if i%50 == 49 {
			m.compare(t, strings.Join(history, "\n"))
		}
		if i%5 == 0 {
			time.Sleep(time.Millisecond) // so that kills find the mount at rest, too
		}
	}
	stop()
	stopped = true
	t.Logf("%d servers were killed", kills.Load())
	m.compare(t, "the last kill")
	a.Close()
	m.unmount(t)
	m.mount(t)
	m.compare(t, "mounting again")
}

// TestKilledBetweenDoingAndAnswering kills the server when it has carried a request out and is about to answer. The next one
// gets the request again, and must do it neither twice nor say that it can't be done.
func TestKilledBetweenDoingAndAnswering(t *testing.T) {
	m := newMounted(t, modeltest.NewRand(t))
	nameless := map[string]int{} // open files without a name, by root
	cases := []struct {
		name    string
		prepare func(root string) error // before the kernel's caches are filled
		look    []string                // names to look at first, so that the kernel asks for little more than what is to be done
		call    string                  // the server's system call that does it; empty if strace doesn't know that
		do      func(root string) error
	}{
		{"create", nil, []string{"new"}, "openat", func(root string) error {
			fd, err := unix.Open(root+"/new", unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o640)
			if err != nil {
				return err
			}
			return unix.Close(fd)
		}},
		{"mkdir", nil, []string{"dir"}, "mkdirat", func(root string) error { return unix.Mkdir(root+"/dir", 0o751) }},
		{"mkdir over a whiteout", func(root string) error { return unix.Unlink(root + "/lower-file2") }, []string{"lower-file2"}, "renameat2",
			func(root string) error { return unix.Mkdir(root+"/lower-file2", 0o751) }},
		{"mknod", nil, []string{"fifo"}, "mknodat", func(root string) error { return unix.Mknod(root+"/fifo", unix.S_IFIFO|0o604, 0) }},
		{"symlink", nil, []string{"symlink"}, "symlinkat", func(root string) error { return unix.Symlink("target", root+"/symlink") }},
		{"link", nil, []string{"file", "link"}, "linkat", func(root string) error { return unix.Link(root+"/file", root+"/link") }},
		{"unlink", nil, []string{"file2"}, "renameat", func(root string) error { return unix.Unlink(root + "/file2") }},
		{"unlink a lower file", nil, []string{"lower-file"}, "", func(root string) error { return unix.Unlink(root + "/lower-file") }},
		{"rmdir", func(root string) error { return unix.Mkdir(root+"/empty", 0o755) }, []string{"empty"}, "renameat",
			func(root string) error { return unix.Rmdir(root + "/empty") }},
		{"rename", nil, []string{"file", "renamed"}, "renameat", func(root string) error { return unix.Rename(root+"/file", root+"/renamed") }},
		{"rename over a file", nil, []string{"file3", "file4"}, "renameat", func(root string) error { return unix.Rename(root+"/file3", root+"/file4") }},
		{"rename without replacing", nil, []string{"file4", "file5"}, "renameat", func(root string) error {
			return unix.Renameat2(unix.AT_FDCWD, root+"/file4", unix.AT_FDCWD, root+"/file5", unix.RENAME_NOREPLACE)
		}},
		{"rename a lower directory", nil, []string{"lower-dir", "moved-dir"}, "renameat2", func(root string) error { return unix.Rename(root+"/lower-dir", root+"/moved-dir") }},
		{"exchange", nil, []string{"file5", "renamed"}, "renameat2", func(root string) error {
			return unix.Renameat2(unix.AT_FDCWD, root+"/file5", unix.AT_FDCWD, root+"/renamed", unix.RENAME_EXCHANGE)
		}},
		{"append", nil, []string{"file5"}, "pwrite64", func(root string) error {
			fd, err := unix.Open(root+"/file5", unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
			if err != nil {
				return err
			}
			_, err = unix.Write(fd, []byte("appended"))
			return errors.Join(err, unix.Fsync(fd), unix.Close(fd))
		}},
		{"truncate", nil, []string{"file5"}, "ftruncate", func(root string) error { return unix.Truncate(root+"/file5", 3) }},
		{"chmod", nil, []string{"file5"}, "fchmodat", func(root string) error { return unix.Chmod(root+"/file5", 0o4711) }},
		{"chown", nil, []string{"file5"}, "fchownat", func(root string) error { return unix.Chown(root+"/file5", 7, 8) }},
		{"name a file without one", func(root string) (err error) {
			nameless[root], err = unix.Open(root, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o640)
			return err
		}, []string{"named"}, "renameat", func(root string) error {
			return errors.Join(unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", nameless[root]), unix.AT_FDCWD, root+"/named", unix.AT_SYMLINK_FOLLOW),
				unix.Close(nameless[root]))
		}},
		{"make a file without a name", nil, nil, "renameat", func(root string) error {
			fd, err := unix.Open(root, unix.O_TMPFILE|unix.O_WRONLY|unix.O_CLOEXEC, 0o640)
			if err != nil {
				return err
			}
			_, err = unix.Write(fd, []byte("nameless"))
			return errors.Join(err, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", fd), unix.AT_FDCWD, root+"/tmpfile", unix.AT_SYMLINK_FOLLOW), unix.Close(fd))
		}},
		{"create an attribute", nil, []string{"file5"}, "", func(root string) error {
			return unix.Setxattr(root+"/file5", "user.one", []byte("1"), unix.XATTR_CREATE)
		}},
		{"remove an attribute", nil, []string{"file5"}, "", func(root string) error { return unix.Removexattr(root+"/file5", "user.one") }},
	}
	for i := range 5 {
		for _, root := range []string{m.mnt, m.plain} {
			if err := os.WriteFile(fmt.Sprintf("%s/file%s", root, []string{"", "2", "3", "4", "unused"}[i]), []byte(fmt.Sprint(i)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	m.unmount(t)
	for _, root := range []string{m.lower, m.plain} {
		if err := errors.Join(os.WriteFile(root+"/lower-file", []byte("lower"), 0o644), os.WriteFile(root+"/lower-file2", nil, 0o644), os.Mkdir(root+"/lower-dir", 0o755),
			os.WriteFile(root+"/lower-dir/in", []byte("in"), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	m.mount(t)
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			for _, root := range []string{m.mnt, m.plain} {
				if c.prepare == nil {
					continue
				}
				if err := c.prepare(root); err != nil {
					t.Fatal(err)
				}
			}
			var st unix.Stat_t
			for _, name := range append(c.look, "") {
				_ = unix.Lstat(m.mnt+"/"+name, &st) // some are not there, and the kernel keeps that
			}
			var server int
			waitFor(t, func() bool { server = m.server(t); return server != 0 })
			err := m.interrupted(t, server, c.call, func() error { return c.do(m.mnt) })
			if want := c.do(m.plain); err != want {
				t.Errorf("the mount says %v, the plain directory %v", err, want)
			}
			if now := m.server(t); now == server {
				t.Error("the server was not killed: it was asked nothing")
			}
			m.compare(t, c.name)
		})
	}
	m.unmount(t)
	m.mount(t)
	m.compare(t, "mounting again")
}

// TestServerKilledUnderWork has a database written, a repository cloned, a program built and stress-ng's file system class run on
// one mount, whose server is killed all the time. None of them may notice.
func TestServerKilledUnderWork(t *testing.T) {
	rng := modeltest.NewRand(t)
	m := newMounted(t, rng)
	kills, stop := m.killing(t, rng)
	var once sync.Once
	defer once.Do(stop)
	work := func(root string) []*exec.Cmd {
		var all []*exec.Cmd
		for _, script := range []string{sqliteWork, gitWork} {
			cmd := exec.Command("sh", "-euc", script)
			cmd.Dir = root
			all = append(all, cmd)
		}
		return all
	}
	stress := exec.Command("stress-ng", "--temp-path", m.mnt, "--metrics-brief", "--timeout", takeoverStress.String(), "--oomable", "--verify",
		"--dir", "1", "--rename", "1", "--link", "1", "--symlink", "1", "--fallocate", "1", "--fallocate-bytes", "8m",
		"--hdd", "1", "--hdd-bytes", "16m", "--seek", "1", "--seek-size", "1m", "--utime", "1", "--xattr", "1", "--flock", "1")
	commands := append(work(m.mnt), stress)
	failed := make(chan error, len(commands))
	for _, cmd := range commands {
		go func() {
			out, err := cmd.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s: %w\n%s", cmd.Args, err, out)
			}
			failed <- err
		}()
	}
	for range commands {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
	once.Do(stop)
	t.Logf("%d servers were killed", kills.Load())
	if t.Failed() {
		return
	}
	for _, cmd := range work(m.plain) {
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("on the plain directory: %v\n%s", err, out)
		}
	}
	for _, script := range []string{
		"sqlite3 db 'pragma integrity_check; select count(*), sum(n) from t'",
		"git -C clone status --porcelain; git -C clone fsck --full 2>&1; cd clone && cat $(git ls-files | sort) | sha256sum; ./program | sha256sum",
	} {
		out := map[string]string{}
		for _, root := range []string{m.mnt, m.plain} {
			cmd := exec.Command("sh", "-euc", script)
			cmd.Dir = root
			b, err := cmd.CombinedOutput()
			if err != nil {
				t.Fatalf("%s: %v\n%s", script, err, b)
			}
			out[root] = string(b)
		}
		if out[m.mnt] != out[m.plain] {
			t.Errorf("%s:\non the mount\n%son the plain directory\n%s", script, out[m.mnt], out[m.plain])
		}
	}
}

const (
	sqliteWork = `
		sqlite3 db 'pragma journal_mode=wal; create table t(n integer, s text)' >/dev/null
		for i in $(seq 40); do
			sqlite3 db "pragma synchronous=full; begin; insert into t select value, hex(zeroblob(200)) from generate_series($i, $i + 20); commit;
				update t set s = s || 'x' where n = $i;" >/dev/null
		done`
	gitWork = `
		git init -q --bare repository
		git clone -q repository clone 2>/dev/null
		cd clone
		printf '*.o\nprogram\n' > .gitignore
		{ for i in $(seq 40); do echo "int f$i(void);"; done; echo '#include <stdio.h>'; echo 'int main(void) { int s = 0;'
			for i in $(seq 40); do echo "s = s * 31 + f$i();"; done; echo 'printf("%d", s); return 0; }'; } > main.c
		for i in $(seq 40); do mkdir -p d$((i % 7)); echo "int f$i(void) { return $i; }" > d$((i % 7))/f$i.c; done
		git add . && git -c user.name=a -c user.email=a@b commit -q -m one && git push -q origin HEAD:main
		for f in main.c d*/*.c; do gcc -c -o ${f%.c}.o $f; done
		gcc -o program main.o d*/*.o
		git checkout -q -b other && git mv d1 moved && echo more >> main.c && git -c user.name=a -c user.email=a@b commit -q -a -m two
		git checkout -q - && git gc -q`
)

// TestEveryMountOutlivesItsServer kills the server of mounts of every kind of caller, in both of their forms, and upgrades it.
func TestEveryMountOutlivesItsServer(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		out := c.script(t, `
			outlive() { # the command line of the servers
				echo lower > lower/file
				exec 3>merged/gone 4<merged/file
				rm merged/gone
				for i in 1 2 3 4 5; do
					holder=$(pgrep -u $(id -u) -o -f "$1")
					kill -9 $(pgrep -P $holder)
					echo $i >&3
					echo $i >> merged/file
					mkdir merged/dir$i
				done
				"$UNIONFS" upgrade merged
				cat /proc/self/fd/3 <&4
				exec 3>&- 4<&-
			}
			mkdir lower upper work merged
			"$UNIONFS" mount --lower lower --upper upper merged
			outlive '[r]eady-fd 3 --lower lower'
			"$UNIONFS" umount merged
			ls upper; cat upper/file
			rm -r upper; mkdir upper
			ln -s "$UNIONFS" fuse-overlayfs
			./fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work merged
			outlive '[s]erve-overlay -o lowerdir=lower'
			"$UNIONFS" umount merged
			ls upper; cat upper/file`)
		want := strings.Repeat("1\n2\n3\n4\n5\ndir1\ndir2\ndir3\ndir4\ndir5\nfile\nlower\n1\n2\n3\n4\n5\n", 2)
		if out != want {
			t.Errorf("output\n%s\nwant\n%s", out, want)
		}
	})
}

// TestHungServerOfAMountIsReplaced stops the server, so that it does not answer any more. The holder ends it and starts another, which
// answers who waits.
func TestHungServerOfAMountIsReplaced(t *testing.T) {
	m := newMounted(t, modeltest.NewRand(t))
	server := m.server(t)
	if err := unix.Kill(server, unix.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, root := range []string{m.mnt, m.plain} {
		if err := os.WriteFile(root+"/while-it-hangs", []byte("written"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if now := m.server(t); now == server || now == 0 {
		t.Errorf("process %d serves, %d did before it hung", now, server)
	}
	m.compare(t, "a hang")
}
