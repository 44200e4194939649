package cow

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRenameRefuses: what the kernel checks before it asks a file system is refused here too, for who uses the library itself.
func TestRenameRefuses(t *testing.T) {
	w := &tree{t: t, upper: t.TempDir(), work: t.TempDir(), lower: []string{t.TempDir()}}
	must(t, os.MkdirAll(filepath.Join(w.lower[0], "dir", "sub"), 0o755))
	must(t, os.WriteFile(filepath.Join(w.lower[0], "file"), []byte("x"), 0o644))
	w.open()
	defer w.close()
	held := map[string]*Node{}
	for _, p := range []string{"/", "/dir", "/dir/sub", "/file"} {
		n, _, err := w.walk(p)
		must(t, err)
		defer w.u.Forget(n, 1)
		held[p] = n
	}
	for _, c := range []struct {
		from, name, to, as string
		want               error
	}{
		{"/", "dir", "/dir", "inside", unix.EINVAL},
		{"/", "dir", "/dir/sub", "inside", unix.EINVAL},
		{"/", "file", "/file", "x", unix.ENOTDIR},
		{"/file", "x", "/", "y", unix.ENOTDIR},
		{"/", "file", "/", "dir", unix.EISDIR},
		{"/", "dir", "/", "file", unix.ENOTDIR},
		{"/", "none", "/", "x", unix.ENOENT},
		{"/", "file", "/", ".wh.file", unix.EINVAL},
	} {
		if err := w.u.Rename(held[c.from], c.name, held[c.to], c.as, 0); err != c.want {
			t.Errorf("%s %s to %s %s: %v, want %v", c.from, c.name, c.to, c.as, err, c.want)
		}
	}
}
