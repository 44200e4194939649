package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"unionfs/internal/testimage"
)

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// networked is a caller on a machine of the test's own, with an image "peer".
type networked struct {
	*caller
	*lan
}

func newNetworked(t *testing.T, kind string) *networked {
	t.Helper()
	n := &networked{caller: newCaller(t, kind), lan: newLAN(t)}
	n.caller.netns = n.host
	tar := filepath.Join(n.home, "peer.tar")
	if err := os.WriteFile(tar, testimage.Tar(t, peerFiles(t)...), 0o644); err != nil {
		t.Fatal(err)
	}
	n.must(t, "import", tar, "peer")
	t.Cleanup(func() {
		for _, id := range strings.Fields(n.must(t, "ps", "-aq")) {
			n.try(t, "rm", "-f", id)
		}
		// The last one's bridge goes a second later.
		waitFor(t, func() bool { return len(n.left(t)) == 0 })
	})
	return n
}

// serve starts a container that answers on port 80 and 53, by TCP and UDP.
func (n *networked) serve(t *testing.T, name string, flags ...string) {
	t.Helper()
	n.must(t, slices.Concat([]string{"run", "-d", "--name", name, "--hostname", name}, flags, []string{"peer", "peer", "serve", "80", "53"})...)
	waitFor(t, func() bool { return n.try(t, "logs", name).stdout == "ready\n" })
}

// soon, behind what is asked of the peer, is for answers that must not come, in seconds.
const soon = "5"

// ask runs the peer on the machine, outside, or in a running container, and returns what it prints.
func (n *networked) ask(t *testing.T, where string, args ...string) result {
	t.Helper()
	switch where {
	case "host":
		return run(t, inside(n.host, exec.Command(peerProgram(t), args...)))
	case "outside":
		return run(t, inside(n.outside, exec.Command(peerProgram(t), args...)))
	}
	return n.try(t, slices.Concat([]string{"exec", where, "peer"}, args)...)
}

// TestNetwork has containers on two networks talk to one another, to the machine, and to what is beyond.
func TestNetwork(t *testing.T) {
	for _, kind := range networkKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			testNetwork(t, newNetworked(t, kind))
		})
	}
}

// networkKinds are the callers who have networks.
var networkKinds = []string{"root", "user with subordinate IDs", "user without subordinate IDs"}

func testNetwork(t *testing.T, n *networked) {
	n.serveOutside(t, "80")

	n.must(t, "network", "create", "--subnet", "10.77.0.0/24", "--ip-range", "10.77.0.128/25", "--label", "of=test", "web")
	n.must(t, "network", "create", "other")
	n.must(t, "network", "create", "--internal", "closed")
	n.serve(t, "a", "--network", "web", "--network-alias", "alias", "--ip", "10.77.0.5", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8053:53/udp", "-p", "80")
	n.serve(t, "b", "--network", "web", "--mac-address", "02:00:00:00:00:99", "--dns-search", "example.org", "--add-host", "machine:host-gateway")
	n.serve(t, "c", "--network", "other", "-p", "8090:80")
	n.serve(t, "d", "--network", "closed")
	n.serve(t, "e", "--network", "bridge")
	var free string // the port that was chosen
	for address := range strings.FieldsSeq(n.must(t, "port", "a", "80")) {
		if _, port, _ := strings.Cut(address, ":"); port != "8080" && port != "8081" {
			free = port
		}
	}

	tests := []struct {
		about, where string
		args         []string
		want         string // a regular expression; "" if there must be no answer
	}{
		{"by name", "b", []string{"ask", "a:80"}, `^a 10\.77\.0\.128:`},
		{"by alias", "b", []string{"ask", "alias:80"}, `^a `},
		{"by name and network", "b", []string{"ask", "A.web:80"}, `^a `},
		{"by address", "b", []string{"ask", "10.77.0.5:80"}, `^a `},
		{"by UDP", "b", []string{"ask-udp", "a:53"}, `^a `},
		{"itself", "a", []string{"ask", "a:80"}, `^a 10\.77\.0\.5:`},
		{"another network's name", "c", []string{"ask", "a:80"}, ``},
		{"another network's address", "c", []string{"ask", "10.77.0.5:80"}, ``},
		{"another network's published port", "c", []string{"ask", hostAddress + ":8080"}, `^a `},
		{"no names on the default network", "e", []string{"ask", "e:80"}, `^e 10\.\d+\.\d+\.\d+:`}, // by /etc/hosts
		{"no names of the default network", "b", []string{"ask", "e:80"}, ``},
		{"its own published port", "a", []string{"ask", hostAddress + ":8080"}, `^a `},
		{"the host gateway", "b", []string{"ask", "machine:8090"}, `^c `},
		{"out, as the machine", "b", []string{"ask", outsideAddress + ":80"}, ` ` + hostAddress + `:`},
		{"out, from the default network", "e", []string{"ask", outsideAddress + ":80"}, ` ` + hostAddress + `:`},
		{"out, from an internal network", "d", []string{"ask", outsideAddress + ":80"}, ``},
		{"published, here", "host", []string{"ask", "127.0.0.1:8080"}, `^a `},
		{"published, here by IPv6", "host", []string{"ask", "[::1]:8080"}, `^a `},
		{"published, here by UDP", "host", []string{"ask-udp", "127.0.0.1:8053"}, `^a `},
		{"published, for this machine", "host", []string{"ask", "127.0.0.1:8081"}, `^a `},
		{"published, at the machine's address", "host", []string{"ask", hostAddress + ":8080"}, `^a `},
		{"published on a free port", "host", []string{"ask", hostAddress + ":" + free}, `^a `},
		{"published, with the client's address", "outside", []string{"ask", hostAddress + ":8080"}, `^a ` + outsideAddress + `:`},
		{"published, with the client's address by UDP", "outside", []string{"ask-udp", hostAddress + ":8053"}, `^a ` + outsideAddress + `:`},
		{"published for the machine only", "outside", []string{"ask", hostAddress + ":8081"}, ``},
		{"not published", "host", []string{"ask", "127.0.0.1:53"}, ``},
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
	// A container's packets don't reach the containers of a network that the outside sends them to.
	if r := n.try(t, "run", "--rm", "--network", "container:a", "peer", "peer", "ask", "127.0.0.1:80"); r.stdout == "" || !strings.HasPrefix(r.stdout, "a 127.0.0.1:") {
		t.Errorf("container:a: %+v", r)
	}
	if got := n.must(t, "exec", "b", "cat", "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/sys/class/net/eth0/address"); !regexp.MustCompile(`(?s)10\.77\.0\.129\tmachine\n10\.77\.0\.128\tb\n.*nameserver 127\.0\.0\.11\nsearch example\.org\n.*\nb\n02:00:00:00:00:99\n$`).MatchString(got) {
		t.Errorf("files of b: %s", got)
	}
	if got := n.must(t, "exec", "b", "nslookup", "10.77.0.5"); !strings.Contains(got, "name = a.web") {
		t.Errorf("the name of an address: %s", got)
	}
	n.checkListings(t)
	n.checkChanges(t)
	n.checkRefusals(t)
}

func (n *networked) checkListings(t *testing.T) {
	t.Helper()
	var networks []struct {
		Name, Driver string
		Internal     bool
		IPAM         struct {
			Config []map[string]string
		}
		Containers map[string]struct{ Name, IPv4Address, MacAddress string }
		Labels     map[string]string
	}
	if err := json.Unmarshal([]byte(n.must(t, "network", "inspect", "web", "closed")), &networks); err != nil || len(networks) != 2 {
		t.Fatalf("network inspect: %v, %+v", err, networks)
	}
	web := networks[0]
	if web.IPAM.Config[0]["IPRange"] != "10.77.0.128/25" || web.IPAM.Config[0]["Gateway"] != "10.77.0.129" || len(web.Containers) != 2 || web.Labels["of"] != "test" || !networks[1].Internal {
		t.Errorf("network inspect: %+v", networks)
	}
	if got := n.must(t, "network", "ls", "--filter", "label=of", "--format", "json"); !strings.Contains(got, `"Name":"web"`) || strings.Count(got, "\n") != 1 {
		t.Errorf("network ls: %s", got)
	}
	if got := n.must(t, "ps"); !strings.Contains(got, "0.0.0.0:8090->80/tcp") {
		t.Errorf("ps: %s", got)
	}
	if got := n.must(t, "port", "a"); !strings.Contains(got, "53/udp -> 0.0.0.0:8053\n80/tcp -> 0.0.0.0:8080\n80/tcp -> 127.0.0.1:8081\n") {
		t.Errorf("port: %s", got)
	}
	var containers []struct {
		HostConfig      struct{ NetworkMode string }
		NetworkSettings struct {
			Ports    map[string][]struct{ HostIp, HostPort string }
			Networks map[string]struct{ IPAddress, Gateway string }
		}
	}
	if err := json.Unmarshal([]byte(n.must(t, "inspect", "a")), &containers); err != nil || len(containers) != 1 {
		t.Fatalf("inspect: %v", err)
	}
	if a := containers[0]; a.HostConfig.NetworkMode != "web" || a.NetworkSettings.Networks["web"].IPAddress != "10.77.0.5" || len(a.NetworkSettings.Ports["80/tcp"]) != 3 {
		t.Errorf("inspect: %+v", a)
	}
}

// checkChanges connects and disconnects containers that run.
func (n *networked) checkChanges(t *testing.T) {
	t.Helper()
	n.must(t, "network", "connect", "--alias", "friend", "other", "b")
	if r := n.ask(t, "c", "ask", "friend:80"); !strings.HasPrefix(r.stdout, "b ") {
		t.Errorf("after connect: %+v", r)
	}
	if r := n.ask(t, "a", "ask", "b:80"); !strings.HasPrefix(r.stdout, "b ") {
		t.Errorf("after connect, on the first network: %+v", r)
	}
	n.must(t, "network", "disconnect", "other", "b")
	if r := n.ask(t, "c", "ask", "friend:80", soon); r.code == 0 {
		t.Errorf("after disconnect: %+v", r)
	}
	n.must(t, "rename", "b", "renamed")
	if r := n.ask(t, "a", "ask", "renamed:80"); !strings.HasPrefix(r.stdout, "b ") {
		t.Errorf("by the new name: %+v", r)
	}
	n.must(t, "restart", "-t", "0", "renamed")
	waitFor(t, func() bool { return strings.HasPrefix(n.ask(t, "a", "ask", "renamed:80", soon).stdout, "b ") })
}

func (n *networked) checkRefusals(t *testing.T) {
	t.Helper()
	for about, test := range map[string]struct {
		words []string
		args  []string
	}{
		"a port in use":       {[]string{"8080", "in use"}, []string{"run", "--rm", "--network", "web", "-p", "8080:80", "peer", "true"}},
		"an address in use":   {[]string{"10.77.0.5", "in use by container a"}, []string{"run", "--rm", "--network", "web", "--ip", "10.77.0.5", "peer", "true"}},
		"a foreign address":   {[]string{"10.78.0.5", "10.77.0.0/24"}, []string{"run", "--rm", "--network", "web", "--ip", "10.78.0.5", "peer", "true"}},
		"no such network":     {[]string{"nowhere"}, []string{"run", "--rm", "--network", "nowhere", "peer", "true"}},
		"ports without":       {[]string{"--publish", "--network none"}, []string{"run", "--rm", "--network", "none", "-p", "80", "peer", "true"}},
		"no port":             {[]string{"http", "no port"}, []string{"run", "--rm", "--network", "web", "-p", "http", "peer", "true"}},
		"a network in use":    {[]string{"in use", "container"}, []string{"network", "rm", "web"}},
		"the default one":     {[]string{"always there"}, []string{"network", "rm", "bridge"}},
		"a subnet in use":     {[]string{"overlaps"}, []string{"network", "create", "--subnet", "10.77.0.0/16", "more"}},
		"a network twice":     {[]string{"exists"}, []string{"network", "create", "web"}},
		"a driver":            {[]string{"macvlan"}, []string{"network", "create", "-d", "macvlan", "more"}},
		"connected twice":     {[]string{"already"}, []string{"network", "connect", "web", "a"}},
		"not connected":       {[]string{"not connected"}, []string{"network", "disconnect", "other", "a"}},
		"sharing with nobody": {[]string{"no such container"}, []string{"run", "--rm", "--network", "container:nobody", "peer", "true"}},
	} {
		if r := n.try(t, test.args...); r.code == 0 || !containsAll(r.stderr, test.words) {
			t.Errorf("%s: %+v", about, r)
		}
	}
}

// TestReservedAddresses: what --aux-address names no container gets, nor may have.
func TestReservedAddresses(t *testing.T) {
	n := newNetworked(t, "root")
	n.must(t, "network", "create", "--attachable", "--subnet", "10.77.0.0/29", "--subnet", "fd77::/64", "--aux-address", "router=10.77.0.2", "--aux-address", "printer=fd77::4", "web")
	const format = `{{.Attachable}}{{range .IPAM.Config}} {{.Subnet}} {{.AuxiliaryAddresses}}{{end}}`
	if got, want := n.must(t, "network", "inspect", "-f", format, "web"), "true 10.77.0.0/29 map[router:10.77.0.2] fd77::/64 map[printer:fd77::4]\n"; got != want {
		t.Errorf("network inspect: %q, want %q", got, want)
	}
	for _, want := range []string{"10.77.0.3 fd77::3\n", "10.77.0.4 fd77::5\n"} {
		name := "has" + strings.Fields(want)[0]
		n.serve(t, name, "--network", "web")
		if got := n.must(t, "inspect", "-f", "{{.NetworkSettings.Networks.web.IPAddress}} {{.NetworkSettings.Networks.web.GlobalIPv6Address}}", name); got != want {
			t.Errorf("a container has %q, want %q", got, want)
		}
	}
	oneLine(t, n.try(t, "run", "--rm", "--network", "web", "--ip", "10.77.0.2", "peer", "true"), 125, "10.77.0.2 is in use by router")
	oneLine(t, n.try(t, "run", "--rm", "--network", "web", "--ip6", "fd77::4", "peer", "true"), 125, "fd77::4 is in use by printer")
	for about, test := range map[string]struct {
		address string
		words   []string
	}{
		"not of the subnet": {"x=10.78.0.1", []string{"10.78.0.1", "reserved for x", "subnet"}},
		"the gateway's":     {"x=10.79.0.1", []string{"10.79.0.1", "reserved for x", "gateway"}},
		"no address":        {"x=y", []string{"--aux-address", "NAME=ADDRESS"}},
	} {
		t.Run(about, func(t *testing.T) {
			r := n.try(t, "network", "create", "--subnet", "10.79.0.0/24", "--aux-address", test.address, "wrong")
			if r.code == 0 || !containsAll(r.stderr, test.words) {
				t.Errorf("%+v", r)
			}
		})
	}
}

func containsAll(text string, words []string) bool {
	return !slices.ContainsFunc(words, func(w string) bool { return !strings.Contains(text, w) })
}

// TestManyConnections opens a thousand connections through a published port, and answers none before all are there.
func TestManyConnections(t *testing.T) {
	for _, kind := range networkKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			n := newNetworked(t, kind)
			n.must(t, "run", "-d", "--name", "held", "--network", "bridge", "-p", "8080:80", "peer", "peer", "hold", "80", "1000")
			waitFor(t, func() bool { return n.try(t, "logs", "held").stdout == "ready\n" })
			for where, address := range map[string]string{"outside": hostAddress + ":8080", "host": "[::1]:8080"} {
				if r := n.ask(t, where, "ask-many", address, "1000"); r.stdout != "1000\n" {
					t.Errorf("from %s: %+v", where, r)
				}
			}
		})
	}
}

// TestNothingIsLeft kills a container's supervisor, and looks at what the next command leaves of its network.
func TestNothingIsLeft(t *testing.T) {
	for _, kind := range networkKinds {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			n := newNetworked(t, kind)
			n.must(t, "network", "create", "web")
			for _, sweep := range [][]string{{"ps"}, {"rm", "-f", "killed"}, {"network", "prune", "-f"}, {"network", "rm", "web"}} {
				n.serve(t, "killed", "--network", "web", "-p", "8080:80")
				if n.uid == 0 && len(n.left(t)) == 0 {
					t.Fatal("there is no bridge")
				}
				if sweep[0] == "rm" {
					n.must(t, sweep...)
					continue
				}
				var details []struct {
					State struct{ Pid int }
				}
				if err := json.Unmarshal([]byte(n.must(t, "inspect", "killed")), &details); err != nil {
					t.Fatal(err)
				}
				if err := syscall.Kill(parentOf(t, details[0].State.Pid), syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
				waitFor(t, func() bool { return strings.Contains(n.must(t, "ps", "-a"), "Exited (137)") })
				n.must(t, sweep...)
				waitFor(t, func() bool { return len(n.left(t)) == 0 })
				if r := n.try(t, "network", "inspect", "web"); (r.code == 0) != (sweep[0] == "ps") {
					t.Errorf("after %q: %+v", sweep, r)
				}
				n.must(t, "rm", "killed")
				n.try(t, "network", "create", "web")
			}
		})
	}
}

// parentOf is the supervisor of an init.
func parentOf(t *testing.T, pid int) int {
	t.Helper()
	var parent int
	for line := range strings.Lines(string(mustRead(t, fmt.Sprintf("/proc/%d/status", pid)))) {
		fmt.Sscanf(line, "PPid: %d", &parent)
	}
	if parent < 2 {
		t.Fatalf("process %d has no parent", pid)
	}
	return parent
}
