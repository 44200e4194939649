package runner

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ROOT/names/NAME holds the ID of the container that has the name. The file is only read and written under an exclusive
// flock on itself, so a name is given once without any lock that other names wait on. One whose container is gone (its
// creation or removal was cut short) is free.

const maxNameLength = 128

func checkName(name string) error {
	ok := name != "" && len(name) <= maxNameLength
	for i, r := range name {
		alnum := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		if !alnum && (i == 0 || !strings.ContainsRune("_.-", r)) {
			ok = false
		}
	}
	if !ok {
		return fmt.Errorf("%q is no container name: use letters, digits, '_', '.' and '-', starting with a letter or digit, at most %d", name, maxNameLength)
	}
	return nil
}

func isID(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

func randomID() string {
	var b [32]byte
	_, _ = rand.Read(b[:]) // never fails (crypto/rand)
	return hex.EncodeToString(b[:])
}

// claimName gives the name to the container, or a made-up one if name is empty.
func (s *State) claimName(name, id string) (string, error) {
	if name != "" {
		return name, s.claim(name, id)
	}
	for try := 0; ; try++ {
		name = madeUpName()
		if try > 4 {
			name += fmt.Sprint(randomBelow(10000))
		}
		if err := s.claim(name, id); !errors.Is(err, ErrNameInUse) {
			return name, err
		}
	}
}

func (s *State) claim(name, id string) error {
	f, err := s.claimLocked(name, id)
	if err != nil {
		return err
	}
	return f.Close()
}

// claimLocked gives the name to the container and returns the name's file, locked until it is closed.
func (s *State) claimLocked(name, id string) (*os.File, error) {
	f, err := s.lockName(name, unix.O_CREAT|unix.O_RDWR)
	if err != nil {
		return nil, err
	}
	owner, err := io.ReadAll(io.LimitReader(f, 64))
	if err == nil && s.hasName(string(owner), name) {
		err = fmt.Errorf("%w: container %.12s is called %q: remove it, or take another name", ErrNameInUse, owner, name)
	}
	if err == nil {
		_, err = f.WriteAt([]byte(id), 0)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hasName reports whether there is a container id, or one that is being created, that has the name. One that was renamed
// has let go of it, though its renaming may have been cut short.
func (s *State) hasName(id, name string) bool {
	if !isID(id) {
		return false
	}
	if _, err := os.Lstat(filepath.Join(s.containersDir(), id)); err != nil {
		return false
	}
	c, err := s.load(id)
	return err != nil || c.Name == name
}

// releaseName frees the name if it is the container's.
func (s *State) releaseName(name, id string) {
	if checkName(name) != nil {
		return
	}
	f, err := s.lockName(name, unix.O_RDWR)
	if err != nil {
		return // already gone
	}
	defer f.Close()
	if owner, err := io.ReadAll(io.LimitReader(f, 64)); err == nil && string(owner) == id {
		_ = os.Remove(filepath.Join(s.namesDir(), name))
	}
}

// nameOwner returns the ID of the container that has the name.
func (s *State) nameOwner(name string) (string, error) {
	f, err := os.Open(filepath.Join(s.namesDir(), name))
	if err != nil {
		return "", err
	}
	defer f.Close()
	id, err := io.ReadAll(io.LimitReader(f, 65))
	if err != nil {
		return "", err
	}
	if !isID(string(id)) {
		return "", fmt.Errorf("%w: %q", ErrNotFound, name)
	}
	return string(id), nil
}

// lockName opens the file of a name and locks it; closing it unlocks.
func (s *State) lockName(name string, flags int) (*os.File, error) {
	path := filepath.Join(s.namesDir(), name)
	for {
		f, err := os.OpenFile(path, flags|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
			f.Close()
			return nil, fmt.Errorf("locking %s: %w", path, err)
		}
		if sameFile(f, path) {
			return f, nil
		}
		f.Close() // removed while we waited for the lock
	}
}

func randomBelow(n int) int {
	i, _ := rand.Int(rand.Reader, big.NewInt(int64(n))) // never fails (crypto/rand)
	return int(i.Int64())
}

// madeUpName returns a name like "quiet_hopper": an adjective and the surname of someone who made computing better.
func madeUpName() string {
	adjectives := strings.Fields(`able amber bold brave bright brisk busy calm clever cool cosy crisp curious deft eager
		early fair fleet fond free fresh gentle glad golden good grand happy hardy honest jolly keen kind lively loyal
		lucid lucky mellow merry mild modest neat nimble noble patient plain polite proud quick quiet rapid ready sharp
		silent silver sleek smart snug solid steady still stoic sunny swift tidy vivid warm wise witty young`)
	surnames := strings.Fields(`allen backus bartik bell berners boole borg cerf cocke codd conway corbato dahl dennis
		dijkstra easley engelbart estrin feinler floyd goldberg goldwasser gray hamilton hamming hoare holberton hopper
		ingalls iverson johnson kahan karp kay kernighan kleene knuth kowalski lamarr lamport lampson liskov lovelace
		mccarthy mcilroy milner minsky moore naur newell nygaard ousterhout perlis perlman pike postel rabin ritchie
		scott shannon spanier stallman strachey sutherland tarjan thompson torvalds turing wilkes wirth zuse`)
	return adjectives[randomBelow(len(adjectives))] + "_" + surnames[randomBelow(len(surnames))]
}
