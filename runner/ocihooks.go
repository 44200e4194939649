package runner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// runHooks runs the hooks of a kind, one after the other, with the container's state as their input (runtime-spec
// config.md, "POSIX-platform Hooks"). It stops at the first that fails.
func runHooks(kind string, hooks *specs.Hooks, state specs.State) error {
	if hooks == nil {
		return nil
	}
	list := hookLists(hooks)[kind]
	for i, hook := range list {
		if err := runHook(hook, state); err != nil {
			return fmt.Errorf("error running %s hook #%d: %w", kind, i, err)
		}
	}
	return nil
}

func hookLists(hooks *specs.Hooks) map[string][]specs.Hook {
	return map[string][]specs.Hook{
		//lint:ignore SA1019 it is deprecated, and in use
		"prestart":      hooks.Prestart,
		"createRuntime": hooks.CreateRuntime, "createContainer": hooks.CreateContainer, "startContainer": hooks.StartContainer,
		"poststart": hooks.Poststart, "poststop": hooks.Poststop,
	}
}

func runHook(hook specs.Hook, state specs.State) error {
	input, err := json.Marshal(state)
	if err != nil {
		return err
	}
	ctx := context.Background()
	if hook.Timeout != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(*hook.Timeout)*time.Second)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, hook.Path)
	cmd.Args = hook.Args
	if len(cmd.Args) == 0 {
		cmd.Args = []string{hook.Path}
	}
	cmd.Env = hook.Env
	if cmd.Env == nil {
		cmd.Env = []string{} // and not our own
	}
	cmd.Stdin = bytes.NewReader(input)
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second // for what it leaves in the background with our pipe
	err = cmd.Run()
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s did not end within %d s", hook.Path, *hook.Timeout)
	case errors.Is(err, exec.ErrWaitDelay):
		return nil
	case err != nil:
		return fmt.Errorf("%s: %w, output: %s", hook.Path, err, strings.TrimSpace(output.String()))
	}
	return nil
}

// HookWarning is the error of a hook that failed where that changes nothing: after a container's end.
type HookWarning struct{ Err error }

func (w *HookWarning) Error() string { return w.Err.Error() }
func (w *HookWarning) Unwrap() error { return w.Err }

// runPoststop runs all poststop hooks, also after one that fails.
func runPoststop(hooks *specs.Hooks, state specs.State) error {
	if hooks == nil {
		return nil
	}
	state.Status, state.Pid = specs.StateStopped, 0
	var all []error
	for i, hook := range hooks.Poststop {
		if err := runHook(hook, state); err != nil {
			all = append(all, fmt.Errorf("error running poststop hook #%d: %w", i, err))
		}
	}
	if len(all) == 0 {
		return nil
	}
	return &HookWarning{errors.Join(all...)}
}

// checkHooks refuses hooks that can't be run.
func checkHooks(hooks *specs.Hooks) error {
	if hooks == nil {
		return nil
	}
	for kind, list := range hookLists(hooks) {
		for i, hook := range list {
			if !strings.HasPrefix(hook.Path, "/") {
				return fmt.Errorf("hooks.%s[%d]: the path %q is not absolute", kind, i, hook.Path)
			}
			if hook.Timeout != nil && *hook.Timeout <= 0 {
				return fmt.Errorf("hooks.%s[%d]: the timeout must be more than zero", kind, i)
			}
		}
	}
	return nil
}
