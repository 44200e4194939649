package fs_test

import (
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/fs"
)

// TestSlowRequestHoldsUpNobody has a request wait in the server for as long as the test likes (the upper branch is frozen), after many
// that came one by one, so that a single thread serves. Others are answered meanwhile.
func TestSlowRequestHoldsUpNobody(t *testing.T) {
	const freeze, thaw = 0xc0045877, 0xc0045878 // FIFREEZE and FITHAW of include/uapi/linux/fs.h
	disk := newExt4(t)
	b := branchesIn(t, disk)
	mkdir(t, b.lower+"/other") // the kernel keeps the directory locked in which something is made
	b.mount(t, fs.Options{})
	fd, err := unix.Open(disk, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	defer unix.IoctlSetInt(fd, thaw, 0)
	for round := range 3 {
		missing := func(kind string, n int) {
			for i := range n {
				if err := unix.Access(fmt.Sprintf("%s/other/%s-%d-%d", b.mnt, kind, round, i), unix.F_OK); err != unix.ENOENT {
					t.Errorf("looking for what isn't there: %v", err)
				}
			}
		}
		missing("before", 200)
		if err := unix.IoctlSetInt(fd, freeze, 0); err != nil {
			t.Fatal(err)
		}
		made := make(chan error, 1)
		go func() { made <- unix.Mkdir(fmt.Sprintf("%s/directory%d", b.mnt, round), 0o755) }()
		for i := range 20 {
			missing(fmt.Sprintf("meanwhile%d", i), 10)
			time.Sleep(time.Millisecond)
		}
		select {
		case err := <-made:
			t.Errorf("mkdir ended: %v", err)
			made <- err
		default:
		}
		if err := unix.IoctlSetInt(fd, thaw, 0); err != nil {
			t.Fatal(err)
		}
		if err := <-made; err != nil {
			t.Error(err)
		}
	}
}

// TestTurnsBetweenOneAndMany has callers come and go, so that the server changes over from one thread to several and back.
func TestTurnsBetweenOneAndMany(t *testing.T) {
	b := newBranches(t)
	b.mount(t, fs.Options{})
	for round := range 4 {
		for i := range 100 {
			if err := unix.Access(fmt.Sprintf("%s/no%d", b.mnt, i), unix.F_OK); err != unix.ENOENT {
				t.Fatal(err)
			}
		}
		var callers sync.WaitGroup
		for c := range 8 {
			callers.Add(1)
			go func() {
				defer callers.Done()
				for i := range 40 {
					name := fmt.Sprintf("%s/%d-%d-%d", b.mnt, round, c, i)
					if err := os.WriteFile(name, []byte(name), 0o600); err != nil {
						t.Error(err)
						return
					}
					if data, err := readRaw(name); err != nil || data != name {
						t.Errorf("%q, %v", data, err)
					}
					if err := unix.Unlink(name); err != nil {
						t.Error(err)
					}
				}
			}()
		}
		callers.Wait()
		time.Sleep(20 * time.Millisecond) // so long that the server expects nothing
	}
}

// readRaw reads a small file without Go's poller, which would ask the server whether there is something to poll.
func readRaw(name string) (string, error) {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	buf := make([]byte, 4096)
	n, err := unix.Read(fd, buf)
	return string(buf[:max(n, 0)]), err
}
