package rootfs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/holder"
)

// What a server gives the holder to keep, by position.
const (
	keptDevice   = holder.KeptDevice + iota
	keptJournal             // fs.Options.Journal
	keptFiles               // how many there always are
	keptHostTree = iota - 1 // what hostTree cloned, where that is the lower branch
)

// keptData is kept with them.
type keptData struct {
	Settings []byte // fs.Session.Settings
	Image    string // Serving.Image
}

// Serving is a union that is to be served: for the first time, or after another server. The zero value is one in the foreground, which
// nobody replaces.
type Serving struct {
	Image      string // the ID of the image that is mounted, if the mount is of one; its name may meanwhile be another's
	OwnStreams bool   // they are not the ones of whoever waits for the mount

	link     *holder.Link // nil in the foreground
	settings []byte       // of the server before
	hostTree *os.File     // of the machine's own root as a branch; nil before takeHostTree
}

// NewServing learns what there is to go on from. link is nil for one in the foreground.
func NewServing(link *holder.Link) (*Serving, error) {
	s := &Serving{link: link}
	if link == nil || link.Kept() == nil {
		return s, nil
	}
	var kept keptData
	err := json.Unmarshal(link.Kept().Data, &kept)
	s.Image, s.settings = kept.Image, kept.Settings
	if n := len(link.Kept().Files); err == nil && n != keptFiles && n != keptHostTree+1 {
		err = errors.New("there are other descriptors than this version of the program needs")
	}
	if err != nil {
		return nil, fmt.Errorf("going on with the mount of an earlier server: %w", err)
	}
	return s, nil
}

// Resumes reports whether there was a server before.
func (s *Serving) Resumes() bool { return s.link != nil && s.link.Kept() != nil }

// takeHostTree sees to hostTree: it is the one that the first server made, lest later mounts appear in it.
func (s *Serving) takeHostTree() (err error) {
	switch {
	case s.hostTree != nil:
	case s.Resumes() && len(s.link.Kept().Files) > keptHostTree:
		s.hostTree = s.link.Kept().Files[keptHostTree]
	default:
		s.hostTree, err = hostTree()
	}
	return err
}

// ForgetHostTree returns the descriptor of this machine's mounts that [Serving.ContainerBranch] has cloned; nil if it hasn't. It is the
// caller's from then on.
func (s *Serving) ForgetHostTree() *os.File {
	tree := s.hostTree
	s.hostTree = nil
	return tree
}

// NewUnion merges branches when it is this server's turn.
func (s *Serving) NewUnion(o cow.Options) (*cow.Union, error) {
	if s.link != nil {
		if err := s.link.AwaitTurn(); err != nil {
			return nil, err
		}
	}
	o.Resume = s.Resumes()
	return cow.New(o)
}

// Mount mounts the union, or goes on with the mount of an earlier server.
func (s *Serving) Mount(u *cow.Union, target string, o fs.Options) (*fs.Server, error) {
	fs.AnswerSoon()
	if s.link == nil {
		return fs.Mount(u, target, o)
	}
	o.Notify = s.link.Write
	if s.Resumes() {
		files := s.link.Kept().Files
		o.Journal = files[keptJournal]
		return fs.Resume(u, target, &fs.Session{Device: files[keptDevice], Settings: s.settings}, o)
	}
	journal, err := fs.NewJournal()
	if err != nil {
		return nil, err
	}
	defer journal.Close()
	o.Journal = journal
	server, err := fs.Mount(u, target, o)
	if err != nil {
		return nil, err
	}
	if err := s.keep(server, journal); err != nil {
		return nil, errors.Join(err, server.Unmount())
	}
	return server, nil
}

func (s *Serving) keep(server *fs.Server, journal *os.File) error {
	session, err := server.Session()
	if err != nil {
		return err
	}
	defer session.Device.Close()
	kept, err := s.ToKeep(session, journal)
	if err != nil {
		return err
	}
	return s.link.Keep(kept)
}

// ToKeep is what the next server needs. Its files are those of the arguments and, still also ours, that of the host's tree.
func (s *Serving) ToKeep(session *fs.Session, journal *os.File) (holder.Kept, error) {
	data, err := json.Marshal(keptData{Settings: session.Settings, Image: s.Image})
	files := make([]*os.File, keptFiles, keptHostTree+1)
	files[keptDevice], files[keptJournal] = session.Device, journal
	if s.hostTree != nil {
		files = append(files, s.hostTree)
	}
	return holder.Kept{Files: files, Data: data}, err
}

// Ready says that the mount answers.
func (s *Serving) Ready(u *cow.Union) error {
	if s.link == nil {
		return nil
	}
	if err := os.Chdir("/"); err != nil { // so as to keep no other file system busy
		return err
	}
	if !s.OwnStreams {
		if err := holder.DetachStreams(); err != nil {
			return err
		}
	}
	// It was started as /proc/self/fd/N. ps and pgrep have nothing better if this fails.
	_ = os.WriteFile("/proc/self/comm", []byte("unionfs"), 0)
	return s.link.Ready(u.Alive)
}

// NewLogger returns the log of a process that serves.
func NewLogger(w io.Writer, debug bool) *slog.Logger {
	level := slog.LevelInfo
	if debug {
		level = slog.LevelDebug
	}
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: level}))
}
