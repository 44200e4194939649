// Package layerstore keeps container images on disk as layers that are never unpacked, and hands them to the union as
// branches.
//
// A layer is its uncompressed tar, byte for byte what its diff ID is the SHA-256 of, and an index of that tar: sorted
// fixed-width records that are memory-mapped. The indexes of an image's layers are merged once, when the image arrives,
// into one index that is named by the image's chain ID. A mounted image reads that one index and, for file data, the tars
// by offset. No path of an image is ever a path of the host.
//
// Any number of processes may use one store. What is published is complete: everything is written in a staging
// directory, flushed, and then renamed into place. docs/layerstore.md describes every file.
package layerstore
