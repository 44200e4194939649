package runner

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// LogLine is a line, or a part of one, that a container's command wrote.
type LogLine struct {
	Time   time.Time
	Stream string // "stdout" or "stderr"; with a terminal all is "stdout"
	Text   []byte // without the newline
	Whole  bool   // the command ended the line; else the stream's next LogLine goes on with it
}

// LogOptions say which part of a log is read.
type LogOptions struct {
	Follow bool      // go on until the container has ended
	All    bool      // from the start; otherwise the last Tail lines
	Tail   int       // whole lines before what Follow brings
	Since  time.Time // nothing that was written before
	Until  time.Time // nothing that was written after, unless it is the zero time
}

// Logs calls each with every line of the container's log, the oldest first, until one returns an error. A container that
// only ever ran in the foreground has no log. With Follow it returns when the container has ended, or was removed, and
// all of the log is read, or when ctx is done.
func (c *Container) Logs(ctx context.Context, o LogOptions, each func(LogLine) error) error {
	if _, err := c.Status(); err != nil {
		return err
	}
	r := &logReader{path: c.LogPath()}
	defer r.close()
	wanted := func(l LogLine) bool {
		return !l.Time.Before(o.Since) && (o.Until.IsZero() || !l.Time.After(o.Until))
	}
	if !o.All {
		last, err := r.last(o.Tail, wanted)
		if err != nil {
			return err
		}
		for _, l := range last {
			if err := each(l); err != nil {
				return err
			}
		}
	}
	for ended := false; ; {
		l, ok, err := r.next()
		switch {
		case err != nil:
			return fmt.Errorf("reading the log of container %s: %w", c.Name, err)
		case ok && wanted(l):
			if err := each(l); err != nil {
				return err
			}
		case ok:
		case !o.Follow || ended:
			return nil
		default:
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(logPoll):
			}
			held, err := c.lockHeld()
			if err != nil && !errors.Is(err, ErrNotFound) {
				return err
			}
			ended = !held // what it wrote last is read in the next rounds
		}
	}
}

// logPoll is how often a follower looks for more.
const logPoll = 50 * time.Millisecond

// logReader reads the lines of a log over all its files, also while they are rotated.
type logReader struct {
	path string
	file *os.File // nil before the first file is there
	rest []byte   // read and not yet returned
}

func (r *logReader) close() {
	if r.file != nil {
		r.file.Close()
	}
}

// last reads to the present end, and returns the last n whole lines with their parts.
func (r *logReader) last(n int, wanted func(LogLine) bool) ([]LogLine, error) {
	var kept []LogLine
	whole := 0
	for {
		l, ok, err := r.next()
		if err != nil {
			return nil, err
		}
		if !ok {
			break
		}
		if !wanted(l) {
			continue
		}
		kept = append(kept, l)
		if l.Whole {
			whole++
		}
		for whole > n || n == 0 && len(kept) > 0 {
			first := slices.IndexFunc(kept, func(l LogLine) bool { return l.Whole })
			if first < 0 {
				break
			}
			kept = kept[first+1:]
			whole--
		}
	}
	// A last line that has no end yet is one more.
	if len(kept) > 0 && !kept[len(kept)-1].Whole && whole == n {
		first := slices.IndexFunc(kept, func(l LogLine) bool { return l.Whole })
		kept = kept[first+1:]
	}
	if n == 0 {
		return nil, nil
	}
	return kept, nil
}

// next returns the next line. ok is false at the present end.
func (r *logReader) next() (line LogLine, ok bool, err error) {
	for {
		if at := bytes.IndexByte(r.rest, '\n'); at >= 0 {
			text := r.rest[:at]
			r.rest = r.rest[at+1:]
			if line, ok := parseLogLine(text); ok {
				return line, true, nil
			}
			continue // torn by a kill
		}
		more, err := r.read()
		if err != nil || !more {
			return LogLine{}, false, err
		}
	}
}

// read reads more of the file, or goes on to the next.
func (r *logReader) read() (more bool, err error) {
	if r.file != nil {
		buf := make([]byte, 32<<10)
		n, err := r.file.Read(buf)
		if n > 0 {
			r.rest = append(slices.Clip(r.rest), buf[:n]...)
			return true, nil
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return false, err
		}
	}
	next, err := r.openNext()
	if next == nil || err != nil {
		return false, err
	}
	if r.file != nil {
		// It may have grown between our last read and its rotation.
		rest, err := io.ReadAll(r.file)
		if err != nil {
			next.Close()
			return false, err
		}
		r.rest = append(slices.Clip(r.rest), rest...)
		if len(r.rest) > 0 && r.rest[len(r.rest)-1] != '\n' {
			r.rest = append(r.rest, '\n')
		}
		r.file.Close()
	}
	r.file = next
	return true, nil
}

// openNext opens the file after the present one, or the oldest. It is nil if there is none.
func (r *logReader) openNext() (*os.File, error) {
	for {
		files, at := r.files()
		switch {
		case len(files) == 0 || at == 0:
			return nil, nil
		case at < 0 && r.file != nil && linked(r.file):
			continue // it was being renamed
		case at < 0:
			at = len(files)
		}
		next := files[at-1]
		f, err := os.Open(next.name)
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil // in the middle of a rotation: the next call finds it
		}
		if err != nil {
			return nil, err
		}
		// If the files were rotated meanwhile, it is another one.
		if info, err := f.Stat(); err != nil || !os.SameFile(info, next.info) {
			f.Close()
			continue
		}
		return f, nil
	}
}

// datedLog is one of a log's files.
type datedLog struct {
	name string
	info os.FileInfo
}

// files lists the files of the log, the newest first, and says at which place the present one is; -1 if it isn't among them. They are
// renamed one by one, the oldest first, so that one name may be free and the next not.
func (r *logReader) files() (files []datedLog, at int) {
	at = -1
	name := r.path
	for i, missing := 1, 0; missing < 2; i++ {
		if info, err := os.Lstat(name); err != nil {
			missing++
		} else {
			missing = 0
			if r.file != nil && sameFile(r.file, name) {
				at = len(files)
			}
			files = append(files, datedLog{name, info})
		}
		name = r.path + "." + strconv.Itoa(i)
	}
	return files, at
}

// linked reports whether an open file has a name.
func linked(f *os.File) bool {
	var st unix.Stat_t
	return unix.Fstat(int(f.Fd()), &st) == nil && st.Nlink > 0
}

func parseLogLine(b []byte) (LogLine, bool) {
	parts := bytes.SplitN(b, []byte{' '}, 4)
	if len(parts) != 4 || len(parts[2]) != 1 {
		return LogLine{}, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(parts[0]))
	if err != nil {
		return LogLine{}, false
	}
	return LogLine{Time: at, Stream: string(parts[1]), Text: parts[3], Whole: parts[2][0] == 'F'}, true
}
