package e2e

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTry tries changes on a copy of the machine's own root, looks at them, and applies or forgets them.
func TestTry(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		// What is changed for good is in the caller's home; the rest of the machine only in the copy.
		c.script(t, `mkdir site site/old; echo one > site/page; echo two > site/old/page; echo three > site/gone; chmod 640 site/gone`)
		site := filepath.Join(c.home, "site")
		before := walk(t, site)

		r := c.try(t, "try", "--name", "change", "sh", "-euc", `
			test "$(pwd)" = "$HOME"; test "$(id -u)" = 0
			echo changed > site/page; rm site/gone; mv site/old site/new; ln -s page site/link; mkfifo site/fifo
			printf x >> site/new/page; chmod 0750 site/new
			echo inside: $(cat site/page) $(ls site)`)
		if want := "inside: changed fifo link new page\n"; r.code != 0 || r.stdout != want || !strings.Contains(r.stderr, "unionfs apply change") {
			t.Fatalf("%+v, want %q", r, want)
		}
		if now := walk(t, site); len(now) != len(before) || now["/page"] != before["/page"] {
			t.Errorf("the machine itself changed: %v", now)
		}

		var inSite []string
		for line := range strings.Lines(c.must(t, "diff", "change")) {
			if kind, path, _ := strings.Cut(strings.TrimSpace(line), " "); strings.HasPrefix(path, site) {
				inSite = append(inSite, kind+strings.TrimPrefix(path, site))
			}
		}
		if got, want := strings.Join(inSite, " "), "C A/fifo D/gone A/link A/new A/new/page D/old C/page"; got != want {
			t.Errorf("diff: %s, want %s", got, want)
		}
		var change struct{ Kind, Path string }
		if err := json.Unmarshal([]byte(strings.SplitAfter(c.must(t, "diff", "--format", "json", "change"), "\n")[0]), &change); err != nil || change.Kind != "C" {
			t.Errorf("diff --format json: %+v, %v", change, err)
		}

		// Not without an answer.
		r = c.try(t, "apply", "change")
		if r.code != 1 || !strings.Contains(r.stderr, "nothing was applied") || !strings.Contains(r.stdout, "D "+site+"/gone\n") {
			t.Errorf("apply without an answer: %+v", r)
		}
		if now := walk(t, site); now["/page"] != before["/page"] {
			t.Errorf("apply without an answer changed the machine: %v", now)
		}
		c.must(t, "apply", "-y", "change")
		got := c.script(t, `cd site; cat page new/page; readlink link; test -p fifo; stat -c '%a %U' new; ls -A`)
		owner := "root"
		if c.uid != 0 {
			owner = "tester"
		}
		if want := "changed\ntwo\nxpage\n750 " + owner + "\nfifo\nlink\nnew\npage\n"; got != want {
			t.Errorf("after apply: %q, want %q", got, want)
		}
		c.must(t, "rm", "change")

		r = c.try(t, "try", "--rm", "sh", "-c", "rm -rf /etc/alternatives; ls /etc/alternatives 2>/dev/null; exit 9")
		if r.code != 9 || r.stdout != "" {
			t.Errorf("%+v, want exit code 9", r)
		}
		if _, err := os.Stat("/etc/alternatives"); err != nil {
			t.Error(err)
		}
		if out := c.must(t, "ps", "-aq"); out != "" {
			t.Errorf("containers are left: %q", out)
		}
	})
}

// TestTryHides shows what of the machine a tried command must not see or reach.
func TestTryHides(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		c.script(t, `mkdir -p state; echo secret > state/secret`)
		out := c.must(t, "try", "--rm", "sh", "-c", `
			ls -A state | wc -l
			ls /proc | grep -c '^[0-9]*$'
			ls /dev/fuse /dev/vda /dev/sda 2>/dev/null | wc -l
			cat /proc/sys/kernel/hostname >/dev/null
			echo 1 > /proc/sys/kernel/panic 2>/dev/null || echo refused
			mount -t tmpfs none /mnt 2>/dev/null || echo refused`)
		lines := strings.Fields(out)
		if len(lines) != 5 || lines[0] != "0" || len(lines[1]) > 1 || lines[2] != "0" || lines[3] != "refused" || lines[4] != "refused" {
			t.Errorf("got %q", out)
		}
	})
}
