package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is the network of the host itself: for root the one that this process is in; for an ordinary user, whose networks are
// in a network namespace of their own, one that is reached through another process.
type Host interface {
	// Listen opens a listening TCP socket, ListenPacket a UDP socket.
	Listen(address netip.AddrPort) (net.Listener, error)
	ListenPacket(address netip.AddrPort) (net.PacketConn, error)
	// Dial connects a socket of the network "tcp" or "udp", for the forwarding of names.
	Dial(network string, address netip.AddrPort) (net.Conn, error)
}

// thisHost is the network that this process is in.
type thisHost struct{}

// anyFamily is the network's name for an address, and the address for it: the zero one is that of both families.
func anyFamily(network string, a netip.AddrPort) (string, string) {
	switch {
	case !a.Addr().IsValid():
		return network, net.JoinHostPort("", strconv.Itoa(int(a.Port())))
	case a.Addr().Is4():
		return network + "4", a.String()
	}
	return network + "6", a.String()
}

func (thisHost) Listen(a netip.AddrPort) (net.Listener, error) {
	network, address := anyFamily("tcp", a)
	return net.Listen(network, address)
}

func (thisHost) ListenPacket(a netip.AddrPort) (net.PacketConn, error) {
	network, address := anyFamily("udp", a)
	return net.ListenPacket(network, address)
}

func (thisHost) Dial(network string, a netip.AddrPort) (net.Conn, error) {
	return net.DialTimeout(network, a.String(), dialTimeout)
}

const dialTimeout = 5 * time.Second

// proxy holds a published port of the host, so that nobody else takes it, and passes on what comes to it and was not
// translated by the firewall: connections by IPv6, and all where there are no rules.
type proxy struct {
	port   Port           // HostPort is the one that is held
	tcp    net.Listener   // for TCP
	udp    net.PacketConn // for UDP
	target netip.AddrPort // in the container
	dial   func(ctx context.Context, network string, client net.Addr, target netip.AddrPort) (net.Conn, error)

	mu     sync.Mutex
	closed bool
	conns  map[io.Closer]bool          // those that are passed on now
	flows  map[netip.AddrPort]net.Conn // UDP: by client
}

// hold takes the host's port.
func hold(host Host, p Port) (*proxy, error) {
	x := &proxy{port: p, conns: map[io.Closer]bool{}, flows: map[netip.AddrPort]net.Conn{}}
	// All addresses of IPv4 are asked for by 0.0.0.0, all of both kinds by none.
	address := netip.AddrPortFrom(p.HostAddress, p.HostPort)
	var err error
	var bound net.Addr
	if p.Protocol == "udp" {
		if x.udp, err = host.ListenPacket(address); err == nil {
			bound = x.udp.LocalAddr()
		}
	} else if x.tcp, err = host.Listen(address); err == nil {
		bound = x.tcp.Addr()
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, fmt.Errorf("publishing port %s: %s is in use on this machine", p, p.Host())
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return nil, fmt.Errorf("publishing port %s: this machine has no address %s", p, p.HostAddress)
	case errors.Is(err, unix.EACCES):
		return nil, fmt.Errorf("publishing port %s: you may not use the port %d of this machine: take one from 1024, or as root lower net.ipv4.ip_unprivileged_port_start", p, p.HostPort)
	case err != nil:
		return nil, fmt.Errorf("publishing port %s on %s: %w", p, p.Host(), err)
	}
	if a, err := netip.ParseAddrPort(bound.String()); err == nil {
		x.port.HostPort = a.Port()
	}
	return x, nil
}

// serve passes on what comes until close.
func (x *proxy) serve(target netip.Addr) {
	x.target = netip.AddrPortFrom(target, x.port.Port)
	if x.dial == nil {
		x.dial = func(ctx context.Context, network string, _ net.Addr, target netip.AddrPort) (net.Conn, error) {
			d := net.Dialer{Timeout: dialTimeout}
			return d.DialContext(ctx, network, target.String())
		}
	}
	if x.udp != nil {
		go x.servePackets()
		return
	}
	go func() {
		for {
			c, err := x.tcp.Accept()
			if err == nil {
				go x.connect(c)
				continue
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors
		}
	}()
}

// keep remembers what to close with the proxy; false if that is closed already.
func (x *proxy) keep(c io.Closer) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	if !x.closed {
		x.conns[c] = true
	}
	return !x.closed
}

func (x *proxy) drop(c io.Closer) {
	x.mu.Lock()
	delete(x.conns, c)
	x.mu.Unlock()
	c.Close()
}

// connect passes a connection on, each direction until its end.
func (x *proxy) connect(client net.Conn) {
	defer x.drop(client)
	if !x.keep(client) {
		return
	}
	server, err := x.dial(context.Background(), "tcp", client.RemoteAddr(), x.target)
	if err != nil {
		// As the container itself would answer.
		if t, ok := client.(*net.TCPConn); ok {
			_ = t.SetLinger(0)
		}
		return
	}
	defer x.drop(server)
	if !x.keep(server) {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		pipe(server, client)
	}()
	pipe(client, server)
	<-done
}

// pipe copies and passes on the end.
func pipe(to, from net.Conn) {
	_, err := io.Copy(to, from)
	if w, ok := to.(*net.TCPConn); ok {
		if errors.Is(err, syscall.ECONNRESET) {
			_ = w.SetLinger(0)
			w.Close()
			return
		}
		_ = w.CloseWrite()
	}
}

// udpIdle is how long a client's packets keep their way back (as the kernel's connection tracking has it for streams).
const udpIdle = 3 * time.Minute

// servePackets passes packets on; each client has a socket of its own towards the container.
func (x *proxy) servePackets() {
	buf := make([]byte, 64<<10)
	for {
		n, from, err := x.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier answer
		}
		client, err := netip.ParseAddrPort(from.String())
		if err != nil {
			continue
		}
		x.mu.Lock()
		server := x.flows[client]
		x.mu.Unlock()
		if server == nil {
			if server, err = x.dial(context.Background(), "udp", from, x.target); err != nil || !x.keep(server) {
				continue
			}
			x.mu.Lock()
			x.flows[client] = server
			x.mu.Unlock()
			go x.answer(server, from, client)
		}
		_ = server.SetReadDeadline(time.Now().Add(udpIdle))
		_, _ = server.Write(buf[:n])
	}
}

func (x *proxy) answer(server net.Conn, to net.Addr, client netip.AddrPort) {
	defer x.drop(server)
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		if errors.Is(err, syscall.ECONNREFUSED) {
			continue // nobody listens in the container, yet
		}
		if err != nil {
			x.mu.Lock()
			delete(x.flows, client)
			x.mu.Unlock()
			return
		}
		_, _ = x.udp.WriteTo(buf[:n], to)
	}
}

// close lets go of the port and cuts what is passed on.
func (x *proxy) close() {
	x.mu.Lock()
	x.closed = true
	conns := x.conns
	x.conns = map[io.Closer]bool{}
	x.mu.Unlock()
	if x.tcp != nil {
		x.tcp.Close()
	}
	if x.udp != nil {
		x.udp.Close()
	}
	for c := range conns {
		c.Close()
	}
}
