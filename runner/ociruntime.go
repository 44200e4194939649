package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Runtime is the directory in which an OCI runtime (runtime-spec, runtime.md) keeps its containers, for programs such as
// podman and containerd that know all else about them. Unlike those of a [State], its containers have no supervisor:
// nothing but the container's own processes is left between two calls, and the command itself is PID 1. The bundle's root
// is a directory that is there already.
//
// ROOT/ID has
//
//	state.json   what the container is; replaced atomically
//	init         a lock that PID 1 holds until it executes the command
//	start        the socket on which PID 1 waits to be told to
//
// and is locked itself by whoever changes the container.
type Runtime struct {
	root string
}

// OpenRuntime opens the directory root, which is made (mode 0700) when the first container is.
func OpenRuntime(root string) (*Runtime, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, err
	}
	return &Runtime{root: root}, nil
}

// DefaultRuntimeRoot is where an OCI runtime's containers are: nothing of them outlives a boot. In a user namespace, as of a
// podman without root, the caller seems to be root and isn't.
func DefaultRuntimeRoot() string {
	const name = "unionfs-runtime"
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && (os.Geteuid() != 0 || inUserNamespace()) {
		return filepath.Join(dir, name)
	}
	return filepath.Join("/run", name)
}

// OCIContainer is a container of a [Runtime].
type OCIContainer struct {
	ID     string
	Bundle string      // the bundle's directory, absolute
	Spec   *specs.Spec // its config.json, as it was when the container was created

	runtime *Runtime
	record  ociRecord
}

// ociRecord is the content of state.json.
type ociRecord struct {
	Version int         `json:"version"`
	ID      string      `json:"id"`
	Bundle  string      `json:"bundle"`
	PID     int         `json:"pid"`   // as the one who created it saw it
	Start   uint64      `json:"start"` // of PID, in clock ticks after boot; together they name one process for ever
	Created time.Time   `json:"created"`
	Owner   int         `json:"owner"` // the user who created it
	Spec    *specs.Spec `json:"spec"`

	// Cgroups are the container's directories by controller, "" for the unified hierarchy.
	Cgroups map[string]string `json:"cgroups,omitempty"`
}

const ociRecordVersion = 1

// checkOCIID refuses what can't be a container's name here. The specification leaves that to the runtime; this is runc's
// choice.
func checkOCIID(id string) error {
	if id == "" || id == "." || id == ".." || len(id) > 1024 || strings.ContainsFunc(id, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("_+-.", r))
	}) {
		return fmt.Errorf("invalid container ID %q: letters, digits and _+-. can be in it", id)
	}
	return nil
}

// ociNotFound says so in runc's words, which its callers look for.
type ociNotFound string

func (id ociNotFound) Error() string { return "container does not exist: " + string(id) }

func (id ociNotFound) Is(err error) bool { return err == ErrNotFound }

func (r *Runtime) dir(id string) string { return filepath.Join(r.root, id) }

func (c *OCIContainer) dir() string { return c.runtime.dir(c.ID) }

// Get finds a container. Errors wrap [ErrNotFound].
func (r *Runtime) Get(id string) (*OCIContainer, error) {
	if err := checkOCIID(id); err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(r.dir(id), "state.json"))
	if errors.Is(err, os.ErrNotExist) {
		return nil, ociNotFound(id)
	}
	if err != nil {
		return nil, err
	}
	c := &OCIContainer{ID: id, runtime: r}
	if err := json.Unmarshal(data, &c.record); err != nil || c.record.Spec == nil || c.record.ID != id {
		return nil, fmt.Errorf("container %s: %s is damaged: \"delete --force\" removes it", id, filepath.Join(r.dir(id), "state.json"))
	}
	c.Bundle, c.Spec = c.record.Bundle, c.record.Spec
	return c, nil
}

// List returns all containers, in the order of their IDs.
func (r *Runtime) List() ([]*OCIContainer, error) {
	entries, err := os.ReadDir(r.root)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []*OCIContainer
	for _, e := range entries {
		if !e.IsDir() || checkOCIID(e.Name()) != nil {
			continue
		}
		c, err := r.Get(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, nil
}

// lock keeps other calls from changing the container until the file is closed. The error wraps [ErrNotFound] if it was
// deleted.
func (c *OCIContainer) lock() (*os.File, error) {
	f, err := os.Open(c.dir())
	if errors.Is(err, os.ErrNotExist) {
		return nil, ociNotFound(c.ID)
	}
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err != unix.EINTR {
			break
		}
	}
	if err == nil && !sameFile(f, c.dir()) {
		err = ociNotFound(c.ID)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func (c *OCIContainer) write() error {
	data, err := json.Marshal(&c.record)
	if err != nil {
		return err
	}
	name := filepath.Join(c.dir(), "state.json")
	if err := os.WriteFile(name+".new", data, 0o600); err != nil {
		return err
	}
	return os.Rename(name+".new", name)
}

// StatePaused is the state of a container whose processes are frozen. It is no state of the runtime-spec, but runc's.
const StatePaused = specs.ContainerState("paused")

// Status tells how the container is, by what the kernel says of its process and its lock.
func (c *OCIContainer) Status() specs.ContainerState {
	if c.record.PID == 0 {
		return specs.StateCreating
	}
	if !c.alive() {
		return specs.StateStopped
	}
	if held, err := ociLockHeld(filepath.Join(c.dir(), "init")); err == nil && held {
		return specs.StateCreated
	}
	if c.frozen() {
		return StatePaused
	}
	return specs.StateRunning
}

// alive reports whether PID 1 exists. One that ended and was not waited for doesn't.
func (c *OCIContainer) alive() bool {
	start, err := startTime(c.record.PID)
	if err != nil || start != c.record.Start {
		return false
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.record.PID))
	if err != nil {
		return false
	}
	after := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	return len(after) > 0 && !slices.Contains([]string{"Z", "X", "x"}, after[0])
}

// ociLockHeld asks for a flock without taking it from anyone who may want it later.
func ociLockHeld(name string) (bool, error) {
	f, err := os.Open(name)
	if err != nil {
		return false, err
	}
	defer f.Close()
	lk := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lk); err != nil {
		return false, err
	}
	return lk.Type != unix.F_UNLCK, nil
}

// State is the container's state as the runtime-spec has it.
func (c *OCIContainer) State() specs.State {
	s := specs.State{
		Version: specs.Version, ID: c.ID, Status: c.Status(), Bundle: c.Bundle, Annotations: c.Spec.Annotations,
	}
	if s.Status != specs.StateStopped {
		s.Pid = c.record.PID
	}
	return s
}

// Created is when the container was created.
func (c *OCIContainer) Created() time.Time { return c.record.Created }

// Owner is the user who created the container.
func (c *OCIContainer) Owner() int { return c.record.Owner }

// Rootfs is the container's root directory, absolute.
func (c *OCIContainer) Rootfs() string { return ociRootfs(c.Bundle, c.Spec) }

func ociRootfs(bundle string, spec *specs.Spec) string {
	if filepath.IsAbs(spec.Root.Path) {
		return filepath.Clean(spec.Root.Path)
	}
	return filepath.Join(bundle, spec.Root.Path)
}
