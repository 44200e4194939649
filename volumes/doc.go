// Package volumes says what is mounted where in a container besides its root: it reads -v, --mount and --tmpfs, keeps
// named volumes, and gives the mounts of the OCI runtime specification.
//
// On disk a named volume is the directory ROOT/volumes/NAME/_data and no more. A name without _data is what an
// interrupted creation left; the next use completes it.
package volumes
