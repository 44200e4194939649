package network

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What comes to a published port of an ordinary user is passed on by the supervisor. So that the container sees the client's
// address, the supervisor's socket towards it takes on that address (IP_TRANSPARENT, ip(7)), which it may in the inner network
// namespace. The answers are for an address that isn't there; they are led back to the socket by a mark:
//
//	chain marked   { hook output, priority mangle
//	                 meta mark OURS ct mark set OURS }
//	chain answered { hook prerouting, priority mangle
//	                 iifname BRIDGE ct mark OURS meta mark set ANSWER }
//	ip rule        fwmark ANSWER lookup TABLE;  ip route add local default dev lo table TABLE
const (
	markOurs         = 0x756e01
	markAnswer       = 0x756e02
	transparentTable = 0x756e
)

// routeAnswers makes rule and route in the inner network namespace.
func routeAnswers(inner *os.File) error {
	h, err := netlinkIn(inner)
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err != nil {
		return err
	}
	rule := netlink.NewRule()
	rule.Family, rule.Mark, rule.Table = unix.AF_INET, markAnswer, transparentTable
	if err := h.RuleAdd(rule); err != nil {
		return fmt.Errorf("adding a routing rule: %w", err)
	}
	return h.RouteAdd(&netlink.Route{
		LinkIndex: lo.Attrs().Index, Table: transparentTable, Type: unix.RTN_LOCAL, Scope: unix.RT_SCOPE_HOST,
		Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)),
	})
}

func (n *Network) addTransparentRules(c *nftables.Conn, table *nftables.Table) {
	hooks := map[string]*nftables.ChainHook{"marked": nftables.ChainHookOutput, "answered": nftables.ChainHookPrerouting}
	rules := map[string][]expr.Any{
		"marked": {
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(markOurs)},
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true},
		},
		"answered": append(interfaceIs(expr.MetaKeyIIFNAME, n.Bridge),
			&expr.Ct{Key: expr.CtKeyMARK, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(markOurs)},
			&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint32(markAnswer)},
			&expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true},
		),
	}
	for name, exprs := range rules {
		chain := c.AddChain(&nftables.Chain{Table: table, Name: name, Type: nftables.ChainTypeFilter, Hooknum: hooks[name], Priority: nftables.ChainPriorityMangle})
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
	}
}

// dialAs connects to a container as the client, if it has an address that can be one of the outside.
func dialAs(ctx context.Context, network string, client net.Addr, target netip.AddrPort) (net.Conn, error) {
	d := net.Dialer{Timeout: dialTimeout}
	from, err := netip.ParseAddrPort(client.String())
	if a := from.Addr().Unmap(); err == nil && a.Is4() && !a.IsLoopback() && !a.IsUnspecified() {
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: a.AsSlice()}
		} else {
			d.LocalAddr = &net.TCPAddr{IP: a.AsSlice()}
		}
		d.Control = func(_, _ string, c syscall.RawConn) (err error) {
			cerr := c.Control(func(fd uintptr) {
				if err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1); err == nil {
					err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, markOurs)
				}
			})
			if cerr != nil {
				return cerr
			}
			return err
		}
	}
	return d.DialContext(ctx, network, target.String())
}
