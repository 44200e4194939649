package layerstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"unionfs/internal/modeltest"
)

// blobServer serves one blob, as much of it as is let through, and counts.
type blobServer struct {
	data     []byte
	through  atomic.Int64 // bytes that are sent before the connection hangs
	requests atomic.Int32
	serving  atomic.Int32 // requests that are being answered
	sent     atomic.Int64 // bytes

	mu     sync.Mutex
	ranges []string // that were asked for
}

func (b *blobServer) serve(w http.ResponseWriter, r *http.Request, _ []byte) {
	b.requests.Add(1)
	b.serving.Add(1)
	defer b.serving.Add(-1)
	from := 0
	asked := r.Header.Get("Range")
	b.mu.Lock()
	b.ranges = append(b.ranges, asked)
	b.mu.Unlock()
	if _, err := fmt.Sscanf(asked, "bytes=%d-", &from); err == nil {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, len(b.data)-1, len(b.data)))
	}
	w.Header().Set("Content-Length", strconv.Itoa(len(b.data)-from))
	if from > 0 {
		w.WriteHeader(http.StatusPartialContent)
	}
	const piece = 32 << 10
	for at := from; at < len(b.data); {
		if int64(at) >= b.through.Load() {
			select {
			case <-r.Context().Done():
				return
			case <-time.After(5 * time.Millisecond):
			}
			continue
		}
		to := min(at+piece, len(b.data))
		n, err := w.Write(b.data[at:to])
		b.sent.Add(int64(n))
		if err != nil {
			return
		}
		w.(http.Flusher).Flush()
		at = to
	}
}

// newBlobServer makes a registry with an image of one large layer and a small one, of which it lets through only some.
func newBlobServer(t *testing.T, through int64) (b *blobServer, ref string, tars [][]byte) {
	tars = [][]byte{tarOf(t, reg("big", strings.Repeat("0123456789abcdef", 1<<15))), tarOf(t, reg("small", "1"))}
	i := makeImage(t, tars, compressions()[2])
	b = &blobServer{data: i.blobs[0]}
	b.through.Store(through)
	l := &liar{lie: b.serve}
	host := testRegistry(t, l.handle)
	ref = host + "/large:1"
	i.push(t, ref)
	l.blob.Store(&i.manifest.Layers[0].Digest)
	return b, ref, tars
}

// wentOn fails the test unless there were two requests, and the second one was for what comes after so many bytes at least.
func (b *blobServer) wentOn(t *testing.T, least int) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	from := 0
	if len(b.ranges) == 2 {
		fmt.Sscanf(b.ranges[1], "bytes=%d-", &from)
	}
	if from < least {
		t.Errorf("asked for %q, expected one request, and another for what comes after %d bytes at least", b.ranges, least)
	}
}

// waitFor waits until something is so.
func waitFor(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); !is(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: waited in vain", what)
		}
	}
}

// partBytes is how much the store has of a blob.
func partBytes(s *Store, b []byte) int64 {
	fi, err := os.Stat(s.path(downloadsDir, digest.FromBytes(b).Encoded()+partSuffix))
	if err != nil {
		return 0
	}
	return fi.Size()
}

// TestPullGoesOnAfterKill kills a pull in the middle of a layer. The next one, of another process, asks only for what is
// missing, and not at all for the layer that was whole.
func TestPullGoesOnAfterKill(t *testing.T) {
	b, ref, tars := newBlobServer(t, 200_000)
	s := openStore(t)
	cmd, output := startChild(t, "pull", s, ref)
	kept := func() bool {
		files, _ := filepath.Glob(s.path(downloadsDir, "*"+layerSuffix))
		return len(files) == 1 && s.hasLayer(digest.FromBytes(tars[1])) // which comes after that file
	}
	waitFor(t, "some of the large layer and all of the small one", func() bool { return partBytes(s, b.data) >= 150_000 && kept() })
	cmd.Process.Kill()
	cmd.Wait()
	if output.Len() > 0 {
		t.Fatal(output)
	}
	// Any command sweeps what the dead process was writing, but not what it had downloaded.
	s, err := Open(s.Root())
	if err != nil {
		t.Fatal(err)
	}
	had := partBytes(s, b.data)
	if staged, _ := os.ReadDir(s.path(stagingDir)); len(staged) > 0 || had < 150_000 || !kept() {
		t.Fatalf("%d directories are staged, %d bytes of the large layer are kept", len(staged), had)
	}
	if u := mustUsage(t, s); u.Unfinished < had {
		t.Errorf("df counts %d unfinished bytes, there are %d", u.Unfinished, had)
	}
	// What is still sent to the dead one would count.
	waitFor(t, "the end of the killed one's connection", func() bool { return b.serving.Load() == 0 })
	b.through.Store(1 << 40)
	b.sent.Store(0)
	states := map[int][]LayerState{}
	i := mustPull(t, s, ref, PullOptions{Progress: func(p LayerProgress) { states[p.Index] = append(states[p.Index], p.State) }})
	if d := diffSnapshots(imageSnapshot(t, i), stacked(t, tars)); d != "" {
		t.Error(d)
	}
	if want := fmt.Sprintf("bytes=%d-", had); b.ranges[len(b.ranges)-1] != want || b.requests.Load() != 2 || b.sent.Load() != int64(len(b.data))-had {
		t.Errorf("asked for %q, expected %q at last; %d bytes were sent", b.ranges, want, b.sent.Load())
	}
	if len(states[1]) != 1 || states[1][0] != LayerPresent {
		t.Errorf("the layer that was whole went through %v", states[1])
	}
	removeAll(t, s, ref)
}

// TestPullGoesOnAfterCancel breaks a pull off as ^C does.
func TestPullGoesOnAfterCancel(t *testing.T) {
	b, ref, _ := newBlobServer(t, 200_000)
	s := openStore(t)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		waitFor(t, "some of the layer", func() bool { return partBytes(s, b.data) >= 150_000 })
		cancel()
	}()
	if _, err := s.Pull(ctx, ref, PullOptions{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	b.through.Store(1 << 40)
	mustPull(t, s, ref, PullOptions{})
	b.wentOn(t, 150_000)
	removeAll(t, s, ref)
}

// TestTornDownload goes on with what power failure made of a download: then it begins again.
func TestTornDownload(t *testing.T) {
	for name, tear := range map[string]func(b []byte) []byte{
		"zeros":    func(b []byte) []byte { return make([]byte, 100_000) },
		"too long": func(b []byte) []byte { return append(bytes.Clone(b), b...) },
		"other":    func(b []byte) []byte { return append([]byte("x"), b[1:70_000]...) },
		"whole":    func(b []byte) []byte { return b },
		"all zero": func(b []byte) []byte { return make([]byte, len(b)) },
	} {
		t.Run(name, func(t *testing.T) {
			b, ref, tars := newBlobServer(t, 1<<40)
			s := openStore(t)
			if err := os.WriteFile(s.path(downloadsDir, digest.FromBytes(b.data).Encoded()+partSuffix), tear(b.data), 0o600); err != nil {
				t.Fatal(err)
			}
			i := mustPull(t, s, ref, PullOptions{})
			if d := diffSnapshots(imageSnapshot(t, i), stacked(t, tars)); d != "" {
				t.Error(d)
			}
			if name == "whole" && b.requests.Load() != 0 {
				t.Error("a blob that was there whole was asked for")
			}
			removeAll(t, s, ref)
		})
	}
}

// TestStaleDownloads opens a store in which an interrupted pull has left something long ago.
func TestStaleDownloads(t *testing.T) {
	s := openStore(t)
	layer := tarOf(t, reg("a", "1"))
	importBytes(t, s, "foo", layer)
	if err := s.keepLayer(digest.FromBytes(layer)); err != nil {
		t.Fatal(err)
	}
	images, _ := filepath.Glob(s.path(imagesDir, "*"))
	refs, _ := filepath.Glob(s.path(refsDir, "*"))
	for _, file := range append(images, refs...) {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	}
	ours, err := s.openDownload(t.Context(), digest.FromString("held"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ours.Write([]byte("held")); err != nil {
		t.Fatal(err)
	}
	part := s.path(downloadsDir, digest.FromString("x").Encoded()+partSuffix)
	if err := os.WriteFile(part, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	reopen := func() {
		t.Helper()
		if _, err := Open(s.Root()); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	if _, err := os.Stat(part); err != nil || !s.hasLayer(digest.FromBytes(layer)) {
		t.Fatalf("what was left just now is gone: %v", err)
	}
	files, _ := filepath.Glob(s.path(downloadsDir, "*"))
	old := time.Now().Add(-keepDownloads - time.Minute)
	for _, file := range files {
		if err := os.Chtimes(file, old, old); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	if files, _ := filepath.Glob(s.path(downloadsDir, "*")); len(files) != 1 {
		t.Errorf("after a day there are %q, expected only the one that is locked", files)
	}
	ours.remove()
	ours.close()
	checkPruned(t, s)
}

// TestTwoProcessesShareDownload pulls two images that share a layer, in two processes at once. It is downloaded once.
func TestTwoProcessesShareDownload(t *testing.T) {
	b, ref, tars := newBlobServer(t, 100_000)
	other := makeImage(t, [][]byte{tars[0], tarOf(t, reg("other", "2"))}, compressions()[2])
	otherRef := strings.Replace(ref, "large:1", "large:2", 1)
	other.push(t, otherRef)
	s := openStore(t)
	one, output := startChild(t, "pull", s, ref)
	waitFor(t, "some of the layer", func() bool { return partBytes(s, b.data) > 0 })
	waiting := make(chan struct{})
	done := make(chan error, 1)
	go func() {
		_, err := s.Pull(context.Background(), otherRef, PullOptions{Progress: func(p LayerProgress) {
			if p.State == LayerWaiting && p.Index == 0 {
				close(waiting)
			}
		}})
		done <- err
	}()
	<-waiting
	b.through.Store(1 << 40)
	if err := one.Wait(); err != nil {
		t.Errorf("%v: %s", err, output)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if b.requests.Load() != 1 || b.sent.Load() != int64(len(b.data)) {
		t.Errorf("the layer was asked for %d times", b.requests.Load())
	}
	for _, r := range []string{ref, otherRef} {
		if _, err := s.Remove(r); err != nil {
			t.Error(err)
		}
	}
	removeSwept(t, s)
}

// TestOtherProcessTakesOver kills the process that downloads a layer that another one waits for.
func TestOtherProcessTakesOver(t *testing.T) {
	b, ref, tars := newBlobServer(t, 100_000)
	s := openStore(t)
	one, _ := startChild(t, "pull", s, ref)
	waitFor(t, "some of the layer", func() bool { return partBytes(s, b.data) >= 50_000 })
	waiting := make(chan struct{})
	done := make(chan *Image, 1)
	go func() {
		i, err := s.Pull(context.Background(), ref, PullOptions{Progress: func(p LayerProgress) {
			if p.State == LayerWaiting && p.Index == 0 {
				close(waiting)
			}
		}})
		if err != nil {
			t.Error(err)
		}
		done <- i
	}()
	<-waiting
	one.Process.Kill()
	one.Wait()
	b.through.Store(1 << 40)
	if i := <-done; i != nil {
		if d := diffSnapshots(imageSnapshot(t, i), stacked(t, tars)); d != "" {
			t.Error(d)
		}
	}
	b.wentOn(t, 50_000)
	removeAll(t, s, ref)
}

// removeSwept checks that nothing is left once the attempts of dead processes are swept.
func removeSwept(t *testing.T, s *Store) {
	t.Helper()
	if _, err := Open(s.Root()); err != nil {
		t.Error(err)
	}
	checkEmpty(t, s)
}

// TestDiskFullWhileDownloading fills the disk with a download: what is there of it is no use and is deleted.
func TestDiskFullWhileDownloading(t *testing.T) {
	_, ref, _ := newBlobServer(t, 1<<40)
	mnt := t.TempDir()
	if err := unix.Mount("tmpfs", mnt, "tmpfs", 0, "size=400k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { modeltest.Unmount(t, mnt) })
	s, err := Open(filepath.Join(mnt, "store"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Pull(context.Background(), ref, PullOptions{}); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "--root") {
		t.Errorf("error is %v", err)
	}
	checkEmpty(t, s)
}
