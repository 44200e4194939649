package layerstore

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/opencontainers/go-digest"
)

// TestCredentials pulls from a registry that wants a password and keeps its blobs on another host.
func TestCredentials(t *testing.T) {
	const user, password = "someone", "secret"
	tars := someTars(t)
	i := makeImage(t, tars)
	var leaked atomic.Int32
	blobs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "" {
			leaked.Add(1)
		}
		for _, b := range i.blobs {
			if strings.HasSuffix(r.URL.Path, string(digest.FromBytes(b))) {
				w.Write(b)
				return
			}
		}
		w.WriteHeader(http.StatusNotFound)
	}))
	defer blobs.Close()
	var strict atomic.Bool
	host := testRegistry(t, func(w http.ResponseWriter, r *http.Request) bool {
		if !strict.Load() {
			return false
		}
		if u, p, ok := r.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") && !strings.HasSuffix(r.URL.Path, string(i.manifest.Config.Digest)) {
			http.Redirect(w, r, blobs.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	})
	i.push(t, host+"/private:1")
	strict.Store(true)
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	s := openStore(t)
	if _, err := s.Pull(context.Background(), host+"/private:1", PullOptions{}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("without a password: %v", err)
	}
	config := fmt.Sprintf(`{"auths":{%q:{"username":%q,"password":%q}}}`, host, user, password)
	if err := os.WriteFile(dir+"/config.json", []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	got := mustPull(t, s, host+"/private:1", PullOptions{})
	if d := diffSnapshots(imageSnapshot(t, got), stacked(t, tars)); d != "" {
		t.Error(d)
	}
	if leaked.Load() > 0 {
		t.Error("the password was sent to the host that has the blobs")
	}
}

func TestPlainHTTPOnlyToLoopback(t *testing.T) {
	for host, fine := range map[string]bool{
		"localhost": true, "localhost:5000": true, "127.0.0.1:5000": true, "127.9.9.9": true, "[::1]:5000": true,
		"10.0.0.1:5000": false, "registry.local": false, "192.168.1.1": false, "example.org:80": false, "localhost.example.org": false,
	} {
		if isLoopback(host) != fine {
			t.Errorf("isLoopback(%s) is %v", host, !fine)
		}
	}
	asked := false
	inner := roundTripper(func(*http.Request) (*http.Response, error) { asked = true; return nil, os.ErrClosed })
	r, err := http.NewRequest(http.MethodGet, "http://10.0.0.1:5000/v2/", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := (&guard{inner, false}).RoundTrip(r); !errors.Is(err, errPlainHTTP) || asked {
		t.Errorf("plain HTTP to a private address: %v", err)
	}
	if _, err := (&guard{inner, true}).RoundTrip(r); !errors.Is(err, os.ErrClosed) || !asked {
		t.Errorf("plain HTTP with Insecure: %v", err)
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
