package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Works that programs do which people use.

// program runs one in a directory of the mount. Its output is read and forgotten: tar looks whether it writes to /dev/null
// itself, and then reads nothing.
func (s *session) program(dir string, args ...string) error {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer s.whenStopped(cancel)()
	command := exec.CommandContext(ctx, args[0], args[1:]...)
	command.Dir, command.Env = filepath.Join(s.root, dir), gitEnvironment()
	var said tailBuffer
	command.Stderr = &said
	output, err := command.StdoutPipe()
	if err != nil {
		return err
	}
	if err := command.Start(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, output)
	err = errors.Join(err, command.Wait())
	if stopped := s.stopped(); stopped != nil {
		return stopped
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args[:min(len(args), 3)], " "), err, said.line())
	}
	return nil
}

func tarRoot(s *session) (int, error) {
	return s.tree.entries, s.program(".", "tar", "-c", "--exclude=./"+bigName, "--exclude=./"+scratchName, ".")
}

// gitStatus is preceded by one that isn't measured: git reads every file once whose inode it doesn't know.
func gitStatus(s *session) (int, error) {
	return 1, s.program(repositoryName, "git", "-c", "safe.directory=*", "status", "--porcelain")
}

func warmStatus(s *session) error {
	_, err := gitStatus(s)
	return err
}

func prepareBuild(s *session) error {
	if err := makeScratch(s); err != nil {
		return err
	}
	out := filepath.Join(s.root, scratchName, "out")
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	return os.Mkdir(out, 0o755)
}

func buildProject(s *session) (int, error) {
	return 1, s.program(projectName, "make", "-s", "-j2", "OUT=../"+scratchName+"/out")
}

// besideCopyUp does small things while another thread writes one byte into the large file of the lowest branch: where that
// copies it as a whole, others may have to wait. It looks up names and makes files, which the kernel can't do alone.
func besideCopyUp(s *session) (int, error) {
	written := make(chan error, 1)
	go func() {
		_, err := touchBig(s)
		written <- err
	}()
	n, err := smallThings(s)
	return n, errors.Join(err, <-written)
}

// smallThings is what is done beside a copy-up.
func smallThings(s *session) (int, error) {
	n := max(1, s.sizes.Create/2)
	for i := range n {
		if err := s.smallThing(i); err != nil {
			return 0, err
		}
	}
	return n, nil
}

func (s *session) smallThing(i int) error {
	var st unix.Stat_t
	if name := s.files[i%len(s.files)] + s.nonce; unix.Fstatat(s.rootFD, name, &st, unix.AT_SYMLINK_NOFOLLOW) != unix.ENOENT {
		return fmt.Errorf("%s exists", name)
	}
	fd, err := s.open(scratchName+"/beside-"+strconv.Itoa(i), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = unix.Write(fd, []byte("beside"))
	return errors.Join(err, unix.Close(fd), s.stopped())
}
