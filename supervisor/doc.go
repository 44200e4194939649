// Package supervisor is what a container's supervisor, P1, is beyond package runner, which has its processes: it mounts the container's
// root, has another process serve that in time, fills its volumes and connects its network. It also tells what a container's
// annotations say of these.
package supervisor
