package runner

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// fork makes P2's process and has it execute its program.
//
// Go copies the memory of this process for a child in a new user namespace, for the child waits until its parent has written the maps,
// and who borrowed the parent's memory would wait for ever (syscall.forkAndExecInChild1). All pages that were used so far are faulted in
// again after that. So P2 does borrow it (vfork(2)), executes its program without maps, and gets them then. As nobody in its namespace it
// would lose its capabilities by that, unless they are ambient (capabilities(7)); no command inherits those (restrictThread).
func (p *initProcess) fork() error {
	attr := p.attr
	if attr.Credential != nil {
		return p.cmd.Start() // it has to become somebody before it executes anything
	}
	borrowing := *attr
	borrowing.Cloneflags |= unix.CLONE_VM | unix.CLONE_VFORK
	borrowing.UidMappings, borrowing.GidMappings = nil, nil
	borrowing.AmbientCaps = allCapabilities()
	plain := *p.cmd // not started yet
	p.cmd.SysProcAttr = &borrowing
	err := p.cmd.Start()
	if errors.Is(err, unix.EINVAL) {
		// Before Linux 6.3, who is to be in another time namespace can't borrow memory (kernel/fork.c, copy_process).
		p.cmd = &plain
		return p.cmd.Start()
	}
	if err != nil {
		return err
	}
	return writeIDMaps(p.pid(), attr)
}

// writeIDMaps writes the maps of a process's user namespace (user_namespaces(7)).
func writeIDMaps(pid int, attr *syscall.SysProcAttr) error {
	write := func(name, content string) error {
		if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/"+name, []byte(content), 0); err != nil {
			return fmt.Errorf("mapping IDs: %w", err)
		}
		return nil
	}
	lines := func(maps []syscall.SysProcIDMap) string {
		var out strings.Builder
		for _, m := range maps {
			fmt.Fprintf(&out, "%d %d %d\n", m.ContainerID, m.HostID, m.Size)
		}
		return out.String()
	}
	if err := write("uid_map", lines(attr.UidMappings)); err != nil {
		return err
	}
	if !attr.GidMappingsEnableSetgroups {
		if err := write("setgroups", "deny"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return write("gid_map", lines(attr.GidMappings))
}
