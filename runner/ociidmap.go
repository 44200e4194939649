package runner

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// mapMounts makes the mounts whose IDs are mapped (runtime-spec config.md, "mounts"). Only who is privileged where the file
// system was mounted may do that, which the container may not be: it gets the mounts ready-made.
func (p *ociProcess) mapMounts(spec *specs.Spec) error {
	for i, m := range spec.Mounts {
		idmap, ridmap := slices.Contains(m.Options, "idmap"), slices.Contains(m.Options, "ridmap")
		uids, gids := m.UIDMappings, m.GIDMappings
		if len(uids) == 0 && len(gids) == 0 && !idmap && !ridmap {
			continue
		}
		if !isBind(m) {
			return fmt.Errorf("mounting at %s: only binds can have their IDs mapped", m.Destination)
		}
		if len(uids) == 0 && len(gids) == 0 {
			uids, gids = spec.Linux.UIDMappings, spec.Linux.GIDMappings
		}
		mnt, err := mappedMount(m, uids, gids, ridmap)
		if err != nil {
			return fmt.Errorf("mounting %s at %s with its IDs mapped: %w", m.Source, m.Destination, err)
		}
		p.add(fdMount+strconv.Itoa(i), mnt)
	}
	return nil
}

func mappedMount(m specs.Mount, uids, gids []specs.LinuxIDMapping, recursive bool) (*os.File, error) {
	namespace, err := namespaceOfMaps(uids, gids)
	if err != nil {
		return nil, err
	}
	defer namespace.Close()
	fd, err := cloneTree(unix.AT_FDCWD, m.Source, slices.Contains(m.Options, "rbind"))
	if err != nil {
		return nil, err
	}
	flags := uint(unix.AT_EMPTY_PATH)
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	err = unix.MountSetattr(fd, "", flags, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(namespace.Fd())})
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("the kernel or the file system can't: %w", err)
	}
	return os.NewFile(uintptr(fd), m.Source), nil
}

// namespaceOfMaps makes a user namespace with the given maps, in which nobody is.
func namespaceOfMaps(uids, gids []specs.LinuxIDMapping) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command(selfExe)
	// It waits on its input, whose end ends it.
	cmd.Args = []string{argvNamespace, "0", "never"}
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: specMap(uids), GidMappings: specMap(gids), GidMappingsEnableSetgroups: true}
	err = cmd.Start()
	r.Close()
	if err != nil {
		return nil, fmt.Errorf("making a user namespace: %w", err)
	}
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	w.Close()
	_ = cmd.Wait()
	return f, err
}
