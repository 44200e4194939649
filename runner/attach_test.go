package runner

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/containerd/console"
)

// TestDetachKeys detaches from a container in front, looks at it from elsewhere, and attaches again from terminals of other sizes.
func TestDetachKeys(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell(`echo hello; while read line; do echo "got $line at $(stty size)"; test "$line" != end || exit 6; done`)
		r.Spec.Process.Terminal, r.Interactive = true, true
		r.DetachKeys = []byte{'P' & 0x1f, 'Q' & 0x1f}
		first := w.sit(r)
		first.expect("hello")
		io.WriteString(first.master, "one\n")
		first.expect("got one at 40 100")
		io.WriteString(first.master, "\x10\x11")
		_ = first.cmd.Wait()
		first.expect("detached") // the test's program says the error

		all, err := (&State{root: w.state}).List()
		must(t, err)
		c := all[0]
		t.Cleanup(func() { _ = c.Kill(time.Minute) })
		if st, err := c.Status(); err != nil || st.State != StateRunning {
			t.Fatalf("%+v, %v", st, err)
		}
		second := w.sitAt(w.verb("test-attach", w.state, c.ID))
		must(t, second.master.Resize(console.WinSize{Height: 33, Width: 99}))
		eventually(t, "attached", func() bool {
			io.WriteString(second.master, "two\n")
			time.Sleep(20 * time.Millisecond)
			return strings.Contains(second.output(), "got two at 33 99") // it has heard of the new size too
		})
		third := w.sitAt(w.verb("test-attach", w.state, c.ID))
		io.WriteString(third.master, "three\n")
		third.expect("got three at 40 100")
		second.expect("got three at 40 100") // both see it
		io.WriteString(second.master, "\x10\x11")
		second.expect("detached")
		io.WriteString(third.master, "end\n")
		third.expect("got end")
		_ = third.cmd.Wait()
		if code := third.cmd.ProcessState.ExitCode(); code != 6 {
			t.Errorf("exit code %d", code)
		}
		var log strings.Builder
		must(t, c.Logs(context.Background(), LogOptions{All: true}, func(l LogLine) error { log.Write(l.Text); return nil }))
		if !strings.Contains(log.String(), "got three") || strings.Contains(log.String(), "got one") {
			t.Errorf("log: %q", log.String())
		}
	})
}

// TestWatched starts containers in the background that their caller watches from the start: at a terminal, whose size is the
// container's before its command looks, and with the end of an input.
func TestWatched(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		r := w.shell(`echo begun at $(stty size); while read line; do echo "got $line at $(stty size)"; test "$line" != end || exit 6; done`)
		r.Spec.Process.Terminal, r.Interactive, r.Watched = true, true, true
		r.DetachKeys = []byte{'P' & 0x1f, 'Q' & 0x1f}
		first := w.sit(r)
		first.expect("begun at 40 100")
		must(t, first.master.Resize(console.WinSize{Height: 33, Width: 99}))
		eventually(t, "it hears of the new size", func() bool {
			io.WriteString(first.master, "one\n")
			time.Sleep(20 * time.Millisecond)
			return strings.Contains(first.output(), "got one at 33 99")
		})
		io.WriteString(first.master, "\x10\x11")
		first.expect("detached")
		c := must1((&State{root: w.state}).List())[0]
		if st := must1(c.Status()); st.State != StateRunning {
			t.Fatalf("%+v", st)
		}
		second := w.sitAt(w.verb("test-attach", w.state, c.ID))
		io.WriteString(second.master, "end\n")
		second.expect("got end")
		_ = second.cmd.Wait()
		if st := must1(c.Status()); second.cmd.ProcessState.ExitCode() != 6 || st.State != StateExited || st.ExitCode != 6 {
			t.Errorf("the end: %v, %+v", second.cmd.ProcessState, st)
		}
		var log strings.Builder
		must(t, c.Logs(context.Background(), LogOptions{All: true}, func(l LogLine) error { log.Write(l.Text); return nil }))
		if !strings.Contains(log.String(), "begun") || !strings.Contains(log.String(), "got end") {
			t.Errorf("log: %q", log.String())
		}

		r = w.shell("cat; echo over; exit 5")
		r.Options.Annotations = map[string]string{AnnotationInteractive: "true"}
		r.Interactive, r.Watched = true, true
		cmd := w.cmd(r)
		cmd.Stdin = strings.NewReader("input\n")
		if res := finish(t, cmd); res.code != 5 || res.stdout != "input\nover\n" {
			t.Errorf("with an input: %+v", res)
		}
	})
}

func TestKeyReader(t *testing.T) {
	for input, want := range map[string]string{
		"plain": "plain", "a\x10b": "a\x10b", "\x10\x10\x11x": "\x10!", "\x10\x10\x10b": "\x10\x10\x10b", "ab\x10\x11c": "ab!", "\x10": "\x10", "\x11\x10": "\x11\x10",
	} {
		// In pieces of every size, since a terminal hands keys over one by one.
		for size := 1; size <= len(input); size++ {
			k := &keyReader{in: &pieces{[]byte(input), size}, keys: []byte{'\x10', '\x11'}}
			var out strings.Builder
			_, err := io.Copy(struct{ io.Writer }{&out}, struct{ io.Reader }{k})
			if errors.Is(err, ErrDetached) {
				out.WriteByte('!')
			}
			if out.String() != want {
				t.Errorf("%q in pieces of %d: %q, want %q", input, size, out.String(), want)
			}
		}
	}
	for _, bad := range []string{"ctrl-", "ctrl-1", "ab", "ctrl-p,"} {
		if _, err := ParseDetachKeys(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

// pieces hands out its content in pieces.
type pieces struct {
	rest []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b[:min(len(b), p.size)], p.rest)
	p.rest = p.rest[n:]
	return n, nil
}
