package main

import (
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/urfave/cli/v2"

	"unionfs/runner"
)

// isolationFlags are the flags of run and try that loosen or tighten what shuts a container in, with Docker's names.
func isolationFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringSliceFlag{Name: "security-opt", Usage: "`OPTION`: seccomp=FILE|unconfined, no-new-privileges, systempaths=unconfined"},
	}
}

// isolation is what the command line says by those flags.
type isolation struct {
	seccomp         string // a file, "unconfined", or "" for Docker's profile
	noNewPrivileges bool
	openPaths       bool // nothing is masked
}

func isolationOf(c *cli.Context) (isolation, error) {
	var i isolation
	return i, i.readSecurity(c.StringSlice("security-opt"))
}

func (i *isolation) readSecurity(options []string) error {
	for _, option := range options {
		key, value, hasValue := strings.Cut(option, "=")
		if !hasValue {
			key, value, _ = strings.Cut(option, ":") // as it was written in older days
		}
		switch {
		case key == "seccomp" && value == "builtin":
			i.seccomp = ""
		case key == "seccomp" && value != "":
			i.seccomp = value
		case key == "no-new-privileges":
			on, err := strconv.ParseBool(value)
			if err != nil && value != "" {
				return usageError("--security-opt %s: want no-new-privileges, or =false", option)
			}
			i.noNewPrivileges = on || value == ""
		case key == "systempaths" && value == "unconfined":
			i.openPaths = true
		case key == "apparmor" && value == "unconfined" || key == "label" && value == "disable":
			// No profile and no label is put on a container in any case.
		default:
			return usageError("unknown --security-opt %q; known are seccomp=FILE, seccomp=unconfined, no-new-privileges, systempaths=unconfined", option)
		}
	}
	return nil
}

// apply changes the specification. It comes last: the seccomp profile depends on the capabilities.
func (i *isolation) apply(spec *specs.Spec) (err error) {
	spec.Process.NoNewPrivileges = i.noNewPrivileges
	if i.openPaths {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = nil, nil
	}
	switch i.seccomp {
	case "unconfined":
	case "":
		spec.Linux.Seccomp, err = runner.DefaultSeccomp(spec)
	default:
		spec.Linux.Seccomp, err = runner.ReadSeccomp(i.seccomp, spec)
	}
	return err
}
