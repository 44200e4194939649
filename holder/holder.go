package holder

import (
	"cmp"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// Config says how to run servers.
type Config struct {
	// Program is the open executable, which may meanwhile have been replaced or removed. Args are what follows its name.
	Program *os.File
	Args    []string

	// Files are given to every server, from descriptor 4 on; 3 is the link.
	Files []*os.File

	// Device is the position in Kept.Files of the descriptor that tells by a poll error that the mount is gone.
	Device int

	// Embedded says that the process has more to do than this: signals are left to it, as is its working directory, and
	// servers get no standard input and output.
	Embedded bool

	// Ready is called once, when the first server is ready. If it fails the server is told to end the mount.
	Ready func() error

	// First, if not nil, is a server in this process, which a child is to take the place of. Run then returns its error, and
	// nothing has happened, if that can't.
	First *First

	// Questions, if not nil, are put to the server.
	Questions *Questions

	// Upgrades is a listening socket, made by Listen; nil if servers are not to be replaced on request. It is called for
	// when the first server is ready, before Ready.
	Upgrades func() (*Listener, error)

	Log *slog.Logger

	// Interval is how often the server is asked whether it is alive, and Patience how long it may take to answer.
	// Defaults: a second and five.
	Interval, Patience time.Duration

	// ShortLife is how long a server has to live to count as one that works. Default: 50 milliseconds.
	ShortLife time.Duration
}

const (
	// A server that lives shorter than Config.ShortLife, or never was ready, has failed: the next one is started after a
	// pause that doubles from firstPause to lastPause, and after maxFailures such in a row no more. Of one that somebody
	// killed it takes killsAllowed times as many: that is no sign that the next one will fail as well.
	firstPause   = 10 * time.Millisecond
	lastPause    = time.Second
	maxFailures  = 10
	killsAllowed = 10
)

// ExitError is the end of a mount by its server's failure.
type ExitError struct {
	Code   int
	Reason string // what the server said, for people; may be empty
}

func (e *ExitError) Error() string {
	if e.Reason != "" {
		return e.Reason
	}
	return fmt.Sprintf("the server of the mount ended with code %d", e.Code)
}

// Run starts a server, and another whenever it ends though the mount is still there, until the mount is gone. SIGINT, SIGTERM
// and SIGHUP are passed on to the server, unless Embedded. The error is an *ExitError if a server failed for good; the connection
// is then closed, so that whoever waits for it gets an error.
func Run(c Config) error {
	if c.Interval == 0 {
		c.Interval = time.Second
	}
	if c.Patience == 0 {
		c.Patience = 5 * time.Second
	}
	if c.ShortLife == 0 {
		c.ShortLife = 50 * time.Millisecond
	}
	dir, err := os.Getwd()
	if err != nil {
		return err
	}
	h := &holder{Config: c, dir: dir, events: make(chan event), signals: make(chan os.Signal, 4), asked: map[uint64]*question{}, quit: make(chan struct{})}
	if !c.Embedded {
		signal.Notify(h.signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
		defer signal.Stop(h.signals)
	}
	defer func() {
		if h.First == nil || h.serving != nil {
			h.kept.close()
		}
	}()
	defer func() {
		if h.listener != nil {
			h.listener.close()
		}
		if h.request != nil {
			h.request.answer(ErrEnded)
		}
	}()
	defer h.Questions.end()
	defer close(h.quit)
	return h.run()
}

type holder struct {
	Config
	dir     string
	kept    Kept
	events  chan event // from the goroutines of servers, each with its server
	signals chan os.Signal
	quit    chan struct{} // closed when Run has returned

	asked     map[uint64]*question // what has no answer yet
	questions uint64               // how many there were
	failed    error                // why First's place could not be taken

	serving *server       // nil while First is
	next    *server       // stands by to replace serving
	request *request      // what next was started for
	wasUp   bool          // a server was ready once
	ending  bool          // the server was told to end by a signal
	upgrade chan *request // nil until there is a listener
	beaten  time.Time     // when beat was last called

	listener *Listener
}

// server is one child process.
type server struct {
	cmd     *exec.Cmd
	program *os.File
	sock    *os.File
	waiting bool      // it stands by, as far as it can
	ready   time.Time // zero until it is
	answer  time.Time // when it last gave a sign of life
	asked   bool      // it owes an answer since
	hung    bool
	reason  string
}

type event struct {
	from *server
	kind byte
	kept Kept
	end  bool // the process has ended, kind is meaningless
}

func (h *holder) run() error {
	if err := h.begin(); err != nil {
		return err
	}
	failures := 0
	tick := time.NewTicker(h.Interval)
	defer tick.Stop()
	for {
		select {
		case e := <-h.events:
			if !e.end {
				if err := h.packet(e); err != nil {
					return err
				}
				continue
			}
			e.from.sock.Close()
			s := e.from
			if h.serving == nil {
				return cmp.Or(h.failed, h.result(s), ErrEnded)
			}
			if s == h.next {
				h.next = nil
				h.refuse(s)
				continue
			}
			if h.over(s) {
				return h.result(s)
			}
			if h.turn() {
				continue
			}
			if s.ready.IsZero() {
				h.refuse(s)
			}
			pause := time.Duration(0)
			switch {
			case !s.ready.IsZero() && time.Since(s.ready) >= h.ShortLife:
				failures = 0
			case s.killed():
				failures++
			default:
				failures += killsAllowed
			}
			if n := failures / killsAllowed; n > 0 {
				pause = min(firstPause<<(n-1), lastPause)
			}
			if failures >= maxFailures*killsAllowed {
				h.Log.Error("the server of the mount ends as soon as it is started; giving up, and ending the mount", "err", h.result(s))
				return h.result(s)
			}
			h.Log.Warn("the server of the mount has ended; starting another", "state", s.cmd.ProcessState.String(), "reason", s.reason, "pause", pause)
			time.Sleep(pause)
			if err := h.start(h.Program, false); err != nil {
				return err
			}
		case sig := <-h.signals:
			h.ending = true
			_ = h.serving.cmd.Process.Signal(sig) // if it has ended, its event is next
		case r := <-h.upgrade:
			h.replace(r)
		case q := <-h.Questions.coming():
			h.ask(q)
		case <-h.first():
			h.failed = ErrEnded
			_ = h.next.cmd.Process.Kill() // its end is next
		case now := <-tick.C:
			h.beat(now)
		}
	}
}

// start starts a server: in the place of none, or to stand by.
func (h *holder) start(program *os.File, standby bool) error {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	theirs := os.NewFile(uintptr(pair[1]), "holder")
	defer theirs.Close()
	files := append([]*os.File{theirs}, h.Files...)
	number, err := aboveAll(program, files)
	if err != nil {
		return err
	}
	defer unix.Close(number)
	s := &server{program: program, sock: os.NewFile(uintptr(pair[0]), "server"), answer: time.Now()}
	kind := byte(packetStart)
	if standby {
		kind = packetStandby
	}
	if err := send(s.sock, kind, h.kept); err != nil {
		s.sock.Close()
		return err
	}
	s.cmd = &exec.Cmd{
		Path:        fmt.Sprintf("/proc/self/fd/%d", number),
		Args:        append([]string{"unionfs"}, h.Args...),
		Dir:         h.dir,
		Env:         append(os.Environ(), linkVariable+"=3"),
		Stderr:      os.Stderr,
		ExtraFiles:  files,
		SysProcAttr: &syscall.SysProcAttr{},
	}
	if !h.Embedded {
		s.cmd.Stdin, s.cmd.Stdout = os.Stdin, os.Stdout
	}
	if err := executable.StartRelaxed(s.cmd.Start); err != nil {
		s.sock.Close()
		return fmt.Errorf("starting the server of the mount: %w", err)
	}
	if standby {
		h.next = s
	} else {
		h.serving = s
	}
	go func() {
		for {
			kind, kept, err := receive(s.sock)
			if err != nil {
				break
			}
			h.tell(event{from: s, kind: kind, kept: kept})
		}
		_ = s.cmd.Wait() // its ProcessState tells
		h.tell(event{from: s, end: true})
	}()
	return nil
}

// aboveAll returns a descriptor of a program that a child with these files can be executed by, as /proc/self/fd/N: the child puts its files
// in the place of what has their numbers, and moves them out of each other's way behind the highest of ours, before it executes.
func aboveAll(program *os.File, files []*os.File) (int, error) {
	least := firstFreeFD
	for _, f := range files {
		least = max(least, int(f.Fd())+1)
	}
	return unix.FcntlInt(program.Fd(), unix.F_DUPFD_CLOEXEC, least+3+len(files))
}

// tell gives an event to Run, for as long as that is interested.
func (h *holder) tell(e event) {
	select {
	case h.events <- e:
	case <-h.quit:
		e.kept.close()
	}
}

// killed reports whether a server that has ended was ended by SIGKILL.
func (s *server) killed() bool {
	status, ok := s.cmd.ProcessState.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == unix.SIGKILL
}

// packet does what a server's packet asks for.
func (h *holder) packet(e event) error {
	s := e.from
	s.answer, s.asked = time.Now(), false
	switch e.kind {
	case packetKeep:
		h.kept.close()
		h.kept = e.kept
	case packetWrite:
		if len(e.kept.Data) < 8 || h.Device >= len(h.kept.Files) {
			return nil
		}
		device := h.kept.Files[h.Device]
		go func() {
			_, _ = device.Write(e.kept.Data[8:]) // the server asks for something that is of no matter if it can't be had
			_ = send(s.sock, packetWritten, Kept{Data: e.kept.Data[:8]})
		}()
	case packetFailed:
		s.reason = string(e.kept.Data)
	case packetAnswer:
		h.answered(e.kept.Data)
	case packetWaiting:
		s.waiting = s == h.next
		switch {
		case s.waiting && h.serving == nil:
			return h.takeFromFirst()
		case s.waiting:
			// What it leaves unanswered comes again.
			_ = h.serving.cmd.Process.Kill()
		}
	case packetLate:
		if s == h.next && !s.waiting {
			s.reason = fmt.Sprintf("after %v it was not ready to", upgradePatience)
			_ = s.cmd.Process.Kill()
		}
	case packetReady:
		s.ready = time.Now()
		h.Program = s.program
		h.askAgain()
		if h.request != nil && s == h.serving {
			h.request.answer(nil)
			h.request = nil
		}
		if !h.wasUp {
			h.wasUp = true
			return h.up()
		}
	}
	return nil
}

// up is done once, when the mount answers.
func (h *holder) up() error {
	// First, since who hears that the mount is ready may ask at once.
	if h.Upgrades != nil {
		if listener, err := h.Upgrades(); err != nil {
			h.Log.Warn("the server of the mount can't be replaced by a newer program", "err", err)
		} else {
			h.upgrade, h.listener = listener.requests, listener
		}
	}
	if h.Ready != nil {
		if err := h.Ready(); err != nil {
			// Whoever waits for the mount has gone. The server ends it.
			h.ending = true
			_ = h.serving.cmd.Process.Signal(unix.SIGTERM)
			return nil
		}
	}
	if !h.Embedded {
		return os.Chdir("/") // so as to keep no file system busy
	}
	return nil
}

// over reports whether a server's end is the mount's.
func (h *holder) over(s *server) bool {
	if !h.wasUp || s.cmd.ProcessState.ExitCode() == 0 {
		return true
	}
	if len(h.kept.Files) <= h.Device {
		return true
	}
	poll := []unix.PollFd{{Fd: int32(h.kept.Files[h.Device].Fd())}}
	n, err := unix.Poll(poll, 0)
	return err == nil && n == 1 && poll[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

func (h *holder) result(s *server) error {
	code := s.cmd.ProcessState.ExitCode()
	if code == 0 {
		return nil
	}
	if code < 0 {
		code = 128 + int(s.cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())
	}
	return &ExitError{Code: code, Reason: s.reason}
}

// beat asks the server whether it is alive, and ends it if it hasn't said so for long.
func (h *holder) beat(now time.Time) {
	late := now.Sub(h.beaten) - h.Interval
	h.beaten = now
	s := h.serving
	if s == nil || s.ready.IsZero() || s.hung {
		return
	}
	if s.asked {
		if late > h.Interval {
			// We were held up ourselves, by a machine that was, perhaps with all on it; and have not read yet what was answered meanwhile.
			s.answer = s.answer.Add(late)
		}
		if now.Sub(s.answer) > h.Patience {
			h.Log.Error("the server of the mount does not answer; ending it", "seconds", int(now.Sub(s.answer).Seconds()))
			s.hung = true
			_ = s.cmd.Process.Kill()
		}
		return
	}
	s.asked, s.answer = true, now
	_ = send(s.sock, packetPing, Kept{}) // if it has ended, its event is next
}
