package holder

// First is a server in the holder's own process: it is there sooner than a child could be. A child that stands by takes its place,
// as it does when a server is upgraded.
type First struct {
	// Kept is what it would have given to keep. It becomes the holder's with Leave.
	Kept Kept

	// Ended is closed when the mount is gone before that.
	Ended <-chan struct{}

	// Leave has it stop serving, and give up all that only one server can have. After an error it goes on, or the mount is gone,
	// and Run returns the error.
	Leave func() error
}

// begin starts the first child, which stands by if there is a server already.
func (h *holder) begin() error {
	if h.First == nil {
		return h.start(h.Program, false)
	}
	h.kept = h.First.Kept
	if err := h.start(h.Program, true); err != nil {
		return err
	}
	h.wasUp = true
	h.limit(h.next)
	return nil
}

// first tells when the server in this process has ended by itself.
func (h *holder) first() <-chan struct{} {
	if h.First == nil || h.serving != nil || h.failed != nil {
		return nil
	}
	return h.First.Ended
}

// takeFromFirst has the child that stands by go on in the place of the server in this process.
func (h *holder) takeFromFirst() error {
	s := h.next
	if h.failed == nil {
		h.failed = h.First.Leave()
	}
	if h.failed != nil {
		_ = s.cmd.Process.Kill() // its end is next
		return nil
	}
	h.serving, h.next = s, nil
	_ = send(s.sock, packetGo, Kept{}) // should it have died by now, its end is next
	return h.up()
}
