package layerstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
)

const (
	// uploadChunk is how many bytes of a blob are sent at once, unless the registry wants more. Storage services take nothing
	// below 5 MiB, proxies refuse what is above 100 MB.
	uploadChunk = 16 << 20

	// answerTimeout is how long a registry may think about what it was sent. Some hash or copy a whole blob meanwhile.
	answerTimeout = 10 * time.Minute
)

// upload sends one blob to a repository, as the OCI distribution specification has it: a session is begun (POST), chunks are added
// to it (PATCH), and it is closed with the digest (PUT). When a connection breaks, the registry is asked (GET) how much it has,
// and the upload goes on there. Where a registry has lost the session, or takes no chunks, it begins again.
type upload struct {
	repo    *repository
	digest  digest.Digest
	size    int64 // bytes
	content io.ReaderAt
	memory  *uploadMemory // where the session outlives this process; may be nil

	location *url.URL // of the session; nil: there is none
	have     int64    // bytes that the registry has of it
	unsure   bool     // it may have more, or less: something broke
	old      bool     // the session is not as new as it could be: if it is refused, a new one may not be
	recalled bool     // the session is another process's, and wasn't found yet
	whole    bool     // send all that is missing at once
	chunk    int64    // bytes that are sent at once otherwise
	sent     int64    // end of what the connection took of the blob
}

// newUpload makes the upload of a blob that the repository hasn't.
func newUpload(r *repository, d digest.Digest, size int64, content io.ReaderAt, memory *uploadMemory) *upload {
	return &upload{repo: r, digest: d, size: size, content: content, memory: memory, chunk: uploadChunk}
}

// run uploads the blob.
func (u *upload) run(ctx context.Context) error {
	u.whole = u.size <= u.chunk
	if u.location = u.memory.recall(); u.location != nil {
		u.unsure, u.old, u.recalled = true, true, true
	}
	var have, sent int64 // the most so far
	var tries patience
	for {
		err := u.try(ctx)
		if err == nil {
			u.memory.forget()
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("interrupted: %w", context.Cause(ctx))
		}
		// Each for itself: a connection takes much more than arrives before it breaks, and old registries have nothing of it then.
		if u.have > have || u.sent > sent {
			have, sent, tries = max(have, u.have), max(sent, u.sent), patience{}
		}
		if !u.recover(ctx, err, &tries) {
			return u.failure(err)
		}
	}
}

// failure says how far the upload came.
func (u *upload) failure(err error) error {
	if u.have == 0 {
		return fmt.Errorf("uploading %d bytes: %w", u.size, err)
	}
	return fmt.Errorf("the upload broke off after %d of %d bytes: %w", u.have, u.size, err)
}

// recover decides what the next try does after an error. False if there should be none.
func (u *upload) recover(ctx context.Context, err error, tries *patience) bool {
	var status *transport.Error
	refused := errors.As(err, &status) && !temporary(status.StatusCode)
	switch {
	case !refused && tries.again(ctx):
		u.unsure, u.old = u.location != nil, true
		return true
	case u.location == nil:
		return false // no session was given
	case u.recalled:
		u.restart()
		*tries = patience{}
		return true
	case refused && u.old && tries.again(ctx):
		if status.StatusCode == http.StatusRequestedRangeNotSatisfiable {
			u.unsure = true // what was under way when the connection broke has arrived since it was asked
		} else {
			u.restart()
		}
		return true
	case !u.whole && (status != nil) && !denied(status.StatusCode):
		// It takes no chunks, and says so in whatever way. What everything sends to it is one stream.
		u.restart()
		u.whole, *tries = true, patience{}
		return true
	}
	return false
}

// restart forgets the session.
func (u *upload) restart() {
	u.location, u.have, u.unsure, u.old, u.recalled = nil, 0, false, false, false
}

// temporary reports whether a status says something of the moment only.
func temporary(status int) bool {
	return status >= http.StatusInternalServerError && status != http.StatusNotImplemented ||
		status == http.StatusRequestTimeout || status == http.StatusTooManyRequests
}

// denied reports whether a status says that this user may not do this, however it is done.
func denied(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

// try does what is left to do, up to the first error.
func (u *upload) try(ctx context.Context) error {
	if u.unsure {
		there, err := u.ask(ctx)
		if err != nil || there {
			return err
		}
	}
	if u.location == nil {
		if err := u.begin(ctx); err != nil {
			return err
		}
	}
	for u.have < u.size {
		if err := u.add(ctx); err != nil {
			return err
		}
	}
	return u.finish(ctx)
}

// begin opens a session.
func (u *upload) begin(ctx context.Context) error {
	target := u.repo.base
	target.Path += "/blobs/uploads/"
	resp, err := u.request(ctx, http.MethodPost, &target, 0, 0, http.StatusAccepted)
	if err != nil {
		return err
	}
	u.have, u.unsure, u.old = 0, false, false
	if least, err := strconv.ParseInt(resp.Header.Get("OCI-Chunk-Min-Length"), 10, 64); err == nil && least > u.chunk {
		u.chunk = least
	}
	return u.moved(resp)
}

// ask finds out what the registry has. there says that it has the whole blob: the session was closed, and only the answer was lost.
func (u *upload) ask(ctx context.Context) (there bool, err error) {
	resp, err := u.request(ctx, http.MethodGet, u.location, 0, 0, http.StatusNoContent, http.StatusAccepted)
	if err == nil {
		u.have, u.unsure, u.recalled = received(resp, 0), false, false
		if u.have <= u.size {
			return false, u.moved(resp)
		}
	}
	var status *transport.Error
	if err != nil && !errors.Is(err, errPlainHTTP) && (!errors.As(err, &status) || temporary(status.StatusCode)) {
		return false, err
	}
	// Distribution before version 3 cancels a session in the middle of whose chunk the connection broke.
	u.restart()
	return u.repo.has(ctx, u.digest)
}

// add sends the next chunk.
func (u *upload) add(ctx context.Context) error {
	end := u.size
	if !u.whole {
		end = min(u.size, u.have+u.chunk)
	}
	resp, err := u.request(ctx, http.MethodPatch, u.location, u.have, end, http.StatusAccepted, http.StatusNoContent, http.StatusCreated)
	if err != nil {
		return err
	}
	before := u.have
	u.have = end
	if !u.whole {
		u.have = min(received(resp, end), end)
	}
	if u.have <= before {
		return fmt.Errorf("the registry took nothing of the bytes from %d to %d", before, end)
	}
	return u.moved(resp)
}

// finish closes the session.
func (u *upload) finish(ctx context.Context) error {
	target := *u.location
	query := target.Query()
	query.Set("digest", string(u.digest))
	target.RawQuery = query.Encode()
	_, err := u.request(ctx, http.MethodPut, &target, 0, 0, http.StatusCreated, http.StatusNoContent, http.StatusOK)
	return err
}

// request sends the bytes of the blob from one offset to another, or none, and returns the answer, whose body is closed, if it
// has one of the statuses.
func (u *upload) request(ctx context.Context, method string, target *url.URL, from, to int64, ok ...int) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := time.AfterFunc(answerTimeout, func() { cancel(errors.New("the registry neither takes nor answers anything")) })
	defer watch.Stop()
	req, err := http.NewRequestWithContext(ctx, method, target.String(), nil)
	if err != nil {
		return nil, err
	}
	var body *uploadBody
	if to > from {
		body = &uploadBody{section: io.NewSectionReader(u.content, from, to-from), watch: watch}
		req.Body, req.ContentLength = body, to-from
		req.Header.Set("Content-Type", "application/octet-stream")
		// All of a blob at once is what everything sends, and needs no range.
		if from > 0 || to < u.size {
			req.Header.Set("Content-Range", fmt.Sprintf("%d-%d", from, to-1))
		}
	}
	resp, err := u.repo.client.Do(req)
	if body != nil {
		u.sent = max(u.sent, from+body.taken.Load())
	}
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = cause
		}
		return nil, err
	}
	defer resp.Body.Close()
	if err := transport.CheckError(resp, ok...); err != nil {
		return nil, err
	}
	return resp, nil
}

// moved takes over where the session is now.
func (u *upload) moved(resp *http.Response) error {
	where := resp.Header.Get("Location")
	if where == "" && u.location != nil {
		return nil
	}
	next, err := resp.Request.URL.Parse(where)
	if err != nil || where == "" {
		return fmt.Errorf("the registry says that the upload is at %q", clip(where))
	}
	if err := checkHost(&u.repo.base, next); err != nil {
		return err
	}
	u.location = next
	u.memory.keep(next)
	return nil
}

// received reads how many bytes a registry has. Those that don't say have got what they were sent, or nothing yet.
func received(resp *http.Response, otherwise int64) int64 {
	said := strings.TrimPrefix(resp.Header.Get("Range"), "bytes=")
	first, last, ok := strings.Cut(said, "-")
	end, err := strconv.ParseInt(last, 10, 64)
	if !ok || first != "0" || err != nil || end < 0 {
		return otherwise
	}
	if end == 0 {
		return min(otherwise, 1) // distribution says this also of nothing
	}
	return end + 1
}

// uploadBody is what is sent of a blob in one request. The watch goes off when the connection takes nothing for idleTimeout, or the
// registry, once it has all, says nothing for answerTimeout.
type uploadBody struct {
	section *io.SectionReader
	taken   atomic.Int64 // bytes
	watch   *time.Timer
}

// Read implements io.Reader.
func (b *uploadBody) Read(p []byte) (int, error) {
	n, err := b.section.Read(p)
	if b.taken.Add(int64(n)) < b.section.Size() {
		b.watch.Reset(idleTimeout)
	} else {
		b.watch.Reset(answerTimeout)
	}
	return n, err
}

// Close implements io.Closer.
func (b *uploadBody) Close() error { return nil }

// uploadName names what is remembered of the upload of a blob to a repository.
func uploadName(r *repository, d digest.Digest) string {
	return digest.FromString(r.base.String()+"\n"+string(d)).Encoded() + uploadSuffix
}
