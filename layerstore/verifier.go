package layerstore

import (
	"crypto/sha256"
	"errors"
	"hash"
	"io"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// verifier passes a blob on and finds out whether it is the one that a descriptor describes, which may lack the digest. It reads at most one byte
// more than the descriptor says.
type verifier struct {
	mu       sync.Mutex // guards all below; a reader may still be at it when finish is called
	r        io.Reader
	want     ocispec.Descriptor
	hash     hash.Hash
	n        int64
	told     int64
	err      error // of the stream, but for its end
	finished bool
	progress func(done int64)
}

// progressStep is how many bytes pass between two reports of progress.
const progressStep = 256 << 10

func newVerifier(r io.Reader, want ocispec.Descriptor, progress func(done int64)) *verifier {
	return &verifier{r: io.LimitReader(r, want.Size+1), want: want, hash: sha256.New(), progress: progress}
}

// Read implements io.Reader.
func (v *verifier) Read(p []byte) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.finished {
		return 0, errors.New("reading a blob that was given up")
	}
	return v.read(p)
}

func (v *verifier) read(p []byte) (int, error) {
	n, err := v.r.Read(p)
	v.hash.Write(p[:n])
	v.n += int64(n)
	if v.n-v.told >= progressStep {
		v.told = v.n
		v.progress(min(v.n, v.want.Size))
	}
	if err != nil && !errors.Is(err, io.EOF) {
		v.err = err
	}
	return n, err
}

// stop waits for a read that is going on. None succeeds after.
func (v *verifier) stop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.finished = true
}

// finish reads the rest and says what is wrong with the blob. No other read succeeds after.
func (v *verifier) finish() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.finished = true
	buf := make([]byte, 1<<16)
	for v.err == nil {
		if _, err := v.read(buf); err != nil {
			break
		}
	}
	if v.err != nil {
		return &brokenOffError{err: v.err, want: v.want.Size, got: v.n}
	}
	if v.n != v.want.Size {
		return &sizeError{want: v.want.Size, got: v.n}
	}
	if got := digest.NewDigest(digest.SHA256, v.hash); v.want.Digest != "" && got != v.want.Digest {
		return &digestError{want: v.want.Digest, got: got}
	}
	return nil
}
