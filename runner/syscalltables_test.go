package runner

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/elastic/go-seccomp-bpf/arch"
)

var updateTables = flag.Bool("update", false, "write syscalltables.go")

// TestSyscallTables holds our tables against a library's. That one isn't used itself because it fills ten maps whenever a
// program starts, and each container is three programs.
func TestSyscallTables(t *testing.T) {
	tables := []struct {
		name, ours string
		theirs     *arch.Info
	}{
		{"X86_64", syscallsX86_64, arch.X86_64},
		{"X86", syscallsX86, arch.I386},
		{"X32", syscallsX32, arch.X32},
		{"AARCH64", syscallsAARCH64, arch.AARCH64},
		{"ARM", syscallsARM, arch.ARM},
	}
	file := "package runner\n\n// The system calls' names and numbers, from the kernel's tables (include/uapi/asm-generic/unistd.h, arch/*/syscall*.tbl)\n// by way of github.com/elastic/go-seccomp-bpf. Written by \"go test ./runner -run TestSyscallTables -update\".\nconst (\n"
	for _, table := range tables {
		var entries []string
		numbers := map[string]int{}
		for n, name := range table.theirs.SyscallNumbers {
			// Where x32 has its own number besides x86-64's, it is the higher one.
			numbers[name] = max(numbers[name], n)
		}
		for name, n := range numbers {
			entries = append(entries, fmt.Sprintf("%s=%d", name, n))
		}
		slices.Sort(entries)
		var lines strings.Builder
		width := 200
		for _, e := range entries {
			if width+len(e) >= 116 {
				lines.WriteString("\n")
				width = 0
			} else {
				lines.WriteString(" ")
			}
			lines.WriteString(e)
			width += len(e) + 1
		}
		file += fmt.Sprintf("\tsyscalls%s = `%s`\n", table.name, lines.String())
		if !*updateTables && !slices.Equal(strings.Fields(table.ours), entries) {
			t.Errorf("the table of %s is not the library's: run go test ./runner -run TestSyscallTables -update", table.name)
		}
	}
	if *updateTables {
		must(t, os.WriteFile("syscalltables.go", []byte(file+")\n"), 0o644))
	}
}
