package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCopy copies in both directions, with a container that runs and one that doesn't, by Docker's rules.
func TestCopy(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "box") })
		c.script(t, `mkdir -p src/sub; echo one > src/file; echo two > src/sub/deep; ln -s file src/link; chmod 4711 src/file; printf '#!/bin/sh\n' > tool; chmod 755 tool; ln -s tool toollink; mkdir vol; head -c 1M /dev/zero > large`)
		c.must(t, "create", "--name", "box", "-v", "data:/data", "-v", "./vol:/vol:ro", "-t", "bb:1", "sh", "-c",
			"mkdir /made; echo hello > /made/a; ln -s /etc/shadow-outside /made/abs; ln -s ../../../../../../../../etc /made/up; ln -s /made/a /made/ok; mkfifo /made/pipe; touch /made/ready; while :; do sleep 1; done")
		states := []string{"created", "running", "exited"}
		for _, state := range states {
			t.Run(state, func(t *testing.T) {
				switch state {
				case "running":
					c.must(t, "start", "box")
					waitFor(t, func() bool { return c.try(t, "exec", "box", "ls", "/made/ready").code == 0 })
				case "exited":
					c.must(t, "kill", "box")
					c.must(t, "wait", "box")
				}
				in := func(name string) string { return "/srv-" + state + name }
				steps := []struct {
					name, script, want string
				}{
					{"directory as a new one", `"$UNIONFS" cp -q src box:` + in(""), ""},
					{"into one that is there", `"$UNIONFS" cp -q src box:` + in(""), ""},
					{"content", `"$UNIONFS" cp -q src/. box:` + in("/src/sub"), ""},
					{"file into a directory", `"$UNIONFS" cp -q tool box:` + in("/"), ""},
					{"file as another", `"$UNIONFS" cp -q tool box:` + in("/renamed"), ""},
					{"link", `"$UNIONFS" cp -q toollink box:` + in("/l1") + `; "$UNIONFS" cp -qL toollink box:` + in("/l2"), ""},
					{"into a volume", `"$UNIONFS" cp -q tool box:/data/` + state, ""},
					{"tar in", `tar -C src -c . | "$UNIONFS" cp - box:` + in("/src/sub"), ""},
					{"list", `"$UNIONFS" cp box:` + in("") + ` - | tar -t | sort | tr '\n' ' '`, strings.ReplaceAll("B/ B/file B/l1 B/l2 B/link B/renamed B/src/ B/src/file B/src/link B/src/sub/ B/src/sub/deep B/src/sub/file B/src/sub/link B/src/sub/sub/ B/src/sub/sub/deep B/sub/ B/sub/deep B/tool ", "B", "srv-"+state)},
					{"types", `"$UNIONFS" cp box:` + in("") + ` - | tar -tv --numeric-owner | grep -e /l1 -e /l2 -e 'src/file' | awk '{print $1, $2}' | tr '\n' ' '`, "lrwxrwxrwx 0/0 -rwxr-xr-x 0/0 -rws--x--x 0/0 "},
					{"out of it as a new one", `rm -rf out; "$UNIONFS" cp -q box:` + in("/src") + ` out; cat out/file out/sub/deep; readlink out/link; stat -c %a out/file`, "one\ntwo\nfile\n4711\n"},
					{"out into one", `"$UNIONFS" cp -q box:` + in("/src/.") + ` out/sub; ls out/sub | tr '\n' ' '`, "deep file link sub "},
					{"file out", `"$UNIONFS" cp -q box:` + in("/src/sub/deep") + ` copied; "$UNIONFS" cp -q box:` + in("/src/sub/deep") + ` out; cat copied out/deep`, "two\ntwo\n"},
					{"volume out", `"$UNIONFS" cp -q box:/data/` + state + ` v; cat v`, "#!/bin/sh\n"},
					{"what is said", `"$UNIONFS" cp box:/data/` + state + ` v 2>&1`, "Successfully copied 10B to v\n"},
				}
				for _, s := range steps {
					if got := c.script(t, s.script); got != s.want {
						t.Errorf("%s: %q, want %q", s.name, got, s.want)
					}
				}
				for name, test := range map[string]struct{ from, to, err string }{
					"absent":                   {"box:/nowhere", "x", "has no file /nowhere"},
					"directory onto a file":    {"src", "box:" + in("/tool"), "no directory"},
					"directory onto ours":      {"box:" + in(""), "tool", "no directory"},
					"into an absent directory": {"tool", "box:/nowhere/", "does not exist"},
					"file with a slash":        {"tool", "box:" + in("/tool/"), "ot a directory"},
					"between containers":       {"box:/a", "box:/b", "not supported"},
					"none":                     {"a", "b", "neither"},
					"a read-only volume":       {"tool", "box:/vol/x", "read-only"},
					"more than a pipe there":   {"large", "box:/vol/x", "read-only"},
				} {
					if r := c.try(t, "cp", test.from, test.to); r.code == 0 || !strings.Contains(r.stderr, test.err) {
						t.Errorf("%s: %+v", name, r)
					}
				}
				if state == "created" {
					return
				}
				if got := c.script(t, `"$UNIONFS" exec box sh -c 'echo fresh > /etc/fresh' 2>/dev/null || true; "$UNIONFS" export box | tar -tv | grep -e etc/fresh -e data/created | awk '{print $NF}'`); got != "etc/fresh\n" {
					t.Errorf("export: %q", got)
				}
				// Links that want out stay inside.
				if r := c.try(t, "cp", "-L", "box:/made/abs", "stolen"); r.code == 0 {
					t.Errorf("a link out of the container: %+v", r)
				}
				c.must(t, "cp", "-q", "tool", "box:/made/up/written-"+state)
				if _, err := os.Lstat("/etc/written-" + state); err == nil {
					t.Error("something was written to this machine's /etc")
				}
				if got := c.script(t, `"$UNIONFS" cp box:/etc/written-`+state+` - | tar -t; "$UNIONFS" cp -qL box:/made/ok ok; cat ok; "$UNIONFS" cp -q box:/made all; test -p all/pipe; readlink all/up`); got != "written-"+state+"\nhello\n../../../../../../../../etc\n" {
					t.Errorf("links: %q", got)
				}
				c.script(t, `rm -rf all`)
			})
		}
		// It still starts, and nothing of the copying is left.
		c.must(t, "start", "box")
		if got := c.must(t, "exec", "box", "cat", "/data/created"); got != "#!/bin/sh\n" {
			t.Errorf("%q", got)
		}
		if got := c.must(t, "diff", "box"); strings.Contains(got, "/data") || strings.Contains(got, "/vol") {
			t.Errorf("diff: %q", got)
		}
		if _, err := os.Stat(filepath.Join(c.home, "stolen")); err == nil {
			t.Error("a file of this machine was copied through a link")
		}
	})
}
