// Command unionfs-uplink is the way out of an ordinary user's networks: it reads the packets that leave them from a tap device
// and makes connections of its own from them, by a network stack in user space. "unionfs" starts it, with the tap device as
// descriptor 3, and it ends with who started it. It is a program apart since the stack alone takes 8 ms to start, which each
// of a container's three processes would take longer.
package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containers/gvisor-tap-vsock/pkg/services/forwarder"
	"github.com/containers/gvisor-tap-vsock/pkg/tap"
	"github.com/containers/gvisor-tap-vsock/pkg/types"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/arp"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"unionfs/network"
)

func main() {
	if err := serve(); err != nil {
		fmt.Fprintln(os.Stderr, "unionfs-uplink:", err)
		os.Exit(1)
	}
}

const tapFD = 3

func serve() error {
	if err := unix.SetNonblock(tapFD, true); err != nil {
		return errors.New("this program is for unionfs, which starts it where it is needed")
	}
	gateway := network.UplinkGateway()
	link, err := tap.NewLinkEndpoint(false, network.UplinkMTU, network.UplinkGatewayMAC().String(), gateway.String(), nil)
	if err != nil {
		return err
	}
	wire := tap.NewSwitch(false)
	link.Connect(wire)
	wire.Connect(link)
	s := stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol, arp.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.CreateNIC(1, link); err != nil {
		return errors.New(err.String())
	}
	for _, address := range []tcpip.ProtocolAddress{
		{Protocol: ipv4.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom4(gateway.As4()).WithPrefix()},
		{Protocol: ipv6.ProtocolNumber, AddressWithPrefix: tcpip.AddrFrom16(network.UplinkGateway6().As16()).WithPrefix()},
	} {
		if err := s.AddProtocolAddress(1, address, stack.AddressProperties{}); err != nil {
			return errors.New(err.String())
		}
	}
	if err := s.AddStaticNeighbor(1, ipv6.ProtocolNumber, tcpip.AddrFrom16(network.UplinkAddress6().As16()), tcpip.LinkAddress(network.UplinkMAC())); err != nil {
		return errors.New(err.String())
	}
	// Every address is ours, so that connections to any of them come to the forwarders.
	s.SetSpoofing(1, true)
	s.SetPromiscuousMode(1, true)
	s.SetRouteTable([]tcpip.Route{{Destination: header.IPv4EmptySubnet, NIC: 1}, {Destination: header.IPv6EmptySubnet, NIC: 1}})
	var nat sync.Mutex // of a table that stays empty
	none := map[tcpip.Address]tcpip.Address{}
	s.SetTransportProtocolHandler(tcp.ProtocolNumber, forwarder.TCP(s, none, &nat, false).HandlePacket)
	s.SetTransportProtocolHandler(udp.ProtocolNumber, forwarder.UDP(s, none, &nat, false).HandlePacket)
	// Raw frames, one at a time, are what the protocol of that name carries.
	return wire.Accept(context.Background(), frames{os.NewFile(tapFD, "tap")}, types.BessProtocol)
}

// frames is a tap device as a connection: each read and each write is a frame.
type frames struct{ *os.File }

func (frames) LocalAddr() net.Addr                  { return &net.UnixAddr{Name: "tap"} }
func (frames) RemoteAddr() net.Addr                 { return &net.UnixAddr{Name: "tap"} }
func (f frames) SetDeadline(t time.Time) error      { return f.File.SetDeadline(t) }
func (f frames) SetReadDeadline(t time.Time) error  { return f.File.SetReadDeadline(t) }
func (f frames) SetWriteDeadline(t time.Time) error { return f.File.SetWriteDeadline(t) }
