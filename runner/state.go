package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ErrNotFound is wrapped by the errors for a container that does not exist.
var ErrNotFound = errors.New("no such container")

// ErrRunning is wrapped by the errors for what can't be done to a running container.
var ErrRunning = errors.New("container is running")

// ErrNameInUse is wrapped by the errors for a name that another container has.
var ErrNameInUse = errors.New("name is in use")

// State is the directory that holds all containers: ROOT/containers/ID and ROOT/names/NAME. Any number of processes may
// use the same directory at once: there is one lock for each container and one for each name, and no global one.
// docs/runner.md describes every file.
type State struct {
	root string
}

// OpenState opens the state below root and makes the directories it needs (mode 0700) if they are missing.
func OpenState(root string) (*State, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("opening container state: %w", err)
	}
	s := &State{root: root}
	for _, dir := range []string{s.containersDir(), s.namesDir()} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("opening container state %s: %w", root, err)
		}
	}
	return s, nil
}

// Root returns the absolute path of the directory given to [OpenState].
func (s *State) Root() string { return s.root }

func (s *State) containersDir() string { return filepath.Join(s.root, "containers") }
func (s *State) namesDir() string      { return filepath.Join(s.root, "names") }

// NewID makes up the ID of a new container.
func NewID() string { return randomID() }

// ContainerDir is the directory of the container with the ID, which need not be there yet.
func (s *State) ContainerDir(id string) string { return filepath.Join(s.containersDir(), id) }

// CreateOptions is what a new container is besides its OCI specification.
type CreateOptions struct {
	// ID is 64 hexadecimal digits; random if empty.
	ID string

	// Name is unique among the containers of a state: [a-zA-Z0-9][a-zA-Z0-9_.-]*. A free one is made up if empty.
	Name string

	// Image is the reference that the root came from, for people.
	Image string

	// User is USER[:GROUP], names or numbers, looked up in the container's own /etc/passwd and /etc/group when it
	// starts. If empty, the specification's process.user holds.
	User string

	// AutoRemove removes the container when its command has ended.
	AutoRemove bool

	// Annotations are put into the specification; those of other packages should not start with io.unionfs.
	Annotations map[string]string

	// KeepEtc leaves out the files /etc/hosts, /etc/hostname and /etc/resolv.conf that are otherwise written to the
	// container's directory and bind-mounted over the root's own.
	KeepEtc bool

	// Hosts are further lines for /etc/hosts. With KeepEtc there is no file for them.
	Hosts []string

	// Groups are further groups of the command's user, names or numbers, looked up in the container's own /etc/group
	// when it starts.
	Groups []string
}

// Create makes the directory of a new container: its specification, state, lock, and empty upper, work and rootfs
// directories. The specification is changed: host name, annotations, and mounts for the files in /etc are filled in.
// It starts nothing. Errors wrap [ErrNameInUse] when the name is taken.
func (s *State) Create(spec *specs.Spec, o CreateOptions) (*Container, error) {
	if err := checkSpec(spec); err != nil {
		return nil, fmt.Errorf("creating container: %w", err)
	}
	id := o.ID
	if id == "" {
		id = randomID()
	}
	if !isID(id) {
		return nil, fmt.Errorf("creating container: ID %q is not 64 hexadecimal digits", id)
	}
	if o.Name != "" {
		if err := checkName(o.Name); err != nil {
			return nil, fmt.Errorf("creating container: %w", err)
		}
	}
	if o.KeepEtc && len(o.Hosts) > 0 {
		return nil, errors.New("creating container: names can't be added to /etc/hosts where the root's own file is used")
	}
	c := &Container{ID: id, Spec: spec, state: s}
	if err := os.Mkdir(c.Dir(), 0o700); err != nil {
		return nil, fmt.Errorf("creating container: %w", err)
	}
	if err := c.fill(o); err != nil {
		_ = os.RemoveAll(c.Dir())
		return nil, fmt.Errorf("creating container: %w", err)
	}
	c.note("create")
	return c, nil
}

// fill writes everything into the new container's directory. state.json comes last: a directory without one is not
// listed as a container.
func (c *Container) fill(o CreateOptions) error {
	for _, dir := range []string{c.Upper(), c.Work(), c.Rootfs()} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(c.lockPath(), nil, 0o600); err != nil {
		return err
	}
	name, err := c.state.claimName(o.Name, c.ID)
	if err != nil {
		return err
	}
	c.Name = name
	if err := c.writeDescription(o); err != nil {
		c.state.releaseName(name, c.ID)
		return err
	}
	return nil
}

func (c *Container) writeDescription(o CreateOptions) error {
	spec := c.Spec
	if spec.Hostname == "" && hasNewNamespace(spec, specs.UTSNamespace) {
		spec.Hostname = c.ID[:12]
	}
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	for k, v := range o.Annotations {
		spec.Annotations[k] = v
	}
	spec.Annotations[AnnotationName] = c.Name
	for key, value := range map[string]string{AnnotationImage: o.Image, AnnotationUser: o.User} {
		if value != "" {
			spec.Annotations[key] = value
		}
	}
	if len(o.Groups) > 0 {
		spec.Annotations[AnnotationGroups] = strings.Join(o.Groups, ",")
	}
	if o.AutoRemove {
		spec.Annotations[AnnotationAutoRemove] = "true"
	}
	if spec.Root == nil {
		spec.Root = &specs.Root{}
	}
	spec.Root.Path = "rootfs"
	if !o.KeepEtc {
		if err := c.writeEtcFiles(o.Hosts); err != nil {
			return err
		}
	}
	config, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	if err := os.WriteFile(c.configPath(), append(config, '\n'), 0o600); err != nil {
		return err
	}
	return c.writeStatus(&Status{Version: statusVersion, ID: c.ID, State: StateCreated, Created: time.Now().UTC()})
}

// Get finds a container by its full ID, its name, or an unambiguous start of its ID. Errors wrap [ErrNotFound].
func (s *State) Get(ref string) (*Container, error) {
	if isID(ref) {
		if c, err := s.load(ref); !errors.Is(err, ErrNotFound) {
			return c, err
		}
	}
	if checkName(ref) == nil {
		if id, err := s.nameOwner(ref); err == nil {
			c, err := s.load(id)
			if err != nil && !errors.Is(err, ErrNotFound) || err == nil && c.Name == ref {
				return c, err
			}
		}
	}
	if ref == "" || strings.Trim(ref, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, ref)
	}
	entries, err := os.ReadDir(s.containersDir())
	if err != nil {
		return nil, err
	}
	var found *Container
	for _, e := range entries {
		if !isID(e.Name()) || !strings.HasPrefix(e.Name(), ref) {
			continue
		}
		c, err := s.load(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if found != nil {
			return nil, fmt.Errorf("%q is the start of more than one container's ID: give more of it", ref)
		}
		found = c
	}
	if found == nil {
		return nil, fmt.Errorf("%w: %q", ErrNotFound, ref)
	}
	return found, nil
}

// List returns all containers, the newest first. One that another process is creating or removing is left out.
func (s *State) List() ([]*Container, error) {
	s.removeStaleCgroups()
	entries, err := os.ReadDir(s.containersDir())
	if err != nil {
		return nil, fmt.Errorf("listing containers: %w", err)
	}
	type dated struct {
		c       *Container
		created time.Time
	}
	var all []dated
	for _, e := range entries {
		if !isID(e.Name()) {
			continue
		}
		c, err := s.load(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("listing containers: %w", err)
		}
		st, err := c.readStatus()
		if err != nil {
			st = &Status{}
		}
		all = append(all, dated{c, st.Created})
	}
	sort.SliceStable(all, func(i, j int) bool { return all[i].created.After(all[j].created) })
	out := make([]*Container, len(all))
	for i := range all {
		out[i] = all[i].c
	}
	return out, nil
}

// load reads the container with the full ID id.
func (s *State) load(id string) (*Container, error) {
	c := &Container{ID: id, state: s}
	if _, err := os.Lstat(c.statusPath()); err != nil {
		if errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
		}
		return nil, err
	}
	data, err := os.ReadFile(c.configPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, id)
	}
	if err != nil {
		return nil, err
	}
	c.Spec = &specs.Spec{}
	if err := json.Unmarshal(data, c.Spec); err != nil {
		return nil, fmt.Errorf("container %s: %s is damaged (%w): remove the directory %s", id[:12], c.configPath(), err, c.Dir())
	}
	c.Name = c.Spec.Annotations[AnnotationName]
	return c, nil
}

// Remove deletes a container that is not running, with all that its command wrote. As an ordinary user with
// subordinate IDs the files may belong to those: call it within [InUserNamespace] (see [NeedsUserNamespace]). Errors
// wrap [ErrRunning].
func (s *State) Remove(c *Container) error {
	lock, err := c.tryLock()
	if err != nil {
		return fmt.Errorf("removing container %s: %w", c.Name, err)
	}
	defer lock.Close()
	if err := c.removeLocked(); err != nil {
		return err
	}
	s.sweep()
	return nil
}

// sweep removes what creations and removals that were cut short have left. What it can't remove is for the next one.
func (s *State) sweep() {
	entries, err := os.ReadDir(s.containersDir())
	if err != nil {
		return
	}
	for _, e := range entries {
		dir := filepath.Join(s.containersDir(), e.Name())
		if strings.HasSuffix(e.Name(), removingSuffix) {
			_ = os.RemoveAll(dir)
			continue
		}
		if _, err := os.Lstat(filepath.Join(dir, "state.json")); !isID(e.Name()) || !errors.Is(err, os.ErrNotExist) {
			continue
		}
		// Without state.json it is no container yet. A creation takes milliseconds.
		if st, err := os.Lstat(dir); err == nil && time.Since(st.ModTime()) > time.Hour {
			_ = os.RemoveAll(dir)
		}
	}
}

// removeLocked deletes the container; the caller holds its lock. The directory is first renamed, so that a removal that
// is cut short leaves nothing that looks like a container; such remains are swept by the next removal.
func (c *Container) removeLocked() error {
	gone, err := c.vanish()
	if err != nil {
		return err
	}
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("removing container %s: %w", c.Name, err)
	}
	return nil
}

// vanish is removeLocked without the deletion of what was the container's directory, whose path it returns.
func (c *Container) vanish() (gone string, err error) {
	if err := c.removeCgroups(killLimit); err != nil {
		return "", fmt.Errorf("removing container %s: %w", c.Name, err)
	}
	name := c.Name
	var fresh struct {
		Annotations map[string]string `json:"annotations"`
	}
	if data, err := os.ReadFile(c.configPath()); err == nil && json.Unmarshal(data, &fresh) == nil && fresh.Annotations[AnnotationName] != "" {
		name = fresh.Annotations[AnnotationName] // it may have been renamed since we read it
	}
	c.state.releaseName(name, c.ID)
	gone = c.Dir() + removingSuffix
	if err := os.Rename(c.Dir(), gone); err != nil {
		return "", fmt.Errorf("removing container %s: %w", c.Name, err)
	}
	c.note("destroy")
	return gone, nil
}

// removingSuffix marks the directory of a container that is being removed.
const removingSuffix = ".removing"
