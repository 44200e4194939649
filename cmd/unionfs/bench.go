package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"github.com/urfave/cli/v2"
)

// benchProgram has the benchmarks. It is a program of its own because what it draws plots with would double the time in
// which this one starts, and a container's start is several of those.
const benchProgram = "unionfs-bench"

func benchCommand() *cli.Command {
	return &cli.Command{
		Name:      "bench",
		Usage:     "measure file systems and containers, beside others that do the same",
		UsageText: "unionfs bench [BENCHMARK] [options]",
		Description: `Measures this program and those of its peers that are installed, in turns, on this machine. The program unionfs-bench,
which is installed next to this one, does it.

Examples:
   unionfs bench --help
   unionfs bench depth --depths 1,10,100 --against overlayfs,fuse-overlayfs
   unionfs bench full --out report`,
		SkipFlagParsing: true,
		HideHelp:        true,
		Action: func(c *cli.Context) error {
			program, err := findBench()
			if err != nil {
				return err
			}
			self, err := os.Executable()
			if err != nil {
				return err
			}
			environment := append(os.Environ(), "UNIONFS_PROGRAM="+self)
			if c.IsSet("root") {
				environment = append(environment, "UNIONFS_ROOT="+c.String("root"))
			}
			err = syscall.Exec(program, append([]string{benchProgram}, c.Args().Slice()...), environment)
			return fmt.Errorf("starting %s: %w", program, err)
		},
	}
}

// findBench returns the program next to this one, or in PATH.
func findBench() (string, error) {
	if self, err := os.Executable(); err == nil {
		program := filepath.Join(filepath.Dir(self), benchProgram)
		if info, err := os.Stat(program); err == nil && info.Mode().IsRegular() {
			return program, nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	program, err := exec.LookPath(benchProgram)
	if err != nil {
		return "", fmt.Errorf("%s is neither next to unionfs nor in PATH; \"make build\" and \"make install\" of unionfs's source make it", benchProgram)
	}
	return program, nil
}
