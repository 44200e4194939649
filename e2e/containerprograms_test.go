package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestContainersPrograms: the supervisor of a container, the server of its root and its first process run the small programs that were
// built with unionfs, and unionfs itself where there are none, or they can't be executed.
func TestContainersPrograms(t *testing.T) {
	const install = `
		mkdir programs
		install -m 0755 "$UNIONFS" programs/unionfs
		for name in supervisor init; do
			[ -z "$1" ] || install -m "$1" "${UNIONFS%/*}/unionfs-$name" programs/unionfs-$name
		done`
	for _, beside := range []struct{ name, mode, supervisor, init string }{
		{"both", "0755", "unionfs-supervisor", "unionfs-init"},
		{"none", "", "unionfs", "unionfs"},
		{"not to be executed", "0644", "unionfs", "unionfs"},
	} {
		t.Run(beside.name, func(t *testing.T) {
			eachKind(t, func(t *testing.T, c *caller) {
				importBusybox(t, c)
				c.script(t, install, beside.mode)
				program := filepath.Join(c.home, "programs", "unionfs")
				do := func(args ...string) string {
					t.Helper()
					r := run(t, c.command(t, program, args...))
					if r.code != 0 {
						t.Fatalf("%q: %+v", args, r)
					}
					return r.stdout
				}
				for _, with := range [][]string{{"--network", "none"}, {"--network", "bridge"}} {
					do(slices.Concat([]string{"run", "-d", "--name", "box"}, with, []string{"bb:1", "sleep", "1000"})...)
					state := containerState(t, c)
					server, err := strconv.Atoi(strings.TrimSpace(c.script(t, `pgrep -P $1 -f serve-container`, strconv.Itoa(state.SupervisorPID))))
					if err != nil {
						t.Fatal(err)
					}
					for pid, name := range map[int]string{state.SupervisorPID: beside.supervisor, server: beside.supervisor, state.InitPID: beside.init} {
						// The init's is on a mount that has no path.
						runs, err1 := os.Stat(fmt.Sprintf("/proc/%d/exe", pid))
						want, err2 := os.Stat(filepath.Join(filepath.Dir(program), name))
						if err := errors.Join(err1, err2); err != nil || !os.SameFile(runs, want) {
							t.Errorf("%q: %d should run %s: %v", with, pid, name, err)
						}
					}
					if got := do("exec", "box", "sh", "-c", "echo content >/file && cat /file"); got != "content\n" {
						t.Errorf("%q: %q", with, got)
					}
					do("rm", "-f", "box")
				}
				if got := do("run", "--rm", "bb:1", "echo", "in front"); got != "in front\n" {
					t.Errorf("in front: %q", got)
				}
			})
		})
	}
}
