// Package network connects containers: to one another, to their host, and to what is beyond it. It knows networks, addresses,
// names and ports; of a container it knows a process whose network namespace it has, and a lock that is held as long as its
// supervisor lives.
//
// A [Store] holds the networks. What a container wants of them is a [Plan] in its directory. The container's supervisor makes
// an [Attachment], which does as the plan says while the container runs: a pair of interfaces for each network, one end in
// the container and the other on the network's Linux bridge; address translation and filtering by nftables; a name server in
// the container's network namespace; and, for each published port, a socket that holds the port of the host and passes on
// what the firewall doesn't translate. There is no daemon: whoever starts or removes a container takes away what containers
// that were killed have left behind.
//
// docs/network.md describes every file, interface and rule.
package network
