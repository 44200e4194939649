package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Annotations of the OCI specification in which a container keeps what the specification has no field for.
const (
	AnnotationName       = "io.unionfs.name"        // the container's name
	AnnotationImage      = "io.unionfs.image"       // the image reference that the root came from
	AnnotationUser       = "io.unionfs.user"        // USER[:GROUP], looked up inside the container
	AnnotationGroups     = "io.unionfs.groups"      // further groups, separated by commas, looked up inside the container
	AnnotationPID        = "io.unionfs.pid"         // the ID of the container whose PID namespace is shared, with /proc
	AnnotationIPC        = "io.unionfs.ipc"         // the ID of the container whose IPC namespace is shared, with /dev/shm and /dev/mqueue
	AnnotationUTS        = "io.unionfs.uts"         // the ID of the container whose names are shared
	AnnotationCgroup     = "io.unionfs.cgroup"      // the ID of the container whose cgroup namespace is shared, with /sys/fs/cgroup
	AnnotationAutoRemove = "io.unionfs.auto-remove" // "true": remove the container after its end
)

// KeepGroups is, in the place of groups, that the command keeps those of the caller. Groups that have no ID in the container
// show as 65534 there, and count all the same.
const KeepGroups = "keep-groups"

// Container is one container of a [State]. Its fields are what was read when it was created or looked up and don't
// change; [Container.Status] tells how it is doing now.
type Container struct {
	ID   string      // 64 hexadecimal digits
	Name string      // unique within the State
	Spec *specs.Spec // the content of config.json

	state *State
}

// Dir is the container's directory, ROOT/containers/ID: an OCI bundle, with config.json and rootfs.
func (c *Container) Dir() string { return filepath.Join(c.state.containersDir(), c.ID) }

// Upper is the directory for the writable branch of the container's root.
func (c *Container) Upper() string { return filepath.Join(c.Dir(), "upper") }

// Work is the directory for the work directory of the writable branch, on the same file system as Upper.
func (c *Container) Work() string { return filepath.Join(c.Dir(), "work") }

// Rootfs is the directory that the root is mounted on, in the supervisor's private mount namespace. It is empty
// everywhere else.
func (c *Container) Rootfs() string { return filepath.Join(c.Dir(), "rootfs") }

func (c *Container) configPath() string { return filepath.Join(c.Dir(), "config.json") }
func (c *Container) statusPath() string { return filepath.Join(c.Dir(), "state.json") }
func (c *Container) lockPath() string   { return filepath.Join(c.Dir(), "lock") }

// Image returns the image reference that the container was made from.
func (c *Container) Image() string { return c.Spec.Annotations[AnnotationImage] }

// AutoRemove reports whether the container is removed when its command has ended.
func (c *Container) AutoRemove() bool { return c.Spec.Annotations[AnnotationAutoRemove] == "true" }

// The states of a container.
const (
	StateCreated = "created" // never started, or starting
	StateRunning = "running"
	StateExited  = "exited"

	StateRestarting = "restarting" // between two runs, by its restart policy
)

const statusVersion = 1

// Status is the content of state.json: how a container is doing. The supervisor writes it; every reader checks it
// against the lock, which the supervisor holds for as long as it lives.
type Status struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	State   string `json:"state"` // StateCreated, StateRunning or StateExited

	Created  time.Time  `json:"created"`
	Started  *time.Time `json:"started,omitempty"`
	Finished *time.Time `json:"finished,omitempty"`

	SupervisorPID int `json:"supervisorPid,omitempty"` // as seen by the caller's PID namespace
	InitPID       int `json:"initPid,omitempty"`

	// InitStart is the init's start time in clock ticks after boot (proc_pid_stat(5), field 22). With InitPID it
	// names one process for ever.
	InitStart uint64 `json:"initStart,omitempty"`

	// ExitCode is the command's exit code, 128+N if signal N ended it, 125 to 127 if it did not start, or 137 if the
	// supervisor was killed and nobody knows.
	ExitCode int `json:"exitCode"`

	// Error says in one line why the command did not start, or that the supervisor died.
	Error string `json:"error,omitempty"`

	// Paused says that the container's processes are held where they are; the state is StateRunning.
	Paused bool `json:"paused,omitempty"`

	// Stopped says that somebody asked for the end of its last run.
	Stopped bool `json:"stopped,omitempty"`

	// RestartCount is how often its policy has started it again since it was started.
	RestartCount int `json:"restartCount,omitempty"`

	// Health is what its checks found; nil if it has none, or doesn't run.
	Health *HealthStatus `json:"health,omitempty"`

	// OutOfMemory says that the kernel killed a process of the container because of its memory limit.
	OutOfMemory bool `json:"oomKilled,omitempty"`

	// Placeholders are the paths, within the root, of the empty files and directories that had to be made as mount
	// points because the root lacked them. They are in the upper branch but are no change that the command made.
	Placeholders []string `json:"placeholders,omitempty"`
}

// Status reports how the container is doing. What state.json says holds only as far as the lock agrees: a container
// whose supervisor is dead is exited, with exit code 137 if the supervisor recorded none.
func (c *Container) Status() (*Status, error) {
	// The lock is looked at first: a supervisor that ends in between has written its last state before it let go. One that was started
	// in between has the lock now.
	held, err := c.lockHeld()
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", c.Name, err)
	}
	st, err := c.readStatus()
	if err != nil {
		return nil, err
	}
	if !held && st.active() {
		if held, err = c.lockHeld(); err != nil {
			return nil, fmt.Errorf("container %s: %w", c.Name, err)
		}
		if st, err = c.readStatus(); err != nil {
			return nil, err
		}
	}
	if !held && st.active() {
		// Without the lock, before and after, it means that the supervisor was killed.
		st.noteKilled()
	}
	return st, nil
}

// noteKilled is what is known of a container whose supervisor was killed.
func (st *Status) noteKilled() {
	st.State, st.ExitCode = StateExited, exitUnknown
	st.Error = "the supervisor was killed; how the command ended is not known"
}

// active reports whether a supervisor was at work when the state was written.
func (st *Status) active() bool { return st.State == StateRunning || st.State == StateRestarting }

// exitUnknown is the exit code of a container whose supervisor died: with it the kernel killed the container by SIGKILL.
const exitUnknown = 128 + int(unix.SIGKILL)

func (c *Container) readStatus() (*Status, error) {
	data, err := os.ReadFile(c.statusPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, c.ID)
	}
	if err != nil {
		return nil, err
	}
	st := &Status{}
	if err := json.Unmarshal(data, st); err != nil {
		// Torn by a power failure (it is replaced atomically but not synced): no container outlives that.
		return &Status{Version: statusVersion, ID: c.ID, State: StateExited, ExitCode: exitUnknown, Error: "state.json is damaged"}, nil
	}
	return st, nil
}

// writeStatus replaces state.json atomically. It isn't synced: a container doesn't outlive a power failure, and a torn
// file reads as exited.
func (c *Container) writeStatus(st *Status) error {
	data, err := json.MarshalIndent(st, "", "  ")
	if err != nil {
		return err
	}
	tmp := c.statusPath() + ".new"
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("writing container state: %w", err)
	}
	if err := os.Rename(tmp, c.statusPath()); err != nil {
		return fmt.Errorf("writing container state: %w", err)
	}
	return nil
}
