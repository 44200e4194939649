package runner

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// followSignals passes on what comes from P0 and from outside, and ends the container when P0 or ctx do.
func (s *supervisor) followSignals(ctx context.Context) (stop func()) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGHUP, unix.SIGINT, unix.SIGTERM, unix.SIGQUIT)
	// A word on a standard error that nobody reads any more must not kill us: with someone listening, Go doesn't.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE)
	go func() {
		for sig := range signals {
			_ = s.stopping(false)
			s.signal(sig.(syscall.Signal))
		}
	}()
	stopContext := context.AfterFunc(ctx, func() {
		_ = s.stopping(false)
		s.end()
	})
	if s.caller != nil {
		go func() {
			for {
				m, fds, err := s.caller.recv()
				if err != nil {
					closeAll(fds)
					s.callerGone()
					return
				}
				switch m.Kind {
				case msgDetach:
					go s.detach(fds)
					continue
				case msgSignal:
					s.signal(unix.Signal(m.Signal))
				case msgResize:
					s.resizeForWatcher(m)
				case msgReady:
					s.ready()
				}
				closeAll(fds)
			}
		}()
	}
	return func() {
		stopContext()
		signal.Stop(signals)
	}
}

// signal passes sig on to the command. One that asks to end and comes before the command runs calls the start off.
func (s *supervisor) signal(sig unix.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.finished:
	case s.started:
		_ = s.init.wire.send(message{Kind: msgSignal, Signal: int(sig)})
	case sig == unix.SIGHUP || sig == unix.SIGINT || sig == unix.SIGTERM || sig == unix.SIGQUIT || sig == unix.SIGKILL:
		s.aborted = sig
		if s.init != nil {
			s.init.kill()
		}
	}
}

// callerGone ends the container, unless it runs in the background.
func (s *supervisor) callerGone() {
	s.mu.Lock()
	stays := s.mode == modeBackground && s.launched || s.detached
	if s.mode == modeHold && s.init != nil && !s.finished {
		s.init.kill()
	}
	s.mu.Unlock()
	s.watcherGone()
	if !stays {
		_ = s.stopping(false)
		s.end()
	}
}

// ready tells the init that the terminal that it handed over is set up.
func (s *supervisor) ready() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.init != nil && !s.finished {
		_ = s.init.wire.send(message{Kind: msgReady})
	}
}

// end asks the command to end, as a terminal that hangs up or a service manager does, and kills the container if it has
// not after the grace.
func (s *supervisor) end() {
	sig := unix.SIGTERM
	if s.container.Spec.Process.Terminal {
		sig = unix.SIGHUP
	}
	s.signal(sig)
	s.mu.Lock()
	dead := s.dead
	s.mu.Unlock()
	go func() {
		select {
		case <-dead:
		case <-time.After(orphanGrace):
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.init != nil && !s.finished {
				s.init.kill()
			}
		}
	}()
	s.thawForEnd()
}
