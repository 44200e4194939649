package fs_test

import (
	"path/filepath"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"

	"unionfs/fs"
)

// TestPosix runs go-fuse's suite. Every case gets a directory that is in the lower branch only when it begins.
func TestPosix(t *testing.T) {
	b := newBranches(t)
	for name := range posixtest.All {
		mkdir(t, filepath.Join(b.lower, name))
	}
	b.inLower(t, "other/file", "lower content\n")
	b.mount(t, fs.Options{AllowOther: true})
	for name, test := range posixtest.All {
		if name == "FcntlFlockLocksFile" {
			// It expects two POSIX locks of one process to conflict, which they do on no file system; go-fuse
			// itself leaves it out. TestLocks has the same with two processes.
			continue
		}
		t.Run(name, func(t *testing.T) { test(t, filepath.Join(b.mnt, name)) })
	}
}
