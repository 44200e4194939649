package network

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Port is a published port: what comes to a port of the host goes on to one of the container.
type Port struct {
	HostAddress netip.Addr `json:"hostAddress,omitzero"` // all of the host's if zero
	HostPort    uint16     `json:"hostPort"`             // 0 for one that is free
	Port        uint16     `json:"port"`                 // the container's
	Protocol    string     `json:"protocol"`             // "tcp" or "udp"
}

func (p Port) protocolNumber() byte {
	if p.Protocol == "udp" {
		return unix.IPPROTO_UDP
	}
	return unix.IPPROTO_TCP
}

// String is the container's side, as in "80/tcp".
func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Port, p.Protocol) }

// Host is the host's side, as in "0.0.0.0:8080".
func (p Port) Host() string {
	a := p.HostAddress
	if !a.IsValid() {
		a = netip.IPv4Unspecified()
	}
	return netip.AddrPortFrom(a, p.HostPort).String()
}

// ParsePort reads [ADDRESS:][HOST-PORT:]PORT[/tcp|udp]. Ports may be ranges of equal length, FIRST-LAST; without a host port
// a free one is taken when the container starts.
func ParsePort(value string) ([]Port, error) {
	wrong := func(why string) ([]Port, error) {
		return nil, fmt.Errorf("%q: %s; want [ADDRESS:][HOST-PORT:]PORT[/udp]", value, why)
	}
	rest, protocol, _ := strings.Cut(value, "/")
	switch protocol = strings.ToLower(protocol); protocol {
	case "":
		protocol = "tcp"
	case "tcp", "udp":
	default:
		return wrong("known protocols are tcp and udp")
	}
	host, inside := "", rest
	if at := strings.LastIndexByte(rest, ':'); at >= 0 {
		host, inside = rest[:at], rest[at+1:]
	}
	var address netip.Addr
	if at := strings.LastIndexByte(host, ':'); at >= 0 {
		var err error
		if address, err = netip.ParseAddr(strings.Trim(host[:at], "[]")); err != nil {
			return wrong(fmt.Sprintf("%q is no IP address", host[:at]))
		}
		host = host[at+1:]
	}
	first, last, err := portRange(inside)
	if err != nil {
		return wrong(err.Error())
	}
	hostFirst, hostLast := uint16(0), uint16(0)
	if host != "" {
		if hostFirst, hostLast, err = portRange(host); err != nil {
			return wrong(err.Error())
		}
		if hostLast-hostFirst != last-first {
			return wrong("the ranges have not the same length")
		}
	}
	var ports []Port
	for i := uint16(0); ; i++ {
		p := Port{HostAddress: address, Port: first + i, Protocol: protocol}
		if host != "" {
			p.HostPort = hostFirst + i
		}
		ports = append(ports, p)
		if first+i == last {
			return ports, nil
		}
	}
}

// portRange reads N or FIRST-LAST.
func portRange(s string) (first, last uint16, err error) {
	a, b, isRange := strings.Cut(s, "-")
	if first, err = portNumber(a); err != nil || !isRange {
		return first, first, err
	}
	if last, err = portNumber(b); err == nil && last < first {
		err = fmt.Errorf("the range %s is empty", s)
	}
	return first, last, err
}

func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is no port number", s)
	}
	return uint16(n), nil
}
