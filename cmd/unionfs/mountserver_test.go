package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestServerSocketAsksNobody: a server looks for its socket's name while it is the only one who could answer. Here nobody
// answers at all.
func TestServerSocketAsksNobody(t *testing.T) {
	target := t.TempDir()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	end := func() {
		unix.Close(fd) // who waits for an answer is told that there will be none
		fd = -1
	}
	if err := unix.Mount("nobody", target, "fuse.unionfs", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if fd >= 0 {
			end()
		}
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	type answer struct {
		name string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		name, err := serverSocket(target)
		answers <- answer{name, err}
	}()
	select {
	case a := <-answers:
		if a.err != nil || !strings.HasPrefix(a.name, "@unionfs/mount/0:") {
			t.Errorf("%q, %v", a.name, a.err)
		}
	case <-time.After(2 * time.Minute):
		end()
		<-answers
		t.Error("it waited for the mount's answer")
	}
}
