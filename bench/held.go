package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// heldPeer is our own program in the background, where the mount outlives its server: the server then notes where files are and what it
// is about to do. What that costs is seen beside unionfsPeer, which serves in the foreground.
type heldPeer struct{ program string }

func (heldPeer) name() string { return peerUnionfsHeld }

func (p heldPeer) version(ctx context.Context) (string, error) {
	return (&unionfsPeer{program: p.program}).version(ctx)
}

func (heldPeer) options() string {
	return "unionfs mount --lower 0 --lower 1 … --upper U --work W TARGET, in the background, so that it outlives its server"
}

func (heldPeer) unable(*work) string { return "" }

func (p heldPeer) mount(ctx context.Context, s *stack, at site) (*mounted, error) {
	args := []string{"mount", "--upper", at.upper, "--work", at.work}
	for _, lower := range s.absolute() {
		args = append(args, "--lower", lower)
	}
	start := time.Now()
	if err := run(ctx, p.program, append(args, at.target)...); err != nil {
		return nil, err
	}
	return &mounted{
		root:    at.target,
		seconds: time.Since(start).Seconds(),
		unmount: func() error {
			if err := run(context.WithoutCancel(ctx), p.program, "umount", at.target); err != nil {
				return err
			}
			return awaitEnd(at.target)
		},
		giveUp: func() {
			for _, find := range []func(string) (int, error){holderOf, serverOf} {
				if pid, err := find(at.target); err == nil {
					_ = unix.Kill(pid, unix.SIGKILL) // it may just have ended
				}
			}
		},
	}, nil
}

// awaitEnd returns when the processes of a mount that is gone have ended.
func awaitEnd(target string) error {
	for deadline := time.Now().Add(endLimit); ; time.Sleep(time.Millisecond) {
		pid, err := holderOf(target)
		if errors.Is(err, errNoProcess) {
			return nil
		}
		if err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("process %d didn't end within %v of its mount's end", pid, endLimit)
		}
	}
}

var errNoProcess = errors.New("no process of the mount was found")

// holderOf and serverOf find the processes of a mount in the background: the parent and the child of those that have the target as
// an argument.
func holderOf(target string) (int, error) { return processOf(target, false) }
func serverOf(target string) (int, error) { return processOf(target, true) }

func processOf(target string, child bool) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	parents := map[int]int{}
	for _, dir := range dirs {
		line, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.HasSuffix(line, []byte("\x00"+target+"\x00")) {
			continue
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue // it has ended
		}
		// After the name in brackets, which may have any character: the state, and the parent (proc_pid_stat(5)).
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		pid, err1 := strconv.Atoi(filepath.Base(dir))
		parent, err2 := strconv.Atoi(fields[1])
		if err1 == nil && err2 == nil && fields[0] != "Z" {
			parents[pid] = parent
		}
	}
	for pid, parent := range parents {
		if _, is := parents[parent]; is == child {
			return pid, nil
		}
	}
	return 0, errNoProcess
}
