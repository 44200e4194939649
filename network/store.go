package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Store is the directory of all networks, ROOT/networks. docs/network.md describes every file in it. Any number of
// processes may use it at once: each network has a lock for what changes with its containers, and one lock is for the
// making and removing of networks.
//
// Order of locks: the store's, then a network's, and never two networks'.
type Store struct {
	dir string

	// elsewhere says that this process is an ordinary user's, outside of their networks, and can't change them itself.
	elsewhere bool

	// Inner says that this process is in the network namespace of an ordinary user's networks, see [HoldNetworks].
	Inner bool
}

// Network is one network. Its configuration never changes.
type Network struct {
	Config
	store *Store
}

// OpenStore returns the networks below root. It makes nothing.
func OpenStore(root string) *Store {
	return &Store{dir: filepath.Join(root, "networks"), elsewhere: !mayChangeNetwork()}
}

func (n *Network) path(name string) string { return filepath.Join(n.store.dir, n.Name, name) }

// Create makes a network. Nothing of it is on the host before a container is connected. Errors wrap [ErrExists] when the
// name is taken.
func (s *Store) Create(c Config) (*Network, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("creating network: %w", err)
	}
	if IsMode(c.Name) || c.Name == DefaultName {
		return nil, fmt.Errorf("creating network: %q is not free: it stands for a network that is always there", c.Name)
	}
	return s.create(c)
}

func (s *Store) create(c Config) (*Network, error) {
	lock, err := s.lock()
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	all, err := s.load()
	if err != nil {
		return nil, err
	}
	for _, other := range all {
		if other.Name == c.Name {
			return other, fmt.Errorf("creating network %s: %w", c.Name, ErrExists)
		}
		if other.Bridge == c.Bridge {
			return nil, fmt.Errorf("creating network %s: the interface %s is network %s's", c.Name, c.Bridge, other.Name)
		}
	}
	if err := chooseAddresses(&c, all); err != nil {
		return nil, fmt.Errorf("creating network %s: %w", c.Name, err)
	}
	// Made aside and renamed: a network is whole or isn't there.
	tmp := filepath.Join(s.dir, unfinished+c.ID)
	if err := os.MkdirAll(filepath.Join(tmp, "endpoints"), 0o700); err != nil {
		return nil, fmt.Errorf("creating network %s: %w", c.Name, err)
	}
	data, err := json.MarshalIndent(c, "", "  ")
	if err == nil {
		err = os.WriteFile(filepath.Join(tmp, "network.json"), append(data, '\n'), 0o600)
	}
	if err == nil {
		err = os.WriteFile(filepath.Join(tmp, "lock"), nil, 0o600)
	}
	if err == nil {
		err = os.Rename(tmp, filepath.Join(s.dir, c.Name))
	}
	if err != nil {
		_ = os.RemoveAll(tmp)
		return nil, fmt.Errorf("creating network %s: %w", c.Name, err)
	}
	return &Network{Config: c, store: s}, nil
}

// unfinished starts the names of directories that are being made or removed. No network's name starts with a dot.
const unfinished = ".unfinished-"

// chooseAddresses gives the network a subnet that neither another network nor the host has, or checks the one it asks for.
func chooseAddresses(c *Config, others []*Network) error {
	var networks []netip.Prefix
	for _, other := range others {
		networks = append(networks, other.Subnet)
		if other.IPv6 {
			networks = append(networks, other.Subnet6)
		}
	}
	if err := chooseIPv4(c, networks); err != nil {
		return err
	}
	if err := c.completeIPv6(networks); err != nil {
		return err
	}
	return c.checkReserved()
}

func chooseIPv4(c *Config, networks []netip.Prefix) error {
	if c.Subnet.IsValid() {
		if t := overlapped(c.Subnet, networks); t.IsValid() {
			return fmt.Errorf("the subnet %s overlaps %s, which another network has", c.Subnet, t)
		}
		return c.completeAddresses()
	}
	if c.Gateway.IsValid() || c.Range.IsValid() {
		return errors.New("--gateway and --ip-range need a --subnet")
	}
	host, err := hostPrefixes()
	if err != nil {
		return err
	}
	if c.Subnet, err = chooseSubnet(append(networks, host...)); err != nil {
		return err
	}
	return c.completeAddresses()
}

// Get finds a network by its name, its ID, or an unambiguous start of its ID. The default network is made if it is not there
// yet. Errors wrap [ErrNotFound].
func (s *Store) Get(ref string) (*Network, error) {
	if checkName(ref) == nil {
		n, err := s.read(ref)
		if err == nil || !errors.Is(err, fs.ErrNotExist) {
			return n, err
		}
	}
	if ref == DefaultName {
		c := Config{Name: DefaultName}
		if err := c.complete(); err != nil {
			return nil, err
		}
		n, err := s.create(c)
		if errors.Is(err, ErrExists) {
			err = nil // someone was faster
		}
		return n, err
	}
	all, err := s.load()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(n *Network) bool { return ref == "" || !strings.HasPrefix(n.ID, ref) })
	switch len(all) {
	case 0:
		return nil, fmt.Errorf("%w: %q", ErrNotFound, ref)
	case 1:
		return all[0], nil
	}
	return nil, fmt.Errorf("%q is the start of more than one network's ID: give more of it", ref)
}

// List returns all networks, by name.
func (s *Store) List() ([]*Network, error) {
	if _, err := s.Get(DefaultName); err != nil {
		return nil, err
	}
	return s.load()
}

// load reads the networks that are there.
func (s *Store) load() ([]*Network, error) {
	entries, err := os.ReadDir(s.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("listing networks: %w", err)
	}
	var all []*Network
	for _, e := range entries {
		if checkName(e.Name()) != nil || !e.IsDir() {
			continue
		}
		n, err := s.read(e.Name())
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed since
		}
		if err != nil {
			return nil, err
		}
		all = append(all, n)
	}
	return all, nil
}

func (s *Store) read(name string) (*Network, error) {
	path := filepath.Join(s.dir, name, "network.json")
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading network %s: %w", name, err)
	}
	n := &Network{store: s}
	if err := json.Unmarshal(data, &n.Config); err != nil || n.Name != name || !n.Subnet.IsValid() || checkInterfaceName(n.Bridge) != nil {
		return nil, fmt.Errorf("network %s: %s is damaged: remove the directory %s", name, path, filepath.Dir(path))
	}
	return n, nil
}

// Remove removes a network that no running container is connected to, and what is left of it on the host. Errors wrap
// [ErrInUse].
func (s *Store) Remove(n *Network) error {
	if n.Name == DefaultName {
		return fmt.Errorf("removing network %s: it is the default one, and always there", n.Name)
	}
	all, err := s.lock()
	if err != nil {
		return err
	}
	defer all.Close()
	lock, err := n.lock()
	if err != nil {
		return fmt.Errorf("removing network %s: %w", n.Name, err)
	}
	defer lock.Close()
	alive, err := n.sweepLocked()
	if err != nil {
		return fmt.Errorf("removing network %s: %w", n.Name, err)
	}
	if len(alive) > 0 {
		return fmt.Errorf("removing network %s: %w by container %s: stop or disconnect it first", n.Name, ErrInUse, alive[0].Name)
	}
	if err := n.takeDown(); err != nil {
		return fmt.Errorf("removing network %s: %w", n.Name, err)
	}
	gone := filepath.Join(s.dir, unfinished+n.ID)
	if err := os.Rename(filepath.Join(s.dir, n.Name), gone); err != nil {
		return fmt.Errorf("removing network %s: %w", n.Name, err)
	}
	return os.RemoveAll(gone)
}

// lock takes the lock for making and removing networks.
func (s *Store) lock() (*os.File, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("opening the networks: %w", err)
	}
	return lockFile(filepath.Join(s.dir, "lock"), os.O_CREATE)
}

// lock takes the network's lock. The error wraps [ErrNotFound] if it was removed.
func (n *Network) lock() (*os.File, error) {
	for {
		f, err := lockFile(n.path("lock"), 0)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%w: %q", ErrNotFound, n.Name)
		}
		if err != nil {
			return nil, err
		}
		// It may have been removed, and another made of the same name, while we waited.
		open, err := f.Stat()
		if there, lerr := os.Lstat(n.path("lock")); err == nil && lerr == nil && os.SameFile(open, there) {
			if now, err := n.store.read(n.Name); err == nil && now.ID == n.ID {
				return f, nil
			}
			f.Close()
			return nil, fmt.Errorf("%w: %q", ErrNotFound, n.Name)
		}
		f.Close()
	}
}

// lockFile opens a file and waits for its lock (flock(2)); closing it unlocks.
func lockFile(path string, flags int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC|flags, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if err == nil {
			return f, nil
		}
		if err != unix.EINTR {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
	}
}

// writeJSON replaces a file atomically. It isn't synced: nothing that it describes outlives a power failure.
func writeJSON(path string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(filepath.Dir(path), ".new-"+filepath.Base(path))
	if err := os.WriteFile(tmp, append(data, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, path)
}
