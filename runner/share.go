package runner

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// sharedKind is a namespace that a container can share with another, and the annotation that names that one.
type sharedKind struct {
	annotation string
	kind       specs.LinuxNamespaceType
}

func sharedKinds() []sharedKind {
	return []sharedKind{{AnnotationPID, specs.PIDNamespace}, {AnnotationIPC, specs.IPCNamespace}, {AnnotationUTS, specs.UTSNamespace}, {AnnotationCgroup, specs.CgroupNamespace}}
}

// ShareContainerNamespace makes the container use the PID, IPC, UTS or cgroup namespace of the container with the full ID id, which must
// run when this one starts. An ordinary user's container must be in the user namespace of that one's supervisor: see [Join].
func ShareContainerNamespace(spec *specs.Spec, kind specs.LinuxNamespaceType, id string) {
	spec.Linux.Namespaces = slices.DeleteFunc(spec.Linux.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == kind })
	if spec.Annotations == nil {
		spec.Annotations = map[string]string{}
	}
	for _, s := range sharedKinds() {
		if s.kind == kind {
			spec.Annotations[s.annotation] = id
		}
	}
}

// SharesWith lists the IDs of the containers whose namespaces this one uses.
func (c *Container) SharesWith() (ids []string) {
	for _, s := range sharedKinds() {
		if id := c.Spec.Annotations[s.annotation]; id != "" && !slices.Contains(ids, id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// shared is what other containers share with one that is about to start.
type shared struct {
	namespaces   []namespaceFile
	mounts       []*os.File // copies, attached nowhere, of the other's
	destinations []string   // of mounts
}

// openShared opens what the annotations of a container name.
func openShared(c *Container) (*shared, error) {
	s := &shared{}
	for _, a := range sharedKinds() {
		id := c.Spec.Annotations[a.annotation]
		if id == "" {
			continue
		}
		if err := s.open(c, id, a.kind); err != nil {
			s.close()
			return nil, fmt.Errorf("sharing the %s namespace of container %.12s: %w", a.kind, id, err)
		}
	}
	return s, nil
}

func (s *shared) open(c *Container, id string, kind specs.LinuxNamespaceType) error {
	other, err := c.state.Get(id)
	if err != nil {
		return err
	}
	st, err := other.Status()
	if err != nil {
		return err
	}
	if st.State != StateRunning {
		return errors.New("it is not running")
	}
	proc := fmt.Sprintf("/proc/%d", st.InitPID)
	file, err := os.Open(proc + "/ns/" + namespaceProcName(kind))
	if err != nil {
		return err
	}
	if kind == specs.PIDNamespace && isSameNamespace(file, kind) {
		file.Close() // it has the host's, which is not for an ordinary user to enter
	} else {
		s.namespaces = append(s.namespaces, namespaceFile{kind, file})
	}
	mounts := map[specs.LinuxNamespaceType][]string{
		specs.PIDNamespace: {"/proc"}, specs.IPCNamespace: {"/dev/shm", "/dev/mqueue"}, specs.CgroupNamespace: {"/sys/fs/cgroup"},
	}
	for _, dir := range mounts[kind] {
		if !slices.ContainsFunc(c.Spec.Mounts, func(m specs.Mount) bool { return m.Destination == dir }) {
			continue
		}
		mnt, err := cloneInside(proc+"/ns/mnt", dir)
		if err != nil {
			return fmt.Errorf("its %s: %w", dir, err)
		}
		s.mounts, s.destinations = append(s.mounts, os.NewFile(uintptr(mnt), dir)), append(s.destinations, dir)
	}
	// The process may have ended, and another taken its number, before all was open.
	if start, err := startTime(st.InitPID); err != nil || start != st.InitStart {
		return errors.New("it is not running")
	}
	return nil
}

// cloneInside copies the mount at dir in another mount namespace, which must be done from within: on a thread that enters it and
// never comes back.
func cloneInside(namespace, dir string) (mnt int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		mnt, err = enterAndClone(namespace, dir)
	}()
	<-done
	return mnt, err
}

func enterAndClone(namespace, dir string) (int, error) {
	file, err := os.Open(namespace)
	if err != nil {
		return -1, err
	}
	defer file.Close()
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return -1, err
	}
	if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNS); err != nil {
		return -1, fmt.Errorf("entering its mount namespace: %w", err)
	}
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	defer unix.Close(root)
	fd, err := openPlain(root, dir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fd)
	mnt, err := cloneTree(fd, "", true) // with the hierarchies below /sys/fs/cgroup
	if err != nil {
		return -1, err
	}
	return mnt, changeMount(mnt, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC, 0, unix.MS_PRIVATE, true)
}

// joins reports whether the container enters another one's namespace of the kind.
func (s *shared) joins(kind specs.LinuxNamespaceType) bool {
	return s != nil && slices.ContainsFunc(s.namespaces, func(n namespaceFile) bool { return n.kind == kind })
}

// within calls start on this thread, which must be locked, in the shared namespaces.
func (s *shared) within(start func() error) (err error) {
	for _, n := range s.namespaces {
		flag, _ := namespaceFlag(n.kind)
		own, oerr := os.Open("/proc/thread-self/ns/" + namespaceProcName(n.kind))
		if oerr != nil {
			return oerr
		}
		defer own.Close()
		if err := unix.Setns(int(n.file.Fd()), int(flag)); err != nil {
			return fmt.Errorf("joining the other container's %s namespace: %w", n.kind, err)
		}
		defer func() {
			// An ordinary user may not go back to the host's; the thread then stays, as in inNetworkNamespace.
			if back := unix.Setns(int(own.Fd()), int(flag)); back != nil && !errors.Is(back, unix.EPERM) && err == nil {
				err = fmt.Errorf("leaving the other container's %s namespace: %w", n.kind, back)
			}
		}()
	}
	return start()
}

func (s *shared) close() {
	if s == nil {
		return
	}
	for _, n := range s.namespaces {
		n.file.Close()
	}
	for _, f := range s.mounts {
		f.Close()
	}
	s.namespaces, s.mounts = nil, nil
}
