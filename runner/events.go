package runner

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Event is something that happened to a container, a volume or a network, in the shape of Docker's API (Engine API 1.47,
// SystemEvents).
type Event struct {
	Type   string // container, volume, …
	Action string // create, start, die, …
	Actor  Actor
	Time   time.Time
}

// Actor is what an event happened to.
type Actor struct {
	ID         string
	Attributes map[string]string
}

// storedEvent is an event as it is kept, and as Docker prints it in JSON.
type storedEvent struct {
	Status   string `json:"status,omitempty"`
	ID       string `json:"id,omitempty"`
	From     string `json:"from,omitempty"`
	Type     string
	Action   string
	Actor    Actor
	Scope    string `json:"scope"`
	Time     int64  `json:"time"`
	TimeNano int64  `json:"timeNano"`
}

// MarshalJSON writes an event as Docker does.
func (e Event) MarshalJSON() ([]byte, error) {
	s := storedEvent{Type: e.Type, Action: e.Action, Actor: e.Actor, Scope: "local", Time: e.Time.Unix(), TimeNano: e.Time.UnixNano()}
	if e.Type == "container" {
		s.Status, s.ID, s.From = e.Action, e.Actor.ID, e.Actor.Attributes["image"]
	}
	return json.Marshal(s)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (e *Event) UnmarshalJSON(data []byte) error {
	var s storedEvent
	if err := json.Unmarshal(data, &s); err != nil {
		return err
	}
	*e = Event{Type: s.Type, Action: s.Action, Actor: s.Actor, Time: time.Unix(0, s.TimeNano)}
	return nil
}

// maxEvents bounds ROOT/events, in bytes: there are this one and the one before it.
const maxEvents = 4 << 20

func (s *State) eventsPath() string { return filepath.Join(s.root, "events") }

// Note adds an event to ROOT/events, one line of JSON, written by one call at the file's end: no lock is needed, and none of
// the writers waits for another. That it fails, on a full disk perhaps, stops nothing.
func (s *State) Note(e Event) {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	line, err := json.Marshal(e)
	if err != nil {
		return
	}
	f, err := os.OpenFile(s.eventsPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(append(line, '\n'))
	if st, err := f.Stat(); err == nil && st.Size() > maxEvents {
		// Of those who find it full, one renames it: the one that has it locked while it still has its name.
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil && sameFile(f, s.eventsPath()) {
			_ = os.Rename(s.eventsPath(), s.eventsPath()+".1")
		}
	}
}

// Note notes that something was done with the container that isn't done here, such as "commit".
func (c *Container) Note(action string) { c.note(action) }

// note notes an event about the container. attributes are pairs of name and value.
func (c *Container) note(action string, attributes ...string) {
	all := map[string]string{}
	for name, value := range c.Spec.Annotations {
		if !strings.HasPrefix(name, "io.unionfs.") && !strings.HasPrefix(name, "unionfs.") {
			all[name] = value
		}
	}
	all["name"], all["image"] = c.Name, c.Image()
	for i := 0; i+1 < len(attributes); i += 2 {
		all[attributes[i]] = attributes[i+1]
	}
	maps.DeleteFunc(all, func(_, value string) bool { return len(value) > 1024 }) // a line stays short
	c.state.Note(Event{Type: "container", Action: action, Actor: Actor{ID: c.ID, Attributes: all}})
}

// EventOptions chooses events.
type EventOptions struct {
	Since time.Time // the earliest; with the zero time, only those from now on
	Until time.Time // the end; with the zero time, there is none
}

// Events calls yield for each event, in the order in which they were noted, and goes on with those that come until the time Until
// or until ctx ends.
func (s *State) Events(ctx context.Context, o EventOptions, yield func(Event) error) error {
	if o.Since.IsZero() {
		o.Since = time.Now()
	}
	wanted := func(line []byte) error {
		var e Event
		if json.Unmarshal(line, &e) != nil || e.Time.Before(o.Since) || !o.Until.IsZero() && e.Time.After(o.Until) {
			return nil // torn lines too
		}
		return yield(e)
	}
	// Opened before the one before it is read: it may become that at any time.
	f, err := os.Open(s.eventsPath())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	defer func() { f.Close() }()
	if old, err := os.Open(s.eventsPath() + ".1"); err == nil {
		if f == nil || !sameFile(f, s.eventsPath()+".1") {
			_, err = readLines(old, wanted)
		}
		old.Close()
		if err != nil {
			return err
		}
	}
	for {
		ending := ctx.Err() != nil || !o.Until.IsZero() && !time.Now().Before(o.Until)
		if f == nil {
			var err error
			if f, err = os.Open(s.eventsPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		if f != nil {
			renamed := !sameFile(f, s.eventsPath()) // before it is read, so that nothing written before is missed
			if _, err := readLines(f, wanted); err != nil {
				return err
			}
			if renamed {
				f.Close()
				f = nil
				if _, err := os.Lstat(s.eventsPath()); err == nil {
					continue
				}
			}
		}
		if ending {
			return nil
		}
		select {
		case <-ctx.Done():
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// readLines calls yield for each whole line from where f stands, and leaves it standing behind the last one.
func readLines(f *os.File, yield func(line []byte) error) (int64, error) {
	at, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return 0, err
	}
	in := bufio.NewReader(f)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			_, serr := f.Seek(at, io.SeekStart)
			return at, serr
		}
		at += int64(len(line))
		if err := yield(bytes.TrimSpace(line)); err != nil {
			return at, err
		}
	}
}

func exitCodeText(code int) string { return strconv.Itoa(code) }
