package volumes

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"unionfs/archive"
)

func TestMount(t *testing.T) {
	root, host := t.TempDir(), t.TempDir()
	store := OpenStore(root)
	data := filepath.Join(root, "volumes", "cache", "_data")
	tests := []struct {
		volume Volume
		want   specs.Mount
	}{
		{Volume{Source: host, Target: "/a"}, specs.Mount{Type: "bind", Source: host, Destination: "/a", Options: []string{"rbind", "rprivate"}}},
		{Volume{Source: host, Target: "/a", Options: []string{"ro", "rslave"}, NonRecursive: true}, specs.Mount{Type: "bind", Source: host, Destination: "/a", Options: []string{"bind", "ro", "rslave"}}},
		{Volume{Kind: Named, Source: "cache", Target: "/b"}, specs.Mount{Type: "bind", Source: data, Destination: "/b", Options: []string{"rbind", "rprivate"}}},
		{Volume{Kind: Tmpfs, Target: "/c", Options: []string{"size=1m"}}, specs.Mount{Type: "tmpfs", Source: "tmpfs", Destination: "/c", Options: []string{"nosuid", "nodev", "size=1m"}}},
	}
	for _, test := range tests {
		claim := store.Claim()
		got, err := claim.Mount(&test.volume)
		claim.Release()
		if err != nil {
			t.Errorf("%+v: %v", test.volume, err)
		} else if !reflect.DeepEqual(got, test.want) {
			t.Errorf("%+v: %+v, want %+v", test.volume, got, test.want)
		}
	}

	if err := os.WriteFile(filepath.Join(data, "kept"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	claim := store.Claim()
	defer claim.Release()
	if _, err := claim.Mount(&Volume{Kind: Named, Source: "cache", Target: "/b"}); err != nil {
		t.Errorf("using a volume again: %v", err)
	}
	if _, err := os.Stat(filepath.Join(data, "kept")); err != nil {
		t.Error(err)
	}

	one, err := claim.Mount(&Volume{Kind: Named, Target: "/b"})
	if err != nil {
		t.Fatal(err)
	}
	two, err := claim.Mount(&Volume{Kind: Named, Target: "/b"})
	if err != nil || one.Source == two.Source {
		t.Errorf("anonymous volumes: %v, %s and %s", err, one.Source, two.Source)
	}

	_, err = claim.Mount(&Volume{Source: filepath.Join(host, "absent"), Target: "/a"})
	if err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("absent source: %v", err)
	}
}

// TestLife makes, lists and removes volumes.
func TestLife(t *testing.T) {
	root := t.TempDir()
	store := OpenStore(root)
	if all, err := store.List(); err != nil || len(all) != 0 {
		t.Fatalf("%v, %v", all, err)
	}
	if _, err := store.Get("absent"); !errors.Is(err, ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	made, err := store.Create("cache", CreateOptions{Labels: map[string]string{"a": "b"}})
	if err != nil || made.Name != "cache" || made.Labels["a"] != "b" || made.Anonymous() {
		t.Fatalf("%+v, %v", made, err)
	}
	if again, err := store.Create("cache", CreateOptions{Labels: map[string]string{"c": "d"}}); err != nil || !reflect.DeepEqual(again, made) {
		t.Errorf("made again: %+v, %v", again, err)
	}
	if nameless, err := store.Create("", CreateOptions{}); err != nil || !nameless.Anonymous() || len(nameless.Name) != 64 {
		t.Errorf("%+v, %v", nameless, err)
	}
	// What an older version, or one that was interrupted, left.
	for _, dir := range []string{"old/_data", "half", ".new-x/_data", ".removing-x/_data"} {
		if err := os.MkdirAll(filepath.Join(root, "volumes", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "volumes/cache/volume.json"), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	all, err := store.List()
	if err != nil || len(all) != 3 {
		t.Fatalf("%v, %v", all, err)
	}
	if torn, err := store.Get("cache"); err != nil || torn.Labels != nil || torn.CreatedAt.IsZero() {
		t.Errorf("a torn description: %+v, %v", torn, err)
	}
	if _, err := store.Create("half", CreateOptions{}); err != nil {
		t.Errorf("completing: %v", err)
	}

	var inUse *InUseError
	if err := store.Remove("cache", func(string) ([]string, error) { return []string{"web"}, nil }); !errors.As(err, &inUse) || !strings.Contains(err.Error(), "in use by container web") {
		t.Errorf("in use: %v", err)
	}
	unused := func(string) ([]string, error) { return nil, nil }
	if err := store.Remove("cache", unused); err != nil {
		t.Error(err)
	}
	if err := store.Remove("cache", unused); !errors.Is(err, ErrNotFound) {
		t.Errorf("removed twice: %v", err)
	}
	if _, err := os.Lstat(filepath.Join(root, "volumes/.removing-x")); !errors.Is(err, os.ErrNotExist) {
		t.Error("what an interrupted removal left is still there")
	}

	// A claim keeps a volume from being removed before the container can be seen.
	claim := store.Claim()
	v := Volume{Kind: Named, Source: "claimed", Target: "/x"}
	if _, err := claim.Mount(&v); err != nil {
		t.Fatal(err)
	}
	removed := make(chan error)
	go func() {
		removed <- store.Remove("claimed", func(string) ([]string, error) { return []string{"new"}, nil })
	}()
	select {
	case err := <-removed:
		t.Errorf("removed under a claim: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	claim.Release()
	if err := <-removed; !errors.As(err, &inUse) {
		t.Errorf("after the claim: %v", err)
	}
	claim = store.Claim()
	anonymous := Volume{Kind: Named, Target: "/x"}
	if _, err := claim.Mount(&anonymous); err != nil || !anonymous.Anonymous {
		t.Fatalf("%+v, %v", anonymous, err)
	}
	claim.Discard()
	if _, err := store.Get(anonymous.Source); !errors.Is(err, ErrNotFound) {
		t.Errorf("discarded: %v", err)
	}
	for _, options := range []map[string]string{{"type": "nfs"}, {"o": "bind"}, {"size": "1"}} {
		if _, err := store.Create("strange", CreateOptions{Options: options}); err == nil {
			t.Errorf("%v was taken", options)
		}
	}
}

// TestFill gives a volume an image's content, also after each way of being cut short.
func TestFill(t *testing.T) {
	root := t.TempDir()
	store := OpenStore(root)
	in := func(name string) string { return filepath.Join(root, "volumes/v", name) }
	source := t.TempDir()
	if err := errors.Join(os.WriteFile(filepath.Join(source, "a"), []byte("a"), 0o640), os.Mkdir(filepath.Join(source, "d"), 0o711), os.Chmod(source, 0o750)); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Open(source, unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	calls := 0
	content := func(w io.Writer) error { calls++; return archive.Pack(w, fd, "", archive.PackOptions{}) }
	fill := func(content func(io.Writer) error) error { return store.Fill("v", false, content) }
	if _, err := store.Create("v", CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := fill(func(io.Writer) error { return ErrNotThere }); err != nil {
		t.Errorf("nothing to take: %v", err)
	}
	if err := fill(func(w io.Writer) error { w.Write([]byte("garbage")); return errors.New("cut off") }); err == nil || !strings.Contains(err.Error(), "cut off") {
		t.Errorf("cut short: %v", err)
	}
	// As a kill leaves it: half a copy.
	if err := os.MkdirAll(in("filling/half"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := fill(content); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		data, err := os.ReadFile(in("_data/a"))
		st, serr := os.Stat(in("_data"))
		entries, rerr := os.ReadDir(in("_data"))
		left, _ := filepath.Glob(in("fill*"))
		if err := errors.Join(err, serr, rerr); err != nil || string(data) != "a" || st.Mode().Perm() != 0o750 || len(entries) != 2 || len(left) > 0 {
			t.Errorf("%v, %q, %v, %v, %v", err, data, st, entries, left)
		}
	}
	check()
	// As a kill leaves it while the whole copy moves in.
	if err := errors.Join(os.Mkdir(in("filled"), 0o750), os.Rename(in("_data/d"), in("filled/d")), writeRecord(in(""), &record{Fresh: true})); err != nil {
		t.Fatal(err)
	}
	if err := fill(content); err != nil {
		t.Fatal(err)
	}
	check()
	if calls != 1 {
		t.Errorf("the content was asked for %d times", calls)
	}
	// Emptied by its users, it stays empty; and what somebody put into a new one stays.
	if err := os.Remove(in("_data/a")); err != nil {
		t.Fatal(err)
	}
	if err := fill(content); err != nil || calls != 1 {
		t.Errorf("a used volume was filled again: %v, %d", err, calls)
	}
	if err := errors.Join(writeRecord(in(""), &record{Fresh: true}), fill(content)); err != nil || calls != 1 {
		t.Errorf("a volume with something in it was filled: %v, %d", err, calls)
	}

	// Backup and restore.
	var backup bytes.Buffer
	if err := store.Export("v", &backup, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Create("w", CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := store.Import("w", &backup, false, nil); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(filepath.Join(root, "volumes/w/_data/d")); err != nil || st.Mode().Perm() != 0o711 {
		t.Errorf("restored: %v, %v", st, err)
	}
	if err := store.Fill("w", false, content); err != nil || calls != 1 {
		t.Errorf("a restored volume was filled: %v, %d", err, calls)
	}
}

func TestCheckTargets(t *testing.T) {
	if err := CheckTargets([]Volume{{Target: "/a"}, {Target: "/a/b"}}); err != nil {
		t.Error(err)
	}
	if err := CheckTargets([]Volume{{Target: "/a"}, {Target: "/b"}, {Target: "/a"}}); err == nil {
		t.Error("two volumes at /a were accepted")
	}
}
