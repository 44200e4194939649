package runner

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path"
	"strconv"
	"strings"

	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"unionfs/archive"
)

// argvFiles is the argv[0] of the process that reads or writes files of a container for its supervisor. The supervisor can't do it
// itself: it serves the root, and would wait for itself. The process is in the supervisor's namespaces, not the container's; it
// takes hold of the container's root through the init and never looks anything up by another way, executes nothing from there,
// and loads no library (CVE-2018-15664, CVE-2019-14271).
const argvFiles = "unionfs-files"

// modeHold is the supervisor's mode for a container that doesn't run: its root and volumes are mounted, and no command is started,
// until the caller goes.
const modeHold = "hold"

// The descriptors that the helper is started with.
const (
	filesWireFD   = 3
	filesStreamFD = 4
)

// files has a request for the container's files done, and returns when that is over. fds are the requester's wire and the stream.
func (s *supervisor) files(request *filesRequest, connection int, fds []int) error {
	if request == nil {
		return errors.New("nothing was asked for")
	}
	text, err := json.Marshal(request)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if !s.started || s.finished {
		s.mu.Unlock()
		return fmt.Errorf("container %s is not running", s.container.Name)
	}
	cmd := exec.Command(selfExe, strconv.Itoa(s.init.pid()), string(text))
	cmd.Args[0] = argvFiles
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	// Duplicates: the caller closes its own.
	for _, fd := range append([]int{connection}, fds...) {
		again, derr := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if derr != nil {
			err = derr
			break
		}
		f := os.NewFile(uintptr(again), "stream")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if err == nil {
		err = cmd.Start()
	}
	if err == nil {
		if s.helpers == nil {
			s.helpers = map[*os.Process]bool{}
		}
		s.helpers[cmd.Process] = true
	}
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("starting the process that copies: %w", err)
	}
	for _, f := range cmd.ExtraFiles {
		f.Close()
	}
	err = cmd.Wait()
	s.mu.Lock()
	delete(s.helpers, cmd.Process)
	s.mu.Unlock()
	if err != nil {
		return fmt.Errorf("the process that copies was killed: %w", err)
	}
	return nil
}

// killHelpers ends those that still work when the container is gone: what they have open keeps its root mounted.
func (s *supervisor) killHelpers() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range s.helpers {
		_ = p.Kill()
	}
}

// runFiles is the helper's whole life. It answers the requester itself.
func runFiles(args []string) int {
	setCommandName(argvFiles)
	unix.CloseOnExec(filesWireFD)
	w := &wire{fd: filesWireFD}
	info, err := doFiles(args)
	answer := message{Kind: msgDone, Error: errorText(err), File: info}
	if w.send(answer) != nil {
		return exitOurs
	}
	return 0
}

func doFiles(args []string) (*FileInfo, error) {
	if len(args) != 2 {
		return nil, errors.New("want the init's process number and a request")
	}
	var request filesRequest
	if err := json.Unmarshal([]byte(args[1]), &request); err != nil {
		return nil, err
	}
	unix.Umask(0)
	root, err := unix.Open("/proc/"+args[0]+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening the container's root: %w", err)
	}
	defer unix.Close(root)
	if request.Op == filesSync {
		return nil, syncRoot(root)
	}
	found, err := resolveLast(root, request.Path, request.Follow)
	if err != nil {
		return nil, err
	}
	if request.Op == filesStat {
		if found.fd >= 0 {
			unix.Close(found.fd)
		}
		return &found.info, nil
	}
	if found.fd < 0 {
		return nil, fmt.Errorf("no such file or directory: %s", request.Path)
	}
	defer unix.Close(found.fd)
	stream := os.NewFile(filesStreamFD, "stream")
	defer stream.Close()
	switch request.Op {
	case filesRead:
		return nil, archive.Pack(stream, found.fd, request.Name, archive.PackOptions{Skipped: func(name string) {
			fmt.Fprintf(os.Stderr, "unionfs: %s is a socket and is left out\n", name)
		}})
	case filesWrite:
		if !found.info.IsDir() {
			return nil, fmt.Errorf("%s is not a directory", request.Path)
		}
		uids, err := user.CurrentProcessUIDMap()
		if err != nil {
			return nil, err
		}
		_, one := singleID(uids)
		_, err = archive.Unpack(stream, root, archive.UnpackOptions{InRoot: true, Base: found.info.Path, Owners: true, OneID: one})
		return nil, err
	}
	return nil, fmt.Errorf("there is no request %q", request.Op)
}

func syncRoot(root int) error {
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// located is what resolveLast found.
type located struct {
	info FileInfo
	fd   int // O_PATH; -1 if it doesn't exist
}

// resolveLast looks a path up within the root, as a process with that root would. A link at its end is followed only if that was
// asked for, or if a slash comes after it; each step goes by the kernel, so no string is trusted. What isn't there is found as such
// only if the directory that it would be in is there.
func resolveLast(root int, name string, follow bool) (located, error) {
	for links := 0; ; {
		name = "/" + strings.TrimLeft(name, "/")
		trailing := strings.HasSuffix(name, "/") || strings.HasSuffix(name, "/.") || strings.HasSuffix(name, "/..")
		flags := uint64(unix.O_PATH | unix.O_NOFOLLOW)
		if trailing {
			flags = unix.O_PATH | unix.O_DIRECTORY
		}
		fd, err := openInRoot(root, name, flags)
		if errors.Is(err, unix.ENOENT) && !trailing {
			dir, derr := openInRoot(root, path.Dir(name), unix.O_PATH|unix.O_DIRECTORY)
			if derr == nil {
				unix.Close(dir)
				return located{info: FileInfo{Path: name}, fd: -1}, nil
			}
			err = derr
		}
		if errors.Is(err, unix.ENOENT) {
			return located{info: FileInfo{Path: name}, fd: -1}, nil
		}
		if err != nil {
			return located{}, fmt.Errorf("%s: %w", name, err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			unix.Close(fd)
			return located{}, err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFLNK || !follow {
			return located{info: FileInfo{Exists: true, Mode: st.Mode, Size: st.Size, Path: name}, fd: fd}, nil
		}
		buf := make([]byte, unix.PathMax)
		n, err := unix.Readlinkat(fd, "", buf)
		unix.Close(fd)
		if links++; err == nil && links > maxLinks {
			err = unix.ELOOP
		}
		if err != nil {
			return located{}, fmt.Errorf("%s: %w", name, err)
		}
		if target := string(buf[:n]); strings.HasPrefix(target, "/") {
			name = target
		} else {
			name = name[:strings.LastIndexByte(name, '/')+1] + target
		}
	}
}
