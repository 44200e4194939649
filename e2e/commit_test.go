package e2e

import (
	"strings"
	"testing"
)

// TestCommitOwners commits and exports what a container did with owners: an image has the numbers that the container saw.
func TestCommitOwners(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		c.must(t, "run", "--name", "work", "bb:1", "sh", "-c", `
			mkdir /made; echo 1 > /made/plain; echo 2 > /made/other; ln -s plain /made/link; mkfifo /made/fifo
			chmod 4750 /made/plain; chown 12:34 /made/other; rm /etc/group`)
		c.must(t, "commit", "work", "made:1")
		const owner = "12/34" // also where the host has no such ID for the caller: then it is recorded
		for _, what := range []string{"work", "made:1"} {
			out := c.script(t, `$UNIONFS export $1 | tar -tv --numeric-owner | sed 's/  */ /g' | cut -d ' ' -f 1,2,6- | grep -E 'made|etc/group' | sort`, what)
			want := strings.Join([]string{
				"-rw-r--r-- " + owner + " made/other", "-rwsr-x--- 0/0 made/plain", "drwxr-xr-x 0/0 made/", "lrwxrwxrwx 0/0 made/link -> plain", "prw-r--r-- 0/0 made/fifo", ""}, "\n")
			if out != want {
				t.Errorf("export %s:\n%s\nwant:\n%s", what, out, want)
			}
		}
		if out := c.must(t, "diff", "bb:1", "made:1"); !strings.Contains(out, "D /etc/group\n") || !strings.Contains(out, "A /made\n") {
			t.Errorf("diff: %s", out)
		}
		c.must(t, "rm", "work")
	})
}

// TestCommitRunning commits and exports a container that writes all the time, in two files one after the other.
func TestCommitRunning(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		c.must(t, "run", "-d", "--name", "live", "bb:1", "sh", "-c", `
			head -c 3000000 /dev/urandom > /data; sha256sum /data > /sum; echo 0 > /a; echo 0 > /b; echo > /ready
			i=0; while :; do i=$((i+1)); echo $i 1<>/a; echo $i 1<>/b; done`) // never empty
		waitFor(t, func() bool { return c.try(t, "exec", "live", "test", "-e", "/ready").code == 0 })
		c.must(t, "commit", "live", "live:1")
		out := c.must(t, "run", "--rm", "live:1", "sh", "-c", `sha256sum -c -s /sum && a=$(cat /a) b=$(cat /b) && test "$b" -ge $((a - 1)) -a "$b" -le "$a" && echo whole $a`)
		if !strings.HasPrefix(out, "whole ") {
			t.Errorf("the image has %q", out)
		}
		// It goes on.
		before := c.must(t, "exec", "live", "cat", "/sum")
		c.script(t, `was=$($UNIONFS exec live cat /a); n=0; while [ "$($UNIONFS exec live cat /a)" = "$was" ]; do n=$((n+1)); test $n -lt 600; sleep 0.1; done`)
		if out := c.script(t, `$UNIONFS export live | tar -xO sum`); out != before {
			t.Errorf("exported %q", out)
		}
		c.must(t, "rm", "-f", "live")
	})
}

// TestCommitRefuses asks for images of what can't be one.
func TestCommitRefuses(t *testing.T) {
	c := newCaller(t, "root")
	c.must(t, "try", "--name", "tried", "true")
	oneLine(t, c.try(t, "commit", "tried", "x"), 1, "this machine's own root", "unionfs diff tried")
	oneLine(t, c.try(t, "export", "tried"), 1, "this machine's own root")
	oneLine(t, c.try(t, "commit", "nothing", "x"), 1, "nothing")
	c.must(t, "rm", "tried")
}
