package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"golang.org/x/sys/unix"

	"unionfs/internal/testimage"
)

// TestVolumes walks volumes through their life, with Docker's verbs and flags.
func TestVolumes(t *testing.T) {
	image := testimage.Busybox(t, v1.Config{
		Cmd:     []string{"sh"},
		Env:     []string{"PATH=/bin"},
		Volumes: map[string]struct{}{"/var/auto": {}},
	})
	registry := testimage.Registry(t)
	ref := registry + "/team/volumes:1"
	testimage.Push(t, image, ref)

	eachKind(t, func(t *testing.T, c *caller) {
		c.must(t, "pull", ref)
		t.Cleanup(func() { c.try(t, "rm", "-f", "-v", "one", "two", "three") })
		names := func(args ...string) []string {
			t.Helper()
			return strings.Fields(c.must(t, append([]string{"volume", "ls", "-q"}, args...)...))
		}

		if got := c.must(t, "volume", "create", "--label", "for=test", "labelled"); got != "labelled\n" {
			t.Errorf("create: %q", got)
		}
		var details []struct {
			Name, Driver, Mountpoint, Scope string
			Labels                          map[string]string
		}
		if err := json.Unmarshal([]byte(c.must(t, "volume", "inspect", "labelled")), &details); err != nil || len(details) != 1 || details[0].Labels["for"] != "test" || details[0].Driver != "local" || details[0].Scope != "local" {
			t.Errorf("inspect: %+v, %v", details, err)
		}
		if got := c.must(t, "volume", "inspect", "-f", "{{.Mountpoint}}", "labelled"); got != filepath.Join(c.root, "volumes/labelled/_data")+"\n" {
			t.Errorf("inspect --format: %q", got)
		}
		if r := c.try(t, "volume", "inspect", "absent"); r.code != 1 || r.stdout != "[]\n" || !strings.Contains(r.stderr, "no such volume: absent") {
			t.Errorf("inspect of nothing: %+v", r)
		}

		// A new volume has what the image has in its place; the second container doesn't bring it back.
		c.must(t, "run", "--name", "one", "-v", "data:/opt", "-v", "/anonymous", ref, "sh", "-c", "test -e /opt/lower && rm -r /opt/lower && echo kept > /opt/new && mkdir -p /opt/d && ln -s /etc/passwd /opt/link")
		if got := c.must(t, "run", "--rm", "--volumes-from", "one:ro", ref, "sh", "-c", "ls /opt; touch /opt/x 2>/dev/null || echo refused"); got != "d\nlink\nnew\nrefused\n" {
			t.Errorf("volumes-from: %q", got)
		}
		if got := names(); len(got) != 4 {
			t.Errorf("volumes: %q, want data, labelled, and two without a name", got)
		}
		if got := names("--filter", "dangling=true"); len(got) != 1 || got[0] != "labelled" {
			t.Errorf("dangling: %q", got)
		}
		if got := names("--filter", "label=for=test", "-f", "name=lab"); len(got) != 1 {
			t.Errorf("filtered: %q", got)
		}
		if got := c.must(t, "volume", "ls", "--format", "table {{.Driver}}\t{{.Name}}", "-f", "name=data"); got != "DRIVER   NAME\nlocal    data\n" {
			t.Errorf("ls: %q", got)
		}
		if r := c.try(t, "volume", "rm", "data"); r.code != 1 || !strings.Contains(r.stderr, "in use by container one") {
			t.Errorf("rm of a used volume: %+v", r)
		}
		var containers []struct {
			Mounts []struct {
				Type, Name, Source, Destination, Driver string
				RW                                      bool
			}
		}
		if err := json.Unmarshal([]byte(c.must(t, "inspect", "one")), &containers); err != nil || len(containers[0].Mounts) != 3 {
			t.Fatalf("inspect: %v, %+v", err, containers)
		}
		for _, m := range containers[0].Mounts {
			if m.Type != "volume" || m.Name == "" || m.Driver != "local" || !m.RW || m.Destination == "/opt" && m.Name != "data" {
				t.Errorf("mount %+v", m)
			}
		}

		// Data in a volume is the host's own file system's: no server of ours is in between.
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(c.root, "volumes/data/_data"), &st); err != nil {
			t.Fatal(err)
		}
		where := c.must(t, "run", "--rm", "-v", "data:/v", ref, "sh", "-c", "grep ' /v ' /proc/self/mountinfo; stat -c %d /v /")
		lines := strings.Split(strings.TrimSpace(where), "\n")
		if len(lines) != 3 || strings.Contains(lines[0], "fuse") || lines[1] != fmt.Sprint(st.Dev) || lines[2] == lines[1] {
			t.Errorf("the volume's mount: %q, want device %d", where, st.Dev)
		}

		// Backup and restore.
		c.must(t, "volume", "export", "-o", "data.tar", "data")
		c.script(t, `"$UNIONFS" volume import copy - < data.tar`)
		if got := c.must(t, "run", "--rm", "-v", "copy:/opt", ref, "sh", "-c", "cat /opt/new; readlink /opt/link; ls /opt | wc -l"); got != "kept\n/etc/passwd\n3\n" {
			t.Errorf("restored: %q", got)
		}

		// An image's files as a mount of their own.
		if got := c.must(t, "run", "--rm", "--mount", "type=image,source="+ref+",target=/image", ref, "sh", "-c", "cat /image/etc/replaced; ls /image/opt/lower; touch /image/x 2>/dev/null || echo refused"); got != "from the upper layer\nshown\nrefused\n" {
			t.Errorf("an image's mount: %q", got)
		}

		// Ownership, where there is more than one user.
		if c.uid == 0 || c.subordinates {
			if got := c.must(t, "run", "--rm", "-u", "user", "-v", "data:/v:U", ref, "sh", "-c", "stat -c %U /v /v/new /v/link; stat -c %U /etc/passwd; echo more > /v/new"); got != "user\nuser\nuser\nroot\n" {
				t.Errorf("U: %q", got)
			}
		}

		c.must(t, "rm", "-v", "one")
		if got := strings.Join(names(), " "); got != "copy data labelled" {
			t.Errorf("after rm -v: %q", got)
		}
		c.must(t, "run", "--name", "two", ref, "true")
		c.must(t, "rm", "two")
		if got := names(); len(got) != 4 {
			t.Errorf("rm without -v: %q", got)
		}
		if got := c.must(t, "volume", "prune", "-f"); !strings.Contains(got, "Deleted Volumes:\n") || !strings.Contains(got, "Total reclaimed space: ") {
			t.Errorf("prune: %q", got)
		}
		c.must(t, "volume", "rm", "copy")
		c.must(t, "volume", "prune", "-a", "-f", "--filter", "label!=for=test")
		if got := strings.Join(names(), " "); got != "labelled" {
			t.Errorf("after prune: %q", got)
		}
		if left, err := os.ReadDir(filepath.Join(c.root, "volumes")); err != nil || len(left) != 1 {
			t.Errorf("left: %v, %v", left, err)
		}

		// A container that could not be made leaves no volume; one that could not start, with --rm, neither.
		c.try(t, "run", "--rm", "-v", "/x", "-v", "/absent:/y", ref, "true")
		c.try(t, "run", "--rm", "-v", "/x", ref, "nowhere")
		if got := strings.Join(names(), " "); got != "labelled" {
			t.Errorf("after failures: %q", got)
		}
	})
}
