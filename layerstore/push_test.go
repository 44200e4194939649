package layerstore

import (
	"context"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
)

// mustPush pushes and returns what became of the layers, in their order.
func mustPush(t *testing.T, s *Store, ref, as string) (*Pushed, []PushState) {
	t.Helper()
	states := map[int]PushState{}
	p, err := s.Push(context.Background(), ref, as, PushOptions{Progress: func(l PushedLayer) { states[l.Index] = l.State }})
	if err != nil {
		t.Fatal(err)
	}
	var all []PushState
	for n := range len(states) {
		all = append(all, states[n])
	}
	return p, all
}

// onlyStates fails the test unless all layers have the state.
func onlyStates(t *testing.T, got []PushState, want PushState, count int) {
	t.Helper()
	if len(got) != count {
		t.Errorf("%d layers, want %d", len(got), count)
	}
	for n, s := range got {
		if s != want {
			t.Errorf("layer %d: %s, want %s", n, s, want)
		}
	}
}

// TestPushWhatWasPulled pushes an image to where it came from, to another repository there and to another registry.
func TestPushWhatWasPulled(t *testing.T) {
	host := dockerRegistry(t)
	tars := someTars(t)
	for _, docker := range []bool{false, true} {
		i := makeImage(t, tars)
		ref := host + "/team/oci:1"
		if docker {
			i, ref = i.asDocker(), host+"/team/docker:1"
		}
		raw := i.push(t, ref)
		s := openStore(t)
		image := mustPull(t, s, ref, PullOptions{})

		p, states := mustPush(t, s, ref, "")
		onlyStates(t, states, PushExists, len(tars))
		if !p.Same || p.Digest != digest.FromBytes(raw) || p.Size != int64(len(raw)) {
			t.Errorf("pushed %+v, want the digest %s", p, digest.FromBytes(raw))
		}
		p, states = mustPush(t, s, ref, strings.Replace(ref, "team", "other", 1))
		onlyStates(t, states, PushMounted, len(tars))
		if !p.Same || p.Digest != digest.FromBytes(raw) {
			t.Errorf("pushed to another repository: %+v", p)
		}
		mustPull(t, openStore(t), strings.Replace(ref, "team", "other", 1), PullOptions{})

		far := testRegistry(t, nil) + "/far/away:1"
		p, states = mustPush(t, s, ref, far)
		onlyStates(t, states, PushSent, len(tars))
		again, states := mustPush(t, s, ref, far)
		onlyStates(t, states, PushExists, len(tars))
		if p.Same || p.Digest == digest.FromBytes(raw) || *again != *p {
			t.Errorf("pushed to another registry: %+v, and again: %+v", p, again)
		}
		there := mustPull(t, openStore(t), far, PullOptions{})
		if there.ID() != image.ID() {
			t.Errorf("the image has the ID %s there, %s here", there.ID(), image.ID())
		}
		if d := diffSnapshots(imageSnapshot(t, there), imageSnapshot(t, image)); d != "" {
			t.Errorf("the image differs: %s", d)
		}
		// The image here is still the one that came from the first registry.
		if p, _ := mustPush(t, s, ref, ""); !p.Same || p.Digest != digest.FromBytes(raw) {
			t.Errorf("pushed back: %+v", p)
		}
	}
}

// TestPushWhatWasMade pushes an imported image with a committed layer. From then on its manifest is the one that was pushed.
func TestPushWhatWasMade(t *testing.T) {
	one, two := testRegistry(t, nil), testRegistry(t, nil)
	s := openStore(t)
	base := importBytes(t, s, "base", someTars(t)[0])
	i, err := s.Commit(context.Background(), base, strings.NewReader(string(someTars(t)[3])), one+"/made:1", CommitOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p, states := mustPush(t, s, one+"/made:1", "")
	onlyStates(t, states, PushSent, 2)
	if p.Same {
		t.Error("uncompressed layers were pushed")
	}
	found, err := s.Image(one + "/made@" + string(p.Digest))
	if err != nil || found.ID() != i.ID() {
		t.Errorf("the image is not found by the digest that it has in the registry: %v", err)
	}
	other, states := mustPush(t, s, one+"/made:1", two+"/x:2")
	onlyStates(t, states, PushSent, 2)
	if !other.Same || other.Digest != p.Digest {
		t.Errorf("pushed elsewhere: %+v, want %+v", other, p)
	}
	pulled := mustPull(t, openStore(t), two+"/x:2", PullOptions{})
	if pulled.ID() != i.ID() {
		t.Errorf("pulled %s, pushed %s", pulled.ID(), i.ID())
	}
	if found, err := s.Verify(context.Background(), VerifyOptions{}); err != nil || len(found.Faults) > 0 {
		t.Errorf("verify: %+v, %v", found, err)
	}
}

// TestPushPlainLayers pushes layers that were never compressed: their blobs are at hand.
func TestPushPlainLayers(t *testing.T) {
	i := makeImage(t, someTars(t), compressions()[2])
	ref := testRegistry(t, nil) + "/plain:1"
	raw := i.push(t, ref)
	s := openStore(t)
	mustPull(t, s, ref, PullOptions{})
	p, _ := mustPush(t, s, ref, testRegistry(t, nil)+"/plain:1")
	if !p.Same || p.Digest != digest.FromBytes(raw) {
		t.Errorf("pushed %+v", p)
	}
}

func TestPushErrors(t *testing.T) {
	s := openStore(t)
	importBytes(t, s, "x", tarOf(t, reg("a", "1")))
	var mu sync.Mutex
	asked := 0
	full := testRegistry(t, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		asked++
		http.Error(w, "no space for you", http.StatusForbidden)
		return true
	})
	for _, c := range []struct{ ref, as, want string }{
		{"nowhere", "", "no such image"},
		{"x", "host", "reserved"},
		{"x", full + "/x", "403"},
		{"x", "192.0.2.1:5000/x", ""},
	} {
		ctx, cancel := context.WithCancel(context.Background())
		if c.want == "" {
			cancel() // an address where nobody answers
		}
		_, err := s.Push(ctx, c.ref, c.as, PushOptions{})
		cancel()
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("pushing %s to %s: %v, want %q", c.ref, c.as, err, c.want)
		}
	}
	if asked == 0 {
		t.Error("the registry was not asked")
	}
	if u := mustUsage(t, s); u.Unfinished > 8192 {
		t.Errorf("%d bytes are left in staging", u.Unfinished)
	}
}
