package runner

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// Files is the way to a container's files, as its command sees them, volumes and all. The work is done by a process of its own
// beside the supervisor (fileshelper.go), which has the container's IDs and goes by descriptors below the container's root; data
// comes and goes as tars. If the container doesn't run, its root is mounted for as long as the Files is open, and it can't be
// started meanwhile.
type Files struct {
	container *Container
	held      *exec.Cmd // the supervisor that holds the root of a container that doesn't run; nil if it runs
	wire      *wire     // to that
}

// FileInfo is what [Files.Stat] finds.
type FileInfo struct {
	// Exists is false if there is nothing of that name; then only Path is set.
	Exists bool `json:"exists,omitempty"`

	Mode uint32 `json:"mode,omitempty"` // as st_mode
	Size int64  `json:"size,omitempty"`

	// Path is where it is, or would be: that of the link's target if the last name is a link that was followed. It is not
	// cleaned, since ".." after a link means the parent of the link's target.
	Path string `json:"path,omitempty"`
}

// IsDir reports whether it is a directory.
func (i FileInfo) IsDir() bool { return i.Mode&unix.S_IFMT == unix.S_IFDIR }

// IsLink reports whether it is a symbolic link.
func (i FileInfo) IsLink() bool { return i.Mode&unix.S_IFMT == unix.S_IFLNK }

// filesRequest is what the supervisor's helper is asked to do.
type filesRequest struct {
	Op     string `json:"op"` // filesStat, filesRead, filesWrite
	Path   string `json:"path"`
	Follow bool   `json:"follow,omitempty"` // a link at the end of Path
	Name   string `json:"name,omitempty"`   // with filesRead: see archive.Pack
}

const (
	filesStat  = "stat"
	filesRead  = "read"
	filesWrite = "write"
	filesSync  = "sync"
)

// OpenFiles gives access to the container's files. The caller must call Close.
func (c *Container) OpenFiles(ctx context.Context, o StartOptions) (*Files, error) {
	f := &Files{container: c}
	st, err := c.Status()
	if err != nil {
		return nil, err
	}
	if st.State == StateRunning {
		return f, nil
	}
	w, theirs, err := newWire()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	cmd := supervisorCommand(o.Supervisor, theirs, modeHold)
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	if err := startSupervisor(cmd, nil); err != nil {
		w.close()
		return nil, fmt.Errorf("starting the container's supervisor: %w", err)
	}
	theirs.Close()
	f.held, f.wire = cmd, w
	stop := context.AfterFunc(ctx, w.shut)
	defer stop()
	m, fds, err := w.recv()
	closeAll(fds)
	switch {
	case err != nil:
		err = errors.New("its supervisor was killed")
	case m.Kind != msgStarted:
		err = errors.New(m.Error)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("opening the files of container %s: %w", c.Name, err), f.Close())
	}
	return f, nil
}

// Close lets the container go, and waits until its root is unmounted.
func (f *Files) Close() error {
	if f.held == nil {
		return nil
	}
	f.wire.shut()
	err := f.held.Wait()
	f.wire.close()
	f.held = nil
	return err
}

// Stat looks at a path of the container, and with follow at what a link there leads to.
func (f *Files) Stat(path string, follow bool) (FileInfo, error) {
	m, err := f.ask(filesRequest{Op: filesStat, Path: path, Follow: follow}, nil)
	if err != nil || m.File == nil {
		return FileInfo{}, err
	}
	return *m.File, nil
}

// Read writes a file or directory of the container as a tar, whose names begin with name; see archive.Pack. With follow, a link at
// the path's end is followed.
func (f *Files) Read(path string, follow bool, name string, w io.Writer) error {
	return f.receive(message{Kind: msgFiles, Files: &filesRequest{Op: filesRead, Path: path, Follow: follow, Name: name}}, w)
}

// Write unpacks a tar into a directory of the container, over what is there, with the owners that it says.
func (f *Files) Write(dir string, r io.Reader) error {
	theirs, w, err := os.Pipe()
	if err != nil {
		return err
	}
	copied := make(chan error, 1)
	go func() {
		_, err := io.Copy(w, r)
		w.Close()
		copied <- err
	}()
	_, err = f.ask(filesRequest{Op: filesWrite, Path: dir}, theirs)
	if err == nil {
		err = <-copied
	}
	return err
}

// SyncRoot has the kernel write all that it keeps back of a running container's root.
func (c *Container) SyncRoot() error {
	f := &Files{container: c}
	_, err := f.ask(filesRequest{Op: filesSync, Path: "/"}, nil)
	return err
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

// ask has one request done, with the other end of its stream, which is closed.
func (f *Files) ask(request filesRequest, stream *os.File) (message, error) {
	return f.send(message{Kind: msgFiles, Files: &request}, stream)
}

func (f *Files) send(request message, stream *os.File) (message, error) {
	var fds []int
	if stream != nil {
		defer stream.Close()
		fds = append(fds, int(stream.Fd()))
	}
	w, err := f.container.connect()
	if errors.Is(err, errNoSupervisor) {
		return message{}, fmt.Errorf("container %s has ended meanwhile", f.container.Name)
	}
	if err != nil {
		return message{}, err
	}
	defer w.close()
	if err := w.send(request, fds...); err != nil {
		return message{}, fmt.Errorf("container %s has ended meanwhile", f.container.Name)
	}
	if stream != nil {
		stream.Close()
	}
	m, fds, err := w.recv()
	closeAll(fds)
	switch {
	case err != nil:
		return m, fmt.Errorf("container %s has ended meanwhile", f.container.Name)
	case m.Error != "":
		return m, errors.New(m.Error)
	}
	return m, nil
}
