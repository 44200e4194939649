package runner

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The test binary is also the program that containers are run with, so that all three of their processes are real. It is
// called as
//
//	runner.test test-world   WORLD REQUEST    enter the world of an ordinary user, then as test-run
//	runner.test test-run     REQUEST          create a container and run it in the foreground
//	runner.test test-start   REQUEST          create a container, run it in the background, print its ID
//	runner.test test-again   ROOT ID DIR      run a container again in the background
//	runner.test test-other   ROOT ID OPTIONS  run another command in a container
//	runner.test test-stop    ROOT ID GRACE    stop a container
//	runner.test test-wait    ROOT ID          wait for a container, exit with its code
//	runner.test test-attach  ROOT ID          attach to a container
//	runner.test test-pause   ROOT ID          pause a container; test-unpause likewise
//	runner.test test-remove  ROOT ID          remove a container
//	runner.test test-probe   NAME…            try system calls, and print what each answered
//	runner.test test-owners                   change owners and make devices in /tmp, and print what each answered
//	runner.test test-inside  COMMAND…         run a command within InUserNamespace
//	runner.test test-exec    COMMAND…         execute a command
//	runner.test test-supervise ROOT ID DIR    supervise it, on the root directory DIR
func TestMain(m *testing.M) {
	RunIfInit()
	// The race detector would make every process wait for a second at its end.
	os.Setenv("GORACE", strings.TrimSpace(os.Getenv("GORACE")+" atexit_sleep_ms=0"))
	if len(os.Args) > 1 {
		if verb, ok := testVerbs()[os.Args[1]]; ok {
			code, err := verb(os.Args[2:])
			if err != nil {
				fmt.Fprintln(os.Stderr, "unionfs:", err)
			}
			os.Exit(code)
		}
	}
	os.Exit(m.Run())
}

func testVerbs() map[string]func(args []string) (int, error) {
	return map[string]func(args []string) (int, error){
		"test-world":     enterWorld,
		"test-run":       runRequest,
		"test-supervise": superviseOn,
		"test-remove":    removeContainer,
		"test-start":     startRequest,
		"test-again":     startAgain,
		"test-other":     runOther,
		"test-stop":      stopContainer,
		"test-wait":      waitContainer,
		"test-probe":     runProbes,
		"test-attach":    attachTo,
		"test-pause":     func(args []string) (int, error) { return onContainer(args, (*Container).Pause) },
		"test-unpause":   func(args []string) (int, error) { return onContainer(args, (*Container).Unpause) },
		"test-owners":    changeOwners,
		"test-inside": func(args []string) (int, error) {
			return InUserNamespace(context.Background(), append([]string{"test-exec"}, args...)...)
		},
		"test-exec": func(args []string) (int, error) { return exitOurs, syscall.Exec(args[0], args, os.Environ()) },
	}
}

// request is one container to run.
type request struct {
	State       string // the State's root
	Root        string // the root directory
	Spec        *specs.Spec
	Options     CreateOptions
	Interactive bool
	DetachKeys  []byte
	Ahead       bool // start the supervisor before the container is made
	Watched     bool // run it in the background, with the caller attached from the start
}

func runRequest(args []string) (int, error) {
	var r request
	if err := json.Unmarshal([]byte(args[0]), &r); err != nil {
		return exitOurs, err
	}
	st, err := OpenState(r.State)
	if err != nil {
		return exitOurs, err
	}
	if r.Options.ID == "" {
		r.Options.ID = NewID()
	}
	options := RunOptions{
		Supervisor:  []string{"test-supervise", r.State, r.Options.ID, r.Root},
		Interactive: r.Interactive,
		DetachKeys:  r.DetachKeys,
	}
	if r.Ahead {
		options.Ahead = StartAhead(options, r.Spec.Process.Terminal)
	}
	c, err := st.Create(r.Spec, r.Options)
	if err != nil {
		options.Ahead.Abandon()
		return exitOurs, err
	}
	if r.Watched {
		return c.Start(context.Background(), StartOptions{
			Supervisor: options.Supervisor, Attach: &AttachOptions{NoStdin: !r.Interactive, NoSignals: true, DetachKeys: r.DetachKeys},
		})
	}
	return c.Run(context.Background(), options)
}

func startRequest(args []string) (int, error) {
	var r request
	if err := json.Unmarshal([]byte(args[0]), &r); err != nil {
		return exitOurs, err
	}
	st, err := OpenState(r.State)
	if err != nil {
		return exitOurs, err
	}
	c, err := st.Create(r.Spec, r.Options)
	if err != nil {
		return exitOurs, err
	}
	fmt.Println(c.ID)
	return c.Start(context.Background(), StartOptions{Supervisor: []string{"test-supervise", r.State, c.ID, r.Root}})
}

// lookUp finds the container that the first two of args name.
func lookUp(args []string) (*Container, error) {
	st, err := OpenState(args[0])
	if err != nil {
		return nil, err
	}
	return st.Get(args[1])
}

// onContainer does something to the container that args name.
func onContainer(args []string, do func(*Container) error) (int, error) {
	c, err := lookUp(args)
	if err == nil {
		err = do(c)
	}
	if err != nil {
		return exitOurs, err
	}
	return 0, nil
}

func attachTo(args []string) (int, error) {
	c, err := lookUp(args)
	if err != nil {
		return exitOurs, err
	}
	keys, err := ParseDetachKeys(DefaultDetachKeys)
	if err != nil {
		return exitOurs, err
	}
	return c.Attach(context.Background(), AttachOptions{DetachKeys: keys})
}

func startAgain(args []string) (int, error) {
	c, err := lookUp(args)
	if err != nil {
		return exitOurs, err
	}
	return c.Start(context.Background(), StartOptions{Supervisor: append([]string{"test-supervise"}, args...)})
}

func runOther(args []string) (int, error) {
	c, err := lookUp(args)
	if err != nil {
		return exitOurs, err
	}
	var o ExecOptions
	if err := json.Unmarshal([]byte(args[2]), &o); err != nil {
		return exitOurs, err
	}
	return c.Exec(context.Background(), o)
}

func stopContainer(args []string) (int, error) {
	c, err := lookUp(args)
	if err != nil {
		return exitOurs, err
	}
	grace, err := time.ParseDuration(args[2])
	if err != nil {
		return exitOurs, err
	}
	if err := c.Stop(context.Background(), c.StopSignal(), grace); err != nil {
		return exitOurs, err
	}
	return 0, nil
}

func waitContainer(args []string) (int, error) {
	c, err := lookUp(args)
	if err != nil {
		return exitOurs, err
	}
	return c.Wait(context.Background())
}

func superviseOn(args []string) (int, error) {
	early, ok := AwaitContainer(func() {})
	if !ok {
		return exitOurs, nil
	}
	st, err := OpenState(args[0])
	if err != nil {
		return exitOurs, err
	}
	c, err := st.Get(args[1])
	if err != nil {
		return exitOurs, err
	}
	dir := args[2]
	hooks := Hooks{Early: early, MountRoot: func(target string, _ bool) (func() error, error) {
		if err := unix.Mount(dir, target, "", unix.MS_BIND, ""); err != nil {
			return nil, err
		}
		return func() error { return unix.Unmount(target, 0) }, nil
	}}
	if c.Spec.Annotations[ownersAnnotation] != "" {
		if err := keepOwnersInLog(c, &hooks); err != nil {
			return exitOurs, err
		}
	}
	return 0, Supervise(context.Background(), c, hooks)
}

func removeContainer(args []string) (int, error) {
	if NeedsUserNamespace() {
		return InUserNamespace(context.Background(), append([]string{"test-remove"}, args...)...)
	}
	st, err := OpenState(args[0])
	if err != nil {
		return exitOurs, err
	}
	c, err := st.Get(args[1])
	if err != nil {
		return exitOurs, err
	}
	if err := st.Remove(c); err != nil {
		return exitOurs, err
	}
	return 0, nil
}

// testUID is the ordinary user's, for whom a private copy of the account files has an entry.
const testUID = 4242

// enterWorld makes this process, which is root, an ordinary user's. /etc/passwd, group, subuid and subgid are replaced in
// a mount namespace of its own only. The first argument says how: "ranges",
// "single", "uids" (subordinate user IDs only), or "none" (no user namespaces).
func enterWorld(args []string) (int, error) {
	files := map[string]string{
		"passwd": "root:x:0:0:root:/root:/bin/sh\ntester:x:4242:4242:Tester:/:/bin/sh\n",
		"group":  "root:x:0:\ntester:x:4242:\n",
		"subuid": "", "subgid": "",
	}
	const ranges = "someone:100000:65536\ntester:200000:65536\n"
	switch args[0] {
	case "ranges":
		files["subuid"], files["subgid"] = ranges, ranges
	case "uids":
		files["subuid"] = ranges
	case freezerWorld:
		return hideUnified(args[1:])
	case "none":
		// In a user namespace of its own, whose limit on user namespaces is then zero.
		return forbidNamespaces(args[1:])
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return exitOurs, err
	}
	for name, content := range files {
		tmp, err := os.CreateTemp("", "unionfs-world-")
		if err != nil {
			return exitOurs, err
		}
		if _, err := tmp.WriteString(content); err != nil {
			return exitOurs, err
		}
		if err := tmp.Chmod(0o644); err != nil {
			return exitOurs, err
		}
		err = unix.Mount(tmp.Name(), "/etc/"+name, "", unix.MS_BIND, "")
		tmp.Close()
		os.Remove(tmp.Name())
		if err != nil {
			return exitOurs, fmt.Errorf("/etc/%s: %w", name, err)
		}
	}
	if err := syscall.Setgroups(nil); err != nil {
		return exitOurs, err
	}
	if err := syscall.Setgid(testUID); err != nil {
		return exitOurs, err
	}
	if err := syscall.Setuid(testUID); err != nil {
		return exitOurs, err
	}
	os.Setenv("HOME", "/")
	return exitOurs, unix.Exec(selfExe, append([]string{os.Args[0]}, args[1:]...), os.Environ())
}

// forbidNamespaces goes on as a user who may not make user namespaces.
func forbidNamespaces(args []string) (int, error) {
	if args[0] != "limited" {
		cmd := exec.Command(selfExe, append([]string{"test-world", "none", "limited"}, args...)...)
		cmd.Args[0] = os.Args[0]
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:                 unix.CLONE_NEWUSER,
			UidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 10000}},
			GidMappings:                []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 10000}},
			GidMappingsEnableSetgroups: true,
		}
		err := cmd.Run()
		if cmd.ProcessState != nil {
			return cmd.ProcessState.ExitCode(), nil
		}
		return exitOurs, err
	}
	if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
		return exitOurs, err
	}
	if err := syscall.Setgid(testUID); err != nil {
		return exitOurs, err
	}
	if err := syscall.Setuid(testUID); err != nil {
		return exitOurs, err
	}
	return exitOurs, unix.Exec(selfExe, append([]string{os.Args[0]}, args[1:]...), os.Environ())
}
