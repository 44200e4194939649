package main

import (
	"errors"
	"os"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"unionfs/fs"
	"unionfs/holder"
	"unionfs/runner"
)

// The root of a container in the background is served by a process of its own. The container's supervisor is its holder.

const serveRootName = "serve-container"

// serveRootCommand is the entry of that process.
func serveRootCommand() *cli.Command {
	return &cli.Command{
		Name:        serveRootName,
		Hidden:      true,
		Usage:       "serve the root of a container (for unionfs itself)",
		Description: "The process that serves the root of a container in the background.\nIts supervisor starts it; it is of no use otherwise.\n\nExample:\n   unionfs --root /var/lib/unionfs serve-container ID",
		ArgsUsage:   "ID",
		Action: func(c *cli.Context) error {
			if err := arguments(c, 1, 1, "ID"); err != nil {
				return err
			}
			_, container, err := namedContainer(c)
			if err != nil {
				return err
			}
			link, err := holder.Attach()
			if err == nil && link == nil {
				err = usageError("%s is started by a container's supervisor", serveRootName)
			}
			if err != nil {
				return err
			}
			if err := serveContainerRoot(c, container, link); err != nil {
				link.Failed(err)
				return &exitError{code: exitFailure}
			}
			return nil
		},
	}
}

func serveContainerRoot(c *cli.Context, container *runner.Container, link *holder.Link) error {
	s, err := newServing(link)
	if err != nil {
		return err
	}
	s.streams = true
	union, err := containerUnion(c, container, s)
	if err != nil {
		return err
	}
	target := container.Rootfs()
	server, err := s.mount(union, target, rootOptions(c, container))
	if err != nil {
		return errors.Join(err, union.Close())
	}
	if err := s.ready(union); err != nil {
		return errors.Join(err, fs.Unmount(target, true), union.Close())
	}
	go func() {
		<-link.Alone()
		// Without its supervisor there is no container. That this fails if the mount has gone already is no matter.
		_ = fs.Unmount(target, true)
	}()
	server.Wait()
	return union.Close()
}

// holdContainerRoot has the root of a container served, and returns when it is mounted on target.
func holdContainerRoot(root string, container *runner.Container, target string) (unmount func() error, err error) {
	program, err := os.Open("/proc/self/exe")
	if err != nil {
		return nil, err
	}
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- holder.Run(holder.Config{
			Program:  program,
			Args:     []string{"--root", root, serveRootName, container.ID},
			Embedded: true,
			Device:   keptDevice,
			Log:      newLogger(os.Stderr, false),
			Ready:    func() error { close(ready); return nil },
			Upgrades: func() (*holder.Listener, error) { return listenForUpgrades(target) },
		})
	}()
	select {
	case err := <-ended:
		return nil, err
	case <-ready:
	}
	return func() error {
		err := fs.Unmount(target, false)
		if errors.Is(err, unix.EBUSY) {
			// Nothing of the container is left to be surprised.
			err = fs.Unmount(target, true)
		}
		if err != nil {
			return err
		}
		return <-ended
	}, nil
}
