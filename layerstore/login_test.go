package layerstore

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLogin logs in to a registry that wants a password, pushes and pulls, and logs out.
func TestLogin(t *testing.T) {
	host := testRegistry(t, func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, ok := r.BasicAuth(); ok && u == "someone" && p == "secret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	dir := t.TempDir()
	t.Setenv("DOCKER_CONFIG", dir)
	// What this program doesn't know stays.
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, []byte(`{"auths":{"other.example":{"auth":"YTpi"}},"HttpHeaders":{"X":"y"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	for _, wrong := range [][3]string{{host, "someone", "wrong"}, {host, "", "secret"}, {host, "someone", ""}, {"no host", "a", "b"}} {
		if _, err := Login(ctx, wrong[0], wrong[1], wrong[2], false); err == nil {
			t.Errorf("logged in with %q", wrong)
		}
	}
	if err := Logout(host); !errors.Is(err, ErrNotLoggedIn) {
		t.Errorf("logout before login: %v", err)
	}
	s := openStore(t)
	importBytes(t, s, host+"/x:1", tarOf(t, reg("a", "1")))
	if _, err := s.Push(ctx, host+"/x:1", "", PushOptions{}); err == nil || !strings.Contains(err.Error(), "401") {
		t.Errorf("push without a password: %v", err)
	}
	if got, err := Login(ctx, "http://"+host+"/v2/", "someone", "secret", false); err != nil || got != file {
		t.Fatalf("login: %q, %v", got, err)
	}
	if _, err := s.Push(ctx, host+"/x:1", "", PushOptions{}); err != nil {
		t.Error(err)
	}
	mustPull(t, openStore(t), host+"/x:1", PullOptions{})
	if err := Logout(host); err != nil {
		t.Error(err)
	}
	b, err := os.ReadFile(file)
	if err != nil || strings.Contains(string(b), host) || !strings.Contains(string(b), "YTpi") || !strings.Contains(string(b), `"X": "y"`) {
		t.Errorf("config.json: %s, %v", b, err)
	}
	if fi, err := os.Stat(file); err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("config.json: %v, %v", fi.Mode(), err)
	}
}
