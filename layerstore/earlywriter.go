package layerstore

import (
	"os"

	"golang.org/x/sys/unix"
)

// earlyWriter writes a file that is flushed in the end, and has the kernel write to the disk what is there while the rest is still
// being made: else the disk would have nothing to do until then, and the processor nothing after.
type earlyWriter struct {
	f       *os.File
	n       int64 // bytes written
	started int64 // bytes that the kernel was told of
}

// earlyStep is how many bytes are handed to the disk at a time.
const earlyStep = 8 << 20

// Write implements io.Writer.
func (w *earlyWriter) Write(p []byte) (int, error) {
	n, err := w.f.Write(p)
	w.n += int64(n)
	if err == nil && w.n-w.started >= earlyStep {
		// Only a hint: what fails here fails again when the file is flushed.
		unix.SyncFileRange(int(w.f.Fd()), w.started, w.n-w.started, unix.SYNC_FILE_RANGE_WRITE)
		w.started = w.n
	}
	return n, err
}
