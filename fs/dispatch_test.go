package fs

import (
	"context"
	"encoding/binary"
	"log/slog"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"

	"unionfs/cow"
)

// FuzzRequests hands the server requests that no kernel would send. Each is answered, by an error mostly, and nothing is read that is
// not there.
func FuzzRequests(f *testing.F) {
	for op := range uint32(60) {
		f.Add(op, uint64(fuse.FUSE_ROOT_ID), []byte("a name\x00another\x00"))
		f.Add(op, uint64(fuse.FUSE_ROOT_ID), append(make([]byte, 128), "a name\x00another\x00"...))
		f.Add(op, uint64(12345), []byte{})
	}
	f.Fuzz(func(t *testing.T, op uint32, node uint64, body []byte) {
		lower, err := cow.OpenDirBranch(t.TempDir(), cow.DirOptions{})
		if err != nil {
			t.Fatal(err)
		}
		u, err := cow.New(cow.Options{Lower: []cow.Branch{lower}, Upper: t.TempDir(), Work: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer u.Close()
		o := Options{Logger: slog.New(failOnPanic{t}), MaxWrite: 1 << 16}
		o.setDefaults()
		h, err := newHandler(u, &o, false)
		if err != nil {
			t.Fatal(err)
		}
		defer h.pipes.close()
		newConn(h, -1, &o)
		h.setxattrExt = node%2 == 0
		in := make([]byte, inHeaderSize, inHeaderSize+len(body))
		binary.NativeEndian.PutUint32(in[4:], op)
		binary.NativeEndian.PutUint64(in[8:], 77)
		binary.NativeEndian.PutUint64(in[16:], node)
		in = append(in, body...)
		binary.NativeEndian.PutUint32(in, uint32(len(in)))
		r := request{large: newLarge(o.MaxWrite)}
		r.reset(in)
		status := h.carryOut(&r)
		if status < 0 {
			t.Errorf("status %d", status)
		}
		if r.file == nil {
			head := r.reply(status, len(r.data))
			if n := binary.NativeEndian.Uint32(head); int(n) != len(head)+len(r.data) || status != fuse.OK && n != uint32(outHeaderSize) {
				t.Errorf("a reply of %d bytes says %d", len(head)+len(r.data), n)
			}
			if got := binary.NativeEndian.Uint64(head[8:]); got != 77 {
				t.Errorf("the reply is to request %d", got)
			}
		}
		r.done()
	})
}

// failOnPanic fails a test where a request panicked.
type failOnPanic struct{ t *testing.T }

func (failOnPanic) Enabled(context.Context, slog.Level) bool { return true }

func (l failOnPanic) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "panic" || a.Key == "stack" {
			l.t.Errorf("%s %v", r.Message, a.Value)
		}
		return true
	})
	return nil
}

func (l failOnPanic) WithAttrs([]slog.Attr) slog.Handler { return l }
func (l failOnPanic) WithGroup(string) slog.Handler      { return l }
