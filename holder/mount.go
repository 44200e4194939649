package holder

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"log/syslog"
	"os"

	"golang.org/x/sys/unix"

	"unionfs/internal/mountpoint"
)

// Mount is a mount in the background, as its holder knows it.
type Mount struct {
	Program *os.File // as in Config
	Args    []string
	Target  string
	Report  *os.File // what Start reads
}

// KeptDevice is the position of the FUSE descriptor in what the server of a mount gives to keep.
const KeptDevice = 0

// readyWord is what the holder reports when the mount answers; anything else is a line that says why it doesn't.
const readyWord = "ready\n"

// Hold is the holder of the mount: it reports when the mount answers, or why it doesn't, and returns when the mount is gone. The error
// is then an [ExitError] or was reported.
func (m *Mount) Hold() error {
	// It was started as /proc/self/exe or /proc/self/fd/N. ps and pgrep have nothing better if this fails.
	_ = os.WriteFile("/proc/self/comm", []byte("unionfs"), 0)
	log := SystemLog()
	err := Run(Config{
		Program: m.Program,
		Args:    m.Args,
		Device:  KeptDevice,
		Log:     log,
		Ready: func() error {
			// No write of ours can end the process by SIGPIPE: Go makes that an error but for descriptors 1 and 2,
			// and those are now /dev/null.
			if err := DetachStreams(); err != nil {
				return err
			}
			if _, err := io.WriteString(m.Report, readyWord); err != nil {
				return err
			}
			return m.Report.Close()
		},
		Upgrades: func() (*Listener, error) { return ListenFor(m.Target) },
	})
	if err != nil {
		fmt.Fprintln(m.Report, err) // fails when ready was reported already; then nobody listens
		log.Error("the mount has ended", "target", m.Target, "err", err)
	}
	return err
}

// ExitCode is the exit code of a holder, by the error that Hold returned.
func ExitCode(err error) int {
	var ended *ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &ended):
		return ended.Code
	}
	return 1
}

// SystemLog writes to the system's log: who started the mount no longer listens.
func SystemLog() *slog.Logger {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "unionfs")
	if err != nil {
		return slog.New(slog.DiscardHandler)
	}
	return slog.New(slog.NewTextHandler(w, nil))
}

// DetachStreams replaces the standard streams by /dev/null: whoever waits for their end must not wait for the mount's.
func DetachStreams() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return err
		}
	}
	return nil
}

// Sockets begins the names of the sockets of holders.
const Sockets = "@unionfs/holder/"

// Socket is where the holder of the mount on target takes requests.
func Socket(target string) (string, error) {
	major, minor, err := mountpoint.DeviceNumber(target)
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s%d:%d", Sockets, major, minor), nil
}

// ListenFor takes requests for the mount on target.
func ListenFor(target string) (*Listener, error) {
	name, err := Socket(target)
	if err != nil {
		return nil, err
	}
	return Listen(name)
}
