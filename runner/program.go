package runner

import (
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// The init is executed in such a way that nobody in the container can write to its program's file through /proc/1/exe, or
// through a /proc/self/exe that an image has as its command, and so change what the next start of unionfs executes
// (CVE-2019-5736). In a container that root runs, the file may well belong to the container's root.

// initProgramName is the program of the init, if it lies beside the running one. It is a smaller one, and starts faster.
const initProgramName = "unionfs-init"

// protectedProgram opens the program that becomes the init: unionfs-init, or else the running program, which can do the same.
func protectedProgram() (*os.File, error) {
	// The link itself can't be cloned: it leads through the mount namespace that the program was executed in.
	name, err := os.Readlink(selfExe)
	if err != nil {
		return nil, err
	}
	if f := companion(name); f != nil {
		return f, nil
	}
	f, err := readOnlyProgram(name)
	if errors.Is(err, errProgramMoved) {
		return sealedProgram()
	}
	return f, err
}

// companion opens unionfs-init, which lies beside the running program, ready to be executed; nil if there is none that may be.
func companion(running string) *os.File {
	f := executable.Companion(running, initProgramName, func(dir int, name string) (int, error) { return cloneTree(dir, name, false) })
	if f != nil && protect(int(f.Fd())) != nil {
		f.Close()
		return nil
	}
	return f
}

// supervisorProgramName is the program of the supervisor, if it lies beside the running one.
const supervisorProgramName = "unionfs-supervisor"

// supervisorProgram opens the program that becomes the supervisor: unionfs-supervisor, or else the running one, which can do the same.
// It is executed by descriptor: the path may be out of reach, and what /proc/self/exe is changes with nsenter(1).
func supervisorProgram() (*os.File, error) {
	if name, err := os.Readlink(selfExe); err == nil {
		f := executable.Companion(name, supervisorProgramName, func(dir int, name string) (int, error) {
			return unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		})
		if f != nil {
			return f, nil
		}
	}
	return os.OpenFile(selfExe, unix.O_PATH|unix.O_CLOEXEC, 0)
}

// pathOf is a path of an open file. A child may be executed by it, also if it doesn't inherit the descriptor.
func pathOf(f *os.File) string { return fmt.Sprintf("/proc/self/fd/%d", f.Fd()) }

var errProgramMoved = errors.New("the program's file is not found by its path")

// readOnlyProgram opens the program, which is at name, through a read-only mount of its file that is attached nowhere. It costs
// five system calls and no memory.
func readOnlyProgram(name string) (*os.File, error) {
	fd, err := cloneTree(unix.AT_FDCWD, name, false)
	if errors.Is(err, unix.ENOSYS) {
		return nil, errors.New("this kernel is too old: containers need Linux 5.12")
	}
	if err != nil {
		return nil, errProgramMoved
	}
	var running, found unix.Stat_t
	if err := unix.Stat(selfExe, &running); err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := unix.Fstat(fd, &found); err != nil || running.Dev != found.Dev || running.Ino != found.Ino {
		unix.Close(fd)
		return nil, errProgramMoved
	}
	if err := protect(fd); err != nil {
		unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "program"), nil
}

// protect makes the mount of a program read-only. Once the descriptor is closed everywhere, nobody can change that.
func protect(mnt int) error {
	if err := changeMount(mnt, unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NODEV, 0, unix.MS_PRIVATE, false); err != nil {
		return fmt.Errorf("making the mount of the program read-only (this needs Linux 5.12): %w", err)
	}
	return nil
}

// sealedProgram copies the program to memory and seals it, for when its file was replaced or lies where its user can't go.
func sealedProgram() (*os.File, error) {
	exe, err := os.Open(selfExe)
	if err != nil {
		return nil, fmt.Errorf("opening the program: %w", err)
	}
	defer exe.Close()
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("unionfs", flags|unix.MFD_EXEC)
	if errors.Is(err, unix.EINVAL) { // before Linux 6.3 all can be executed
		fd, err = unix.MemfdCreate("unionfs", flags)
	}
	if err != nil {
		return nil, fmt.Errorf("copying the program: %w", err)
	}
	mem := os.NewFile(uintptr(fd), "program")
	defer mem.Close()
	if _, err := io.Copy(mem, exe); err != nil {
		return nil, fmt.Errorf("copying the program: %w", err)
	}
	if _, err := unix.FcntlInt(uintptr(fd), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE); err != nil {
		return nil, fmt.Errorf("sealing the copy of the program: %w", err)
	}
	// What is open for writing can't be executed.
	return os.Open(pathOf(mem))
}
