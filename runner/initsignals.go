package runner

import (
	"encoding/binary"
	"os"
	"os/signal"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// P2 gets signals for its command, and catching one takes Go's runtime two changes of threads: with all of them, a twentieth of a
// container's start. So P2 is started with them held back (blocked, signal(7)), as a mask that its threads have from then on, and
// catches them when the first comes, when another command is about to be started, or after a while.

// initSignals are the signals that P2 gets.
type initSignals struct {
	all   chan os.Signal
	catch func() // ends that they are held back; may be called more than once
}

// heldBack are the signals that P2 is started with in its mask. Those that Go's runtime takes out of any mask are not among them
// (runtime/sigtab_linux_generic.go, _SigUnblock), nor what it sends itself.
func heldBack() []os.Signal {
	var held []os.Signal
	never := neverHeld()
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		switch {
		case sig == unix.SIGKILL, sig == unix.SIGSTOP, sig == unix.SIGURG, sig == unix.SIGCHLD, slices.Contains(never, os.Signal(sig)):
		case sig >= 32 && sig <= 34: // the C library's
		default:
			held = append(held, sig)
		}
	}
	return held
}

// neverHeld are those that have to be caught before there is a command, as they can't be held back.
func neverHeld() []os.Signal {
	return []os.Signal{unix.SIGILL, unix.SIGTRAP, unix.SIGBUS, unix.SIGFPE, unix.SIGSEGV, unix.SIGSTKFLT, unix.SIGPROF}
}

func signalSet(signals []os.Signal) (set unix.Sigset_t) {
	const word = 64 // bits
	for _, s := range signals {
		n := uint(s.(syscall.Signal)) - 1
		set.Val[n/word] |= 1 << (n % word)
	}
	return set
}

// holdingBack calls start, which starts P2, with the calling thread's mask as P2 is to have it. The goroutine is locked to its thread.
func holdingBack(start func() error) error {
	held := signalSet(heldBack())
	var before unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &held, &before); err != nil {
		return err
	}
	defer unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	return start()
}

// newInitSignals is called by P2 on the thread that it was started with.
func newInitSignals() *initSignals {
	s := &initSignals{all: make(chan os.Signal, 64)}
	held := heldBack()
	bell := openBell(signalSet(held))
	s.catch = sync.OnceFunc(func() {
		signal.Notify(s.all, held...)
		if bell != nil {
			bell.Close()
		}
	})
	if bell == nil {
		signal.Notify(s.all, held...)
	} else {
		go s.awaitFirst(bell)
	}
	return s
}

// catchOthers catches those that can't be held back, beside what the caller does. The command is not to be started before the channel
// is closed.
func (s *initSignals) catchOthers() <-chan struct{} {
	caught := make(chan struct{})
	go func() {
		signal.Notify(s.all, neverHeld()...)
		close(caught)
	}()
	return caught
}

// openBell opens what tells of the first signal that is held back; nil if they aren't.
func openBell(held unix.Sigset_t) *os.File {
	var mask unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, nil, &mask); err != nil || mask.Val[0]&held.Val[0] != held.Val[0] {
		return nil
	}
	fd, err := unix.Signalfd(-1, &held, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK)
	if err != nil {
		return nil
	}
	return os.NewFile(uintptr(fd), "signals")
}

// awaitFirst catches the signals once one has come.
func (s *initSignals) awaitFirst(bell *os.File) {
	var info [128]byte // struct signalfd_siginfo, which begins with the number
	if n, err := bell.Read(info[:]); err == nil && n == len(info) {
		s.all <- syscall.Signal(binary.NativeEndian.Uint32(info[:]))
	}
	s.catch()
}

// commandRuns has the signals caught after a while, so that the next command's start need not wait for that.
func (s *initSignals) commandRuns() { time.AfterFunc(startSpan, s.catch) }

// release gives what the calling thread starts an empty mask. Until they are caught, a signal that is held back meets Go's runtime here
// and ends P2: that can be before the first command only, whose start it calls off.
func (s *initSignals) release() error {
	var none unix.Sigset_t
	return unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
}
