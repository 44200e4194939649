package layerstore

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
)

// keepingRegistry stands before Debian's docker-registry and keeps what arrived of a chunk whose connection broke, as
// distribution does since version 3. Before that it cancels the session as soon as it is asked about it.
type keepingRegistry struct {
	inner string // host

	mu       sync.Mutex
	sessions map[string]*keptSession // by path
	began    atomic.Int32            // sessions
}

// keptSession is an upload in docker-registry, which signs how far it is.
type keptSession struct {
	mu    sync.Mutex
	state string // the query of its Location
}

func newKeepingRegistry(t *testing.T) (k *keepingRegistry, host string) {
	k = &keepingRegistry{inner: dockerRegistry(t), sessions: make(map[string]*keptSession)}
	s := httptest.NewServer(k)
	t.Cleanup(s.Close)
	return k, strings.TrimPrefix(s.URL, "http://")
}

func (k *keepingRegistry) session(path string) *keptSession {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.sessions[path] == nil {
		k.sessions[path] = &keptSession{}
	}
	return k.sessions[path]
}

// ServeHTTP implements http.Handler.
func (k *keepingRegistry) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodPost {
		k.began.Add(1)
	}
	inner := &httputil.ReverseProxy{
		Rewrite: func(p *httputil.ProxyRequest) { p.SetURL(&url.URL{Scheme: "http", Host: k.inner}) },
		ModifyResponse: func(resp *http.Response) error {
			at, err := url.Parse(resp.Header.Get("Location"))
			if err != nil || !strings.Contains(at.Path, "/uploads/") {
				return err
			}
			k.session(at.Path).state = at.RawQuery
			at.Scheme, at.Host = "", ""
			resp.Header.Set("Location", at.String())
			return nil
		},
	}
	if !strings.Contains(r.URL.Path, "/uploads/") || strings.HasSuffix(r.URL.Path, "/uploads/") {
		inner.ServeHTTP(w, r)
		return
	}
	s := k.session(r.URL.Path)
	s.mu.Lock()
	defer s.mu.Unlock()
	state, _ := url.ParseQuery(s.state)
	if d := r.URL.Query().Get("digest"); d != "" {
		state.Set("digest", d)
	}
	r.URL.RawQuery = state.Encode()
	if r.Method == http.MethodPatch {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			// The client is gone. What came goes on.
			ctx, cancel := context.WithCancel(context.WithoutCancel(r.Context()))
			defer cancel()
			r, w = r.Clone(ctx), httptest.NewRecorder()
			r.Header.Del("Content-Range")
		}
		r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(body)), int64(len(body))
	}
	inner.ServeHTTP(w, r)
}

// cutter passes connections on, counts what clients send, and cuts some.
type cutter struct {
	target string
	cuts   atomic.Int32 // that are still to come
	sent   atomic.Int64 // bytes from clients
	limit  atomic.Int64 // if not 0, of sent: from there on clients wait

	open atomic.Int32  // connections
	gone chan struct{} // closed when clients that wait are dead: what the kernel still has of them is lost

	mu     sync.Mutex
	random *rand.Rand
	least  int64 // bytes after which a connection may be cut
	most   int64
}

// start returns where to connect to.
func (c *cutter) start(t *testing.T) (host string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); all.Wait() })
	all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			c.open.Add(1)
			all.Go(func() {
				defer c.open.Add(-1)
				c.serve(ctx, client.(*net.TCPConn))
			})
		}
	})
	return l.Addr().String()
}

func (c *cutter) serve(ctx context.Context, client *net.TCPConn) {
	defer client.Close()
	conn, err := net.Dial("tcp", c.target)
	if err != nil {
		return
	}
	server := conn.(*net.TCPConn)
	defer server.Close()
	stop := context.AfterFunc(ctx, func() { client.Close(); server.Close() })
	defer stop()
	c.mu.Lock()
	left := c.least + c.random.Int64N(c.most-c.least+1)
	c.mu.Unlock()
	var answering sync.WaitGroup
	defer answering.Wait()
	cut := make(chan struct{})
	answering.Go(func() {
		defer client.Close()
		b := make([]byte, 32<<10)
		for {
			n, err := server.Read(b)
			select {
			case <-cut: // Only when the server has done with what came of it does the client learn of it.
				if err != nil {
					return
				}
				continue
			default:
			}
			if n > 0 {
				if _, err := client.Write(b[:n]); err != nil {
					return
				}
			}
			if err != nil {
				return
			}
		}
	})
	b := make([]byte, 16<<10)
	for {
		for limit := c.limit.Load(); limit != 0 && c.sent.Load() >= limit; limit = c.limit.Load() {
			select {
			case <-ctx.Done():
				return
			case <-c.gone:
				close(cut)
				server.CloseWrite()
				return
			case <-time.After(5 * time.Millisecond):
			}
		}
		n, err := client.Read(b)
		c.sent.Add(int64(n))
		if _, werr := server.Write(b[:n]); err != nil || werr != nil {
			server.CloseWrite()
			return
		}
		if left -= int64(n); left < 0 && c.cuts.Add(-1) >= 0 {
			close(cut)
			server.CloseWrite()
			return
		}
	}
}

func newCutter(target string, cuts int32, least, most int64) *cutter {
	c := &cutter{gone: make(chan struct{}), target: target, random: rand.New(rand.NewPCG(uint64(cuts), uint64(most))), least: least, most: most}
	c.cuts.Store(cuts)
	return c
}

// noise is what can't be compressed.
func noise(size int) []byte {
	b := make([]byte, size)
	random := rand.NewChaCha8([32]byte{1})
	random.Read(b)
	return b
}

// pushable is an image with a large layer that is sent as it is here, and a small one.
func pushable(t *testing.T, size int) (s *Store, ref string, tars [][]byte) {
	t.Helper()
	tars = [][]byte{tarOf(t, reg("large", string(noise(size)))), tarOf(t, reg("small", "1"))}
	ref = testRegistry(t, nil) + "/push/this:1"
	makeImage(t, tars, compressions()[2]).push(t, ref)
	s = openStore(t)
	mustPull(t, s, ref, PullOptions{})
	return s, ref, tars
}

// besides is what a push sends besides layers: headers, the configuration, the manifest.
const besides = 200_000

// TestPushGoesOnWhereItBroke cuts a push's connections at random places. Every byte is sent once.
func TestPushGoesOnWhereItBroke(t *testing.T) {
	s, ref, tars := pushable(t, 6<<20)
	_, host := newKeepingRegistry(t)
	c := newCutter(host, 8, 20_000, 600_000)
	as := c.start(t) + "/push/cut:1"
	p, states := mustPush(t, s, ref, as)
	onlyStates(t, states, PushSent, 2)
	if !p.Same {
		t.Error("the layers, which were not compressed, have other digests")
	}
	if left := c.cuts.Load(); left > 0 {
		t.Errorf("%d cuts were left", left)
	}
	size := int64(len(tars[0]))
	if sent := c.sent.Load(); sent < size || sent > size+besides {
		t.Errorf("%d bytes were sent of %d", sent, size)
	}
	i := mustPull(t, openStore(t), as, PullOptions{})
	if d := diffSnapshots(imageSnapshot(t, i), stacked(t, tars)); d != "" {
		t.Error(d)
	}
	if left, _ := filepath.Glob(s.path(downloadsDir, "*")); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

// TestPushThroughCutsToOldRegistry does the same with docker-registry itself, which loses what was cut in the middle.
func TestPushThroughCutsToOldRegistry(t *testing.T) {
	s, ref, tars := pushable(t, 4<<20)
	c := newCutter(dockerRegistry(t), 3, 20_000, 1_000_000)
	as := c.start(t) + "/push/cut:1"
	_, states := mustPush(t, s, ref, as)
	onlyStates(t, states, PushSent, 2)
	i := mustPull(t, openStore(t), as, PullOptions{})
	if d := diffSnapshots(imageSnapshot(t, i), stacked(t, tars)); d != "" {
		t.Error(d)
	}
	if c.cuts.Load() > 0 {
		t.Error("not every cut was made")
	}
}

// TestPushGoesOnAfterKill kills a push in the middle of a layer. Another process goes on with it.
func TestPushGoesOnAfterKill(t *testing.T) {
	s, ref, tars := pushable(t, 6<<20)
	registry, host := newKeepingRegistry(t)
	c := newCutter(host, 0, 1, 1)
	c.limit.Store(2 << 20)
	as := c.start(t) + "/push/killed:1"
	cmd, output := startChild(t, "push", s, ref+","+as)
	waitFor(t, "some of the layer", func() bool { return c.sent.Load() >= c.limit.Load() })
	cmd.Process.Kill()
	cmd.Wait()
	if output.Len() > 0 {
		t.Fatal(output)
	}
	close(c.gone)
	waitFor(t, "the end of the killed one's connections", func() bool { return c.open.Load() == 0 })
	c.limit.Store(0)
	s, err := Open(s.Root())
	if err != nil {
		t.Fatal(err)
	}
	remembered, _ := filepath.Glob(s.path(downloadsDir, "*"+uploadSuffix))
	if len(remembered) == 0 {
		t.Fatal("no upload is remembered")
	}
	for _, file := range remembered {
		if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("where an upload goes on, others may read: %v, %v", fi, err)
		}
	}
	began := registry.began.Load()
	p, _ := mustPush(t, s, ref, as)
	size := int64(len(tars[0]))
	if sent := c.sent.Load(); sent < size || sent > size+besides || !p.Same {
		t.Errorf("%d bytes were sent of %d", sent, size)
	}
	// The small layer, or its attempt at being mounted, and the configuration.
	if n := registry.began.Load() - began; n > 4 {
		t.Errorf("%d uploads were begun by the second push", n)
	}
	mustPull(t, openStore(t), as, PullOptions{})
	if left, _ := filepath.Glob(s.path(downloadsDir, "*")); len(left) > 0 {
		t.Errorf("%q is left", left)
	}
}

// uploadTo uploads a blob in chunks of 64 KiB and checks that it arrived.
func uploadTo(t *testing.T, host string, blob []byte, memory func(*repository) *uploadMemory) error {
	t.Helper()
	repo, err := name.NewRepository(host + "/some/where")
	if err != nil {
		t.Fatal(err)
	}
	r, err := openRepository(t.Context(), repo, access{scope: transport.PushScope})
	if err != nil {
		t.Fatal(err)
	}
	var m *uploadMemory
	if memory != nil {
		m = memory(r)
		defer m.close()
	}
	d := digest.FromBytes(blob)
	u := newUpload(r, d, int64(len(blob)), bytes.NewReader(blob), m)
	u.chunk = 64 << 10
	if err := u.run(t.Context()); err != nil {
		return err
	}
	got, err := openBlob(t.Context(), r, d, int64(len(blob)))
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if b, err := io.ReadAll(got); err != nil || !bytes.Equal(b, blob) {
		t.Errorf("the registry has other bytes: %v", err)
	}
	return nil
}

// TestUploadRefusals uploads to registries that take no chunks, and say so in several ways.
func TestUploadRefusals(t *testing.T) {
	blob := noise(200_000)
	for _, status := range []int{400, 404, 405, 411, 416, 500, 501} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			t.Parallel()
			var refused atomic.Int32
			host := testRegistry(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPatch || r.Header.Get("Content-Range") == "" {
					return false
				}
				refused.Add(1)
				http.Error(w, "no chunks", status)
				return true
			})
			if err := uploadTo(t, host, blob, nil); err != nil {
				t.Error(err)
			}
			if refused.Load() == 0 {
				t.Error("no chunk was sent")
			}
		})
	}
	for _, status := range []int{401, 403, 413} {
		t.Run(http.StatusText(status), func(t *testing.T) {
			var asked atomic.Int32
			host := testRegistry(t, func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method != http.MethodPatch {
					return false
				}
				asked.Add(1)
				http.Error(w, "no", status)
				return true
			})
			err := uploadTo(t, host, blob, nil)
			var said *transport.Error
			if !errors.As(err, &said) || said.StatusCode != status || asked.Load() > 2 {
				t.Errorf("after %d requests: %v", asked.Load(), err)
			}
		})
	}
}

// TestUploadLostAnswers loses the answers of a registry that did what it was asked.
func TestUploadLostAnswers(t *testing.T) {
	blob := noise(300_000)
	for _, method := range []string{http.MethodPost, http.MethodPatch, http.MethodPut} {
		t.Run(method, func(t *testing.T) {
			registry, _ := newKeepingRegistry(t)
			var lost atomic.Bool
			front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != method || !lost.CompareAndSwap(false, true) {
					registry.ServeHTTP(w, r)
					return
				}
				registry.ServeHTTP(httptest.NewRecorder(), r)
				conn, _, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				conn.Close()
			}))
			t.Cleanup(front.Close)
			if err := uploadTo(t, strings.TrimPrefix(front.URL, "http://"), blob, nil); err != nil {
				t.Error(err)
			}
			if !lost.Load() {
				t.Error("no answer was lost")
			}
			if n := registry.began.Load(); method != http.MethodPost && n != 1 {
				t.Errorf("the upload was begun %d times", n)
			}
		})
	}
}

// TestUploadMemory goes on with what isn't there, or isn't what it should be.
func TestUploadMemory(t *testing.T) {
	blob := noise(200_000)
	_, host := newKeepingRegistry(t)
	_, other := newKeepingRegistry(t)
	for what, location := range map[string]func(r *repository) string{
		"a session that is gone": func(r *repository) string { return r.base.String() + "/blobs/uploads/1234" },
		"a session of another repository": func(r *repository) string {
			return strings.Replace(r.base.String(), "some", "x", 1) + "/blobs/uploads/"
		},
		"another registry":                    func(*repository) string { return "http://" + other + "/v2/some/where/blobs/uploads/1" },
		"what is no address":                  func(*repository) string { return "::" },
		"what answers nothing of an upload":   func(r *repository) string { return "http://" + r.base.Host + "/v2/" },
		"an address that needs no encryption": func(*repository) string { return "http://192.0.2.1/" },
		"what nobody answers":                 func(*repository) string { return "http://127.0.0.1:1/" },
	} {
		t.Run(what, func(t *testing.T) {
			s := openStore(t)
			err := uploadTo(t, host, blob, func(r *repository) *uploadMemory {
				m := s.rememberUpload(r, digest.FromBytes(blob))
				m.record.Location = location(r)
				raw := mustJSON(t, m.record)
				if _, err := m.lock.f.Write(raw); err != nil {
					t.Fatal(err)
				}
				m.record.Location = ""
				return m
			})
			if err != nil {
				t.Error(err)
			}
			if left, _ := filepath.Glob(s.path(downloadsDir, "*")); len(left) > 0 {
				t.Errorf("%q is left", left)
			}
		})
	}
	s := openStore(t)
	for _, torn := range []string{"", "{", strings.Repeat("\x00", 300), `{"version":7,"location":"http://192.0.2.1/"}`} {
		err := uploadTo(t, host, blob, func(r *repository) *uploadMemory {
			m := s.rememberUpload(r, digest.FromBytes(blob))
			if _, err := m.lock.f.WriteString(torn); err != nil {
				t.Fatal(err)
			}
			if m.recall() != nil {
				t.Errorf("%q was believed", torn)
			}
			if s.rememberUpload(r, digest.FromBytes(blob)) != nil {
				t.Error("two have the same upload")
			}
			return m
		})
		if err != nil {
			t.Error(err)
		}
	}
}
