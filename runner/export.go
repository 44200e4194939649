package runner

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Export writes the root of a running container, without its volumes, as Hooks.Export does it: as it is at the moment, while its
// processes go on unless it is paused.
func (c *Container) Export(w io.Writer) error {
	f := &Files{container: c}
	// What the kernel still keeps back is written first.
	if _, err := f.ask(filesRequest{Op: filesSync, Path: "/"}, nil); err != nil {
		return err
	}
	return f.receive(message{Kind: msgExport}, w)
}

// export has the root written to the stream that came with the request.
func (s *supervisor) export(fds []int) error {
	if s.hooks.Export == nil || len(fds) != 1 {
		return fmt.Errorf("the root of container %s can't be exported while it runs", s.container.Name)
	}
	if !s.running() {
		return fmt.Errorf("container %s is not running", s.container.Name)
	}
	again, err := unix.FcntlInt(uintptr(fds[0]), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	stream := os.NewFile(uintptr(again), "stream")
	defer stream.Close()
	return s.hooks.Export(stream)
}

// receive sends a request with one end of a pipe, and writes what comes out of the other to w.
func (f *Files) receive(m message, w io.Writer) error {
	r, theirs, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, r)
		r.Close() // the other end hears of it
		copied <- err
	}()
	_, err = f.send(m, theirs)
	if cerr := <-copied; cerr != nil {
		return cerr
	}
	return err
}

// syncRoot writes what the kernel keeps back of a file system.
func syncRoot(root int) error {
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Syncfs(fd); err != nil && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	return nil
}
