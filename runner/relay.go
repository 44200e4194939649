package runner

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// relay copies between the caller's streams and the master of the container's terminal, for as long as the container
// runs. A nil relay does nothing.
type relay struct {
	master *os.File
	size   *os.File      // the caller's terminal that the size is taken from; nil if there is none
	raw    *os.File      // the caller's terminal that is in raw mode; nil if there is none
	before *term.State   // of raw
	done   chan struct{} // closed when all output is copied
	detach func(master *os.File)
}

// startRelay takes over the master.
func startRelay(master *os.File, o RunOptions, detach func(master *os.File)) (*relay, error) {
	r := &relay{master: master, done: make(chan struct{}), detach: detach}
	for _, f := range []*os.File{o.Stdin, o.Stdout} {
		if r.size == nil && isTerminal(f) {
			r.size = f
		}
	}
	if o.Interactive && isTerminal(o.Stdin) {
		// Wholly raw: the container's own terminal does all the processing, of input and output.
		before, err := term.MakeRaw(int(o.Stdin.Fd()))
		if err != nil {
			return nil, fmt.Errorf("setting the terminal to raw mode: %w", err)
		}
		r.raw, r.before = o.Stdin, before
	}
	r.resize()
	if o.Interactive {
		go r.copyIn(o.Stdin, o.DetachKeys)
	}
	go func() {
		// The end is EIO, when the last process that has the terminal open is gone.
		_, _ = io.Copy(o.Stdout, master)
		close(r.done)
	}()
	return r, nil
}

func isTerminal(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }

// copyIn passes input on. An input that is no terminal ends with the character that ends a terminal's.
func (r *relay) copyIn(stdin *os.File, detachKeys []byte) {
	_, err := io.Copy(struct{ io.Writer }{r.master}, &keyReader{in: stdin, keys: detachKeys})
	if errors.Is(err, ErrDetached) {
		r.detach(r.master)
		return
	}
	if err == nil && r.raw == nil {
		_, _ = r.master.Write([]byte{endOfTransmission})
	}
}

const endOfTransmission = 4 // ^D

// resize gives the container's terminal the size of the caller's.
func (r *relay) resize() {
	if r == nil || r.size == nil {
		return
	}
	width, height, err := term.GetSize(int(r.size.Fd()))
	if err != nil {
		return
	}
	_ = unix.IoctlSetWinsize(int(r.master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: uint16(height), Col: uint16(width)})
}

// finish waits until the output that the container left is copied, and gives the caller's terminal back as it was.
func (r *relay) finish() {
	if r == nil {
		return
	}
	<-r.done
	r.restore()
	r.master.Close()
}

// restore gives the caller's terminal back as it was.
func (r *relay) restore() {
	if r.raw != nil {
		_ = term.Restore(int(r.raw.Fd()), r.before)
	}
}
