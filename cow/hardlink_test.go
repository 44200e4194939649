package cow

import (
	"os"
	"path/filepath"
	"testing"
)

// TestHardLinksOfLowerFiles: what is written through one name of a lower file is seen through the others, at once, after a
// restart, and in the upper branch by itself.
func TestHardLinksOfLowerFiles(t *testing.T) {
	for _, killed := range []bool{false, true} {
		w := &tree{t: t, upper: t.TempDir(), work: t.TempDir(), lower: []string{t.TempDir()}}
		lower := w.lower[0]
		must(t, os.MkdirAll(filepath.Join(lower, "dir"), 0o755))
		must(t, os.WriteFile(filepath.Join(lower, "a"), []byte("old"), 0o644))
		must(t, os.Link(filepath.Join(lower, "a"), filepath.Join(lower, "b")))
		must(t, os.Link(filepath.Join(lower, "a"), filepath.Join(lower, "dir", "c")))
		w.open()
		n, _, err := w.walk("/a")
		must(t, err)
		var a Attr
		must(t, w.u.Link(n, w.u.Root(), "e", &a))
		if a.Nlink != 4 {
			t.Errorf("%d links after a fourth was made", a.Nlink)
		}
		w.u.Forget(n, 2)
		write := func(path, data string) {
			t.Helper()
			n, _, err := w.walk(path)
			must(t, err)
			defer w.u.Forget(n, 1)
			_, err = w.u.Write(n, 0, []byte(data))
			must(t, err)
		}
		check := func(want string, names ...string) {
			t.Helper()
			for _, p := range names {
				n, a, err := w.walk(p)
				must(t, err)
				buf := make([]byte, 10)
				m, err := w.u.Read(n, 0, buf)
				must(t, err)
				if string(buf[:m]) != want || a.Nlink != 4 {
					t.Errorf("%s: %q with %d links, want %q with 4", p, buf[:m], a.Nlink, want)
				}
				w.u.Forget(n, 1)
			}
		}
		write("/a", "new")
		check("new", "/a", "/b", "/dir/c", "/e")
		if killed {
			letGo(w.u) // all that a kill gives back by itself and the next start needs
		} else {
			w.close()
			for _, p := range []string{"a", "b", "dir/c", "e"} {
				if b, err := os.ReadFile(filepath.Join(w.upper, p)); err != nil || string(b) != "new" {
					t.Errorf("upper branch: %s: %q, %v", p, b, err)
				}
			}
		}
		w.open()
		write("/dir/c", "NEW")
		check("NEW", "/a", "/b", "/dir/c", "/e")
		w.close()
	}
}
