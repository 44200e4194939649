package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Container is what an [Attachment] knows of its container.
type Container struct {
	ID       string
	Dir      string        // its directory, with the plan
	Lock     string        // the file that its supervisor has locked, by its absolute path
	Hostname string        //
	Name     func() string // asked for again with each update: it can change

	// Hosts and ResolvConf are the files that are mounted on /etc/hosts and /etc/resolv.conf; "" for none.
	Hosts, ResolvConf string
}

// Attachment connects one container, while it runs, to the networks of its plan: interfaces, published ports, name server and
// files in /etc. It belongs to the container's supervisor, and dies with it: what then is left, the next that uses the
// network takes away.
type Attachment struct {
	store     *Store
	container Container
	host      Host

	mu       sync.Mutex
	ns       *os.File // the container's network namespace; nil when not connected
	plan     *Plan
	joined   []*joined // in the order of joining
	resolver *resolver
	left     []*Network // those that it was on, for Tidy
}

// joined is a network that the container is on.
type joined struct {
	*Network
	endpoint *Endpoint
	proxies  []*proxy
}

// NewAttachment prepares a container's connection. A nil host is the network that this process is in.
func NewAttachment(store *Store, c Container, host Host) *Attachment {
	if host == nil {
		host = thisHost{}
	}
	return &Attachment{store: store, container: c, host: host}
}

// Connect connects the container whose process pid has the network namespace. If it fails, nothing is left.
func (a *Attachment) Connect(pid int) (err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", pid)); err != nil {
		return fmt.Errorf("entering the container's network namespace: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.leaveAll())
		}
	}()
	if a.plan, err = ReadPlan(a.container.Dir); err != nil {
		return err
	}
	if a.plan == nil {
		return errors.New("the container's plan for its networks is missing: remove it and make it again")
	}
	if err := raiseLoopback(a.ns); err != nil {
		return fmt.Errorf("bringing up the container's loopback: %w", err)
	}
	for _, m := range a.plan.Networks {
		if err := a.join(m); err != nil {
			return fmt.Errorf("connecting to the network %s: %w", m.Network, err)
		}
	}
	if err := a.startResolver(); err != nil {
		return fmt.Errorf("starting the container's name server: %w", err)
	}
	return a.writeFiles()
}

// Update does what has changed in the plan, and in the container's name.
func (a *Attachment) Update() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.ns == nil {
		return nil
	}
	plan, err := ReadPlan(a.container.Dir)
	if err != nil || plan == nil {
		return err
	}
	a.plan = plan
	for _, j := range slices.Clone(a.joined) {
		if plan.Membership(j.Network) < 0 {
			if err := a.leave(j, true); err != nil {
				return fmt.Errorf("disconnecting from the network %s: %w", j.Name, err)
			}
		}
	}
	for _, m := range plan.Networks {
		at := slices.IndexFunc(a.joined, func(j *joined) bool { return j.ID == m.ID })
		if at < 0 {
			err = a.join(m)
		} else if e := a.joined[at].endpoint; e.Name != a.container.Name() {
			e.Name = a.container.Name()
			err = a.joined[at].writeEndpoint(e)
		}
		if err != nil {
			return fmt.Errorf("connecting to the network %s: %w", m.Network, err)
		}
	}
	return a.writeFiles()
}

// Disconnect disconnects the container; its processes are gone.
func (a *Attachment) Disconnect() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.leaveAll()
}

func (a *Attachment) leaveAll() error {
	var failed []error
	if a.resolver != nil {
		a.resolver.close()
		a.resolver = nil
	}
	for _, j := range slices.Clone(a.joined) {
		failed = append(failed, a.leave(j, false))
	}
	if a.ns != nil {
		a.ns.Close()
		a.ns = nil
	}
	return errors.Join(failed...)
}

// join connects the container to one network.
func (a *Attachment) join(m Membership) (err error) {
	n, err := a.store.Get(m.Network)
	if err == nil && n.ID != m.ID {
		err = fmt.Errorf("%w: it was removed, and there is another of that name: disconnect the container from it and connect it anew", ErrNotFound)
	}
	if err != nil {
		return err
	}
	j := &joined{Network: n, endpoint: &Endpoint{
		ID: randomID(), Container: a.container.ID, Name: a.container.Name(), Aliases: m.Aliases, MAC: m.MAC,
		Owner: a.container.Lock, Interface: a.freeInterface(),
	}}
	j.endpoint.Host = "unv" + j.endpoint.ID[:12]
	leadsOut := !n.Internal && !slices.ContainsFunc(a.joined, func(o *joined) bool { return !o.Internal })
	if leadsOut {
		if err := j.hold(a.host, a.plan.Ports); err != nil {
			return err
		}
	}
	if err := j.connect(m, a.ns, leadsOut); err != nil {
		for _, x := range j.proxies {
			x.close()
		}
		return err
	}
	for _, x := range j.proxies {
		if a.store.Inner {
			x.dial = dialAs
		}
		x.serve(j.endpoint.Address)
	}
	a.joined = append(a.joined, j)
	return nil
}

// hold takes the ports of the host.
func (j *joined) hold(host Host, ports []Port) error {
	for _, p := range ports {
		x, err := hold(host, p)
		if err != nil {
			for _, x := range j.proxies {
				x.close()
			}
			return err
		}
		j.proxies = append(j.proxies, x)
		j.endpoint.Ports = append(j.endpoint.Ports, x.port)
	}
	return nil
}

// connect takes an address and makes what the network is on the host.
func (j *joined) connect(m Membership, ns *os.File, leadsOut bool) error {
	n, e := j.Network, j.endpoint
	lock, err := n.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	others, err := n.sweepLocked()
	if err != nil {
		return err
	}
	if e.Address, err = n.allocate(m.Address, others); err != nil {
		return err
	}
	if e.Address6, err = n.allocate6(m.Address6, e.Address, others); err != nil {
		return err
	}
	if e.MAC == "" {
		e.MAC = hardwareAddress(e.Address).String()
	}
	if err := n.writeEndpoint(e); err != nil {
		return err
	}
	err = n.bringUp()
	if err == nil {
		err = n.plug(e, ns, leadsOut)
	}
	if err == nil {
		err = n.writeRules(append(others, e))
	}
	if err != nil {
		_ = n.unplug(e)
		_ = os.Remove(n.endpointPath(e.Container))
		if len(others) == 0 {
			_ = n.takeDown()
		}
	}
	return err
}

// freeInterface is the name of the container's next interface.
func (a *Attachment) freeInterface() string {
	for i := 0; ; i++ {
		name := fmt.Sprintf("eth%d", i)
		if !slices.ContainsFunc(a.joined, func(j *joined) bool { return j.endpoint.Interface == name }) {
			return name
		}
	}
}

// leave disconnects the container from one network. If it lives on, its interface is taken away.
func (a *Attachment) leave(j *joined, livesOn bool) error {
	a.joined = slices.DeleteFunc(a.joined, func(o *joined) bool { return o == j })
	a.left = append(a.left, j.Network)
	for _, x := range j.proxies {
		x.close()
	}
	lock, err := j.lock()
	if err != nil {
		return err
	}
	defer lock.Close()
	if livesOn {
		if err := j.unplug(j.endpoint); err != nil {
			return err
		}
	}
	if err := os.Remove(j.endpointPath(a.container.ID)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if len(j.endpoint.Ports) == 0 {
		return nil
	}
	others, err := j.sweepLocked()
	if err != nil {
		return err
	}
	return j.writeRules(others)
}

// idleTime is how long a network that nobody is on stays on the host. To take a bridge away takes the kernel longer than to
// start a container, so one after another would be slow.
const idleTime = time.Second

// Tidy takes the networks off the host that nobody is on any more. It waits for a while first: call it when everybody has
// been told of the container's end. If another process waits already, it returns at once.
func (a *Attachment) Tidy() {
	a.mu.Lock()
	left := a.left
	a.left = nil
	a.mu.Unlock()
	var waiting []*Network
	for _, n := range left {
		f, err := os.OpenFile(n.path("idle"), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
		if err != nil {
			continue // removed
		}
		defer f.Close()
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			waiting = append(waiting, n)
		}
	}
	if len(waiting) == 0 {
		return
	}
	time.Sleep(idleTime)
	for _, n := range waiting {
		n.tidy()
	}
}

func (n *Network) tidy() {
	lock, err := n.lock()
	if err != nil {
		return
	}
	defer lock.Close()
	if alive, err := n.sweepLocked(); err == nil && len(alive) == 0 {
		_ = n.takeDown() // the next that uses the network makes good what this can't
	}
}

// inNamespace calls f on a thread that is in the network namespace ns: sockets that it opens are there.
func inNamespace(ns *os.File, f func() error) error {
	return onThread(func() error {
		if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("entering the network namespace: %w", err)
		}
		return f()
	})
}

// onThread calls f on a thread of its own, whose namespaces f may change.
func onThread(f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		result <- f()
	}()
	return <-result
}

// startResolver opens the container's name server.
func (a *Attachment) startResolver() error {
	r := &resolver{find: a, host: a.host, servers: a.servers}
	if err := inNamespace(a.ns, func() error { return r.listen(":0") }); err != nil {
		return err
	}
	if err := r.redirect(a.ns); err != nil {
		// Without address translation the port 53 is ours itself.
		r.close()
		if err := inNamespace(a.ns, func() error { return r.listen(":53") }); err != nil {
			return err
		}
	}
	r.serve()
	a.resolver = r
	return nil
}

// servers are the name servers for what isn't a container's name.
func (a *Attachment) servers() []netip.Addr {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.plan == nil || !slices.ContainsFunc(a.joined, func(j *joined) bool { return !j.Internal }):
		return nil
	case len(a.plan.Servers) > 0:
		return a.plan.Servers
	}
	servers, _, _ := hostServers()
	return servers
}

// addresses finds a container by NAME or NAME.NETWORK among those on our networks.
func (a *Attachment) addresses(name string) (found []netip.Addr) {
	a.eachNeighbour(func(n *Network, e *Endpoint) {
		names := e.names()
		if short, ok := strings.CutSuffix(name, "."+strings.ToLower(n.Name)); slices.Contains(names, name) || ok && slices.Contains(names, short) {
			found = append(found, e.Address)
			if e.Address6.IsValid() {
				found = append(found, e.Address6)
			}
		}
	})
	return found
}

func (a *Attachment) name(address netip.Addr) (found string) {
	a.eachNeighbour(func(n *Network, e *Endpoint) {
		if e.Address == address || e.Address6 == address {
			found = e.Name + "." + n.Name
		}
	})
	return found
}

// eachNeighbour calls f with all that is on our networks, where names resolve.
func (a *Attachment) eachNeighbour(f func(*Network, *Endpoint)) {
	a.mu.Lock()
	networks := slices.Clone(a.joined)
	a.mu.Unlock()
	for _, j := range networks {
		if j.Name == DefaultName {
			continue
		}
		endpoints, err := j.Endpoints()
		if err != nil {
			continue
		}
		for _, e := range endpoints {
			f(j.Network, e)
		}
	}
}
