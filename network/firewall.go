package network

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Each network has an nftables table of its own, named like its bridge. It is made anew, in one transaction, whenever a
// container with ports comes or goes: what is there always follows from the endpoints, whatever was cut short before.
// What "nft list table ip NAME" then shows is
//
//	chain raw         { hook prerouting, priority raw
//	                    iifname BRIDGE ip daddr 127.0.0.0/8 drop }
//	chain prerouting  { hook prerouting, priority dstnat
//	                    fib daddr type local jump ports }
//	chain output      { hook output, priority dstnat
//	                    fib daddr type local jump ports }
//	chain ports       { [ip daddr ADDRESS] tcp dport PORT dnat to CONTAINER:PORT ... }
//	chain postrouting { hook postrouting, priority srcnat
//	                    oifname BRIDGE ip saddr 127.0.0.0/8 masquerade
//	                    oifname BRIDGE ip saddr SUBNET ct status dnat masquerade     a container by its own published port
//	                    oifname != BRIDGE ip saddr SUBNET masquerade }
//	chain forward     { hook forward, priority filter
//	                    oifname BRIDGE iifname BRIDGE accept
//	                    oifname BRIDGE ct state established,related accept
//	                    oifname BRIDGE ct status dnat accept
//	                    oifname BRIDGE drop }
//
// An internal network has no masquerading, and drops what would leave it. A network with IPv6 has a table of the same name and content
// for that, "nft list table ip6 NAME", without the first rule of postrouting, and whose jumps leave ::1 out; see ipv6.go.

// ErrNoFirewall is wrapped by the errors of a kernel without nftables.
var ErrNoFirewall = errors.New("the kernel has no nftables")

func (n *Network) table(family nftables.TableFamily) *nftables.Table {
	return &nftables.Table{Family: family, Name: n.Bridge}
}

// writeRules makes the network's table anew. The caller has the network's lock.
func (n *Network) writeRules(endpoints []*Endpoint) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("writing the firewall's rules: %w", err)
	}
	for _, family := range n.families() {
		// Added first, since what isn't there can't be deleted.
		c.AddTable(n.table(family))
		c.DelTable(n.table(family))
		n.addRules(c, family, endpoints)
	}
	return flush(c)
}

// families are those of a network's addresses.
func (n *Network) families() []nftables.TableFamily {
	if n.IPv6 {
		return []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6}
	}
	return []nftables.TableFamily{nftables.TableFamilyIPv4}
}

// removeRules removes the network's tables, if there are any.
func (n *Network) removeRules() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("removing the firewall's rules: %w", err)
	}
	for _, family := range n.families() {
		c.AddTable(n.table(family))
		c.DelTable(n.table(family))
	}
	return flush(c)
}

func flush(c *nftables.Conn) error {
	err := c.Flush()
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT), errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("writing the firewall's rules: %w, or not address translation (nft_nat, nft_masq, nft_fib): %w", ErrNoFirewall, err)
	case err != nil:
		return fmt.Errorf("writing the firewall's rules: %w", explain(err))
	}
	return nil
}

func (n *Network) addRules(c *nftables.Conn, family nftables.TableFamily, endpoints []*Endpoint) {
	table := c.AddTable(n.table(family))
	chain := func(name string, kind nftables.ChainType, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
		return c.AddChain(&nftables.Chain{Table: table, Name: name, Type: kind, Hooknum: hook, Priority: priority})
	}
	add := func(chain *nftables.Chain, parts ...[]expr.Any) {
		rule := &nftables.Rule{Table: table, Chain: chain}
		for _, p := range parts {
			rule.Exprs = append(rule.Exprs, p...)
		}
		c.AddRule(rule)
	}
	loopback, subnet := netip.MustParsePrefix("127.0.0.0/8"), n.Subnet
	if family == nftables.TableFamilyIPv6 {
		loopback, subnet = netip.MustParsePrefix("::1/128"), n.Subnet6
	}
	is6 := subnet.Addr().Is6()
	in, out := interfaceIs(expr.MetaKeyIIFNAME, n.Bridge), interfaceIs(expr.MetaKeyOIFNAME, n.Bridge)

	raw := chain("raw", nftables.ChainTypeFilter, nftables.ChainHookPrerouting, nftables.ChainPriorityRaw)
	// A container that makes its own packets must not reach what listens on the host's loopback only (CVE-2020-8558).
	add(raw, in, daddrIn(loopback), verdict(expr.VerdictDrop))

	forward := chain("forward", nftables.ChainTypeFilter, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	add(forward, out, in, verdict(expr.VerdictAccept))
	if n.Internal {
		add(forward, out, verdict(expr.VerdictDrop))
		add(forward, in, verdict(expr.VerdictDrop))
		return
	}
	add(forward, out, stateIs(expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED), verdict(expr.VerdictAccept))
	add(forward, out, wasTranslated(), verdict(expr.VerdictAccept))
	add(forward, out, verdict(expr.VerdictDrop))

	postrouting := chain("postrouting", nftables.ChainTypeNAT, nftables.ChainHookPostrouting, nftables.ChainPriorityNATSource)
	masquerade := []expr.Any{&expr.Masq{}}
	if !is6 {
		add(postrouting, out, saddrIn(loopback), masquerade)
	}
	add(postrouting, out, saddrIn(subnet), wasTranslated(), masquerade)
	add(postrouting, interfaceIsNot(expr.MetaKeyOIFNAME, n.Bridge), saddrIn(subnet), masquerade)

	if n.store.Inner && !is6 {
		n.addTransparentRules(c, table)
	}
	ports := c.AddChain(&nftables.Chain{Table: table, Name: "ports"})
	jump := []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: ports.Name}}
	local := toLocal()
	if is6 {
		local = append(local, notTo(loopback.Addr())...)
	}
	if !is6 || forwards6() {
		add(chain("prerouting", nftables.ChainTypeNAT, nftables.ChainHookPrerouting, nftables.ChainPriorityNATDest), local, jump)
	}
	add(chain("output", nftables.ChainTypeNAT, nftables.ChainHookOutput, nftables.ChainPriorityNATDest), local, jump)
	for _, e := range endpoints {
		for _, p := range e.Ports {
			if p.HostAddress.IsValid() && p.HostAddress.Is6() != is6 {
				continue // the other table's, or the proxy's
			}
			var where []expr.Any
			if p.HostAddress.IsValid() && !p.HostAddress.IsUnspecified() {
				where = daddrIn(netip.PrefixFrom(p.HostAddress, p.HostAddress.BitLen()))
			}
			to := e.Address
			if is6 {
				to = e.Address6
			}
			add(ports, where, portIs(p), translateTo(to, p.Port))
		}
	}
}

// Pieces of rules. Register 1 is used by all; each piece is done with it when the next begins.

func interfaceIs(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: interfaceData(name)}}
}

func interfaceIsNot(key expr.MetaKey, name string) []expr.Any {
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: interfaceData(name)}}
}

func interfaceData(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}

func saddrIn(p netip.Prefix) []expr.Any {
	if p.Addr().Is6() {
		return addressIn(8, p)
	}
	return addressIn(12, p)
}

func daddrIn(p netip.Prefix) []expr.Any {
	if p.Addr().Is6() {
		return addressIn(24, p)
	}
	return addressIn(16, p)
}

// addressIn compares the address at an offset in the header.
func addressIn(offset uint32, p netip.Prefix) []expr.Any {
	mask := ipNet(p).Mask
	size := uint32(len(mask))
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

// notTo: the destination is another address of IPv6.
func notTo(a netip.Addr) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 24, Len: 16},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: a.AsSlice()},
	}
}

func toLocal() []expr.Any {
	return []expr.Any{
		&expr.Fib{Register: 1, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func stateIs(bits uint32) []expr.Any { return ctHas(expr.CtKeySTATE, bits) }

// wasTranslated: the connection's destination is not what its first packet said (IPS_DST_NAT,
// linux/netfilter/nf_conntrack_common.h).
func wasTranslated() []expr.Any { return ctHas(expr.CtKeySTATUS, 1<<5) }

func ctHas(key expr.CtKey, bits uint32) []expr.Any {
	return []expr.Any{
		&expr.Ct{Register: 1, Key: key},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// portIs compares protocol and destination port.
func portIs(p Port) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p.protocolNumber()}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(p.HostPort)},
	}
}

func translateTo(a netip.Addr, port uint16) []expr.Any {
	family := uint32(unix.NFPROTO_IPV4)
	if a.Is6() {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: a.AsSlice()},
		&expr.Immediate{Register: 2, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1, RegProtoMin: 2, Specified: true},
	}
}

func verdict(kind expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: kind}} }
