package volumes

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Store keeps named volumes, each at DIR/NAME/_data. Any number of processes may use it at once.
type Store struct {
	dir string
}

// OpenStore returns the store of the state directory root. Nothing is made before a volume is used.
func OpenStore(root string) *Store { return &Store{dir: filepath.Join(root, "volumes")} }

// Mount returns the mount for v, for the mounts of an OCI runtime configuration. A named volume that doesn't exist is
// made; a host path that doesn't exist is an error.
func (s *Store) Mount(v Volume) (specs.Mount, error) {
	m := specs.Mount{Destination: v.Target}
	if v.Kind == Tmpfs {
		m.Type, m.Source = "tmpfs", "tmpfs"
		m.Options = append([]string{"nosuid", "nodev"}, v.Options...)
		return m, nil
	}

	m.Type = "bind"
	var err error
	if v.Kind == Bind {
		m.Source, err = hostPath(v.Source)
	} else {
		m.Source, err = s.use(v.Source)
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

func hostPath(name string) (string, error) {
	if _, err := os.Stat(name); errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("volume source %s does not exist on this machine; make it first", name)
	} else if err != nil {
		return "", fmt.Errorf("volume source: %w", err)
	}
	return name, nil
}

// use returns the data directory of the volume, which it makes if need be. An empty name makes a new volume with a
// random name.
func (s *Store) use(name string) (string, error) {
	if name == "" {
		var random [16]byte
		rand.Read(random[:])
		name = hex.EncodeToString(random[:])
	}
	if !validName(name) {
		return "", fmt.Errorf("%q is not a volume's name; %s", name, nameRule)
	}
	data := filepath.Join(s.dir, name, "_data")
	if err := os.MkdirAll(filepath.Dir(data), 0o711); err != nil {
		return "", fmt.Errorf("making volume %s: %w", name, err)
	}
	if err := os.Mkdir(data, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("making volume %s: %w", name, err)
	}
	return data, nil
}
