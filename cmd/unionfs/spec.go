package main

import (
	"bufio"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"

	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"

	"unionfs/rootfs"
	"unionfs/runner"
	"unionfs/supervisor"
	"unionfs/volumes"
)

// processRequest is what the command line says about the container's process and its surroundings, beside the image.
type processRequest struct {
	args       []string // CMD…
	entrypoint *string  // --entrypoint; "" takes the image's away
	env        []string // K=V
	labels     map[string]string
	workdir    string
	hostname   string
	domain     string // NIS
	readOnly   bool
	terminal   bool
	network    networkRequest
	volumes    []volumes.Volume
	isolation  isolation
	resources  *specs.LinuxResources // nil for no limits
}

// newSpec makes the runtime specification: the defaults, over them what the image's configuration says, and over that
// what the command line says.
func newSpec(config imagespec.ImageConfig, r processRequest, claim *volumes.Claim) (*specs.Spec, error) {
	spec := runner.DefaultSpec()
	p := spec.Process

	entrypoint, cmd := config.Entrypoint, config.Cmd
	if r.entrypoint != nil {
		// As Docker does: another program doesn't get the arguments that were meant for the image's.
		entrypoint, cmd = nil, nil
		if *r.entrypoint != "" {
			entrypoint = []string{*r.entrypoint}
		}
	}
	if len(r.args) > 0 {
		cmd = r.args
	}
	p.Args = slices.Concat(entrypoint, cmd)
	if len(p.Args) == 0 {
		return nil, errors.New("no command was given, and the image names none; add one after the image")
	}

	p.Env = mergeEnv(p.Env, config.Env)
	if r.terminal {
		p.Env = mergeEnv(p.Env, []string{"TERM=xterm"})
		p.Terminal = true
	}
	p.Env = mergeEnv(p.Env, r.env)

	p.Cwd = "/"
	for _, dir := range []string{config.WorkingDir, r.workdir} {
		if dir != "" {
			// A relative directory counts from the root, as in Docker.
			p.Cwd = path.Join("/", dir)
		}
	}

	spec.Hostname, spec.Domainname = r.hostname, r.domain
	spec.Root.Readonly = r.readOnly
	spec.Annotations = map[string]string{}
	maps.Copy(spec.Annotations, config.Labels)
	// What unionfs notes among them is not an image's to say.
	maps.DeleteFunc(spec.Annotations, func(name, _ string) bool { return ownAnnotation(name) })
	maps.Copy(spec.Annotations, r.labels)
	if config.StopSignal != "" {
		spec.Annotations[runner.AnnotationStopSignal] = config.StopSignal
	}

	r.network.apply(spec)
	if err := addVolumes(spec, r.volumes, claim); err != nil {
		return nil, err
	}
	spec.Linux.Resources = r.resources
	return spec, r.isolation.apply(spec)
}

// ownAnnotation reports whether an annotation is one that unionfs keeps for itself.
func ownAnnotation(name string) bool {
	return strings.HasPrefix(name, "io.unionfs.") || name == rootfs.AnnotationImageID || name == supervisor.AnnotationNetwork || name == runner.AnnotationStopSignal
}

// mergeEnv sets the variables of add in base. Each stays where it was first set.
func mergeEnv(base, add []string) []string {
	merged := slices.Clone(base)
	for _, assignment := range add {
		name, _, _ := strings.Cut(assignment, "=")
		at := slices.IndexFunc(merged, func(have string) bool { return strings.HasPrefix(have, name+"=") })
		if at >= 0 {
			merged[at] = assignment
		} else {
			merged = append(merged, assignment)
		}
	}
	return merged
}

// resolveEnv reads the values of -e: K=V as it is, K alone with the caller's value if there is one.
func resolveEnv(values []string) ([]string, error) {
	var env []string
	for _, value := range values {
		name, _, hasValue := strings.Cut(value, "=")
		if name == "" {
			return nil, usageError("-e %q: the variable has no name; want NAME=VALUE, or NAME to pass the caller's", value)
		}
		if !hasValue {
			inherited, ok := os.LookupEnv(name)
			if !ok {
				continue
			}
			value = name + "=" + inherited
		}
		env = append(env, value)
	}
	return env, nil
}

// readEnvFile reads a file of K=V and K lines.
func readEnvFile(name string) ([]string, error) {
	values, err := linesOf("--env-file", name)
	if err != nil {
		return nil, err
	}
	return resolveEnv(values)
}

// linesOf reads a file that a flag names: empty lines, and those that start with #, are passed over.
func linesOf(flag, name string) ([]string, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", flag, err)
	}
	defer file.Close()
	var values []string
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		if line := strings.TrimLeft(lines.Text(), " \t"); line != "" && line[0] != '#' {
			values = append(values, line)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("%s %s: %w", flag, name, err)
	}
	return values, nil
}
