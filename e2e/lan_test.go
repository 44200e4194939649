package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"unionfs/internal/testimage"
)

// lan is a network of the test's own: a machine, on which callers run their commands, and another one beyond it. Both are
// network namespaces, so their kernel parameters, interfaces and firewalls are their own too.
type lan struct {
	host, outside string // paths of the network namespaces
}

// The addresses of the two.
const (
	hostAddress    = "192.0.2.1"
	outsideAddress = "192.0.2.2"
)

// newLAN makes a network. When the test ends, nothing of the caller's may be left in it.
func newLAN(t *testing.T) *lan {
	t.Helper()
	l := &lan{}
	l.host = l.machine(t, `ip link set lo up; echo 1 > /proc/sys/net/ipv4/ip_forward`)
	l.outside = l.machine(t, fmt.Sprintf(`ip link set lo up
		ip link add wire type veth peer name eth0 netns %s
		ip addr add %s/24 dev wire; ip link set wire up
		nsenter --net=%[3]s ip addr add %s/24 dev eth0
		nsenter --net=%[3]s ip link set eth0 up
		nsenter --net=%[3]s ip route add default via %[2]s`, strings.Split(l.host, "/")[2], outsideAddress, l.host, hostAddress))
	return l
}

// machine makes a network namespace, set up by a script.
func (l *lan) machine(t *testing.T, script string) string {
	t.Helper()
	holder := exec.Command("unshare", "--net", "--mount", "sh", "-euc", script+"\necho ready; exec sleep infinity")
	holder.Stderr = os.Stderr
	startReady(t, holder)
	return fmt.Sprintf("/proc/%d/ns/net", holder.Process.Pid)
}

// inside makes a command run in a network namespace.
func inside(ns string, command *exec.Cmd) *exec.Cmd {
	command.Args = append([]string{"nsenter", "--net=" + ns, "--"}, command.Args...)
	command.Path = "/usr/bin/nsenter"
	return command
}

// serveOutside has somebody beyond the machine answer on ports, by TCP and UDP, until the test ends.
func (l *lan) serveOutside(t *testing.T, ports ...string) {
	t.Helper()
	startReady(t, inside(l.outside, exec.Command(peerProgram(t), append([]string{"serve"}, ports...)...)))
}

// startReady starts a command, which is killed when the test ends, and waits until it says that it is ready.
func startReady(t *testing.T, command *exec.Cmd) {
	t.Helper()
	output, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { command.Process.Kill(); command.Wait() })
	if line, err := bufio.NewReader(output).ReadString('\n'); line != "ready\n" {
		t.Fatalf("%q said %q: %v", command.Args, line, err)
	}
}

// left lists what is in the machine's network besides what newLAN made: interfaces and tables of the firewall.
func (l *lan) left(t *testing.T) (found []string) {
	t.Helper()
	ns, err := netns.GetFromPath(l.host)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	links, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer links.Close()
	all, err := links.LinkList()
	for errors.Is(err, netlink.ErrDumpInterrupted) { // one came or went meanwhile
		all, err = links.LinkList()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, link := range all {
		if name := link.Attrs().Name; name != "lo" && name != "eth0" {
			found = append(found, "interface "+name)
		}
	}
	firewall, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		t.Fatal(err)
	}
	tables, err := firewall.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		found = append(found, "table "+table.Name)
	}
	return found
}

// peerProgram builds the program of e2e/peer, and the one that ordinary users' networks need, once.
func peerProgram(t *testing.T) string {
	t.Helper()
	buildPeer.Do(func() {
		build := exec.Command("go", "build", "-buildvcs=false", "-ldflags", "-s -w", "-o", shared.dir, "./peer", "../cmd/unionfs-uplink")
		build.Env = append(build.Environ(), "CGO_ENABLED=0")
		// As udev leaves it; without udev it is root's alone.
		if err := os.Chmod("/dev/net/tun", 0o666); err != nil {
			t.Error(err)
		}
		if out, err := build.CombinedOutput(); err != nil {
			t.Errorf("building the programs of the network tests: %v\n%s", err, out)
		}
	})
	if t.Failed() {
		t.FailNow()
	}
	return filepath.Join(shared.dir, "peer")
}

var buildPeer sync.Once

// peerFiles are an image with busybox and the peer.
func peerFiles(t *testing.T) []testimage.File {
	t.Helper()
	return append(testimage.BusyboxFiles(t), testimage.File{Name: "bin/peer", Content: mustRead(t, peerProgram(t)), Mode: 0o755})
}
