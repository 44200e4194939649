package runner

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// record writes the end to state.json.
func (s *supervisor) record(end outcome) error {
	now := time.Now().UTC()
	s.container.note("die", "exitCode", exitCodeText(end.code))
	return s.change(func(st *Status) {
		st.State, st.Paused, st.Health = StateExited, false, nil
		st.Finished = &now
		st.ExitCode, st.Error = end.code, errorText(end.err)
		st.SupervisorPID, st.InitPID, st.InitStart = 0, 0, 0
	})
}

// noteOutOfMemory records whether the kernel killed something for want of memory.
func (s *supervisor) noteOutOfMemory(limits *cgroups) {
	oom := limits.outOfMemory() || s.container.outOfMemory()
	if oom {
		s.container.note("oom")
	}
	s.statusMu.Lock()
	s.status.OutOfMemory = oom
	s.statusMu.Unlock()
}

// commandStarted records that the command runs.
func (s *supervisor) commandStarted(p *initProcess, placeholders []string) {
	s.mu.Lock()
	first := !s.launched
	s.started, s.launched = true, true
	dead := s.dead
	s.mu.Unlock()
	defer s.settle()
	if first {
		defer close(s.recorded)
	}
	now := time.Now().UTC()
	if s.mode == modeHold {
		s.heldStarted(placeholders)
		return
	}
	err := s.change(func(st *Status) {
		st.State, st.Paused = StateRunning, false
		st.Started, st.Finished = &now, nil
		st.ExitCode, st.Error = 0, ""
		if st.Health = nil; first {
			st.RestartCount, st.Stopped = 0, false
		}
		st.SupervisorPID, st.InitPID = os.Getpid(), p.pid()
		st.InitStart, _ = startTime(p.pid())
		st.Placeholders = mergePaths(st.Placeholders, placeholders)
	})
	if err != nil {
		fmt.Fprintln(os.Stderr, "unionfs:", err)
	}
	s.container.note("start")
	s.watchHealth(dead)
	if s.hooks.Running != nil {
		s.hooks.Running()
	}
	if first {
		s.takeWatchersInput()
	}
	if s.caller != nil {
		_ = s.caller.send(message{Kind: msgStarted})
	}
}

// heldStarted is commandStarted where there is no command.
func (s *supervisor) heldStarted(placeholders []string) {
	if err := s.change(func(st *Status) { st.Placeholders = mergePaths(st.Placeholders, placeholders) }); err != nil {
		fmt.Fprintln(os.Stderr, "unionfs:", err)
	}
	_ = s.caller.send(message{Kind: msgStarted})
}

// mergePaths appends those of more that old lacks.
func mergePaths(old, more []string) []string {
	have := map[string]bool{}
	for _, p := range old {
		have[p] = true
	}
	for _, p := range more {
		if !have[p] {
			have[p] = true
			old = append(old, p)
		}
	}
	return old
}

// startTime returns when a process started, in clock ticks after boot (proc_pid_stat(5), field 22).
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The command name, field 2, may hold anything; it ends at the last parenthesis.
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat is too short", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}
