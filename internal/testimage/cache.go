package testimage

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// cached returns the directory that build fills, building it if no earlier test has. Concurrent callers, also in other
// processes, wait for one of them to build. A directory under its final name is always whole: build writes to a staging
// name, which is renamed when it is done, and what a torn attempt left is removed by the next one.
func cached(t testing.TB, key string, build func(dir string) error) string {
	t.Helper()
	// The user's ID is in the name since root's cache must not be something that another user prepared.
	home := filepath.Join(os.TempDir(), fmt.Sprintf("unionfs-testimage-%d", os.Getuid()))
	if err := os.MkdirAll(home, 0o700); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(home, &st); err != nil {
		t.Fatal(err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR || int(st.Uid) != os.Getuid() {
		t.Fatalf("%s is not a directory of ours", home)
	}

	lock, err := os.OpenFile(filepath.Join(home, key+".lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		t.Fatalf("locking %s: %v", lock.Name(), err)
	}

	final := filepath.Join(home, key)
	if _, err := os.Stat(final); err == nil {
		return final
	}
	torn, err := filepath.Glob(final + ".building-*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range torn {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	staging, err := os.MkdirTemp(home, key+".building-")
	if err != nil {
		t.Fatal(err)
	}
	if err := build(staging); err != nil {
		os.RemoveAll(staging)
		t.Fatalf("making the test image %s: %v", strings.TrimSuffix(key, filepath.Ext(key)), err)
	}
	if err := os.Rename(staging, final); err != nil {
		t.Fatal(err)
	}
	return final
}
