package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/holder"
)

// A mount in the background is two processes of this program with the same arguments: the holder, which keeps the mount
// alive, and the server, which the holder starts, again whenever it is killed (see package holder).

// What a server gives the holder to keep, by position.
const (
	keptDevice   = iota     // the FUSE descriptor
	keptJournal             // fs.Options.Journal
	keptFiles               // how many there always are
	keptHostTree = iota - 1 // what hostTree cloned, where that is the lower branch
)

// keptData is kept with them.
type keptData struct {
	Settings []byte // fs.Session.Settings
	Image    string // the ID of the image that is mounted; its name may meanwhile be another's
}

// holdMount is the holder: it reports to report when the mount on target answers, or why it doesn't, and returns when the
// mount is gone.
func holdMount(args []string, target string, report *os.File) error {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return err
	}
	log := holderLogger()
	err = holder.Run(holder.Config{
		Program: program,
		Args:    args,
		Device:  keptDevice,
		Log:     log,
		Ready: func() error {
			// No write of ours can end the process by SIGPIPE: Go makes that an error but for descriptors 1 and 2,
			// and those are now /dev/null.
			if err := detachStreams(); err != nil {
				return err
			}
			if _, err := io.WriteString(report, readyWord); err != nil {
				return err
			}
			return report.Close()
		},
		Upgrades: func() (*holder.Listener, error) { return listenForUpgrades(target) },
	})
	if err == nil {
		return nil
	}
	fmt.Fprintln(report, err) // fails when ready was reported already; then nobody listens
	log.Error("the mount has ended", "target", target, "err", err)
	var ended *holder.ExitError
	if errors.As(err, &ended) {
		return &exitError{code: ended.Code}
	}
	return &exitError{code: exitFailure}
}

// holderLogger writes to the system's log: who started the mount no longer listens.
func holderLogger() *slog.Logger {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "unionfs")
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return newLogger(w, false)
}

// holderSockets begins the names of the sockets of holders.
const holderSockets = "@unionfs/holder/"

// holderSocket is where the holder of the mount on target takes requests. The mount itself is not asked anything.
func holderSocket(target string) (string, error) {
	major, minor, err := fs.DeviceNumber(target)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s%d:%d", holderSockets, major, minor), nil
}

// listenForUpgrades takes requests for the mount on target.
func listenForUpgrades(target string) (*holder.Listener, error) {
	name, err := holderSocket(target)
	if err != nil {
		return nil, err
	}
	return holder.Listen(name)
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
		if err := detachStreams(); err != nil {
			return err
		}
	}
	// It was started as /proc/self/fd/N. ps and pgrep have nothing better if this fails.
	_ = os.WriteFile("/proc/self/comm", []byte("unionfs"), 0)
	return s.link.Ready(u.Alive)
}

// linkOrHold is the beginning of a process of a mount in the background. The server goes on with a link; the holder, which finds a
// pipe to report on at the descriptor, does all that it has to do in it, and held is then true.
func linkOrHold(args []string, target string, reportFD int) (link *holder.Link, held bool, err error) {
	link, err = holder.Attach()
	if err != nil || link != nil {
		return link, false, err
	}
	unix.CloseOnExec(reportFD) // nobody else may hold it open
	return nil, true, holdMount(args, target, os.NewFile(uintptr(reportFD), "ready pipe"))
}
