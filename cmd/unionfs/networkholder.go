package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"unionfs/network"
	"unionfs/runner"
	"unionfs/supervisor"
)

const holderName = "hold-networks"

// holderCommand is the entry of the process that holds an ordinary user's networks, which "run" starts.
func holderCommand() *cli.Command {
	return &cli.Command{
		Name:        holderName,
		Hidden:      true,
		Usage:       "hold an ordinary user's networks (for unionfs itself)",
		Description: "The process that holds the networks of an ordinary user's containers while any is running. It is started by\n\"unionfs run\" and of no use otherwise.\n\nExample:\n   unionfs --root ~/.local/share/unionfs hold-networks",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 0, 0, "no arguments"); err != nil {
				return err
			}
			root, err := stateRoot(c)
			if err != nil {
				return err
			}
			program, err := os.Executable()
			if err != nil {
				return err
			}
			told := os.NewFile(3, "ready")
			syscall.CloseOnExec(3)
			ready := func() {
				fmt.Fprintln(told, "ready")
				told.Close()
			}
			uplink := func(inner *os.File) error { return network.Uplink(inner, program) }
			return network.HoldNetworks(network.OpenStore(root), ready, uplink)
		},
	}
}

// startHolder starts it, and returns when it can be talked to.
func startHolder(root string) error {
	logName := filepath.Join(root, "networks", "holder.log")
	log, err := os.OpenFile(logName, os.O_CREATE|os.O_TRUNC|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", "--root", root, holderName)
	cmd.Args[0] = os.Args[0]
	cmd.Dir = "/"
	cmd.Stderr = log
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = runner.StartInUserNamespace(cmd)
	w.Close()
	if err != nil {
		return err
	}
	go func() { _ = cmd.Wait() }() // it may end before us
	if line, err := bufio.NewReader(r).ReadString('\n'); err == nil && line == "ready\n" {
		return nil
	}
	said, _ := os.ReadFile(logName)
	return errors.New(strings.TrimPrefix(string(bytes.TrimSpace(said)), "unionfs: "))
}

// joinOf returns what the supervisor of an ordinary user's container enters, nil if it makes namespaces of its own. release
// is called when the container runs, or has ended.
func joinOf(root string, container *runner.Container) (join *runner.Join, release func(), err error) {
	if !runner.NeedsUserNamespace() {
		return nil, func() {}, nil
	}
	join, release, err = networkJoin(root, container)
	if err != nil {
		return nil, release, err
	}
	for _, id := range container.SharesWith() {
		other, err := userNamespaceOf(root, id)
		switch {
		case err != nil:
			err = fmt.Errorf("sharing namespaces: %w", err)
		case join == nil:
			join = &runner.Join{User: other}
		case !sameNamespace(join.User, other):
			err = fmt.Errorf("sharing namespaces of container %.12s: it is in another user namespace than the network of this one; give both a network, or neither", id)
		}
		if err != nil {
			release()
			return nil, func() {}, err
		}
	}
	return join, release, nil
}

func networkJoin(root string, container *runner.Container) (join *runner.Join, release func(), err error) {
	release = func() {}
	mode := supervisor.NetworkMode(container)
	if ref, ok := strings.CutPrefix(mode, "container:"); ok {
		user, err := userNamespaceOf(root, ref)
		if err != nil {
			return nil, release, fmt.Errorf("sharing a network: %w", err)
		}
		return &runner.Join{User: user}, release, nil
	}
	if network.IsMode(mode) {
		return nil, release, nil
	}
	held, err := network.OpenStore(root).Start(func() error { return startHolder(root) })
	if err != nil {
		return nil, release, err
	}
	return &runner.Join{User: held.UserNamespace(), Network: held.NetworkNamespace()}, held.Close, nil
}

// userNamespaceOf is the file of the user namespace over the namespaces of a running container.
func userNamespaceOf(root, ref string) (string, error) {
	other, err := findContainer(root, ref)
	if err != nil {
		return "", err
	}
	status, err := other.Status()
	if err == nil && status.State != runner.StateRunning {
		err = errors.New("it is not running")
	}
	if err != nil {
		return "", fmt.Errorf("container %s: %w", other.Name, err)
	}
	return fmt.Sprintf("/proc/%d/ns/user", status.SupervisorPID), nil
}

func sameNamespace(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// joinsOther reports whether the supervisor of a container with this network enters namespaces that others have made for that.
func joinsOther(mode string) bool {
	return runner.NeedsUserNamespace() && (!network.IsMode(mode) || strings.HasPrefix(mode, "container:"))
}
