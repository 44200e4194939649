package network

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// Held is an ordinary user's networks, as the holder gives access to them. It is a [Host]: the machine's network. The holder
// lives at least until it is closed.
type Held struct {
	store *Store
	stay  *net.UnixConn
	pid   int
	inner int
}

// ErrNoHolder says that no container with a network is running.
var ErrNoHolder = errors.New("no networks are held")

// Held connects to the holder. The error wraps [ErrNoHolder] if there is none.
func (s *Store) Held() (*Held, error) {
	c, m, err := s.request(holderMessage{Do: "stay"}, nil)
	if err != nil {
		return nil, err
	}
	h := &Held{store: s, stay: c, inner: m.Namespace}
	raw, err := c.SyscallConn()
	if err == nil {
		cerr := raw.Control(func(fd uintptr) {
			var peer *unix.Ucred // who listens
			if peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
				h.pid = int(peer.Pid)
			}
		})
		err = errors.Join(err, cerr)
	}
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("connecting to the networks: %w", err)
	}
	return h, nil
}

// Start connects to the holder, and starts one first if there is none.
func (s *Store) Start(start func() error) (*Held, error) {
	if h, err := s.Held(); !errors.Is(err, ErrNoHolder) {
		return h, err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockFile(filepath.Join(s.dir, "holder.lock"), os.O_CREATE)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if h, err := s.Held(); !errors.Is(err, ErrNoHolder) {
		return h, err
	}
	if err := start(); err != nil {
		return nil, fmt.Errorf("starting the networks: %w", err)
	}
	return s.Held()
}

// Close lets go of the holder.
func (h *Held) Close() { h.stay.Close() }

// UserNamespace and NetworkNamespace are files of the namespaces in which the supervisors of containers with networks are.
func (h *Held) UserNamespace() string    { return fmt.Sprintf("/proc/%d/ns/user", h.pid) }
func (h *Held) NetworkNamespace() string { return fmt.Sprintf("/proc/%d/fd/%d", h.pid, h.inner) }

// request sends a request and waits for the answer. The connection is the caller's to close, and so is what file points to.
func (s *Store) request(m holderMessage, file **os.File) (*net.UnixConn, holderMessage, error) {
	dir, address, err := s.holderAddress()
	if errors.Is(err, os.ErrNotExist) {
		return nil, m, ErrNoHolder
	}
	if err != nil {
		return nil, m, err
	}
	defer dir.Close()
	c, err := net.DialUnix("unixpacket", nil, address)
	if errors.Is(err, syscall.ENOENT) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil, m, ErrNoHolder
	}
	if err != nil {
		return nil, m, fmt.Errorf("connecting to the networks: %w", err)
	}
	if err := sendHolder(c, m, nil); err != nil {
		c.Close()
		return nil, m, ErrNoHolder // it was just leaving
	}
	answer, f, err := receiveHolder(c)
	switch {
	case err != nil:
		err = ErrNoHolder
	case answer.Error != "" && answer.Errno != 0:
		err = fmt.Errorf("%.0s%w", answer.Error, syscall.Errno(answer.Errno))
	case answer.Error != "":
		err = errors.New(answer.Error)
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		c.Close()
		return nil, m, err
	}
	if file != nil {
		*file = f
	} else if f != nil {
		f.Close()
	}
	return c, answer, nil
}

// socket asks for a socket of the machine's network.
func (h *Held) socket(m holderMessage) (*os.File, error) {
	if !m.Address.Addr().IsValid() {
		m.Port, m.Address = m.Address.Port(), netip.AddrPort{}
	}
	var f *os.File
	c, _, err := h.store.request(m, &f)
	if err != nil {
		return nil, err
	}
	c.Close()
	if f == nil {
		return nil, errors.New("the networks gave no socket")
	}
	return f, nil
}

func (h *Held) Listen(a netip.AddrPort) (net.Listener, error) {
	f, err := h.socket(holderMessage{Do: "listen", Address: a})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileListener(f)
}

func (h *Held) ListenPacket(a netip.AddrPort) (net.PacketConn, error) {
	f, err := h.socket(holderMessage{Do: "listen-packet", Address: a})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FilePacketConn(f)
}

func (h *Held) Dial(network string, a netip.AddrPort) (net.Conn, error) {
	f, err := h.socket(holderMessage{Do: "dial", Network: network, Address: a})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FileConn(f)
}

// takeDownHeld has the holder take a network's bridge away. Without a holder there is none.
func (s *Store) takeDownHeld(n *Network) error {
	c, _, err := s.request(holderMessage{Do: "take-down", Bridge: n.Bridge, IPv6: n.IPv6}, nil)
	if errors.Is(err, ErrNoHolder) {
		return nil
	}
	if err == nil {
		c.Close()
	}
	return err
}
