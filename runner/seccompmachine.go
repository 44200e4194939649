package runner

import (
	"iter"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// seccompMachine is one kind of system calls that a kernel answers.
type seccompMachine struct {
	name  specs.Arch
	audit uint32 // AUDIT_ARCH_*
	base  uint32 // part of each number
	table string // see syscalltables.go
}

// seccompMachines lists the kinds of system calls on a machine of the kind goarch, its own first.
func seccompMachines(goarch string) ([]seccompMachine, bool) {
	switch goarch {
	case "amd64":
		return []seccompMachine{
			{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, 0, syscallsX86_64},
			{specs.ArchX86, unix.AUDIT_ARCH_I386, 0, syscallsX86},
			{specs.ArchX32, unix.AUDIT_ARCH_X86_64, x32Bit, syscallsX32},
		}, true
	case "arm64":
		return []seccompMachine{
			{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, 0, syscallsAARCH64},
			{specs.ArchARM, unix.AUDIT_ARCH_ARM, 0, syscallsARM},
		}, true
	}
	return nil, false
}

// calls reads the table: names and numbers.
func (m seccompMachine) calls() iter.Seq2[string, uint32] {
	return func(yield func(string, uint32) bool) {
		for entry := range strings.FieldsSeq(m.table) {
			name, number, _ := strings.Cut(entry, "=")
			n, err := strconv.ParseUint(number, 10, 31)
			if err == nil && !yield(name, uint32(n)|m.base) {
				return
			}
		}
	}
}
