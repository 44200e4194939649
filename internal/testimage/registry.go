package testimage

import (
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// Registry starts Debian's docker-registry on a free port of 127.0.0.1 and returns its address, HOST:PORT. It is
// stopped, and what it stored is removed, when the test ends.
func Registry(t testing.TB) string {
	t.Helper()
	return RegistryIn(t, t.TempDir())
}

// RegistryIn is [Registry] with its files in dir: blobs are at dir/data/docker/registry/v2/blobs/sha256/XX/DIGEST/data.
func RegistryIn(t testing.TB, dir string) string {
	t.Helper()
	// The port is free when it is chosen and may be taken before the registry binds it; then another is tried.
	var output bytes.Buffer
	for range 5 {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		addr := listener.Addr().String()
		listener.Close()

		config := filepath.Join(dir, "config.yml")
		text := fmt.Sprintf("version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\nstorage: {filesystem: {rootdirectory: %q}}\nhttp: {addr: %q, headers: {%s: [%q]}}\n",
			filepath.Join(dir, "data"), addr, ownerHeader, dir)
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		output.Reset()
		server := exec.Command("docker-registry", "serve", config)
		server.Stdout, server.Stderr = &output, &output
		server.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
		if err := server.Start(); err != nil {
			t.Fatalf("%v; install docker-registry", err)
		}
		exited := make(chan struct{})
		go func() {
			server.Wait()
			close(exited)
		}()
		stop := func() {
			server.Process.Kill()
			<-exited
		}
		if answers(addr, dir, exited) {
			t.Cleanup(stop)
			return addr
		}
		stop()
	}
	t.Fatalf("docker-registry doesn't start:\n%s", output.String())
	return ""
}

// ownerHeader is in the answers of a registry, with the directory that its files are in: by chance another one may listen on the port.
const ownerHeader = "X-Unionfs-Test"

// answers waits until the registry of dir does at addr, for at most two minutes, or until it has exited.
func answers(addr, dir string, exited <-chan struct{}) bool {
	deadline := time.After(2 * time.Minute)
	for {
		select {
		case <-exited:
			return false
		case <-deadline:
			return false
		case <-time.After(20 * time.Millisecond):
		}
		response, err := http.Get("http://" + addr + "/v2/")
		if err == nil {
			response.Body.Close()
			if response.StatusCode == http.StatusOK && response.Header.Get(ownerHeader) == dir {
				return true
			}
		}
	}
}

// Push writes the image to the registry under ref, which is HOST:PORT/REPOSITORY[:TAG].
func Push(t testing.TB, image v1.Image, ref string) {
	t.Helper()
	parsed, err := name.ParseReference(ref, name.Insecure)
	if err != nil {
		t.Fatal(err)
	}
	if err := remote.Write(parsed, image); err != nil {
		t.Fatalf("pushing %s: %v", ref, err)
	}
}
