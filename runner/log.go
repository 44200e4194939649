package runner

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"
)

// The output of a container that was started in the background is kept in ROOT/containers/ID/log, in the text format of
// Kubernetes' container runtime interface (kubernetes/design-proposals, node/kubelet-cri-logging.md), which podman calls
// k8s-file: a line is
//
//	2026-11-23T14:00:00.123456789Z stdout F what the command wrote
//
// with F where the command ended the line and P where the line goes on in the stream's next one. A file that is full
// becomes log.1, log.1 becomes log.2, and so on.

// Annotations that bound the log of a container.
const (
	AnnotationLogSize  = "io.unionfs.log-max-size"  // bytes a file; DefaultLogSize if missing
	AnnotationLogFiles = "io.unionfs.log-max-files" // files, with the one that is written; DefaultLogFiles if missing
)

// What is kept of a container's output by default: two full files and the one that is being written.
const (
	DefaultLogSize  = 10 << 20 // bytes
	DefaultLogFiles = 3
)

// maxLogText bounds the text in one line of a log, in bytes; what is longer is parted.
const maxLogText = 16 << 10

// LogPath is the file in which the newest output of a container is; the older is in LogPath.1, LogPath.2 and so on.
func (c *Container) LogPath() string { return filepath.Join(c.Dir(), "log") }

// logFile is the log of a container that runs. Any number of streams may write to it.
type logFile struct {
	path   string
	most   int64 // bytes a file
	number int   // files

	mu   sync.Mutex
	file *os.File // nil after a file could not be opened
	size int64
	err  error // the first failure: what came after may be missing
}

// openLog opens the container's log to go on at its end.
func (c *Container) openLog() (*logFile, error) {
	l := &logFile{path: c.LogPath(), most: DefaultLogSize, number: DefaultLogFiles}
	if n, err := strconv.ParseInt(c.Spec.Annotations[AnnotationLogSize], 10, 64); err == nil && n > 0 {
		l.most = n
	}
	if n, err := strconv.Atoi(c.Spec.Annotations[AnnotationLogFiles]); err == nil && n > 0 {
		l.number = n
	}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		f.Close()
		return err
	}
	l.file, l.size = f, size
	var last [1]byte
	if size > 0 {
		// A supervisor that was killed may have left half a line.
		if _, err := f.ReadAt(last[:], size-1); err == nil && last[0] != '\n' {
			return l.append([]byte{'\n'})
		}
	}
	return nil
}

func (l *logFile) append(b []byte) error {
	n, err := l.file.Write(b)
	l.size += int64(n)
	return err
}

// rotate makes room for a new file.
func (l *logFile) rotate() error {
	l.file.Close()
	l.file = nil
	name := func(i int) string {
		if i == 0 {
			return l.path
		}
		return l.path + "." + strconv.Itoa(i)
	}
	if err := os.Remove(name(l.number - 1)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for i := l.number - 2; i >= 0; i-- {
		if err := os.Rename(name(i), name(i+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return l.open()
}

// write adds a line. That it fails, on a full disk perhaps, is remembered and does not stop the command.
func (l *logFile) write(stream string, text []byte, whole bool) {
	tag := byte('P')
	if whole {
		tag = 'F'
	}
	line := time.Now().UTC().AppendFormat(nil, logTime)
	line = fmt.Appendf(line, " %s %c ", stream, tag)
	line = append(append(line, text...), '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.writeLine(line)
	if l.err == nil {
		l.err = err
	}
}

func (l *logFile) writeLine(line []byte) error {
	if l.file == nil {
		if err := l.open(); err != nil {
			return err
		}
	}
	if l.size > 0 && l.size+int64(len(line)) > l.most {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	return l.append(line)
}

// logTime is RFC 3339 with all nine digits, so that lines sort.
const logTime = "2006-01-02T15:04:05.000000000Z07:00"

// copy writes all that comes from r to the log, until its end.
func (l *logFile) copy(stream string, r io.Reader) {
	in := bufio.NewReaderSize(r, maxLogText)
	for {
		text, err := in.ReadSlice('\n')
		if whole := bytes.TrimSuffix(text, []byte{'\n'}); len(whole) < len(text) {
			l.write(stream, whole, true)
		} else if len(text) > 0 {
			l.write(stream, text, false)
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (l *logFile) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
	if l.err != nil {
		return fmt.Errorf("writing the log: %w", l.err)
	}
	return nil
}
