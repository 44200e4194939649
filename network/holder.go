package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// An ordinary user may not change the machine's network. Their networks are in a network namespace of the user's own, the
// "inner" one, in which everything is as for root on the machine: bridges, rules, addresses. A process holds it, the holder:
// it starts with the first container that has a network and ends when the last has gone. The supervisors of those containers
// are in the holder's user namespace and in the inner network namespace; the holder itself is in the machine's network, and
// opens sockets there for the supervisors: those that listen on published ports, and those that ask name servers. What goes
// out of the inner network goes by a program in between, see uplink.go.
//
// The holder listens on the socket ROOT/networks/holder, of kind SOCK_SEQPACKET. A request and its answer are one packet each:
//
//	→ stay                              the holder lives as long as the connection
//	← Namespace: the number of its descriptor of the inner network namespace
//	→ listen, listen-packet Address     ← Error, or a socket
//	→ dial Network Address              ← Error, or a socket
//	→ take-down Bridge IPv6             ← Error: bridge and rules of a network that is being removed are gone
type holderMessage struct {
	Do        string         `json:"do,omitempty"`
	Network   string         `json:"network,omitempty"`
	Address   netip.AddrPort `json:"address,omitzero"`
	Port      uint16         `json:"port,omitempty"` // with a zero Address: of all addresses
	Bridge    string         `json:"bridge,omitempty"`
	IPv6      bool           `json:"ipv6,omitempty"`
	Namespace int            `json:"namespace,omitempty"`
	Error     string         `json:"error,omitempty"`
	Errno     int            `json:"errno,omitempty"`
}

// holderIdle is how long a holder waits for the next container.
const holderIdle = 2 * time.Second

// Holder is the process that holds an ordinary user's networks.
type Holder struct {
	store  *Store
	inner  *os.File // the inner network namespace
	listen *net.UnixListener

	mu     sync.Mutex
	guests int
	idle   *time.Timer
}

// HoldNetworks is the life of the holder. It must be called in a user namespace in which the user is root, and in the
// machine's network namespace. ready is called when it can be talked to; uplink makes the way out of the inner network
// namespace, and may fail: there is none then, and a line in the log.
func HoldNetworks(store *Store, ready func(), uplink func(inner *os.File) error) error {
	h := &Holder{store: store}
	var err error
	if h.inner, err = newNetworkNamespace(); err != nil {
		return fmt.Errorf("making the network namespace: %w", err)
	}
	if err := raiseLoopback(h.inner); err != nil {
		return fmt.Errorf("bringing up the loopback: %w", err)
	}
	err = inNamespace(h.inner, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0), setParameter6("all", "forwarding", "1"))
	})
	if err != nil {
		return fmt.Errorf("switching on forwarding between the networks: %w", err)
	}
	if err := routeAnswers(h.inner); err != nil {
		return fmt.Errorf("setting up the networks: %w", err)
	}
	if err := uplink(h.inner); err != nil {
		fmt.Fprintln(os.Stderr, "unionfs: containers reach nothing beyond their networks:", err)
	}
	if err := os.Remove(store.holderPath()); err != nil && !errors.Is(err, os.ErrNotExist) { // a killed one's
		return err
	}
	dir, address, err := store.holderAddress()
	if err != nil {
		return err
	}
	defer dir.Close()
	if h.listen, err = net.ListenUnix("unixpacket", address); err != nil {
		return err
	}
	h.listen.SetUnlinkOnClose(false) // another may have the name by then
	h.idle = time.AfterFunc(holderIdle, h.leave)
	ready()
	for {
		c, err := h.listen.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		go h.serve(c)
	}
}

// leave ends the holder unless someone has come meanwhile.
func (h *Holder) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.guests > 0 {
		return
	}
	// No longer found by its name: who comes now starts another, and who has connected already is told by the end.
	_ = os.Remove(h.store.holderPath())
	h.listen.Close()
}

func (s *Store) holderPath() string { return filepath.Join(s.dir, "holder") }

// holderAddress is the socket's address, good until dir is closed: its path may be longer than an address (unix(7)).
func (s *Store) holderAddress() (dir *os.File, address *net.UnixAddr, err error) {
	dir, err = os.Open(s.dir)
	if err != nil {
		return nil, nil, err
	}
	return dir, &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("/proc/self/fd/%d/holder", dir.Fd())}, nil
}

// newNetworkNamespace makes a network namespace that no process is in.
func newNetworkNamespace() (ns *os.File, err error) {
	err = onThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return err
		}
		ns, err = os.Open("/proc/thread-self/ns/net")
		return err
	})
	return ns, err
}

func (h *Holder) serve(c *net.UnixConn) {
	defer c.Close()
	h.mu.Lock()
	h.guests++
	h.mu.Unlock()
	defer func() {
		h.mu.Lock()
		h.guests--
		h.idle.Reset(holderIdle)
		h.mu.Unlock()
	}()
	if err := checkPeer(c); err != nil {
		_ = sendHolder(c, holderMessage{Error: err.Error()}, nil)
		return
	}
	for {
		m, f, err := receiveHolder(c)
		if f != nil {
			f.Close()
		}
		if err != nil {
			return
		}
		socket, err := h.do(m)
		answer := holderMessage{Namespace: int(h.inner.Fd())}
		if err != nil {
			answer.Error = err.Error()
			var errno syscall.Errno
			if errors.As(err, &errno) {
				answer.Errno = int(errno)
			}
		}
		err = sendHolder(c, answer, socket)
		if socket != nil {
			socket.Close()
		}
		if err != nil {
			return
		}
	}
}

// do does what is asked for, and returns the socket to hand over.
func (h *Holder) do(m holderMessage) (*os.File, error) {
	host := thisHost{}
	address := m.Address
	if !address.Addr().IsValid() {
		address = netip.AddrPortFrom(netip.Addr{}, m.Port)
	}
	var socket interface{ File() (*os.File, error) }
	switch m.Do {
	case "stay":
		return nil, nil
	case "take-down":
		if err := checkInterfaceName(m.Bridge); err != nil {
			return nil, err
		}
		n := &Network{Config: Config{Bridge: m.Bridge, IPv6: m.IPv6}, store: h.store}
		return nil, inNamespace(h.inner, n.takeDown)
	case "listen":
		l, err := host.Listen(address)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		socket = l.(*net.TCPListener)
	case "listen-packet":
		l, err := host.ListenPacket(address)
		if err != nil {
			return nil, err
		}
		defer l.Close()
		socket = l.(*net.UDPConn)
	case "dial":
		if m.Network != "tcp" && m.Network != "udp" {
			return nil, fmt.Errorf("unknown network %q", m.Network)
		}
		c, err := host.Dial(m.Network, address)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		socket = c.(interface{ File() (*os.File, error) })
	default:
		return nil, fmt.Errorf("unknown request %q", m.Do)
	}
	return socket.File()
}

// checkPeer turns away other users, and processes in containers, which are in user namespaces below ours and can so be
// looked into, while those above can't be.
func checkPeer(c *net.UnixConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var peer *unix.Ucred
	if cerr := raw.Control(func(fd uintptr) { peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); cerr != nil || err != nil {
		return errors.Join(cerr, err)
	}
	if int(peer.Uid) != os.Geteuid() {
		return fmt.Errorf("user %d has no business with these networks", peer.Uid)
	}
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return err
	}
	theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/user", peer.Pid))
	if errors.Is(err, os.ErrPermission) || err == nil && theirs == own {
		return nil
	}
	return errors.New("networks can't be changed from within a container")
}

// sendHolder sends a packet, with a descriptor if f is not nil.
func sendHolder(c *net.UnixConn, m holderMessage, f *os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return err
	}
	var rights []byte
	if f != nil {
		rights = unix.UnixRights(int(f.Fd()))
	}
	_, _, err = c.WriteMsgUnix(data, rights, nil)
	return err
}

// receiveHolder receives a packet, and the descriptor that came with it.
func receiveHolder(c *net.UnixConn) (m holderMessage, f *os.File, err error) {
	data, oob := make([]byte, 8192), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := c.ReadMsgUnix(data, oob)
	if err != nil {
		return m, nil, err
	}
	if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) == 1 {
		if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) == 1 {
			unix.CloseOnExec(fds[0])
			f = os.NewFile(uintptr(fds[0]), "socket")
		}
	}
	if n == 0 {
		err = net.ErrClosed
	} else {
		err = json.Unmarshal(data[:n], &m)
	}
	return m, f, err
}
