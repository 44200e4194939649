package runner

import (
	"io"
	"os"
)

// watcher is the caller of a container in the background, attached from its start on. Unlike those who attach later it misses
// nothing, and the end of its input is the command's, as Docker has it (StdinOnce).
type watcher struct {
	input   *os.File    // where its input is read from; nil once it is the command's
	outputs [2]*os.File // standard output and error; nil once they are an audience's
	size    [2]int      // of its terminal, in rows and columns; 0 if it has none

	// Of the run that it watches, the first; guarded by the supervisor's mu.
	streams *streams
	seat    *attachment
}

// welcomeWatcher waits for the caller's streams. It has sent them already.
func (s *supervisor) welcomeWatcher() error {
	m, fds, err := s.caller.recv()
	defer closeAll(fds)
	if err != nil {
		return err
	}
	files, err := attachedFiles(fds)
	if err != nil {
		return err
	}
	s.watcher = &watcher{input: files[0], outputs: [2]*os.File{files[1], files[2]}, size: [2]int{m.Rows, m.Columns}}
	return nil
}

// seatWatcher attaches the watcher, if there is one, to the first run's streams, to which nothing was written yet.
func (s *supervisor) seatWatcher(streams *streams) {
	w := s.watcher
	if w == nil || w.outputs[0] == nil {
		return
	}
	if w.size[0] > 0 {
		streams.resize(w.size[0], w.size[1])
	}
	seat, _ := streams.audience.add(s.caller, w.outputs)
	w.outputs = [2]*os.File{}
	s.mu.Lock()
	w.streams, w.seat = streams, seat
	s.mu.Unlock()
	s.container.note("attach")
}

// takeWatchersInput passes the watcher's input on to the command, which runs, and has its terminal if it gets one.
func (s *supervisor) takeWatchersInput() {
	w := s.watcher
	if w == nil || w.input == nil {
		return
	}
	from, streams := w.input, w.streams
	w.input = nil
	go func() {
		defer from.Close()
		if to := streams.inputOf(); to != nil {
			_, _ = io.Copy(struct{ io.Writer }{to}, struct{ io.Reader }{from})
		}
		streams.endInput()
	}()
}

// endInput lets the command read the end of its input. A terminal has none.
func (s *streams) endInput() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.master == nil && s.input != nil {
		s.input.Close()
	}
}

// resizeForWatcher gives the terminal the size that the watcher's has now.
func (s *supervisor) resizeForWatcher(m message) {
	if streams, _ := s.seated(); streams != nil {
		streams.resize(m.Rows, m.Columns)
	}
}

// seated is what the watcher watches, and its place there; nil if there is none.
func (s *supervisor) seated() (*streams, *attachment) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watcher == nil {
		return nil, nil
	}
	return s.watcher.streams, s.watcher.seat
}

// watcherGone lets go of the watcher, if there is one.
func (s *supervisor) watcherGone() {
	if streams, seat := s.seated(); seat != nil {
		streams.audience.remove(seat)
		s.container.note("detach")
	}
}

// dismissWatcher lets go of the streams of a watcher for whom no run came.
func (s *supervisor) dismissWatcher() {
	if w := s.watcher; w != nil {
		closeFiles([]*os.File{w.input, w.outputs[0], w.outputs[1]})
	}
}

// tellAttached tells those who were attached to the last run how it ended.
func (s *supervisor) tellAttached(end outcome) {
	s.mu.Lock()
	streams := s.streams
	s.mu.Unlock()
	if streams != nil {
		streams.audience.tell(end)
	}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
