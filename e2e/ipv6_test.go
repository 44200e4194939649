package e2e

import (
	"encoding/json"
	"os/exec"
	"regexp"
	"strings"
	"testing"
)

// The addresses of IPv6 of the machine and of the one beyond it.
const (
	hostAddress6    = "2001:db8::1"
	outsideAddress6 = "2001:db8::2"
)

// TestIPv6 has containers on networks with IPv6 talk to one another, to the machine, and to what is beyond.
func TestIPv6(t *testing.T) {
	for _, kind := range networkKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			n := newNetworked(t, kind)
			for ns, script := range map[string]string{
				n.host:    "ip addr add " + hostAddress6 + "/64 dev eth0 nodad; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
				n.outside: "ip addr add " + outsideAddress6 + "/64 dev wire nodad",
			} {
				if r := run(t, inside(ns, exec.Command("sh", "-euc", script))); r.code != 0 {
					t.Fatalf("setting up IPv6: %+v", r)
				}
			}
			testIPv6(t, n)
		})
	}
}

func testIPv6(t *testing.T, n *networked) {
	n.serveOutside(t, "80")
	n.must(t, "network", "create", "--ipv6", "--subnet", "10.77.0.0/24", "--subnet", "fd77::/64", "web")
	n.must(t, "network", "create", "--ipv6", "other") // with a subnet that is chosen
	n.must(t, "network", "create", "--ipv6", "--internal", "--subnet", "fd79::/64", "closed")
	n.must(t, "network", "create", "four")
	n.serve(t, "a", "--network", "web", "--ip6", "fd77::a", "-p", "8080:80", "-p", "8053:53/udp", "-p", "0.0.0.0:8084:80", "-p", "[::]:8086:80")
	n.serve(t, "b", "--network", "web")
	n.serve(t, "c", "--network", "other", "-p", "8090:80")
	n.serve(t, "d", "--network", "closed")
	n.serve(t, "e", "--network", "four", "-p", "8094:80")

	// The published ports of an ordinary user hide the client.
	out, around, client := ` \[`+hostAddress6+`\]:`, `^a `, `^a \[`+outsideAddress6+`\]:`
	if n.uid != 0 {
		client = `^a `
	}
	tests := []struct {
		about, where string
		args         []string
		want         string // a regular expression; "" if there must be no answer
	}{
		{"by address", "b", []string{"ask", "[fd77::a]:80"}, `^a \[fd77::3\]:`},
		{"by UDP", "b", []string{"ask-udp", "[fd77::a]:53"}, `^a \[fd77::3\]:`},
		{"by name, of either kind", "b", []string{"ask", "a:80"}, `^a `},
		{"itself", "a", []string{"ask", "[fd77::a]:80"}, `^a \[fd77::a\]:`},
		{"another network's address", "c", []string{"ask", "[fd77::a]:80"}, ``},
		{"another network's published port", "c", []string{"ask", "[" + hostAddress6 + "]:8080"}, around},
		{"its own published port", "a", []string{"ask", "[fd77::1]:8080"}, `^a `},
		{"a network without IPv6", "e", []string{"ask", "[fd77::a]:80"}, ``},
		{"out", "b", []string{"ask", "[" + outsideAddress6 + "]:80"}, out},
		{"out, from an internal network", "d", []string{"ask", "[" + outsideAddress6 + "]:80"}, ``},
		{"published, here", "host", []string{"ask", "[::1]:8080"}, `^a `},
		{"published, here by IPv4", "host", []string{"ask", "127.0.0.1:8080"}, `^a `},
		{"published, here by UDP", "host", []string{"ask-udp", "[::1]:8053"}, `^a `},
		{"published, at the machine's address", "host", []string{"ask", "[" + hostAddress6 + "]:8080"}, `^a `},
		{"published, from outside", "outside", []string{"ask", "[" + hostAddress6 + "]:8080"}, client},
		{"published, from outside by UDP", "outside", []string{"ask-udp", "[" + hostAddress6 + "]:8053"}, client},
		{"published for IPv4 only", "outside", []string{"ask", "[" + hostAddress6 + "]:8084"}, ``},
		{"published for IPv4 only, by that", "outside", []string{"ask", hostAddress + ":8084"}, `^a `},
		{"published for IPv6 only", "outside", []string{"ask", "[" + hostAddress6 + "]:8086"}, client},
		{"published for IPv6 only, by IPv4", "outside", []string{"ask", hostAddress + ":8086"}, ``},
		{"published from a network without IPv6", "outside", []string{"ask", "[" + hostAddress6 + "]:8094"}, `^e `},
	}
	for _, test := range tests {
		if test.want == "" {
			test.args = append(test.args, soon)
		}
		r := n.ask(t, test.where, test.args...)
		switch {
		case test.want == "" && (r.code == 0 || r.stdout != ""):
			t.Errorf("%s: from %s, %q is answered: %q", test.about, test.where, test.args, r.stdout)
		case test.want != "" && (r.code != 0 || !regexp.MustCompile(test.want).MatchString(r.stdout)):
			t.Errorf("%s: from %s, %q gives %d %q %q, want %q", test.about, test.where, test.args, r.code, r.stdout, r.stderr, test.want)
		}
	}
	if got := n.must(t, "exec", "b", "nslookup", "-type=AAAA", "a"); !strings.Contains(got, "fd77::a") {
		t.Errorf("AAAA: %s", got)
	}
	if got := n.must(t, "exec", "b", "nslookup", "fd77::a"); !strings.Contains(got, "name = a.web") {
		t.Errorf("the name of an address: %s", got)
	}
	if got := n.must(t, "exec", "b", "cat", "/etc/hosts"); !strings.Contains(got, "fd77::3\tb\n") {
		t.Errorf("/etc/hosts: %s", got)
	}
	var networks []struct {
		EnableIPv6 bool
		IPAM       struct{ Config []map[string]string }
		Containers map[string]struct{ Name, IPv6Address string }
	}
	if err := json.Unmarshal([]byte(n.must(t, "network", "inspect", "web", "other", "four")), &networks); err != nil || len(networks) != 3 {
		t.Fatalf("network inspect: %v", err)
	}
	if web := networks[0]; !web.EnableIPv6 || len(web.IPAM.Config) != 2 || web.IPAM.Config[1]["Subnet"] != "fd77::/64" || web.IPAM.Config[1]["Gateway"] != "fd77::1" {
		t.Errorf("network inspect: %+v", web)
	}
	if other := networks[1]; !other.EnableIPv6 || len(other.IPAM.Config) != 2 || !regexp.MustCompile(`^fd..:.*::/64$`).MatchString(other.IPAM.Config[1]["Subnet"]) {
		t.Errorf("a subnet that was chosen: %+v", other)
	}
	if networks[2].EnableIPv6 || len(networks[2].IPAM.Config) != 1 {
		t.Errorf("a network without IPv6: %+v", networks[2])
	}
	if got := n.must(t, "inspect", "-f", "{{.NetworkSettings.Networks.web.GlobalIPv6Address}}/{{.NetworkSettings.Networks.web.GlobalIPv6PrefixLen}} {{.NetworkSettings.Networks.web.IPv6Gateway}}", "a"); got != "fd77::a/64 fd77::1\n" {
		t.Errorf("inspect: %q", got)
	}
	n.must(t, "network", "connect", "--ip6", "fd77::b", "web", "c")
	if r := n.ask(t, "c", "ask", "[fd77::a]:80"); !strings.HasPrefix(r.stdout, "a [fd77::b]:") {
		t.Errorf("after connect: %+v", r)
	}
	n.must(t, "network", "disconnect", "web", "c")
	for about, test := range map[string]struct {
		words []string
		args  []string
	}{
		"an address in use":    {[]string{"fd77::a", "in use by container a"}, []string{"run", "--rm", "--network", "web", "--ip6", "fd77::a", "peer", "true"}},
		"a foreign address":    {[]string{"fd78::a", "fd77::/64"}, []string{"run", "--rm", "--network", "web", "--ip6", "fd78::a", "peer", "true"}},
		"an address of IPv4":   {[]string{"--ip6", "not of IPv6"}, []string{"run", "--rm", "--network", "web", "--ip6", "10.77.0.9", "peer", "true"}},
		"one without IPv6":     {[]string{"--ipv6"}, []string{"run", "--rm", "--network", "four", "--ip6", "fd77::9", "peer", "true"}},
		"a subnet in use":      {[]string{"overlaps"}, []string{"network", "create", "--subnet", "fd77::/32", "more"}},
		"two subnets":          {[]string{"one of IPv6"}, []string{"network", "create", "--subnet", "fd01::/64", "--subnet", "fd02::/64", "more"}},
		"a gateway without":    {[]string{"needs a --subnet"}, []string{"network", "create", "--gateway", "fd01::1", "more"}},
		"a subnet too small":   {[]string{"fewer addresses"}, []string{"network", "create", "--subnet", "fd01::/120", "more"}},
		"multicast":            {[]string{"ff02::/64"}, []string{"network", "create", "--subnet", "ff02::/64", "more"}},
		"a range of addresses": {[]string{"follow from those of IPv4"}, []string{"network", "create", "--ipv6", "--ip-range", "fd01::/80", "more"}},
	} {
		if r := n.try(t, test.args...); r.code == 0 || !containsAll(r.stderr, test.words) {
			t.Errorf("%s: %+v", about, r)
		}
	}
}
