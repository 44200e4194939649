package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
)

// AnnotationHealth is a container's health check: a [HealthCheck] in JSON.
const AnnotationHealth = "io.unionfs.health"

// HealthCheck is how to find out whether a container does its work, in the shape of Docker's image configuration (durations are in
// nanoseconds).
type HealthCheck struct {
	// Test is ["CMD", ARG…] or ["CMD-SHELL", TEXT]; ["NONE"] is no check.
	Test []string `json:",omitempty"`

	Interval      time.Duration `json:",omitempty"` // between two; 30 s if zero
	Timeout       time.Duration `json:",omitempty"` // of one; 30 s if zero
	StartPeriod   time.Duration `json:",omitempty"` // in which a failure doesn't count
	StartInterval time.Duration `json:",omitempty"` // between two in the start period; 5 s if zero
	Retries       int           `json:",omitempty"` // how many failures in a row make it unhealthy; 3 if zero
}

// The values of HealthStatus.Status.
const (
	HealthStarting  = "starting"
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy"
)

// HealthStatus is what the checks of a running container found.
type HealthStatus struct {
	Status        string
	FailingStreak int
	Log           []HealthResult // the last five
}

// HealthResult is one check.
type HealthResult struct {
	Start, End time.Time
	ExitCode   int    // 0 healthy; -1 if it did not end in time
	Output     string // at most 4 KiB of it
}

// What is kept of checks.
const (
	healthResults = 5
	healthOutput  = 4096
)

// HealthCheck is the container's; nil if it has none.
func (c *Container) HealthCheck() *HealthCheck {
	h := &HealthCheck{}
	text := c.Spec.Annotations[AnnotationHealth]
	if text == "" || json.Unmarshal([]byte(text), h) != nil || len(h.Test) == 0 || h.Test[0] == "NONE" {
		return nil
	}
	fill := func(d *time.Duration, value time.Duration) {
		if *d <= 0 {
			*d = value
		}
	}
	fill(&h.Interval, 30*time.Second)
	fill(&h.Timeout, 30*time.Second)
	fill(&h.StartInterval, 5*time.Second)
	if h.Retries <= 0 {
		h.Retries = 3
	}
	return h
}

// command is what a check runs.
func (h *HealthCheck) command() []string {
	switch h.Test[0] {
	case "CMD":
		return h.Test[1:]
	case "CMD-SHELL":
		return []string{"/bin/sh", "-c", strings.Join(h.Test[1:], " ")}
	}
	return h.Test
}

// watchHealth checks the container until it ends.
func (s *supervisor) watchHealth(dead <-chan struct{}) {
	check := s.container.HealthCheck()
	if check == nil || len(check.command()) == 0 {
		return
	}
	_ = s.change(func(st *Status) { st.Health = &HealthStatus{Status: HealthStarting} })
	begin := time.Now()
	go func() {
		for {
			s.statusMu.Lock()
			starting := s.status.Health != nil && s.status.Health.Status == HealthStarting
			s.statusMu.Unlock()
			pause := check.Interval
			if starting && time.Since(begin) < check.StartPeriod {
				pause = min(pause, check.StartInterval)
			}
			select {
			case <-dead:
				return
			case <-time.After(pause):
			}
			if s.isPaused() {
				continue
			}
			result, err := s.probe(check)
			if err != nil {
				return // it has ended
			}
			s.noteHealth(check, result, time.Since(begin) < check.StartPeriod)
		}
	}()
}

// noteHealth draws the conclusions from a check.
func (s *supervisor) noteHealth(check *HealthCheck, result HealthResult, inStartPeriod bool) {
	var changed string
	err := s.change(func(st *Status) {
		h := st.Health
		if h == nil {
			return
		}
		h.Log = append(h.Log, result)
		if n := len(h.Log); n > healthResults {
			h.Log = h.Log[n-healthResults:]
		}
		before := h.Status
		switch {
		case result.ExitCode == 0:
			h.Status, h.FailingStreak = HealthHealthy, 0
		case h.Status == HealthStarting && inStartPeriod:
		default:
			if h.FailingStreak++; h.FailingStreak >= check.Retries {
				h.Status = HealthUnhealthy
			}
		}
		if h.Status != before {
			changed = h.Status
		}
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "unionfs: noting the health:", err)
	}
	if changed != "" {
		s.container.note("health_status: " + changed)
	}
}

// probe runs a check. The error says that the container has ended.
func (s *supervisor) probe(check *HealthCheck) (HealthResult, error) {
	result := HealthResult{Start: time.Now().UTC()}
	w, theirs, err := newWire()
	if err != nil {
		return result, err
	}
	defer w.close()
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return result, err
	}
	defer null.Close()
	r, out, err := os.Pipe()
	if err != nil {
		return result, err
	}
	defer r.Close()
	request := message{Kind: msgExec, Exec: &execRequest{Args: check.command()}}
	err = s.pass(request, []int{int(null.Fd()), int(out.Fd()), int(out.Fd()), int(theirs.Fd())})
	out.Close()
	theirs.Close()
	if err != nil {
		return result, err
	}
	output := make(chan string, 1)
	go func() {
		first, _ := io.ReadAll(io.LimitReader(r, healthOutput))
		_, _ = io.Copy(io.Discard, r)
		output <- string(first)
	}()
	late := false
	timer := time.AfterFunc(check.Timeout, w.shut) // the init then ends the command
	for {
		m, fds, rerr := w.recv()
		closeAll(fds)
		if rerr != nil {
			late = true
			break
		}
		if m.Kind == msgExited {
			result.ExitCode = m.Code
			result.Output = m.Error
			break
		}
	}
	timer.Stop()
	if late {
		if !s.running() {
			return result, errors.New("the container has ended")
		}
		result.ExitCode = -1
		result.Output = fmt.Sprintf("Health check exceeded timeout (%v)", check.Timeout)
	}
	result.End = time.Now().UTC()
	// What a check leaves behind may keep the pipe open.
	_ = r.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	text := <-output
	if late && text != "" {
		text = ": " + text
	}
	result.Output += text
	return result, nil
}
