package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestMount mounts a union of directories, changes it, and looks at what is left in the branches.
func TestMount(t *testing.T) {
	eachKind(t, func(t *testing.T, c *caller) {
		got := c.script(t, `
			mkdir top bottom upper merged
			echo top > top/both; echo bottom > bottom/both; echo bottom > bottom/below; mkdir bottom/dir; echo x > bottom/dir/x
			$UNIONFS mount --lower top --lower bottom --upper upper merged
			cat merged/both merged/below
			echo changed >> merged/below; rm merged/both; rm -r merged/dir; echo new > merged/new
			ls merged
			cd merged
			$UNIONFS umount ../merged 2>&1 && exit 1
			cd ..
			$UNIONFS umount merged
			ls -A merged
			cat upper/below upper/new
			cat top/both bottom/both bottom/below bottom/dir/x
			# The same again, and read only.
			$UNIONFS mount --lower top --lower bottom --upper upper -o ro merged
			ls merged
			touch merged/x 2>/dev/null && exit 1
			$UNIONFS umount merged
			$UNIONFS mount --lower upper --lower top --lower bottom -f merged & server=$!
			until [ -e merged/new ]; do sleep 0.01; done
			ls merged
			kill -TERM $server
			wait $server
			ls -A merged`)
		want := `top
bottom
below
new
unionfs: unmounting`
		if !strings.HasPrefix(got, want) {
			t.Errorf("got:\n%s\nwant it to start with:\n%s", got, want)
		}
		_, rest, _ := strings.Cut(got, "in use")
		_, rest, _ = strings.Cut(rest, "\n")
		want = `bottom
changed
new
top
bottom
bottom
x
below
new
below
new
`
		if rest != want {
			t.Errorf("after the refused unmounting:\n%s\nwant:\n%s", rest, want)
		}
	})
}

// TestMountReturnsItsStreams shows that a mount in the background keeps no stream of its caller's open: output ends with
// the command, also through a pipe.
func TestMountReturnsItsStreams(t *testing.T) {
	c := newCaller(t, "root")
	for _, dir := range []string{"lower", "merged"} {
		if err := os.Mkdir(filepath.Join(c.home, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c.script(t, `
		out=$($UNIONFS mount --lower lower merged 7>&1 2>&1 | cat)
		test -z "$out"
		for process in $(pgrep -f "[r]eady-fd 3 --lower lower merged"); do # the holder and the server
			test "$(readlink /proc/$process/cwd)" = /
			test "$(readlink /proc/$process/fd/0 /proc/$process/fd/1 /proc/$process/fd/2 | sort -u)" = /dev/null
			test -z "$(ls -l /proc/$process/fd | grep pipe:)"
		done
		$UNIONFS umount merged
		# "umount" returns when the upper branch is free.
		mkdir upper
		for i in 1 2 3 4 5; do
			$UNIONFS mount --lower lower --upper upper merged
			echo $i >> merged/file
			$UNIONFS umount merged
		done
		test "$(cat upper/file | tr -d '\n')" = 12345`)
}
