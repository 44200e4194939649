package runner

import (
	"strings"
	"testing"
)

func TestExitCodes(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		for _, c := range []struct {
			name   string
			args   []string
			code   int
			stderr string // a part of what is said
		}{
			{"success", []string{"true"}, 0, ""},
			{"failure", []string{"sh", "-c", "exit 3"}, 3, ""},
			{"signal", []string{"sh", "-c", "kill -TERM $$"}, 128 + 15, ""},
			{"kill", []string{"sh", "-c", "kill -KILL $$"}, 128 + 9, ""},
			{"not found", []string{"no-such-command"}, 127, "no-such-command: no such command in the container"},
			{"no such path", []string{"/no/such"}, 127, "no such file in the container"},
			{"no interpreter", []string{"/bin/nointerp"}, 127, "interpreter"},
			{"not executable", []string{"/bin/notexec"}, 126, "not an executable file"},
			{"not executable in PATH", []string{"notexec"}, 126, "not an executable file"},
			{"directory", []string{"/etc"}, 126, "is a directory"},
		} {
			t.Run(c.name, func(t *testing.T) {
				w := w.in(t)
				res := w.run(w.command(c.args...))
				if res.code != c.code {
					t.Errorf("exit code %d, want %d; standard error: %s", res.code, c.code, res.stderr)
				}
				if !strings.Contains(res.stderr, c.stderr) || c.stderr == "" && res.stderr != "" {
					t.Errorf("standard error is %q, want %q in it", res.stderr, c.stderr)
				}
				if strings.Count(res.stderr, "\n") > 1 {
					t.Errorf("more than one line: %q", res.stderr)
				}
			})
		}
	})
}
