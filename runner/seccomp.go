package runner

import (
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// DefaultSeccomp returns Docker's default profile (github.com/moby/profiles), as it is for the specification's bounding
// capabilities: some system calls are allowed only with the capability that they need. Call it when those are final.
func DefaultSeccomp(spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	return seccomp.GetDefaultProfile(withCapabilities(spec))
}

// ReadSeccomp reads a profile in Docker's format, of which that of the OCI runtime specification is a part, for the
// specification's bounding capabilities. The error says what about the file's content is wrong or not supported. A profile
// that says nothing is nil.
func ReadSeccomp(file string, spec *specs.Spec) (*specs.LinuxSeccomp, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading the seccomp profile: %w", err)
	}
	profile, err := seccomp.LoadProfile(string(data), withCapabilities(spec))
	if err == nil {
		_, err = compileSeccomp(profile, runtime.GOARCH)
	}
	if err != nil {
		return nil, fmt.Errorf("seccomp profile %s: %w", file, err)
	}
	return profile, nil
}

// withCapabilities returns a specification of which no part is missing that the profiles' conditions look at.
func withCapabilities(spec *specs.Spec) *specs.Spec {
	if spec.Process != nil && spec.Process.Capabilities != nil {
		return spec
	}
	return &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
}

// seccompFilter is a compiled profile, ready for the kernel.
type seccompFilter struct {
	Program seccompProgram `json:"program"`
	Flags   uint           `json:"flags,omitempty"` // SECCOMP_FILTER_FLAG_*
}

// seccompProgram is what the kernel runs. In JSON it is one string: as objects, its thousand instructions would be most of what
// an init reads.
type seccompProgram []unix.SockFilter

const sockFilterSize = 8

// MarshalText writes the instructions as the kernel has them, in base64.
func (p seccompProgram) MarshalText() ([]byte, error) {
	raw := make([]byte, 0, sockFilterSize*len(p))
	for _, i := range p {
		raw = binary.LittleEndian.AppendUint16(raw, i.Code)
		raw = append(raw, i.Jt, i.Jf)
		raw = binary.LittleEndian.AppendUint32(raw, i.K)
	}
	return base64.StdEncoding.AppendEncode(nil, raw), nil
}

// UnmarshalText reads what MarshalText wrote.
func (p *seccompProgram) UnmarshalText(text []byte) error {
	raw, err := base64.StdEncoding.AppendDecode(nil, text)
	if err != nil {
		return err
	}
	if len(raw)%sockFilterSize != 0 {
		return fmt.Errorf("a seccomp program of %d bytes", len(raw))
	}
	*p = make(seccompProgram, 0, len(raw)/sockFilterSize)
	for ; len(raw) > 0; raw = raw[sockFilterSize:] {
		*p = append(*p, unix.SockFilter{
			Code: binary.LittleEndian.Uint16(raw), Jt: raw[2], Jf: raw[3], K: binary.LittleEndian.Uint32(raw[4:]),
		})
	}
	return nil
}

// compileSeccomp compiles the specification's profile, of which P2 need not hear then.
func (cfg *initConfig) compileSeccomp() error {
	if cfg.Spec.Linux.Seccomp == nil {
		return nil
	}
	filter, err := compileSeccomp(cfg.Spec.Linux.Seccomp, runtime.GOARCH)
	if err != nil {
		return fmt.Errorf("seccomp profile: %w", err)
	}
	spec, linux := *cfg.Spec, *cfg.Spec.Linux
	linux.Seccomp = nil
	spec.Linux = &linux
	cfg.Spec, cfg.Seccomp = &spec, filter
	return nil
}

// install puts the filter on the calling thread, and so on what it executes. It needs no_new_privs or CAP_SYS_ADMIN in the
// thread's user namespace (seccomp(2)).
func (f *seccompFilter) install() error {
	program := unix.SockFprog{Len: uint16(len(f.Program)), Filter: &f.Program[0]}
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, uintptr(f.Flags), uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(f)
	switch errno {
	case 0:
		return nil
	case unix.ENOSYS, unix.EINVAL:
		return fmt.Errorf("this kernel can't do what the seccomp profile asks for (or has no seccomp at all); \"--security-opt seccomp=unconfined\" does without: %w", errno)
	}
	return fmt.Errorf("installing the seccomp filter: %w", errno)
}

// listen is install with a descriptor that tells of the calls which the filter passes on.
func (f *seccompFilter) listen(flags uintptr) (fd int, err error) {
	program := unix.SockFprog{Len: uint16(len(f.Program)), Filter: &f.Program[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&program)))
	runtime.KeepAlive(f)
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// seccompFlags translates the flags of a profile. TSYNC is about threads of which the command has none.
func seccompFlags(flags []specs.LinuxSeccompFlag) (uint, error) {
	var out uint
	for _, flag := range flags {
		switch flag {
		case specs.LinuxSeccompFlagLog:
			out |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			out |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case "SECCOMP_FILTER_FLAG_TSYNC":
		default:
			return 0, fmt.Errorf("the flag %s is not supported", flag)
		}
	}
	return out, nil
}

// Places of struct seccomp_data (seccomp(2)) and what the filter answers.
const (
	seccompNumber    = 0
	seccompArch      = 4
	seccompArguments = 16 // six of 8 bytes

	x32Bit = 0x40000000 // in the number of a system call of x86-64's x32 ABI
)

// seccompAnswer translates an action into what a filter returns. No errno means EPERM.
func seccompAnswer(action specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	data := uint32(unix.EPERM)
	if errno != nil {
		if *errno > 4095 { // MAX_ERRNO
			return 0, fmt.Errorf("the error number %d is out of range", *errno)
		}
		data = uint32(*errno)
	}
	switch action {
	case specs.ActKill, specs.ActKillThread:
		return unix.SECCOMP_RET_KILL_THREAD, nil
	case specs.ActKillProcess:
		return unix.SECCOMP_RET_KILL_PROCESS, nil
	case specs.ActTrap:
		return unix.SECCOMP_RET_TRAP, nil
	case specs.ActErrno:
		return unix.SECCOMP_RET_ERRNO | data, nil
	case specs.ActTrace:
		return unix.SECCOMP_RET_TRACE | data, nil
	case specs.ActAllow:
		return unix.SECCOMP_RET_ALLOW, nil
	case specs.ActLog:
		return unix.SECCOMP_RET_LOG, nil
	case specs.ActNotify:
		return 0, errors.New("the action SCMP_ACT_NOTIFY is not supported")
	}
	return 0, fmt.Errorf("there is no action %q", action)
}
