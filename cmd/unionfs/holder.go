package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/holder"
)

// A mount in the background is two processes with the same arguments: the holder, which keeps the mount alive, and the server, which
// the holder starts, again whenever it is killed (see package holder). The server is this program, the holder unionfs-holder or
// this program too.

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
	Image    string // the ID of the image that is mounted; its name may meanwhile be another's
}

// serving is a union that is to be served: for the first time, or after another server. Its link is nil for one in the
// foreground, which nobody replaces.
type serving struct {
	link    *holder.Link
	kept    keptData
	streams bool // they are not the ones of whoever waits for the mount

	hostTree *os.File // of the machine's own root as a branch; nil before takeHostTree
}

// newServing learns what there is to go on from.
func newServing(link *holder.Link) (*serving, error) {
	s := &serving{link: link}
	if link == nil || link.Kept() == nil {
		return s, nil
	}
	err := json.Unmarshal(link.Kept().Data, &s.kept)
	if n := len(link.Kept().Files); err == nil && n != keptFiles && n != keptHostTree+1 {
		err = errors.New("there are other descriptors than this version of the program needs")
	}
	if err != nil {
		return nil, fmt.Errorf("going on with the mount of an earlier server: %w", err)
	}
	return s, nil
}

// resumes reports whether there was a server before.
func (s *serving) resumes() bool { return s.link != nil && s.link.Kept() != nil }

// takeHostTree sees to hostTree: it is the one that the first server made, lest later mounts appear in it.
func (s *serving) takeHostTree() (err error) {
	switch {
	case s.hostTree != nil:
	case s.resumes() && len(s.link.Kept().Files) > keptHostTree:
		s.hostTree = s.link.Kept().Files[keptHostTree]
	default:
		s.hostTree, err = hostTree()
	}
	return err
}

// newUnion merges branches when it is this server's turn.
func (s *serving) newUnion(o cow.Options) (*cow.Union, error) {
	if s.link != nil {
		if err := s.link.AwaitTurn(); err != nil {
			return nil, err
		}
	}
	o.Resume = s.resumes()
	return cow.New(o)
}

// mount mounts the union, or goes on with the mount of an earlier server.
func (s *serving) mount(u *cow.Union, target string, o fs.Options) (*fs.Server, error) {
	fs.AnswerSoon()
	if s.link == nil {
		return fs.Mount(u, target, o)
	}
	o.Notify = s.link.Write
	if s.resumes() {
		files := s.link.Kept().Files
		o.Journal = files[keptJournal]
		return fs.Resume(u, target, &fs.Session{Device: files[keptDevice], Settings: s.kept.Settings}, o)
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

func (s *serving) keep(server *fs.Server, journal *os.File) error {
	session, err := server.Session()
	if err != nil {
		return err
	}
	defer session.Device.Close()
	kept, err := s.toKeep(session, journal)
	if err != nil {
		return err
	}
	return s.link.Keep(kept)
}

// toKeep is what the next server needs.
func (s *serving) toKeep(session *fs.Session, journal *os.File) (holder.Kept, error) {
	s.kept.Settings = session.Settings
	data, err := json.Marshal(s.kept)
	files := make([]*os.File, keptFiles, keptHostTree+1)
	files[keptDevice], files[keptJournal] = session.Device, journal
	if s.hostTree != nil {
		files = append(files, s.hostTree)
	}
	return holder.Kept{Files: files, Data: data}, err
}

// ready says that the mount answers.
func (s *serving) ready(u *cow.Union) error {
	if s.link == nil {
		return nil
	}
	if err := os.Chdir("/"); err != nil { // so as to keep no other file system busy
		return err
	}
	if !s.streams {
		if err := holder.DetachStreams(); err != nil {
			return err
		}
	}
	// It was started as /proc/self/fd/N. ps and pgrep have nothing better if this fails.
	_ = os.WriteFile("/proc/self/comm", []byte("unionfs"), 0)
	return s.link.Ready(u.Alive)
}

// linkOrHold is the beginning of a process of a mount in the background. The server goes on with a link; the holder does all that it
// has to do in it, and held is then true.
func linkOrHold(args []string, target string) (link *holder.Link, held bool, err error) {
	link, err = holder.Attach()
	if err != nil || link != nil {
		return link, false, err
	}
	mount, err := holder.Held(args, target)
	if err != nil {
		return nil, true, err
	}
	if err := mount.Hold(); err != nil {
		return nil, true, &exitError{code: holder.ExitCode(err)}
	}
	return nil, true, nil
}
