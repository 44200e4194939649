package main

import (
	"errors"

	"github.com/urfave/cli/v2"

	"unionfs/fs"
	"unionfs/holder"
	"unionfs/runner"
)

// The root of a container is served by a process of its own, whose holder is the container's supervisor: it is replaced when it is
// killed. In the background it is there from the start. In the foreground the supervisor serves the root itself at first (see
// handover.go).

const serveRootName = "serve-container"

// serveRootCommand is the entry of that process.
func serveRootCommand() *cli.Command {
	return &cli.Command{
		Name:        serveRootName,
		Hidden:      true,
		Usage:       "serve the root of a container (for unionfs itself)",
		Description: "The process that serves the root of a container. Its supervisor starts it; it is of no use otherwise.\n\nExample:\n   unionfs --root /var/lib/unionfs serve-container ID",
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
	link.Answer(func(question []byte, again bool) []byte { return answerOwnerQuestion(union, server, question, again) })
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
