package supervisor

import (
	"errors"
	"fmt"

	"unionfs/fs"
	"unionfs/holder"
	"unionfs/rootfs"
	"unionfs/runner"
)

// The root of a container is served by a process of its own, whose holder is the container's supervisor: it is replaced when it is
// killed. In the background it is there from the start. In the foreground the supervisor serves the root itself at first (see
// handover.go).

// serve is that process.
func serve(root, id string) error {
	container, err := find(root, id)
	if err != nil {
		return err
	}
	link, err := holder.Attach()
	if err == nil && link == nil {
		err = fmt.Errorf("%s is started by a container's supervisor", serveVerb)
	}
	if err != nil {
		return err
	}
	if err := serveRoot(root, container, link); err != nil {
		link.Failed(err)
		return errSaid
	}
	return nil
}

func serveRoot(root string, container *runner.Container, link *holder.Link) error {
	s, err := rootfs.NewServing(link)
	if err != nil {
		return err
	}
	s.OwnStreams = true
	union, err := s.ContainerUnion(root, container)
	if err != nil {
		return err
	}
	target := container.Rootfs()
	server, err := s.Mount(union, target, rootOptions(container))
	if err != nil {
		return errors.Join(err, union.Close())
	}
	link.Answer(func(question []byte, again bool) []byte { return answerOwnerQuestion(union, server, question, again) })
	if err := s.Ready(union); err != nil {
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
