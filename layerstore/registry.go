package layerstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// repository is a repository of a registry, as one pull sees it. go-containerregistry does the authentication; requests
// are made here, as its own can't resume a download.
type repository struct {
	client *http.Client
	base   url.URL // of the repository, https://registry/v2/name
}

// isLoopback reports whether a host, with or without a port, is this machine.
func isLoopback(hostport string) bool {
	host := hostport
	if h, _, err := net.SplitHostPort(hostport); err == nil {
		host = h
	}
	host = strings.Trim(host, "[]")
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// guard refuses requests without encryption, redirections to such included, except to this machine. The library's own
// idea of where plain HTTP is fine takes in private networks.
type guard struct {
	inner    http.RoundTripper
	insecure bool
}

var errPlainHTTP = errors.New("the connection would not be encrypted: --insecure allows that")

// RoundTrip implements http.RoundTripper.
func (g *guard) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.URL.Scheme != "https" && !g.insecure && !isLoopback(r.URL.Host) {
		return nil, fmt.Errorf("%s: %w", r.URL.Host, errPlainHTTP)
	}
	return g.inner.RoundTrip(r)
}

// access is how a registry is asked, and for what.
type access struct {
	insecure bool           // as PullOptions.Insecure
	keychain authn.Keychain // nil: Docker's
	scope    string         // transport.PullScope or PushScope
}

// openRepository authenticates with the registry of repo.
func openRepository(ctx context.Context, repo name.Repository, a access) (*repository, error) {
	keychain := a.keychain
	if keychain == nil {
		keychain = authn.DefaultKeychain
	}
	auth, err := authn.Resolve(ctx, keychain, repo)
	if err != nil {
		return nil, fmt.Errorf("finding credentials for %s: %w", repo.RegistryStr(), err)
	}
	base := plainTransport(a.insecure)
	if t, ok := base.(*http.Transport); ok && a.scope == transport.PullScope {
		t.ResponseHeaderTimeout = idleTimeout
	}
	once := &guard{base, a.insecure}
	again := transport.NewRetry(once, transport.WithRetryStatusCodes(
		http.StatusRequestTimeout, http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout))
	rt, err := transport.NewWithContext(ctx, repo.Registry, auth, &retrier{once, again}, []string{repo.Scope(a.scope)})
	if err != nil {
		return nil, fmt.Errorf("connecting to the registry %s: %w", repo.RegistryStr(), err)
	}
	return &repository{
		client: &http.Client{Transport: rt, CheckRedirect: checkRedirect},
		base:   url.URL{Scheme: repo.Scheme(), Host: repo.RegistryStr(), Path: "/v2/" + repo.RepositoryStr()},
	}, nil
}

// retrier sends requests again, when that may help. One with a body is sent once: half of it may have been read.
type retrier struct{ once, again http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t *retrier) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		return t.once.RoundTrip(r)
	}
	return t.again.RoundTrip(r)
}

// plainTransport is a transport of its own, that gives every answer byte for byte.
func plainTransport(insecure bool) http.RoundTripper {
	base := remote.DefaultTransport
	if t, ok := base.(*http.Transport); ok {
		t = t.Clone()
		if insecure {
			t.TLSClientConfig = &tls.Config{InsecureSkipVerify: true} // what --insecure asks for
		}
		// Its decompression would hide the bytes that the digest is of.
		t.DisableCompression = true
		base = t
	}
	return base
}

// checkRedirect keeps a registry elsewhere from having us ask hosts of our own network, such as a cloud's metadata
// service.
func checkRedirect(r *http.Request, via []*http.Request) error {
	if len(via) >= 10 {
		return errors.New("the registry redirects in circles")
	}
	if len(via) == 0 {
		return nil
	}
	return checkHost(via[0].URL, r.URL)
}

// checkHost says whether a registry may send us elsewhere.
func checkHost(from, to *url.URL) error {
	if to.Hostname() == from.Hostname() || isLoopback(from.Host) {
		return nil
	}
	ip := net.ParseIP(to.Hostname())
	if ip != nil && (ip.IsPrivate() || ip.IsLoopback() || ip.IsLinkLocalUnicast() || ip.IsUnspecified()) {
		return fmt.Errorf("%s redirects to the private address %s, which is not followed", from.Host, ip)
	}
	return nil
}

// get asks for manifests or blobs, from the byte at offset on. The answer has status 200, or 206 if offset isn't 0 and
// the registry can do that.
func (r *repository) get(ctx context.Context, kind, id string, accept []string, offset int64) (*http.Response, error) {
	u := r.base
	u.Path += "/" + kind + "/" + id
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	if len(accept) > 0 {
		req.Header.Set("Accept", strings.Join(accept, ","))
	}
	ok := []int{http.StatusOK}
	if offset > 0 {
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
		ok = append(ok, http.StatusPartialContent)
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return nil, err
	}
	if err := transport.CheckError(resp, ok...); err != nil {
		resp.Body.Close()
		return nil, err
	}
	return resp, nil
}

// has asks whether the repository has a blob.
func (r *repository) has(ctx context.Context, d digest.Digest) (bool, error) {
	u := r.base
	u.Path += "/blobs/" + string(d)
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, u.String(), nil)
	if err != nil {
		return false, err
	}
	resp, err := r.client.Do(req)
	if err != nil {
		return false, err
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK, transport.CheckError(resp, http.StatusOK, http.StatusNotFound)
}

// small reads a blob or manifest that is kept in memory.
func small(r io.ReadCloser, most int64) ([]byte, error) {
	defer r.Close()
	b, err := io.ReadAll(io.LimitReader(r, most+1))
	if err != nil {
		return nil, err
	}
	if int64(len(b)) > most {
		return nil, fmt.Errorf("it has more than the %d bytes that are allowed", most)
	}
	return b, nil
}

// idleTimeout is how long a registry may send nothing.
const idleTimeout = 60 * time.Second

// manifest implements imageSource.
func (r *repository) manifest(ctx context.Context, id string) ([]byte, string, error) {
	resp, err := r.get(ctx, "manifests", id, manifestTypes(), 0)
	if err != nil {
		return nil, "", err
	}
	raw, err := small(resp.Body, maxManifest)
	if err != nil {
		return nil, "", err
	}
	// What the registry says the digest is, it must be: other programs go by it.
	if d := digest.Digest(resp.Header.Get("Docker-Content-Digest")); checkDigest(d) == nil && d != digest.FromBytes(raw) {
		return nil, "", &digestError{want: d, got: digest.FromBytes(raw)}
	}
	return raw, resp.Header.Get("Content-Type"), nil
}

// config implements imageSource.
func (r *repository) config(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	resp, err := r.get(ctx, "blobs", string(d.Digest), nil, 0)
	if err != nil {
		return nil, err
	}
	return small(resp.Body, maxConfig)
}

// layer implements imageSource.
func (r *repository) layer(ctx context.Context, _ int, d ocispec.Descriptor, part *download) (io.ReadCloser, error) {
	if part.size > d.Size {
		if err := part.truncate(); err != nil {
			return nil, err
		}
	}
	b := &blobStream{ctx: ctx, repo: r, digest: d.Digest, size: d.Size, off: part.size, part: part}
	if part.size == d.Size {
		return &resumedBlob{part.begin(), b}, nil
	}
	begin := part.begin()
	if err := b.open(); err != nil {
		return nil, &brokenOffError{err: err, want: d.Size, got: part.size}
	}
	return &resumedBlob{io.MultiReader(begin, b), b}, nil
}

// resumedBlob is a blob of which some was there.
type resumedBlob struct {
	io.Reader
	io.Closer
}

// brokenOffError says that what should follow of a blob didn't come.
type brokenOffError struct {
	err       error
	want, got int64 // bytes
}

func (e *brokenOffError) Error() string {
	if e.got == 0 {
		return fmt.Sprintf("downloading %d bytes: %v", e.want, e.err)
	}
	return fmt.Sprintf("the download broke off after %d of %d bytes: %v", e.got, e.want, e.err)
}

func (e *brokenOffError) Unwrap() error { return e.err }

// blobStream reads a blob and, when the connection breaks, goes on where it broke. It checks nothing.
type blobStream struct {
	ctx    context.Context
	repo   *repository
	digest digest.Digest
	size   int64 // that the manifest says
	body   io.ReadCloser
	off    int64
	tries  patience  // since the last byte
	part   *download // where to keep what arrives; may be nil
}

func openBlob(ctx context.Context, repo *repository, d digest.Digest, size int64) (*blobStream, error) {
	b := &blobStream{ctx: ctx, repo: repo, digest: d, size: size}
	return b, b.open()
}

// open asks for the blob from off on.
func (b *blobStream) open() error {
	resp, err := b.repo.get(b.ctx, "blobs", b.digest.String(), nil, b.off)
	if err != nil {
		return err
	}
	rest := b.size - b.off
	if resp.StatusCode == http.StatusOK {
		rest = b.size
	} else if from := fmt.Sprintf("bytes %d-", b.off); !strings.HasPrefix(resp.Header.Get("Content-Range"), from) {
		resp.Body.Close()
		return fmt.Errorf("the registry was asked for the bytes from %d on and sent %q", b.off, clip(resp.Header.Get("Content-Range")))
	}
	if resp.ContentLength >= 0 && resp.ContentLength != rest {
		resp.Body.Close()
		return &sizeError{want: b.size, got: b.size - rest + resp.ContentLength}
	}
	if resp.StatusCode == http.StatusOK && b.off > 0 {
		if _, err := io.CopyN(io.Discard, resp.Body, b.off); err != nil {
			resp.Body.Close()
			return err
		}
	}
	b.body = resp.Body
	return nil
}

// sizeError says that a blob has another size than its descriptor.
type sizeError struct{ want, got int64 }

func (e *sizeError) Error() string {
	return fmt.Sprintf("the registry has %d bytes of it, the manifest says %d", e.got, e.want)
}

// Read implements io.Reader.
func (b *blobStream) Read(p []byte) (int, error) {
	for {
		if b.body == nil {
			if err := b.open(); err != nil {
				var lie *sizeError
				var status *transport.Error // a temporary one was tried again already
				if errors.As(err, &lie) || errors.As(err, &status) || !b.tries.again(b.ctx) {
					return 0, err
				}
				continue
			}
		}
		body := b.body
		stalled := time.AfterFunc(idleTimeout, func() { body.Close() })
		n, err := body.Read(p)
		if !stalled.Stop() && err != nil {
			err = fmt.Errorf("the registry sent nothing for %v", idleTimeout)
		}
		b.off += int64(n)
		if n > 0 {
			b.tries = patience{}
			if b.part != nil {
				if _, err := b.part.Write(p[:n]); err != nil {
					return 0, err
				}
			}
			if !errors.Is(err, io.EOF) {
				err = nil // shows again if it matters
			}
			return n, err
		}
		if err == nil || errors.Is(err, io.EOF) {
			return 0, err
		}
		b.body.Close()
		b.body = nil
		if !b.tries.again(b.ctx) {
			return 0, err
		}
	}
}

// Close implements io.Closer.
func (b *blobStream) Close() error {
	if b.body == nil {
		return nil
	}
	return b.body.Close()
}
