package fs_test

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
)

// TestRelease has the server of a mount released again and again, and another go on with it, while processes of others change
// files, write through memory, look for holes and keep a file that has no name. None may notice.
func TestRelease(t *testing.T) {
	b := newBranches(t)
	journal, err := fs.NewJournal()
	if err != nil {
		t.Fatal(err)
	}
	defer journal.Close()
	open := func(resume bool) *cow.Union {
		t.Helper()
		lower, err := cow.OpenDirBranch(b.lower, cow.DirOptions{})
		if err != nil {
			t.Fatal(err)
		}
		u, err := cow.New(cow.Options{Lower: []cow.Branch{lower}, Upper: b.upper, Work: b.work, Resume: resume})
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	if err := os.WriteFile(b.lower+"/large", bytes.Repeat([]byte("lower file."), 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	o := fs.Options{Journal: journal}
	union := open(false)
	server, err := fs.Mount(union, b.mnt, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := fs.Unmount(b.mnt, false); err != nil {
			t.Error(err)
		}
		server.Wait()
		if err := union.Close(); err != nil {
			t.Error(err)
		}
	}()
	session, err := server.Session()
	if err != nil || !session.Resumable() {
		t.Fatalf("this kernel can't send requests again, or %v", err)
	}
	defer session.Device.Close()

	// The work is a process's own: a thread of this one that waits for its own server would keep the race detector from stopping it.
	worker := roleCommand(t, "release work", b.mnt)
	var output bytes.Buffer
	worker.Stdout, worker.Stderr = &output, &output
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- worker.Wait() }()
	for i := 0; ; i++ {
		// Each server gets something done.
		var pause <-chan time.Time
		if i < 50 {
			pause = time.After(time.Duration(5+i) * time.Millisecond)
		}
		select {
		case err := <-ended:
			if err != nil || i < 3 {
				t.Errorf("after %d times: %v\n%s", i, err, output.String())
			}
			return
		case <-pause:
		}
		if err := server.Release(); err != nil {
			t.Fatal(err)
		}
		if err := union.Leave(); err != nil {
			t.Fatal(err)
		}
		union = open(true)
		if server, err = fs.Resume(union, b.mnt, session, o); err != nil {
			t.Fatal(err)
		}
	}
}

func init() { roles["release work"] = func(args []string) error { return releaseWork(args[0]) } }

// releaseWork is what is done meanwhile.
func releaseWork(mnt string) error {
	const turns = 300
	gone, err := os.Create(mnt + "/gone")
	if err != nil {
		return err
	}
	if err := os.Remove(mnt + "/gone"); err != nil {
		return err
	}
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	each := func(do func(i int) error) {
		all.Go(func() {
			for i := range turns {
				if err := do(i); err != nil {
					err = fmt.Errorf("turn %d: %w", i, err)
					failed.CompareAndSwap(nil, &err)
					return
				}
			}
		})
	}
	each(func(i int) error {
		dir := fmt.Sprintf("%s/dir%d", mnt, i)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := os.Rename(dir, dir+".moved"); err != nil {
			return err
		}
		return os.Remove(dir + ".moved")
	})
	each(func(i int) error {
		if _, err := fmt.Fprintln(gone, i); err != nil {
			return err
		}
		_, err := os.ReadDir(mnt)
		return err
	})
	each(func(i int) error {
		// It has data that the kernel has not yet written, and asks for holes.
		f, err := os.Create(fmt.Sprintf("%s/sparse%d", mnt, i%10))
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.WriteAt([]byte("data"), 1<<16); err != nil {
			return err
		}
		if off, err := unix.Seek(int(f.Fd()), 0, unix.SEEK_DATA); err != nil || off > 1<<16 {
			return fmt.Errorf("the data begins at %d, %v", off, err)
		}
		return nil
	})
	each(func(i int) error {
		f, err := os.OpenFile(mnt+"/large", os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte("upper"), int64(i)*37_000)
		return err
	})
	all.Wait()
	if err := failed.Load(); err != nil {
		return *err
	}
	text, err := os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", gone.Fd()))
	if lines := bytes.Count(text, []byte("\n")); err != nil || lines != turns {
		return fmt.Errorf("the file without a name has %d lines, %v", lines, err)
	}
	large, err := os.ReadFile(mnt + "/large")
	if err != nil {
		return err
	}
	want := bytes.Repeat([]byte("lower file."), 1<<20)
	for i := range turns {
		copy(want[i*37_000:], "upper")
	}
	if !bytes.Equal(large, want) {
		return fmt.Errorf("the large file has %d bytes, and not what was written", len(large))
	}
	return nil
}
