package runner

import (
	"encoding/json"
	"os"
	"syscall"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"unionfs/internal/executable"
)

// exec runs another command for the process at the other end of the last of fds; the first three are its streams.
func (b *byRuntime) exec(m message, fds []int) {
	if len(fds) != 4 || m.Exec == nil {
		closeAll(fds)
		return
	}
	w := &wire{fd: fds[3]}
	defer w.close()
	var streams [3]*os.File
	for i := range streams {
		streams[i] = os.NewFile(uintptr(fds[i]), "stream")
		defer streams[i].Close()
	}
	code, err := b.otherCommand(m.Exec, w, streams)
	if code != codeDetached {
		_ = w.send(message{Kind: msgExited, Code: code, Error: errorText(err)})
	}
}

// otherCommand has the runtime start a command, detached as for conmon, so that it is ours to wait for as the first one is.
func (b *byRuntime) otherCommand(request *execRequest, w *wire, streams [3]*os.File) (int, error) {
	process, err := b.otherProcess(request)
	if err != nil {
		return exitOurs, err
	}
	dir, err := os.MkdirTemp(b.bundle(), "exec-")
	if err != nil {
		return exitOurs, err
	}
	defer os.RemoveAll(dir)
	data, err := json.Marshal(process)
	if err == nil {
		err = os.WriteFile(dir+"/process.json", data, 0o600)
	}
	if err != nil {
		return exitOurs, err
	}
	args := []string{"exec", "--detach", "--process", dir + "/process.json", "--pid-file", dir + "/pid"}
	var console *runtimeConsole
	if request.Terminal {
		if console, err = listenForConsole(); err != nil {
			return exitOurs, err
		}
		defer console.close()
		args = append(args, "--console-socket", console.path)
	}
	cmd := b.command(append(args, b.container.ID)...)
	if !request.Terminal {
		cmd.Stdin, cmd.Stdout, cmd.Stderr = streams[0], streams[1], streams[2]
	}
	if err := executable.StartExact(cmd.Run); err != nil {
		return b.failure("exec", err)
	}
	for _, f := range streams {
		f.Close() // so that their end is seen
	}
	pid, err := b.readPID(dir + "/pid")
	if err != nil {
		return exitOurs, err
	}
	if err := handOverConsole(console, w, request.Detach); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		waitFor(pid)
		return exitOurs, err
	}
	_ = w.send(message{Kind: msgStarted})
	if request.Detach {
		go waitFor(pid)
		return codeDetached, nil
	}
	command, err := os.FindProcess(pid) // by a descriptor: what signals come after its end are nobody's
	if err != nil {
		return exitOurs, err
	}
	defer command.Release()
	ended, listening := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(listening)
		listenForCommand(w, request.Terminal, nil, ended, func(sig unix.Signal, _ bool) { _ = command.Signal(sig) })
	}()
	ws := waitFor(pid)
	close(ended)
	_ = w.send(message{Kind: msgExited, Code: exitCode(syscall.WaitStatus(ws))})
	w.shut()
	<-listening
	return codeDetached, nil
}

// otherProcess is the container's first process, but for what the request says.
func (b *byRuntime) otherProcess(request *execRequest) (*specs.Process, error) {
	process := request.process(b.container.Spec.Process)
	process.User = b.user
	if request.User != "" {
		cfg := initConfig{Rootfs: b.container.Rootfs(), User: request.User}
		who, err := cfg.fixedUser()
		if err != nil {
			return nil, err
		}
		process.User = who
	}
	return process, nil
}

// handOverConsole gives the terminal of a command, if it has one, to who wants the command; or, with discarded, to nobody.
func handOverConsole(console *runtimeConsole, w *wire, discarded bool) error {
	if console == nil {
		return nil
	}
	master, err := console.receive()
	if err != nil {
		return err
	}
	if discarded {
		go discard(master)
		return nil
	}
	defer master.Close()
	return w.send(message{Kind: msgConsole}, int(master.Fd()))
}
