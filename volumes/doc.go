// Package volumes says what is mounted where in a container besides its root: it reads -v, --mount and --tmpfs, keeps
// named volumes, and gives the mounts of the OCI runtime specification.
//
// On disk a named volume is the directory ROOT/volumes/NAME with
//
//	volume.json   what is known of it: Info, and whether it still waits for an image's content
//	_data         its content, which is mounted as it is: no file system of ours is between
//	filling       content that is being copied from an image; removed if the copy was cut short
//	filled        such content, whole, on its way into _data
//
// A volume is made in a directory ROOT/volumes/.new-… and renamed when it is whole, and renamed to .removing-… before it is
// removed. A directory without volume.json is one that an older version made; a volume.json that can't be read counts as none.
//
// There is one lock for each volume, an flock(2) on its directory. Who creates a container holds it shared until the container
// can be found, so that a volume is not removed meanwhile; who fills or removes one holds it exclusively.
package volumes
