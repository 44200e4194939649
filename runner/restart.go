package runner

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// AnnotationRestart is a container's restart policy, as [RestartPolicy.String] writes it.
const AnnotationRestart = "io.unionfs.restart"

// The names of restart policies: Docker's.
const (
	RestartNo            = "no"
	RestartOnFailure     = "on-failure"
	RestartAlways        = "always"
	RestartUnlessStopped = "unless-stopped"
)

// RestartPolicy says when the supervisor starts a container again after its command has ended; one in the foreground goes on in the
// background then. One that was stopped or killed by somebody stays so, and one whose caller has died.
type RestartPolicy struct {
	Name string // one of the above
	Most int    // with on-failure, how many times; 0 for no limit
}

// ParseRestartPolicy reads no, on-failure[:N], always or unless-stopped. Empty means no.
func ParseRestartPolicy(s string) (RestartPolicy, error) {
	name, most, limited := strings.Cut(s, ":")
	p := RestartPolicy{Name: name}
	switch name {
	case "":
		p.Name = RestartNo
	case RestartNo, RestartAlways, RestartUnlessStopped, RestartOnFailure:
	default:
		return p, fmt.Errorf("there is no restart policy %q; known are no, on-failure[:N], always and unless-stopped", s)
	}
	if limited {
		n, err := strconv.Atoi(most)
		if name != RestartOnFailure || err != nil || n < 0 {
			return p, fmt.Errorf("restart policy %q: only on-failure takes a number, of how many times", s)
		}
		p.Most = n
	}
	return p, nil
}

// String writes the policy as ParseRestartPolicy reads it.
func (p RestartPolicy) String() string {
	if p.Most > 0 {
		return fmt.Sprintf("%s:%d", p.Name, p.Most)
	}
	return p.Name
}

// RestartPolicy is the container's.
func (c *Container) RestartPolicy() RestartPolicy {
	p, err := ParseRestartPolicy(c.Spec.Annotations[AnnotationRestart])
	if err != nil {
		return RestartPolicy{Name: RestartNo}
	}
	return p
}

// WantsStart reports whether a container that doesn't run is to be started when the host comes up.
func (c *Container) WantsStart(st *Status) bool {
	switch c.RestartPolicy().Name {
	case RestartAlways:
		return st.State == StateExited
	case RestartUnlessStopped:
		return st.State == StateExited && !st.Stopped
	case RestartOnFailure:
		return st.State == StateExited && !st.Stopped && st.ExitCode != 0
	}
	return false
}

// The pause before another start: doubled each time, and short again after a run that was long.
const (
	firstBackoff = 100 * time.Millisecond
	mostBackoff  = time.Minute
	longRun      = 10 * time.Second
)

// runs runs the container until it isn't to be started again. The calling goroutine must stay on its thread.
func (s *supervisor) runs() outcome {
	backoff := firstBackoff
	for count := 0; ; count++ {
		begin := time.Now()
		end := s.runInit()
		if !s.again(end, count) {
			return end
		}
		if time.Since(begin) > longRun {
			backoff = firstBackoff
		}
		s.goOnAlone(end)
		now := time.Now().UTC()
		s.container.note("die", "exitCode", exitCodeText(end.code))
		_ = s.change(func(st *Status) {
			st.State, st.Paused, st.Finished = StateRestarting, false, &now
			st.ExitCode, st.Error = end.code, errorText(end.err)
			st.InitPID, st.InitStart = 0, 0
			st.RestartCount = count + 1
			st.Health = nil
		})
		s.tellAttached(end)
		select {
		case <-s.keepStopped:
			return end
		case <-time.After(backoff):
		}
		backoff = min(2*backoff, mostBackoff)
		if fresh, err := s.container.state.load(s.container.ID); err == nil {
			s.container.Spec.Linux.Resources = fresh.Spec.Linux.Resources // as "update" left them
		}
		s.reset()
	}
}

// again reports whether the container is to be started again.
func (s *supervisor) again(end outcome, count int) bool {
	s.mu.Lock()
	ran := s.started
	s.mu.Unlock()
	select {
	case <-s.keepStopped:
		return false
	default:
	}
	if !ran || s.mode == modeHold {
		return false
	}
	fresh, err := s.container.state.load(s.container.ID)
	if err != nil {
		return false
	}
	policy := fresh.RestartPolicy() // "update" may have changed it
	switch policy.Name {
	case RestartAlways, RestartUnlessStopped:
		return true
	case RestartOnFailure:
		return end.code != 0 && (policy.Most == 0 || count < policy.Most)
	}
	return false
}

// reset makes the supervisor ready for another run.
func (s *supervisor) reset() {
	s.pauseMu.Lock()
	s.paused, s.frozenBy = false, nil
	s.pauseMu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init, s.started, s.finished, s.aborted = nil, false, false, 0
	s.streams, s.networkFailure = nil, nil
	if s.detached {
		s.mode, s.detached = modeBackground, false // this goroutine alone reads the mode from here on
	}
	s.dead = make(chan struct{})
}

// stopping keeps the container from being started again. byUser says that somebody asked for the container's end, rather than the
// host's.
func (s *supervisor) stopping(byUser bool) error {
	s.stopOnce.Do(func() { close(s.keepStopped) })
	if !byUser || s.mode == modeHold {
		return nil
	}
	return s.change(func(st *Status) { st.Stopped = true })
}

// askToStay tells the supervisor, if there is one, that the container's end is wanted.
func (c *Container) askToStay() { _ = c.ask(message{Kind: msgStopping}) }

// endsIt reports whether a signal is one by which the container's end is asked for.
func (c *Container) endsIt(sig unix.Signal) bool { return sig == unix.SIGKILL || sig == c.StopSignal() }
