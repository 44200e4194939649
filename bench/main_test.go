package bench

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// program is the unionfs that is measured: built once, as users build it. Its benchmarks are next to it.
var program string

// What the Go benchmarks measure over.
var (
	flagBranches = flag.Int("branches", 10, "number of branches for the benchmarks")
	flagEntries  = flag.Int("entries", 2000, "entries of the tree for the benchmarks")
)

func TestMain(m *testing.M) {
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	flag.Parse()
	dir, err := os.MkdirTemp("", "unionfs-bench-program-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "unionfs")
	build := exec.Command("go", "build", "-ldflags", "-buildid=bench", "-o", dir+"/", "unionfs/cmd/unionfs", "unionfs/cmd/unionfs-supervisor", "unionfs/cmd/unionfs-init", "unionfs/cmd/unionfs-holder", "unionfs/cmd/unionfs-bench")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if output, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "building unionfs: %v\n%s", err, output)
		return 1
	}
	return m.Run()
}
