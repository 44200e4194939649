package network

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
)

// writeFiles writes the container's hosts and resolv.conf for the networks that it is on. They are written in place, since
// they are mounted, and may have been changed inside since: as with Docker, that is lost when the networks change.
func (a *Attachment) writeFiles() error {
	if a.container.Hosts != "" {
		if err := os.WriteFile(a.container.Hosts, []byte(a.hostsFile()), 0o644); err != nil {
			return fmt.Errorf("writing the container's /etc/hosts: %w", err)
		}
	}
	if a.container.ResolvConf != "" {
		if err := os.WriteFile(a.container.ResolvConf, []byte(a.resolvConf()), 0o644); err != nil {
			return fmt.Errorf("writing the container's /etc/resolv.conf: %w", err)
		}
	}
	return nil
}

func (a *Attachment) hostsFile() string {
	var b strings.Builder
	b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n")
	for _, line := range a.plan.Hosts {
		if name, ok := strings.CutPrefix(line, HostGateway+"\t"); ok {
			line = a.gateway().String() + "\t" + name
		}
		b.WriteString(line + "\n")
	}
	for _, j := range a.joined {
		fmt.Fprintf(&b, "%s\t%s\n", j.endpoint.Address, a.container.Hostname)
		if j.endpoint.Address6.IsValid() {
			fmt.Fprintf(&b, "%s\t%s\n", j.endpoint.Address6, a.container.Hostname)
		}
	}
	return b.String()
}

// gateway is where the host is.
func (a *Attachment) gateway() netip.Addr {
	for _, j := range a.joined {
		if !j.Internal {
			return j.Gateway
		}
	}
	if len(a.joined) > 0 {
		return a.joined[0].Gateway
	}
	return netip.AddrFrom4([4]byte{127, 0, 0, 1})
}

func (a *Attachment) resolvConf() string {
	_, search, options := hostServers()
	if len(a.plan.Search) > 0 {
		search = a.plan.Search
	}
	if len(a.plan.Options) > 0 {
		options = a.plan.Options
	}
	// The machine's own resolver may be one that knows more than ours.
	options = slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == "trust-ad" || o == "edns0" })
	if !slices.ContainsFunc(options, func(o string) bool { return strings.HasPrefix(o, "ndots:") }) {
		options = append(options, "ndots:0") // a container's name is asked for as it is
	}
	text := "nameserver " + resolverAddress + "\n"
	if len(search) > 0 && !slices.Equal(search, []string{"."}) {
		text += "search " + strings.Join(search, " ") + "\n"
	}
	return text + "options " + strings.Join(options, " ") + "\n"
}
