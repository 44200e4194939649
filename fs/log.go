package fs

import (
	"bytes"
	"context"
	"log"
	"log/slog"
)

// libraryLogger sends what go-fuse logs to l. Of interest for debugging only are requests and replies, requests that the
// library has no handler for (which are answered ENOSYS, once), that no pipe large enough was to be had for splicing
// (the data is copied then), and what fails in a server that was released.
func libraryLogger(l *slog.Logger, released <-chan struct{}) *log.Logger {
	return log.New(&libraryWriter{l, released}, "", 0)
}

type libraryWriter struct {
	l        *slog.Logger
	released <-chan struct{}
}

// Write gets one message each time.
func (w *libraryWriter) Write(p []byte) (int, error) {
	msg := bytes.TrimSpace(p)
	level := slog.LevelWarn
	select {
	case <-w.released:
		level = slog.LevelDebug
	default:
	}
	for _, prefix := range []string{"rx ", "tx ", "doBatchForget: rx ", "received ENODEV", "Unimplemented opcode", "trySplice"} {
		if bytes.HasPrefix(msg, []byte(prefix)) {
			level = slog.LevelDebug
		}
	}
	w.l.Log(context.Background(), level, "fuse: "+string(msg))
	return len(p), nil
}
