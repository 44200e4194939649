package network

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// The subnets of networks that ask for none: 64 of 4,094 addresses each, in a part of 10.0.0.0/8 that neither Docker
// (172.17.0.0/16 and on, 192.168.0.0/16) nor podman (10.88.0.0/16 and on, to 10.255.0.0/16 for many) begins with.
func poolSubnets() (pool []netip.Prefix) {
	for second := byte(210); second < 214; second++ {
		for third := 0; third < 256; third += 16 {
			pool = append(pool, netip.PrefixFrom(netip.AddrFrom4([4]byte{10, second, byte(third), 0}), 20))
		}
	}
	return pool
}

// chooseSubnet returns the first subnet of the pool that overlaps none of those that are taken.
func chooseSubnet(taken []netip.Prefix) (netip.Prefix, error) {
	for _, candidate := range poolSubnets() {
		if overlapped(candidate, taken) == (netip.Prefix{}) {
			return candidate, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("every subnet of the pool is in use: give one by --subnet")
}

// overlapped returns one of taken that has addresses in common with p.
func overlapped(p netip.Prefix, taken []netip.Prefix) netip.Prefix {
	for _, t := range taken {
		if p.Overlaps(t) {
			return t
		}
	}
	return netip.Prefix{}
}

func lastAddress(p netip.Prefix) netip.Addr {
	a := p.Addr().As4()
	n := binary.BigEndian.Uint32(a[:]) | (1<<(32-p.Bits()) - 1)
	binary.BigEndian.PutUint32(a[:], n)
	return netip.AddrFrom4(a)
}

// allocate chooses an address for a container, or checks the one that it wants. The caller has the network's lock.
//
// Addresses are given out in turn, not the lowest free one: the kernel takes its time to take apart a network namespace
// and would for a moment answer for an address in two places. The file "last" says whose turn it is; without it, it is
// the first one's.
func (n *Network) allocate(want netip.Addr, endpoints []*Endpoint) (netip.Addr, error) {
	used := n.used(endpoints)
	if want.IsValid() {
		if !n.Subnet.Contains(want) || want == n.Subnet.Addr() || want == lastAddress(n.Subnet) {
			return want, fmt.Errorf("%s is no host's address of the subnet %s", want, n.Subnet)
		}
		if who := used[want]; who != "" {
			return want, fmt.Errorf("the address %s is in use by %s", want, who)
		}
		return want, nil
	}
	from := n.Subnet
	if n.Range.IsValid() {
		from = n.Range
	}
	data, _ := os.ReadFile(n.path("last"))
	last, err := netip.ParseAddr(strings.TrimSpace(string(data)))
	if err != nil || !from.Contains(last) {
		last = lastAddress(from)
	}
	for a := next(last, from); ; a = next(a, from) {
		if used[a] == "" && a != n.Subnet.Addr() && a != lastAddress(n.Subnet) {
			_ = os.WriteFile(n.path("last"), []byte(a.String()+"\n"), 0o600)
			return a, nil
		}
		if a == last {
			return a, fmt.Errorf("every address of %s is in use", from)
		}
	}
}

// next is the address after a, in a circle.
func next(a netip.Addr, within netip.Prefix) netip.Addr {
	if a = a.Next(); within.Contains(a) {
		return a
	}
	return within.Addr()
}
