package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSecurityOptions looks at the command's status in /proc, and at what a profile of one's own refuses.
func TestSecurityOptions(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		profile := `{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname","mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":122}]}`
		if err := os.WriteFile(filepath.Join(c.home, "profile.json"), []byte(profile), 0o644); err != nil {
			t.Fatal(err)
		}
		const status = "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' '  '"
		for _, test := range []struct {
			name   string
			flags  []string
			script string
			want   string
		}{
			{"default", nil, status, "NoNewPrivs: 0 Seccomp: 2"},
			{"unconfined", []string{"--security-opt", "seccomp=unconfined"}, status, "NoNewPrivs: 0 Seccomp: 0"},
			{"no new privileges", []string{"--security-opt", "no-new-privileges"}, status, "NoNewPrivs: 1 Seccomp: 2"},
			{"with colons", []string{"--security-opt", "no-new-privileges:true", "--security-opt", "seccomp:unconfined"}, status, "NoNewPrivs: 1 Seccomp: 0"},
			{"own profile", []string{"--security-opt", "seccomp=profile.json"}, "mkdir /tmp/x 2>&1 | grep -o 'quota exceeded'", "quota exceeded"},
			{"system paths", []string{"--security-opt", "systempaths=unconfined"}, "grep -c ' /proc/' /proc/mounts", "0"},
		} {
			r := c.try(t, append(append([]string{"run", "--rm"}, test.flags...), "bb:1", "sh", "-c", test.script)...)
			if got := strings.TrimSpace(r.stdout); got != test.want {
				t.Errorf("%s: %q, want %q\n%s", test.name, got, test.want, r.stderr)
			}
		}
		for _, option := range []string{"seccomp=/no/such/file", "seccomp", "apparmor=mine", "no-new-privileges=perhaps"} {
			oneLine(t, c.try(t, "run", "--rm", "--security-opt", option, "bb:1", "true"), 125, strings.SplitAfter(option, "=")[0][:7])
		}
	})
}
