package runner

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// A container is paused by the kernel's freezer, of cgroup v1 or v2, in a cgroup that is made for it the first time. Who may not
// make any, an ordinary user without a delegated cgroup, has SIGSTOP in its place, sent to every process but the init: the processes
// can tell, and a parent that waits for stopped children hears of it.

// Pause stops all processes of the container where they are, until [Container.Unpause].
func (c *Container) Pause() error { return c.askRunning(message{Kind: msgPause}) }

// Unpause lets the processes of a paused container go on.
func (c *Container) Unpause() error { return c.askRunning(message{Kind: msgUnpause}) }

// freezeLimit is how long the kernel may take to freeze a container: a process in the middle of an uninterruptible call holds it up.
const freezeLimit = 10 * time.Second

func (s *supervisor) pause() error {
	s.pauseMu.Lock()
	defer s.pauseMu.Unlock()
	if !s.running() {
		return fmt.Errorf("container %s is not running", s.container.Name)
	}
	if s.paused {
		return fmt.Errorf("container %s is already paused", s.container.Name)
	}
	freezer, err := s.freezer()
	if err != nil {
		return fmt.Errorf("pausing container %s: %w", s.container.Name, err)
	}
	if err := freezer.freeze(s.container); err != nil {
		_ = freezer.thaw(s.container)
		return fmt.Errorf("pausing container %s: %w", s.container.Name, err)
	}
	s.paused = true
	s.container.note("pause")
	return s.change(func(st *Status) { st.Paused = true })
}

func (s *supervisor) unpause() error {
	s.pauseMu.Lock()
	defer s.pauseMu.Unlock()
	if !s.paused {
		return fmt.Errorf("container %s is not paused", s.container.Name)
	}
	return s.thaw()
}

// thawForEnd lets a container go on so that it can end.
func (s *supervisor) thawForEnd() {
	s.pauseMu.Lock()
	defer s.pauseMu.Unlock()
	if s.paused {
		_ = s.thaw()
	}
}

// thaw is unpause; the caller holds pauseMu.
func (s *supervisor) thaw() error {
	freezer, err := s.freezer()
	if err == nil {
		s.container.note("unpause") // before what comes of it
		err = freezer.thaw(s.container)
	}
	if err != nil {
		return fmt.Errorf("unpausing container %s: %w", s.container.Name, err)
	}
	s.paused = false
	return s.change(func(st *Status) { st.Paused = false })
}

func (s *supervisor) isPaused() bool {
	s.pauseMu.Lock()
	defer s.pauseMu.Unlock()
	return s.paused
}

// running reports whether the command runs.
func (s *supervisor) running() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.started && !s.finished
}

// freezer is what can hold a container's processes.
type freezer interface {
	freeze(*Container) error
	thaw(*Container) error
}

// freezer returns the container's; the same one as long as it runs.
func (s *supervisor) freezer() (freezer, error) {
	if s.frozenBy == nil {
		dir, unified, err := s.container.freezerDirectory()
		switch {
		case err == nil:
			s.frozenBy = &cgroupFreezer{dir: dir, unified: unified}
		case errors.Is(err, os.ErrPermission), errors.Is(err, unix.EROFS), errors.Is(err, errNoFreezer):
			s.frozenBy = signalFreezer{}
		default:
			return nil, err
		}
	}
	return s.frozenBy, nil
}

var errNoFreezer = errors.New("this host has no freezer")

// freezerDirectory returns a cgroup of the container's that can be frozen: one that it has for its limits, or a new one.
func (c *Container) freezerDirectory() (dir string, unified bool, err error) {
	for _, dir := range c.cgroupDirectories() {
		if _, err := os.Lstat(filepath.Join(dir, "cgroup.freeze")); err == nil {
			return dir, true, nil
		}
		if _, err := os.Lstat(filepath.Join(dir, "freezer.state")); err == nil {
			return dir, false, nil
		}
	}
	all, err := hierarchies("/proc/self/cgroup", "/proc/self/mountinfo")
	if err != nil {
		return "", false, err
	}
	at := slices.IndexFunc(all, func(h hierarchy) bool { return slices.Contains(h.controllers, "freezer") })
	if at < 0 {
		at = slices.IndexFunc(all, func(h hierarchy) bool { return h.unified })
	}
	if at < 0 {
		return "", false, errNoFreezer
	}
	dir = filepath.Join(all[at].own, c.cgroupName())
	if err := c.addCgroupDirectory(dir); err != nil {
		return "", false, err
	}
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", false, err
	}
	return dir, all[at].unified, nil
}

// cgroupFreezer is a cgroup.
type cgroupFreezer struct {
	dir     string
	unified bool
}

func (f *cgroupFreezer) freeze(c *Container) error {
	if err := f.gather(c); err != nil {
		return err
	}
	if err := freezeCgroup(f.dir); err != nil {
		return err
	}
	if f.unified {
		return f.await(func() bool { return keyed(filepath.Join(f.dir, "cgroup.events"))["frozen"] == 1 })
	}
	state := filepath.Join(f.dir, "freezer.state")
	return f.await(func() bool {
		if slices.Equal(words(state), []string{"FROZEN"}) {
			return true
		}
		// Writing again helps a freezing that hangs on a process that was being traced or stopped (as runc does).
		_ = writeCgroupFile(state, "FROZEN")
		return false
	})
}

// gather moves the container's processes into the cgroup, until none is left outside: they may be starting others.
func (f *cgroupFreezer) gather(c *Container) error {
	procs := filepath.Join(f.dir, "cgroup.procs")
	for {
		inside := map[string]bool{}
		for _, pid := range words(procs) {
			inside[pid] = true
		}
		all, err := c.Processes()
		if err != nil {
			return err
		}
		missing := false
		for _, p := range all {
			pid := strconv.Itoa(p.PID)
			if inside[pid] {
				continue
			}
			if err := writeCgroupFile(procs, pid); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
			missing = missing || p.State != "Z"
		}
		if !missing {
			return nil
		}
	}
}

func (f *cgroupFreezer) await(done func() bool) error {
	for deadline := time.Now().Add(freezeLimit); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return fmt.Errorf("its processes were not frozen within %s", freezeLimit)
		}
	}
	return nil
}

func (f *cgroupFreezer) thaw(*Container) error { return thawCgroup(f.dir) }

// freezeCgroup begins to freeze a cgroup of either version.
func freezeCgroup(dir string) error {
	err := writeCgroupFile(filepath.Join(dir, "cgroup.freeze"), "1")
	if errors.Is(err, os.ErrNotExist) {
		err = writeCgroupFile(filepath.Join(dir, "freezer.state"), "FROZEN")
	}
	return err
}

// thawCgroup thaws a cgroup of either version.
func thawCgroup(dir string) error {
	err := writeCgroupFile(filepath.Join(dir, "cgroup.freeze"), "0")
	if errors.Is(err, os.ErrNotExist) {
		err = writeCgroupFile(filepath.Join(dir, "freezer.state"), "THAWED")
	}
	return err
}

// signalFreezer is SIGSTOP.
type signalFreezer struct{}

func (signalFreezer) freeze(c *Container) error {
	for deadline := time.Now().Add(freezeLimit); ; time.Sleep(time.Millisecond) {
		all, err := c.Processes()
		if err != nil {
			return err
		}
		moving := false
		for _, p := range all[1:] { // without the init
			if strings.Contains("TtZX", p.State) {
				continue
			}
			moving = true
			if err := unix.Kill(p.PID, unix.SIGSTOP); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
		if !moving {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("its processes did not stop within %s", freezeLimit)
		}
	}
}

func (signalFreezer) thaw(c *Container) error {
	all, err := c.Processes()
	if err != nil {
		return nil // it has ended
	}
	for _, p := range all[1:] {
		if err := unix.Kill(p.PID, unix.SIGCONT); err != nil && !errors.Is(err, unix.ESRCH) {
			return err
		}
	}
	return nil
}
