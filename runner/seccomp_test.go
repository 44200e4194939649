package runner

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// answer runs a filter on a system call as the kernel would.
func (f *seccompFilter) answer(t *testing.T, audit, number uint32, args ...uint64) uint32 {
	t.Helper()
	var program []bpf.Instruction
	for _, i := range f.Program {
		program = append(program, bpf.RawInstruction{Op: i.Code, Jt: i.Jt, Jf: i.Jf, K: i.K}.Disassemble())
	}
	vm, err := bpf.NewVM(program)
	must(t, err)
	// The words are where a little-endian machine has them, each in the order of the bytes that this VM reads.
	data := make([]byte, 64)
	binary.BigEndian.PutUint32(data[seccompNumber:], number)
	binary.BigEndian.PutUint32(data[seccompArch:], audit)
	for i, a := range args {
		low, high := seccompHalves(uint(i))
		binary.BigEndian.PutUint32(data[low:], uint32(a))
		binary.BigEndian.PutUint32(data[high:], uint32(a>>32))
	}
	out, err := vm.Run(data)
	must(t, err)
	return uint32(out)
}

func errnoAnswer(e unix.Errno) uint32 { return unix.SECCOMP_RET_ERRNO | uint32(e) }

// TestSeccompConditions holds every operator against the same comparison in Go, at the edges of the two halves.
func TestSeccompConditions(t *testing.T) {
	const high = uint64(1) << 32
	values := []uint64{0, 1, 2, 5, 1<<32 - 1, high, high + 1, high + 5, 2*high + 1, 1<<64 - 1}
	ops := map[specs.LinuxSeccompOperator]func(a, v, v2 uint64) bool{
		specs.OpEqualTo:      func(a, v, _ uint64) bool { return a == v },
		specs.OpNotEqual:     func(a, v, _ uint64) bool { return a != v },
		specs.OpGreaterThan:  func(a, v, _ uint64) bool { return a > v },
		specs.OpGreaterEqual: func(a, v, _ uint64) bool { return a >= v },
		specs.OpLessThan:     func(a, v, _ uint64) bool { return a < v },
		specs.OpLessEqual:    func(a, v, _ uint64) bool { return a <= v },
		specs.OpMaskedEqual:  func(a, v, v2 uint64) bool { return a&v == v2 },
	}
	for op, holds := range ops {
		for _, v := range values {
			for _, v2 := range values {
				if op != specs.OpMaskedEqual && v2 != 0 {
					continue
				}
				f, err := compileSeccomp(&specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{
					Names: []string{"read"}, Action: specs.ActErrno,
					// A second condition that always holds: what falls through must come to it.
					Args: []specs.LinuxSeccompArg{{Index: 1, Op: op, Value: v, ValueTwo: v2}, {Index: 5, Op: specs.OpEqualTo, Value: 7}},
				}}}, "amd64")
				must(t, err)
				for _, a := range values {
					want := uint32(unix.SECCOMP_RET_ALLOW)
					if holds(a, v, v2) {
						want = errnoAnswer(unix.EPERM)
					}
					if got := f.answer(t, unix.AUDIT_ARCH_X86_64, 0, 0, a, 0, 0, 0, 7); got != want {
						t.Fatalf("%x %s %x (%x): %x, want %x", a, op, v, v2, got, want)
					}
				}
			}
		}
	}
}

func TestSeccompRules(t *testing.T) {
	errno := func(e unix.Errno) *uint { n := uint(e); return &n }
	f, err := compileSeccomp(&specs.LinuxSeccomp{
		DefaultAction: specs.ActErrno, DefaultErrnoRet: errno(unix.EACCES),
		Architectures: []specs.Arch{specs.ArchX86_64, specs.ArchX86},
		Syscalls: []specs.LinuxSyscall{
			{Names: []string{"close", "no_such_call", "ioctl"}, Action: specs.ActAllow},
			{Names: []string{"ioctl"}, Action: specs.ActErrno, ErrnoRet: errno(unix.ENOTTY), Args: []specs.LinuxSeccompArg{{Index: 1, Op: specs.OpEqualTo, Value: unix.TIOCSTI}}},
			{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpEqualTo, Value: 1}, {Index: 0, Op: specs.OpEqualTo, Value: 2}}},
			{Names: []string{"kill"}, Action: specs.ActKillProcess},
			{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: errno(unix.ENOSYS)},
		},
	}, "amd64")
	must(t, err)
	const x86, x64, allow = unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_X86_64, unix.SECCOMP_RET_ALLOW
	for _, c := range []struct {
		name          string
		audit, number uint32
		args          []uint64
		want          uint32
	}{
		{"allowed", x64, unix.SYS_CLOSE, nil, allow},
		{"default", x64, unix.SYS_READ, nil, errnoAnswer(unix.EACCES)},
		{"condition before none", x64, unix.SYS_IOCTL, []uint64{0, unix.TIOCSTI}, errnoAnswer(unix.ENOTTY)},
		{"none", x64, unix.SYS_IOCTL, []uint64{0, unix.TIOCGWINSZ}, allow},
		{"either of one argument", x64, unix.SYS_SOCKET, []uint64{2}, allow},
		{"neither", x64, unix.SYS_SOCKET, []uint64{3}, errnoAnswer(unix.EACCES)},
		{"killed", x64, unix.SYS_KILL, nil, unix.SECCOMP_RET_KILL_PROCESS},
		{"the last known", x64, unix.SYS_CLONE3, nil, errnoAnswer(unix.ENOSYS)},
		{"newer", x64, unix.SYS_CLONE3 + 1, nil, errnoAnswer(unix.ENOSYS)},
		{"before the last", x64, unix.SYS_CLONE3 - 1, nil, errnoAnswer(unix.EACCES)},
		{"x32, not listed", x64, x32Bit | 3, nil, errnoAnswer(unix.ENOSYS)},
		{"x86's close", x86, 6, nil, allow},
		{"x86's stat, x86-64's close", x86, 3, nil, errnoAnswer(unix.EACCES)},
		{"another machine", unix.AUDIT_ARCH_AARCH64, unix.SYS_CLOSE, nil, unix.SECCOMP_RET_KILL_PROCESS},
	} {
		if got := f.answer(t, c.audit, c.number, c.args...); got != c.want {
			t.Errorf("%s: %x, want %x", c.name, got, c.want)
		}
	}
	for name, profile := range map[string]*specs.LinuxSeccomp{
		"no action":   {},
		"notify":      {DefaultAction: specs.ActNotify},
		"listener":    {DefaultAction: specs.ActAllow, ListenerPath: "/x"},
		"flag":        {DefaultAction: specs.ActAllow, Flags: []specs.LinuxSeccompFlag{"SECCOMP_FILTER_FLAG_WHAT"}},
		"operator":    {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Op: "?"}}}}},
		"argument":    {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}}}},
		"errno":       {DefaultAction: specs.ActErrno, DefaultErrnoRet: errno(5000)},
		"rule action": {DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}}}},
	} {
		if _, err := compileSeccomp(profile, "amd64"); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestDefaultSeccomp compiles Docker's profile for each machine that we have tables for, and looks up every rule of it.
func TestDefaultSeccomp(t *testing.T) {
	profile, err := DefaultSeccomp(DefaultSpec())
	must(t, err)
	for _, goarch := range []string{"amd64", "arm64"} {
		machines, _ := seccompMachines(goarch)
		for _, m := range machines {
			if !slices.Contains(profile.Architectures, m.name) {
				profile.Architectures = append(profile.Architectures, m.name)
			}
		}
		f, err := compileSeccomp(profile, goarch)
		must(t, err)
		t.Logf("%s: %d instructions", goarch, len(f.Program))
		for _, m := range machines {
			numbers := maps.Collect(m.calls())
			for _, call := range profile.Syscalls {
				if len(call.Args) > 0 {
					continue
				}
				want, err := seccompAnswer(call.Action, call.ErrnoRet)
				must(t, err)
				for _, name := range call.Names {
					if n, ok := numbers[name]; ok && f.answer(t, m.audit, n) != want {
						t.Errorf("%s, %s: %x, want %x", m.name, name, f.answer(t, m.audit, n), want)
					}
				}
			}
			if got := f.answer(t, m.audit, numbers["keyctl"]); got != errnoAnswer(unix.EPERM) {
				t.Errorf("%s, keyctl: %x", m.name, got)
			}
		}
	}
}

// What the host has for the probes to find.
const (
	abstractSocketVariable = "ABSTRACT_SOCKET" // its name, with a @ in front
	callersKey             = "unionfs-runner-test"
)

// probes are system calls that a program in a container tries; each must fail because it is refused, and so they are all
// called in a way that would otherwise fail otherwise, or succeed.
func probes() map[string]func() error {
	call := func(number uintptr, args ...uintptr) func() error {
		return func() error {
			args := append(args, 0, 0, 0, 0, 0, 0)
			_, _, errno := unix.RawSyscall6(number, args[0], args[1], args[2], args[3], args[4], args[5])
			if errno != 0 {
				return errno
			}
			return nil
		}
	}
	socket := func(family int) func() error { return call(unix.SYS_SOCKET, uintptr(family), unix.SOCK_DGRAM) }
	none := ^uintptr(0)
	return map[string]func() error{
		"keyctl":       call(unix.SYS_KEYCTL, unix.KEYCTL_GET_KEYRING_ID, none-2), // KEY_SPEC_SESSION_KEYRING
		"add_key":      call(unix.SYS_ADD_KEY),
		"bpf":          call(unix.SYS_BPF, 99),
		"kexec_load":   call(unix.SYS_KEXEC_LOAD),
		"init_module":  call(unix.SYS_INIT_MODULE),
		"finit_module": call(unix.SYS_FINIT_MODULE, none),
		"userfaultfd":  call(unix.SYS_USERFAULTFD, 1), // UFFD_USER_MODE_ONLY
		"io_uring":     call(unix.SYS_IO_URING_SETUP, 1),
		"AF_ALG":       socket(unix.AF_ALG),
		"AF_VSOCK":     socket(unix.AF_VSOCK),
		"userns":       call(unix.SYS_UNSHARE, unix.CLONE_NEWUSER),
		"clone userns": call(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD)),
		"clone3":       call(unix.SYS_CLONE3),
		"handle":       call(unix.SYS_OPEN_BY_HANDLE_AT, none),
		"mount":        call(unix.SYS_MOUNT),
		"newer":        call(4000),
		"stdin pushed": call(unix.SYS_IOCTL, 0, unix.TIOCSTI, 0),
		"AF_UNIX":      socket(unix.AF_UNIX),
		"AF_INET":      socket(unix.AF_INET),
		"abstract socket": func() error {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
			if err != nil {
				return err
			}
			return unix.Connect(fd, &unix.SockaddrUnix{Name: os.Getenv(abstractSocketVariable)})
		},
		"caller's key": func() error {
			_, err := unix.KeyctlSearch(unix.KEY_SPEC_SESSION_KEYRING, "user", callersKey, 0)
			return err
		},
		"personality":   call(unix.SYS_PERSONALITY, 0xffffffff),
		"personality 1": call(unix.SYS_PERSONALITY, 0x10000),
	}
}

// runProbes is the verb test-probe.
func runProbes(args []string) (int, error) {
	out := map[string]string{}
	all := probes()
	for _, name := range args {
		switch err := all[name](); e := err.(type) {
		case nil:
			out[name] = "allowed"
		case unix.Errno:
			out[name] = unix.ErrnoName(e)
		}
	}
	return 0, json.NewEncoder(os.Stdout).Encode(out)
}

// probe is a request to try system calls in a container. The test program comes along with what it is linked with.
func (w *ward) probe(names ...string) *request {
	w.t.Helper()
	program := filepath.Join(filepath.Dir(w.root), "probe")
	if _, err := os.Stat(program); err != nil {
		exe, err := os.Executable()
		must(w.t, err)
		data, err := os.ReadFile(exe)
		must(w.t, err)
		must(w.t, os.WriteFile(program, data, 0o755))
	}
	r := w.command(append([]string{"/probe", "test-probe"}, names...)...)
	r.Spec.Mounts = append(r.Spec.Mounts, bindMount(program, "/probe", "ro"))
	for _, dir := range []string{"/lib", "/lib64"} {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			r.Spec.Mounts = append(r.Spec.Mounts, bindMount(real, dir, "ro"))
		}
	}
	return r
}

func (w *ward) probed(r *request) map[string]string {
	w.t.Helper()
	var got map[string]string
	out := w.output(r)
	if err := json.Unmarshal([]byte(out[strings.IndexByte(out, '{'):]), &got); err != nil {
		w.t.Fatalf("%v: %q", err, out)
	}
	return got
}

// addCapabilities gives a request's command more.
func addCapabilities(r *request, names ...string) {
	c := r.Spec.Process.Capabilities
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
		*set = append(*set, names...)
	}
}

// setDefaultSeccomp gives a request the default profile, as the command line does.
func setDefaultSeccomp(t *testing.T, r *request) *request {
	t.Helper()
	profile, err := DefaultSeccomp(r.Spec)
	must(t, err)
	r.Spec.Linux.Seccomp = profile
	return r
}

// TestSeccompInside tries what is refused from within real containers, with the default profile.
func TestSeccompInside(t *testing.T) {
	refused := map[string]string{
		"keyctl": "EPERM", "add_key": "EPERM", "bpf": "EPERM", "kexec_load": "EPERM", "init_module": "EPERM", "finit_module": "EPERM",
		"userfaultfd": "EPERM", "io_uring": "EPERM", "AF_ALG": "EPERM", "AF_VSOCK": "EPERM", "userns": "EPERM", "clone userns": "EPERM",
		"clone3": "ENOSYS", "handle": "EPERM", "mount": "EPERM", "newer": "ENOSYS", "personality 1": "EPERM",
		"AF_UNIX": "allowed", "AF_INET": "allowed", "personality": "allowed",
	}
	var names []string
	for name := range refused {
		names = append(names, name)
	}
	inEveryWorld(t, func(t *testing.T, w *ward) {
		cases := []struct {
			name   string
			change func(*request)
			want   map[string]string // where it differs
		}{
			{"default", func(*request) {}, nil},
			{"no new privileges", func(r *request) { r.Spec.Process.NoNewPrivileges = true }, nil},
			{"another user", func(r *request) { r.Options.User = "1000:1000" }, nil},
			{"no capabilities", func(r *request) { r.Spec.Process.Capabilities = nil }, nil},
			{"CAP_SYS_ADMIN", func(r *request) { addCapabilities(r, "CAP_SYS_ADMIN") }, map[string]string{
				"userns": "EINVAL", "bpf": "EINVAL", "mount": "EFAULT", "clone3": "EINVAL", "clone userns": "",
			}},
			{"CAP_DAC_READ_SEARCH", func(r *request) { addCapabilities(r, "CAP_DAC_READ_SEARCH") }, map[string]string{"handle": "EFAULT"}},
		}
		if w.user {
			cases = append(cases[:1], cases[2:5]...) // the rest is no different for users
		}
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				w := w.in(t)
				try := slices.DeleteFunc(slices.Clone(names), func(n string) bool { v, ok := c.want[n]; return ok && v == "" })
				r := w.probe(try...)
				c.change(r)
				got := w.probed(setDefaultSeccomp(t, r))
				for _, name := range try {
					want := refused[name]
					if v, ok := c.want[name]; ok {
						want = v
					}
					if got[name] != want {
						t.Errorf("%s: %s, want %s", name, got[name], want)
					}
				}
			})
		}
		r := setDefaultSeccomp(t, w.shell(""))
		r.Spec.Process.NoNewPrivileges = true
		if got := status(w, r); got["Seccomp"] != "2" || got["Seccomp_filters"] != "1" || got["NoNewPrivs"] != "1" {
			t.Errorf("seccomp mode %s, %s filters, no_new_privs %s", got["Seccomp"], got["Seccomp_filters"], got["NoNewPrivs"])
		}
		if got := w.probed(w.probe("keyctl", "userfaultfd")); got["keyctl"] == "EPERM" {
			t.Errorf("without a profile, keyctl: %s", got["keyctl"])
		}
	})
}

// TestCallersTerminal: a command that was given the caller's terminal as its input can't type there.
func TestCallersTerminal(t *testing.T) {
	inEveryWorld(t, func(t *testing.T, w *ward) {
		// The filter isn't what refuses it, so that root's case with it stands for all.
		for _, profile := range map[bool][]bool{false: {true, false}, true: {false}}[w.user] {
			r := w.probe("stdin pushed")
			if profile {
				setDefaultSeccomp(t, r)
			}
			r.Interactive = true
			p := w.sit(r)
			p.expect(`"}`) // the end of what it prints
			if out := p.output(); !strings.Contains(out, `"EPERM"`) && !strings.Contains(out, `"EIO"`) {
				t.Errorf("with a profile (%v): %q", profile, out)
			}
			must(t, p.cmd.Wait())
		}
	})
}

func TestReadSeccomp(t *testing.T) {
	write := func(text string) string {
		file := filepath.Join(t.TempDir(), "profile.json")
		must(t, os.WriteFile(file, []byte(text), 0o644))
		return file
	}
	spec := DefaultSpec()
	for _, c := range []struct{ text, want string }{
		{"{", "Decoding"},
		{`{"defaultAction":"SCMP_ACT_MAYBE"}`, "SCMP_ACT_MAYBE"},
		{`{"defaultAction":"SCMP_ACT_NOTIFY"}`, "not supported"},
	} {
		file := write(c.text)
		if _, err := ReadSeccomp(file, spec); err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", c.text, err)
		}
	}
	if _, err := ReadSeccomp("/no/such/profile", spec); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	inWorlds(t, worlds()[:2], func(t *testing.T, w *ward) {
		r := w.shell("mkdir /tmp/x 2>&1; chmod 700 /tmp; echo $?")
		var err error
		r.Spec.Linux.Seccomp, err = ReadSeccomp(write(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
			{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":`+strconv.Itoa(int(unix.EDQUOT))+`}]}`), r.Spec)
		must(t, err)
		if got := w.output(r); got != "mkdir: can't create directory '/tmp/x': Disk quota exceeded\n0" && !strings.Contains(got, "quota") {
			t.Errorf("%q", got)
		}
	})
}

// BenchmarkSeccompCompile is what each start of a container costs more.
func BenchmarkSeccompCompile(b *testing.B) {
	spec := DefaultSpec()
	profile, err := DefaultSeccomp(spec)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("profile", func(b *testing.B) {
		for b.Loop() {
			if _, err := DefaultSeccomp(spec); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("compile", func(b *testing.B) {
		for b.Loop() {
			if _, err := compileSeccomp(profile, runtime.GOARCH); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("json", func(b *testing.B) {
		for b.Loop() {
			data, err := json.Marshal(profile)
			if err != nil {
				b.Fatal(err)
			}
			var back specs.LinuxSeccomp
			if err := json.Unmarshal(data, &back); err != nil {
				b.Fatal(err)
			}
		}
	})
}
