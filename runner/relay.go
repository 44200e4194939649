package runner

import (
	"fmt"
	"io"
	"os"

	"github.com/containerd/console"
	"golang.org/x/sys/unix"
)

// relay copies between the caller's streams and the master of the container's terminal, for as long as the container
// runs. A nil relay does nothing.
type relay struct {
	master *os.File
	caller console.Console // the caller's terminal, in raw mode; nil if there is none
	size   console.Console // where the size is taken from; nil if nowhere
	done   chan struct{}   // closed when all output is copied
}

// startRelay takes over the master.
func startRelay(master *os.File, o RunOptions) (*relay, error) {
	r := &relay{master: master, done: make(chan struct{})}
	if c, err := console.ConsoleFromFile(o.Stdin); err == nil {
		r.size = c
		if o.Interactive {
			if err := c.SetRaw(); err != nil {
				return nil, fmt.Errorf("setting the terminal to raw mode: %w", err)
			}
			r.caller = c
		}
	} else if c, err := console.ConsoleFromFile(o.Stdout); err == nil {
		r.size = c
	}
	r.resize()
	if o.Interactive {
		go r.copyIn(o.Stdin)
	}
	go func() {
		// The end is EIO, when the last process that has the terminal open is gone.
		_, _ = io.Copy(o.Stdout, master)
		close(r.done)
	}()
	return r, nil
}

// copyIn passes input on. An input that is no terminal ends with the character that ends a terminal's.
func (r *relay) copyIn(stdin *os.File) {
	_, err := io.Copy(struct{ io.Writer }{r.master}, struct{ io.Reader }{stdin})
	if err == nil && r.caller == nil {
		_, _ = r.master.Write([]byte{endOfTransmission})
	}
}

const endOfTransmission = 4 // ^D

// resize gives the container's terminal the size of the caller's.
func (r *relay) resize() {
	if r == nil || r.size == nil {
		return
	}
	size, err := r.size.Size()
	if err != nil {
		return
	}
	_ = withFD(r.master, func(fd int) error {
		return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: size.Height, Col: size.Width})
	})
}

// finish waits until the output that the container left is copied, and gives the caller's terminal back as it was.
func (r *relay) finish() {
	if r == nil {
		return
	}
	<-r.done
	if r.caller != nil {
		_ = r.caller.Reset()
	}
	r.master.Close()
}

// withFD calls f with the descriptor of file, without putting it into blocking mode as file.Fd would.
func withFD(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var ferr error
	if err := raw.Control(func(fd uintptr) { ferr = f(int(fd)) }); err != nil {
		return err
	}
	return ferr
}
