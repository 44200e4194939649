package supervisor

import (
	"errors"
	"log/slog"
	"os"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/cow"
	"unionfs/fs"
	"unionfs/holder"
	"unionfs/internal/executable"
	"unionfs/rootfs"
	"unionfs/runner"
)

// A container in the foreground mostly has to be there soon and is gone soon, and a process more would make its start longer by a
// fifth. So its supervisor serves the root itself at first, and when the command has run for a while has a process of its own
// take that over, as it would be replaced for an upgrade.

const (
	handOverAfter  = time.Second
	handOverAgain  = 100 * time.Millisecond // after it failed; doubled each time
	handOverKilled = time.Second            // up to this, if somebody killed the process that was to take over
	handOverFailed = time.Minute            // or this, if it couldn't
)

// containerRoot is the root of a container, in its supervisor.
type containerRoot struct {
	root      string // of the state
	container *runner.Container
	serving   rootfs.Serving

	mu        sync.RWMutex // held shared while union is used
	target    string
	union     *cow.Union // nil if another process serves it
	server    *fs.Server
	journal   *os.File
	questions *holder.Questions // for that process
	held      chan error        // how its holder ended; nil if there is none
	ending    bool              // it is being unmounted
	later     *time.Timer
	pause     time.Duration // before it is tried again
}

// serveFirst serves the union in this process, for now. It closes the union, also when it fails.
func (r *containerRoot) serveFirst(union *cow.Union, target string) (unmount func() error, err error) {
	journal, err := fs.NewJournal()
	if err != nil {
		return nil, errors.Join(err, union.Close())
	}
	o := rootOptions(r.container)
	o.Journal = journal
	server, err := fs.Mount(union, target, o)
	if err != nil {
		journal.Close()
		return nil, errors.Join(err, union.Close())
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.target, r.union, r.server, r.journal, r.ending = target, union, server, journal, false
	return r.unmount, nil
}

// holdFromTheStart has another process serve the root, which opens the union anew.
func (r *containerRoot) holdFromTheStart(union *cow.Union, target string) (unmount func() error, err error) {
	if tree := r.serving.ForgetHostTree(); tree != nil {
		tree.Close() // it is the first server's to say what is in it
	}
	if err := union.Close(); err != nil {
		return nil, err
	}
	ready := make(chan struct{})
	r.mu.Lock()
	r.target, r.ending = target, false
	held, err := r.hold(holder.Config{Log: rootfs.NewLogger(os.Stderr, false), Ready: func() error { close(ready); return nil }})
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	select {
	case err := <-held:
		return nil, err
	case <-ready:
		return r.unmount, nil
	}
}

// hold runs the holder of the root. The caller holds mu.
func (r *containerRoot) hold(c holder.Config) (held chan error, err error) {
	program, err := os.Open(executable.Self)
	if err != nil {
		return nil, err
	}
	target := r.target
	c.Program, c.Args, c.Embedded, c.Device = program, arguments(r.root, serveVerb, r.container.ID), true, holder.KeptDevice
	c.Questions = holder.NewQuestions()
	c.Upgrades = func() (*holder.Listener, error) { return holder.ListenFor(target) }
	held = make(chan error, 1)
	r.held, r.questions = held, c.Questions
	go func() {
		err := holder.Run(c)
		program.Close()
		r.mu.Lock()
		if r.union != nil { // nobody could take it over
			c.First.Kept.Files[holder.KeptDevice].Close()
		}
		if r.union != nil && !r.ending {
			r.held, r.questions = nil, nil
			r.handOverAgain(c.Log, err)
		}
		r.mu.Unlock()
		held <- err
	}()
	return held, nil
}

// handOverSoon is called when the command runs.
func (r *containerRoot) handOverSoon() {
	r.mu.Lock()
	defer r.mu.Unlock()
	// Another server finds the files that the kernel knows by listing the tree from the top: with this machine's own root, a
	// short command would wait for that to be walked, network file systems and all.
	if r.union != nil && !r.ending && r.container.Image() != rootfs.HostImage {
		r.later = time.AfterFunc(handOverAfter, r.handOver)
	}
}

// handOver starts the process that is to serve the root in the place of this one.
func (r *containerRoot) handOver() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.union == nil || r.ending || r.held != nil {
		return
	}
	log := holder.SystemLog()
	if err := r.startHandOver(log); err != nil {
		r.handOverAgain(log, err)
	}
}

// handOverAgain tries it later once more: the process that was to take over may have been killed. The caller holds mu.
func (r *containerRoot) handOverAgain(log *slog.Logger, err error) {
	last := handOverFailed
	if ended := (*holder.ExitError)(nil); errors.As(err, &ended) && ended.Code == 128+int(unix.SIGKILL) {
		last = handOverKilled
	}
	r.pause = min(max(handOverAgain, 2*r.pause), last)
	log.Warn("the root of a container goes on without a server that could be replaced", "container", r.container.ID, "pause", r.pause, "err", err)
	r.later = time.AfterFunc(r.pause, r.handOver)
}

func (r *containerRoot) startHandOver(log *slog.Logger) error {
	session, err := r.server.Session()
	if err != nil {
		return err
	}
	if !session.Resumable() {
		session.Device.Close()
		return errors.New("the kernel can't send requests again; that takes Linux 6.9")
	}
	kept, err := r.serving.ToKeep(session, r.journal)
	if err == nil {
		first := &holder.First{Kept: kept, Ended: r.server.Done(), Leave: r.leave}
		_, err = r.hold(holder.Config{First: first, Log: log})
	}
	if err != nil {
		session.Device.Close()
	}
	return err
}

// leave stops serving, for the process that stands by.
func (r *containerRoot) leave() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.ending {
		return holder.ErrEnded
	}
	if err := r.server.Release(); err != nil {
		return err
	}
	err := r.union.Leave()
	r.union, r.server, r.journal = nil, nil, nil
	r.serving.ForgetHostTree() // what is kept is the holder's
	if err != nil {
		rootfs.NewLogger(os.Stderr, false).Warn("leaving a union", "err", err) // it is left all the same
	}
	go debug.FreeOSMemory()
	return nil
}

// unmount is the end of the root. Nothing of the container is left. It may be mounted once more, for the next start.
func (r *containerRoot) unmount() error {
	r.mu.Lock()
	r.ending = true
	if r.later != nil {
		r.later.Stop()
	}
	union, server, held, journal := r.union, r.server, r.held, r.journal
	r.mu.Unlock()
	if err := unmountUnused(r.target); err != nil {
		return err
	}
	if union == nil {
		return <-held
	}
	server.Wait()
	err := union.Close()
	if held != nil {
		<-held // it was just about to take over
	}
	journal.Close()
	r.mu.Lock()
	r.union, r.server, r.journal, r.held = nil, nil, nil, nil
	r.mu.Unlock()
	return err
}
