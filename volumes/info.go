package volumes

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/renameio/v2"
)

// ErrNotFound is wrapped by the errors for a volume that doesn't exist.
var ErrNotFound = errors.New("no such volume")

// AnonymousLabel is on volumes that got their name by chance: Docker's.
const AnonymousLabel = "com.docker.volume.anonymous"

// Info is what is known of a named volume, with the names of Docker's API.
type Info struct {
	CreatedAt  time.Time
	Driver     string
	Labels     map[string]string
	Mountpoint string // the directory with its content
	Name       string
	Options    map[string]string
	Scope      string
}

// Anonymous reports whether the volume got its name by chance.
func (i *Info) Anonymous() bool {
	_, ok := i.Labels[AnonymousLabel]
	return ok
}

// record is the content of volume.json.
type record struct {
	Version int               `json:"version"`
	Created time.Time         `json:"created"`
	Labels  map[string]string `json:"labels,omitempty"`
	Options map[string]string `json:"options,omitempty"`

	// Fresh says that nothing was put into it yet: the first container takes the image's content with it.
	Fresh bool `json:"fresh,omitempty"`
}

const recordVersion = 1

func (s *Store) path(name string) string       { return filepath.Join(s.dir, name) }
func (s *Store) dataPath(name string) string   { return filepath.Join(s.dir, name, "_data") }
func (s *Store) recordPath(name string) string { return filepath.Join(s.dir, name, "volume.json") }

// readRecord reads volume.json. The error wraps ErrNotFound if there is no such volume.
func (s *Store) readRecord(name string) (*record, error) {
	st, err := os.Stat(s.dataPath(name))
	if errors.Is(err, os.ErrNotExist) || !validName(name) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, name)
	}
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(s.recordPath(name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	r := &record{}
	if err != nil || json.Unmarshal(data, r) != nil {
		return &record{Version: recordVersion, Created: st.ModTime().UTC()}, nil
	}
	return r, nil
}

// writeRecord replaces the volume.json in dir, and syncs it.
func writeRecord(dir string, r *record) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return renameio.WriteFile(filepath.Join(dir, "volume.json"), append(data, '\n'), 0o600)
}

// Get returns what is known of a volume. The error wraps [ErrNotFound] if there is none of that name.
func (s *Store) Get(name string) (*Info, error) {
	r, err := s.readRecord(name)
	if err != nil {
		return nil, err
	}
	i := &Info{Name: name, Driver: "local", Scope: "local", CreatedAt: r.Created, Labels: r.Labels, Options: r.Options, Mountpoint: s.dataPath(name)}
	if device, ok := r.device(); ok {
		i.Mountpoint = device
	}
	return i, nil
}

// List returns all volumes, sorted by name.
func (s *Store) List() ([]*Info, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing volumes: %w", err)
	}
	var all []*Info
	for _, e := range entries {
		i, err := s.Get(e.Name())
		if errors.Is(err, ErrNotFound) {
			continue // not whole, or removed since
		}
		if err != nil {
			return nil, fmt.Errorf("listing volumes: %w", err)
		}
		all = append(all, i)
	}
	slices.SortFunc(all, func(a, b *Info) int { return strings.Compare(a.Name, b.Name) })
	return all, nil
}

// device is the host directory that a volume with the options type=none, o=bind and device=DIR stands for.
func (r *record) device() (string, bool) {
	device, ok := r.Options["device"]
	return device, ok
}

// checkOptions refuses what the options of Docker's driver "local" could ask for and is not there.
func checkOptions(options map[string]string) error {
	if len(options) == 0 {
		return nil
	}
	for name := range options {
		if name != "type" && name != "o" && name != "device" {
			return fmt.Errorf("unknown option %q; known are type, o and device", name)
		}
	}
	if kind := options["type"]; kind != "" && kind != "none" && kind != "bind" {
		return fmt.Errorf("a volume of type %q is not supported; known is type=none with o=bind and device=DIR", kind)
	}
	words := strings.Split(options["o"], ",")
	if !slices.Contains(words, "bind") && !slices.Contains(words, "rbind") || !filepath.IsAbs(options["device"]) {
		return errors.New("options need all of type=none, o=bind and device=DIR, an absolute path")
	}
	return nil
}
