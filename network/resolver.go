package network

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"
	"golang.org/x/net/dns/dnsmessage"
)

// resolverAddress is where a container finds its name server: Docker's address, in the container's own loopback network.
const resolverAddress = "127.0.0.11"

// resolver answers a container's questions for names. Those of the containers on its networks it knows; the rest it passes on
// to the host's name servers. It runs in the container's supervisor, on sockets opened in the container's network namespace.
type resolver struct {
	udp  net.PacketConn
	tcp  net.Listener
	find directory
	host Host

	// servers are asked for all other names; none if the container has no way out.
	servers func() []netip.Addr
}

// directory knows the containers that one container can reach.
type directory interface {
	// addresses returns nil if there is nobody of that name; the name is in lower case, without the last dot.
	addresses(name string) []netip.Addr
	// name returns "" if nobody has the address.
	name(address netip.Addr) string
}

// namesTTL is short: containers come and go.
const namesTTL = 5 // seconds

// listen opens the sockets on a port of resolverAddress, in the network namespace of the calling thread.
func (r *resolver) listen(port string) (err error) {
	if r.udp, err = net.ListenPacket("udp4", resolverAddress+port); err != nil {
		return err
	}
	if r.tcp, err = net.Listen("tcp4", resolverAddress+port); err != nil {
		r.udp.Close()
	}
	return err
}

// redirect has the kernel lead what is meant for port 53 of resolverAddress to our sockets. The port itself stays free: a
// container that is a name server listens on port 53 of all its addresses.
func (r *resolver) redirect(ns *os.File) error {
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "unionfs-names"})
	output := c.AddChain(&nftables.Chain{
		Table: table, Name: "output", Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityNATDest,
	})
	server := netip.MustParseAddr(resolverAddress)
	for protocol, address := range map[string]net.Addr{"udp": r.udp.LocalAddr(), "tcp": r.tcp.Addr()} {
		own, err := netip.ParseAddrPort(address.String())
		if err != nil {
			return err
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: slices.Concat(
			daddrIn(netip.PrefixFrom(server, 32)), portIs(Port{HostPort: 53, Protocol: protocol}), translateTo(server, own.Port()),
		)})
	}
	return flush(c)
}

func (r *resolver) serve() {
	go r.servePackets()
	go r.serveConnections()
}

func (r *resolver) close() {
	r.udp.Close()
	r.tcp.Close()
}

func (r *resolver) servePackets() {
	buf := make([]byte, 64<<10)
	// Enough for any container that doesn't do it on purpose; those that have to wait may ask again.
	slots := make(chan struct{}, 256)
	for {
		n, from, err := r.udp.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			continue
		}
		question := append([]byte(nil), buf[:n]...)
		go func() {
			defer func() { <-slots }()
			if answer := r.answer("udp", question); answer != nil {
				_, _ = r.udp.WriteTo(answer, from)
			}
		}()
	}
}

func (r *resolver) serveConnections() {
	for {
		c, err := r.tcp.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		go func() {
			defer c.Close()
			for {
				_ = c.SetDeadline(time.Now().Add(30 * time.Second))
				question, err := readFramed(c)
				if err != nil {
					return
				}
				answer := r.answer("tcp", question)
				if answer == nil || writeFramed(c, answer) != nil {
					return
				}
			}
		}()
	}
}

// readFramed and writeFramed: messages over TCP have their length before them (RFC 1035, 4.2.2).
func readFramed(c io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(c, length[:]); err != nil {
		return nil, err
	}
	m := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(c, m)
	return m, err
}

func writeFramed(c io.Writer, m []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...))
	return err
}

// answer returns the answer to a message, nil for what is none of our business.
func (r *resolver) answer(network string, question []byte) []byte {
	var p dnsmessage.Parser
	header, err := p.Start(question)
	if err != nil || header.Response {
		return nil
	}
	q, err := p.Question()
	if err != nil {
		return nil
	}
	header = dnsmessage.Header{ID: header.ID, Response: true, OpCode: header.OpCode, RecursionDesired: header.RecursionDesired, RecursionAvailable: true}
	if resources, known := r.lookUp(q); known {
		return build(header, q, resources)
	}
	if answer := r.forward(network, question); answer != nil {
		return answer
	}
	header.RCode = dnsmessage.RCodeServerFailure
	return build(header, q, nil)
}

// lookUp answers from the directory.
func (r *resolver) lookUp(q dnsmessage.Question) (resources []dnsmessage.ResourceBody, known bool) {
	name := strings.ToLower(strings.TrimSuffix(q.Name.String(), "."))
	if a, ok := reverseAddress(name); ok && q.Type == dnsmessage.TypePTR {
		n, err := dnsmessage.NewName(r.find.name(a) + ".")
		if err != nil || n.Length == 1 {
			return nil, false
		}
		return []dnsmessage.ResourceBody{&dnsmessage.PTRResource{PTR: n}}, true
	}
	addresses := r.find.addresses(name)
	for _, a := range addresses {
		switch {
		case q.Type == dnsmessage.TypeA && a.Is4():
			resources = append(resources, &dnsmessage.AResource{A: a.As4()})
		case q.Type == dnsmessage.TypeAAAA && a.Is6():
			resources = append(resources, &dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	// A name that is known has no records of other types, rather than none that we know of.
	return resources, len(addresses) > 0
}

// reverseAddress reads 4.3.2.1.in-addr.arpa, and its like of IPv6.
func reverseAddress(name string) (netip.Addr, bool) {
	reversed, ok := strings.CutSuffix(name, ".in-addr.arpa")
	if !ok {
		return reverseAddress6(name)
	}
	a, err := netip.ParseAddr(reversed)
	if err != nil || !a.Is4() {
		return netip.Addr{}, false
	}
	b := a.As4()
	return netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}), true
}

func build(header dnsmessage.Header, q dnsmessage.Question, resources []dnsmessage.ResourceBody) []byte {
	m := dnsmessage.Message{Header: header, Questions: []dnsmessage.Question{q}}
	for _, body := range resources {
		m.Answers = append(m.Answers, dnsmessage.Resource{
			Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: namesTTL},
			Body:   body,
		})
	}
	answer, err := m.Pack()
	if err != nil {
		return nil
	}
	return answer
}

// How long a server has to answer before the next is asked.
const forwardTimeout = 3 * time.Second

// forward passes a question on as it is, and returns the first answer.
func (r *resolver) forward(network string, question []byte) []byte {
	for _, server := range r.servers() {
		answer, err := r.ask(network, netip.AddrPortFrom(server, 53), question)
		if err == nil {
			return answer
		}
	}
	return nil
}

func (r *resolver) ask(network string, server netip.AddrPort, question []byte) ([]byte, error) {
	c, err := r.host.Dial(network, server)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(forwardTimeout))
	if network == "tcp" {
		if err := writeFramed(c, question); err != nil {
			return nil, err
		}
		return readFramed(c)
	}
	if _, err := c.Write(question); err != nil {
		return nil, err
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return nil, err
		}
		if n >= 2 && buf[0] == question[0] && buf[1] == question[1] { // else a late answer to another
			return buf[:n], nil
		}
	}
}

// hostServers reads the name servers, and what else resolv.conf(5) says, of this machine.
func hostServers() (servers []netip.Addr, search, options []string) {
	data, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		return nil, nil, nil
	}
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			if a, err := netip.ParseAddr(fields[1]); err == nil {
				servers = append(servers, a)
			}
		case "search", "domain":
			search = fields[1:]
		case "options":
			options = append(options, fields[1:]...)
		}
	}
	return servers, search, options
}
