package runner

import (
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Where the user namespace has one ID, its user 0 can't do what package managers and archivers do as root: the kernel knows
// no other owner, makes no devices, and denies setgroups(2). There a second filter answers for it.
//
//   - The chown family, with another ID than 0, and mknod of devices are passed on to P2 (seccomp_unotify(2)), which finds
//     out what file is meant and has P1 keep the owner (ownerkeeper.go). All else about files is the kernel's.
//   - set*id and setgroups answer 0 and do nothing: the process stays user 0.
//
// Each only if the command has the capability that it needs. apt alone looks whether it really became another user, and so
// is told not to.

// compileOwnership makes the filter, if this container needs one. attr has the maps of its user namespace.
func (cfg *initConfig) compileOwnership(c *Container, attr *syscall.SysProcAttr) error {
	if !cfg.Fixed || len(attr.UidMappings) != 1 || attr.UidMappings[0].ContainerID != 0 || attr.GidMappings[0].ContainerID != 0 {
		return nil
	}
	masks, err := capabilityMask(cfg.Spec.Process.Capabilities)
	if err != nil {
		return err
	}
	rules := ownershipRules(masks.bounding)
	machines, ok := seccompMachines(runtime.GOARCH)
	if !ok || len(rules.byName) == 0 {
		return nil
	}
	var all []specs.Arch
	for _, m := range machines {
		all = append(all, m.name)
	}
	program, err := rules.assemble(machines, all)
	if err != nil {
		return err
	}
	cfg.Ownership = &seccompFilter{Program: program}
	cfg.AptConfig = filepath.Join(c.Dir(), "apt.conf")
	const config = "// unionfs: this container has the one user root, so apt can't become another.\nAPT::Sandbox::User \"root\";\n"
	return os.WriteFile(cfg.AptConfig, []byte(config), 0o644)
}

// aptConfigDir is where apt looks for files of its configuration (apt.conf(5)); the last one by name decides.
const aptConfigDir = "/etc/apt/apt.conf.d"

// mountAptConfig adds to apt's configuration, if the root has one.
func (r *rootfs) mountAptConfig() error {
	fd, err := openPlain(r.root, aptConfigDir, unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		return nil
	}
	unix.Close(fd)
	return r.bind(specs.Mount{Source: r.cfg.AptConfig, Destination: aptConfigDir + "/zz-unionfs"}, parseMountOptions([]string{"bind", "ro"}))
}

// ownershipRules are the rules for a command with these capabilities.
func ownershipRules(capabilities uint64) *seccompRules {
	const allow, done = unix.SECCOMP_RET_ALLOW, unix.SECCOMP_RET_ERRNO // with the number 0
	r := &seccompRules{fallback: allow, newer: allow, byName: map[string][]seccompRule{}}
	has := func(capability uint) bool { return capabilities&(1<<capability) != 0 }
	is := func(argument uint, mask, value uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: argument, Op: specs.OpMaskedEqual, Value: mask, ValueTwo: value}
	}
	if has(unix.CAP_CHOWN) {
		for name, uid := range map[string]uint{"chown": 1, "lchown": 1, "fchown": 1, "chown32": 1, "lchown32": 1, "fchown32": 1, "fchownat": 2} {
			var rules []seccompRule
			for _, u := range []uint64{0, math.MaxUint32} {
				for _, g := range []uint64{0, math.MaxUint32} {
					rules = append(rules, seccompRule{[]specs.LinuxSeccompArg{is(uid, math.MaxUint32, u), is(uid+1, math.MaxUint32, g)}, allow})
				}
			}
			r.byName[name] = append(rules, seccompRule{answer: unix.SECCOMP_RET_USER_NOTIF})
		}
	}
	if has(unix.CAP_MKNOD) {
		for name, mode := range map[string]uint{"mknod": 1, "mknodat": 2} {
			r.byName[name] = []seccompRule{
				{[]specs.LinuxSeccompArg{is(mode, unix.S_IFMT, unix.S_IFCHR), is(mode+1, math.MaxUint32, 0)}, allow}, // a whiteout
				{[]specs.LinuxSeccompArg{is(mode, unix.S_IFMT, unix.S_IFCHR)}, unix.SECCOMP_RET_USER_NOTIF},
				{[]specs.LinuxSeccompArg{is(mode, unix.S_IFMT, unix.S_IFBLK)}, unix.SECCOMP_RET_USER_NOTIF},
				{answer: allow},
			}
		}
	}
	answer := func(capability uint, names string) {
		if !has(capability) {
			return
		}
		for name := range strings.FieldsSeq(names) {
			r.byName[name] = []seccompRule{{answer: done}}
			r.byName[name+"32"] = []seccompRule{{answer: done}}
		}
	}
	answer(unix.CAP_SETUID, "setuid setreuid setresuid setfsuid")
	answer(unix.CAP_SETGID, "setgid setregid setresgid setfsgid setgroups")
	return r
}

// keepOwner does what P2 asks for, and answers.
func (s *supervisor) keepOwner(to *wire, m message) {
	r := m.Owner
	if r == nil {
		return
	}
	var err error
	if m.Kind == msgDevice {
		err = s.hooks.MakeDevice(r.File, string(r.Name), r.Mode, r.Device)
	} else {
		err = s.hooks.SetOwner(r.File, r.UID, r.GID)
	}
	_ = to.send(message{Kind: msgOwned, Code: int(errnoOf(err)), Owner: &ownerRequest{ID: r.ID}})
}
