package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// TestUplinks reaches the outside, by TCP, UDP and a name, through each program that can be the way out of an ordinary user's networks.
func TestUplinks(t *testing.T) {
	for _, program := range []string{"builtin", "slirp4netns", "pasta"} {
		if _, err := exec.LookPath(program); err != nil && program != "builtin" {
			t.Errorf("%v: \"make test-deps\" installs it", err)
			continue
		}
		for _, kind := range []string{"user with subordinate IDs", "user without subordinate IDs"} {
			t.Run(program+"/"+kind, func(t *testing.T) {
				t.Parallel()
				n := newNetworked(t, kind)
				n.uplink = program
				n.serveOutside(t, "80", "53")
				n.must(t, "network", "create", "web")
				n.serve(t, "a", "--network", "web", "-p", "8080:80")
				n.serve(t, "b", "--network", "web")
				// The program sets the interface up by itself, after the container has started.
				waitFor(t, func() bool { return n.ask(t, "a", "ask", outsideAddress+":80", soon).code == 0 })
				for about, test := range map[string]struct{ where, verb, address, want string }{
					"out":               {"a", "ask", outsideAddress + ":80", " " + hostAddress + ":"},
					"out by UDP":        {"b", "ask-udp", outsideAddress + ":53", " " + hostAddress + ":"},
					"one another":       {"b", "ask", "a:80", "a "},
					"in":                {"outside", "ask", hostAddress + ":8080", "a " + outsideAddress + ":"},
					"the machine's own": {"host", "ask", "127.0.0.1:8080", "a "},
				} {
					if r := n.ask(t, test.where, test.verb, test.address); !strings.Contains(r.stdout, test.want) {
						t.Errorf("%s: from %s, %s gives %+v, want %q", about, test.where, test.address, r, test.want)
					}
				}
				if log := string(mustRead(t, n.root+"/networks/holder.log")); strings.Contains(log, "ended") || strings.Contains(log, "nothing beyond") {
					t.Errorf("holder.log: %s", log)
				}
			})
		}
	}
}
