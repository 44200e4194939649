package e2e

import (
	"strings"
	"testing"

	"unionfs/internal/testimage"
)

// TestGroups calls verbs by the names that they have in Docker's groups, and prunes everything.
func TestGroups(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		importBusybox(t, c)
		t.Cleanup(func() { c.try(t, "rm", "-f", "box", "old") })
		c.must(t, "image", "tag", "bb:1", "bb:2")
		if got := c.must(t, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "-f", "reference=bb"); got != "bb:1\nbb:2\n" && got != "bb:2\nbb:1\n" {
			t.Errorf("image ls: %q", got)
		}
		if r := c.try(t, "container", "run", "--network", "none", "--name", "old", "bb:1", "sh", "-c", "exit 3", "--rm"); r.code != 3 {
			t.Errorf("container run: %+v", r)
		}
		c.must(t, "container", "run", "-d", "--network", "none", "--name", "box", "-v", "/anonymous", "bb:1", "sleep", "1000")
		if got := c.must(t, "container", "ls", "-a", "--format", "{{.Names}}", "--filter", "status=running"); got != "box\n" {
			t.Errorf("container ls: %q", got)
		}
		if got := c.must(t, "system", "info", "-f", "{{.Containers}} {{.ContainersRunning}} {{.ContainersStopped}} {{.Images}}"); got != "2 1 1 1\n" {
			t.Errorf("system info: %q", got)
		}
		// What is wrong names the verb, and with a group's own verb the group too.
		oneLine(t, c.try(t, "container", "rm", "--nope"), 2, "unionfs rm --help")
		oneLine(t, c.try(t, "volume", "create", "a", "b"), 2, "volume create")
		oneLine(t, c.try(t, "volume", "create", "--nope"), 2, "unionfs volume create --help")
		oneLine(t, c.try(t, "image", "nope"), 2, `"image nope"`)
		if got := c.must(t, "volume", "create", "named", "--label", "for=test"); got != "named\n" {
			t.Errorf("volume create: %q", got)
		}

		if r := run(t, withInput(c.command(t, shared.unionfs, "system", "prune", "-a"), "n\n")); r.code != 1 || !strings.Contains(r.stderr, "nothing was removed") {
			t.Errorf("system prune, refused: %+v", r)
		}
		c.must(t, "network", "create", "unused")
		if got := c.must(t, "system", "prune", "--all", "--volumes", "-f"); strings.Contains(got, "Deleted: ") {
			t.Errorf("system prune took an image that a container has: %q", got)
		}
		if got := c.must(t, "ps", "-a", "--format", "{{.Names}}"); got != "box\n" {
			t.Errorf("containers after system prune: %q", got)
		}
		if got := c.must(t, "network", "ls", "--format", "{{.Name}}"); strings.Contains(got, "unused") {
			t.Errorf("networks after system prune: %q", got)
		}
		c.must(t, "rm", "-f", "-v", "box")
		if got := c.must(t, "image", "prune", "--all", "--dry-run"); strings.Count(got, "Would untag: bb:") != 2 || strings.Count(got, "Would delete: ") != 1 {
			t.Errorf("image prune --all --dry-run: %q", got)
		}
		if got, old := c.must(t, "images", "-q", "-f", "until=0s"), c.must(t, "images", "-q", "-f", "until=1h"); len(got) != 13 || old != "" {
			t.Errorf("images until now: %q, until an hour ago: %q", got, old)
		}
		c.must(t, "image", "prune", "-f")
		if got := c.must(t, "images", "-aq"); len(got) != 13 {
			t.Errorf("an image with a name was pruned: %q", got)
		}
		if got := c.must(t, "system", "prune", "-af"); strings.Count(got, "Untagged: bb:") != 2 {
			t.Errorf("system prune --all: %q", got)
		}
		if got := c.must(t, "images", "-q"); got != "" {
			t.Errorf("images after system prune --all: %q", got)
		}
		if got := c.must(t, "volume", "ls", "-q"); got != "named\n" {
			t.Errorf("volumes after system prune: %q", got)
		}
	})
}

// TestAllTags sends and gets all images of a name.
func TestAllTags(t *testing.T) {
	registry := testimage.Registry(t)
	c := newCaller(t, "root")
	importBusybox(t, c)
	name := registry + "/team/app"
	c.must(t, "tag", "bb:1", name+":1")
	c.must(t, "tag", "bb:1", name+":2")
	c.must(t, "tag", "bb:1", name+"lication:3")
	if got := c.must(t, "push", "-aq", name); strings.Count(got, "sha256:") != 2 {
		t.Errorf("push -a: %q", got)
	}
	c.must(t, "rmi", name+":1", name+":2")
	if got := c.must(t, "pull", "-aq", name); strings.Count(got, "sha256:") != 2 {
		t.Errorf("pull -a: %q", got)
	}
	if got := c.must(t, "images", "--format", "{{.Tag}}", "--filter", "reference="+name); got != "1\n2\n" && got != "2\n1\n" {
		t.Errorf("images: %q", got)
	}
	oneLine(t, c.try(t, "push", "-a", name+"lic"), 1, "no image of that name")
	oneLine(t, c.try(t, "push", "-a", name, "other"), 2, "one NAME")
	oneLine(t, c.try(t, "pull", "-a", name+":1"), 1, "without a tag")
	oneLine(t, c.try(t, "pull", "-a", name+"lication"), 1, name+"lication")
}
