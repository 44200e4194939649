package volumes

import (
	"crypto/rand"
	"encoding/hex"
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

// Store keeps named volumes, each at DIR/NAME. Any number of processes may use it at once.
type Store struct {
	dir string
}

// OpenStore returns the store of the state directory root. Nothing is made before a volume is used.
func OpenStore(root string) *Store { return &Store{dir: filepath.Join(root, "volumes")} }

// CreateOptions is what a new volume is besides its name.
type CreateOptions struct {
	Labels  map[string]string
	Options map[string]string // of Docker's driver "local": type, o and device, for a directory of the host
}

// Create makes a volume; one that is there already stays as it is. An empty name makes one with a random name, which is marked
// by [AnonymousLabel].
func (s *Store) Create(name string, o CreateOptions) (*Info, error) {
	lock, name, err := s.claim(name, o)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	return s.Get(name)
}

// claim returns the volume of the name, made if need be, with its lock held shared.
func (s *Store) claim(name string, o CreateOptions) (*os.File, string, error) {
	if name == "" {
		name = randomName()
		labels := map[string]string{AnonymousLabel: ""}
		for k, v := range o.Labels {
			labels[k] = v
		}
		o.Labels = labels
	}
	if !validName(name) {
		return nil, "", fmt.Errorf("%q is not a volume's name; %s", name, nameRule)
	}
	if err := checkOptions(o.Options); err != nil {
		return nil, "", fmt.Errorf("making volume %s: %w", name, err)
	}
	for {
		lock, err := s.lock(name, unix.LOCK_SH)
		if err == nil {
			return lock, name, nil
		}
		if !errors.Is(err, ErrNotFound) {
			return nil, "", err
		}
		if err := s.make(name, o); err != nil {
			return nil, "", fmt.Errorf("making volume %s: %w", name, err)
		}
	}
}

func randomName() string {
	var random [32]byte
	rand.Read(random[:])
	return hex.EncodeToString(random[:])
}

// make makes a volume under another name and renames it, so that it is there as a whole or not at all. Another process may be
// faster.
func (s *Store) make(name string, o CreateOptions) error {
	if err := os.MkdirAll(s.dir, 0o711); err != nil {
		return err
	}
	staging := filepath.Join(s.dir, stagingPrefix+randomName())
	if err := os.Mkdir(staging, 0o711); err != nil {
		return err
	}
	err := os.Mkdir(filepath.Join(staging, "_data"), 0o755)
	if err == nil {
		_, isDevice := o.Options["device"]
		err = writeRecord(staging, &record{Version: recordVersion, Created: time.Now().UTC(), Labels: o.Labels, Options: o.Options, Fresh: !isDevice})
	}
	if err == nil {
		err = unix.Renameat2(unix.AT_FDCWD, staging, unix.AT_FDCWD, s.path(name), unix.RENAME_NOREPLACE)
	}
	if errors.Is(err, unix.EEXIST) {
		// Either another process was faster, or what is there is no volume: an older version's creation that was cut short.
		err = os.Mkdir(s.dataPath(name), 0o755)
		if errors.Is(err, os.ErrExist) {
			err = nil
		}
		return errors.Join(err, os.RemoveAll(staging))
	}
	if err != nil {
		return errors.Join(err, os.RemoveAll(staging))
	}
	return syncDirectory(s.dir)
}

func syncDirectory(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

const (
	stagingPrefix  = ".new-"
	removingPrefix = ".removing-"
)

// lock takes a volume's lock, shared or exclusively, and waits for it. The error wraps ErrNotFound if there is no such volume.
func (s *Store) lock(name string, how int) (*os.File, error) {
	for {
		if _, err := s.readRecord(name); err != nil {
			return nil, err
		}
		f, err := os.Open(s.path(name))
		if errors.Is(err, os.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		for {
			err = unix.Flock(int(f.Fd()), how)
			if err != unix.EINTR {
				break
			}
		}
		if err != nil {
			f.Close()
			return nil, fmt.Errorf("locking volume %s: %w", name, err)
		}
		open, err := f.Stat()
		if err == nil {
			if there, lerr := os.Lstat(s.path(name)); lerr == nil && os.SameFile(open, there) {
				return f, nil
			}
		}
		f.Close() // removed while we waited
	}
}

// Remove deletes a volume. users names the containers that have it; if there are any, the error says so. As an ordinary user
// with subordinate IDs the files may belong to those: call it where these are mapped.
func (s *Store) Remove(name string, users func(name string) ([]string, error)) error {
	lock, err := s.lock(name, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	who, err := users(name)
	if err != nil {
		return fmt.Errorf("removing volume %s: %w", name, err)
	}
	if len(who) > 0 {
		return &InUseError{Name: name, Containers: who}
	}
	gone := filepath.Join(s.dir, removingPrefix+randomName())
	if err := os.Rename(s.path(name), gone); err != nil {
		return fmt.Errorf("removing volume %s: %w", name, err)
	}
	s.sweep()
	if err := os.RemoveAll(gone); err != nil {
		return fmt.Errorf("removing volume %s: %w", name, err)
	}
	return nil
}

// InUseError says that a volume can't be removed.
type InUseError struct {
	Name       string
	Containers []string
}

func (e *InUseError) Error() string {
	what := "container"
	if len(e.Containers) > 1 {
		what = "containers"
	}
	return fmt.Sprintf("removing volume %s: volume is in use by %s %s; remove those first (unionfs rm)", e.Name, what, strings.Join(e.Containers, ", "))
}

// sweep removes what creations and removals that were cut short have left. What it can't remove is for the next one.
func (s *Store) sweep() {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), stagingPrefix) && !strings.HasPrefix(e.Name(), removingPrefix) {
			continue
		}
		// A creation takes milliseconds; a removal that goes on is no worse for being helped.
		if st, err := e.Info(); err == nil && (strings.HasPrefix(e.Name(), removingPrefix) || time.Since(st.ModTime()) > time.Hour) {
			_ = os.RemoveAll(filepath.Join(s.dir, e.Name()))
		}
	}
}

// Claim makes the volumes of a container that is being created, and keeps them from being removed until it is there.
type Claim struct {
	store *Store
	locks []*os.File
	made  []string // anonymous volumes
}

// Claim starts a claim. The caller must call Release or Discard.
func (s *Store) Claim() *Claim { return &Claim{store: s} }

// Release ends the claim: the container can be found.
func (c *Claim) Release() {
	for _, lock := range c.locks {
		lock.Close()
	}
	c.locks = nil
}

// Discard ends the claim of a container that could not be created. Anonymous volumes made for it are removed.
func (c *Claim) Discard() {
	c.Release()
	for _, name := range c.made {
		_ = c.store.Remove(name, func(string) ([]string, error) { return nil, nil })
	}
}

// Mount returns the mount for v, for the mounts of an OCI runtime configuration. A named volume that doesn't exist is made, and
// the name of an anonymous one is put into v; a host path that doesn't exist is an error. An Image is the caller's to mount, at
// v.Source.
func (c *Claim) Mount(v *Volume) (specs.Mount, error) {
	m := specs.Mount{Destination: v.Target, Type: "bind"}
	var err error
	switch v.Kind {
	case Tmpfs:
		m.Type, m.Source = "tmpfs", "tmpfs"
		m.Options = append([]string{"nosuid", "nodev"}, v.Options...)
		return m, nil
	case Bind:
		m.Source, err = hostPath(v.Source)
	case Named:
		m.Source, err = c.named(v)
	case Image:
		m.Source = v.Source
	}
	if err != nil {
		return specs.Mount{}, err
	}
	if v.NonRecursive {
		m.Options = append(m.Options, "bind")
	} else {
		m.Options = append(m.Options, "rbind")
	}
	m.Options = append(m.Options, v.Options...)
	if !slices.ContainsFunc(v.Options, func(option string) bool { return slices.Contains(exclusive[1], option) }) {
		m.Options = append(m.Options, "rprivate")
	}
	return m, nil
}

// named returns the directory of a named volume.
func (c *Claim) named(v *Volume) (string, error) {
	lock, name, err := c.store.claim(v.Source, CreateOptions{Labels: v.Labels})
	if err != nil {
		return "", err
	}
	c.locks = append(c.locks, lock)
	if v.Source == "" {
		v.Source, v.Anonymous = name, true
		c.made = append(c.made, name)
	}
	r, err := c.store.readRecord(name)
	if err != nil {
		return "", err
	}
	if device, ok := r.device(); ok {
		return hostPath(device)
	}
	return c.store.dataPath(name), nil
}

func hostPath(name string) (string, error) {
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("volume source %s does not exist on this machine; make it first", name)
	} else if err != nil {
		return "", fmt.Errorf("volume source: %w", err)
	}
	return name, nil
}
