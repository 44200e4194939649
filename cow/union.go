// Package cow is the union itself: any number of read-only lower branches and at most one writable upper branch, merged
// into one tree, with copy-up, whiteouts, renames and the difference between the top and the rest. It is a library over
// directory handles and knows nothing of FUSE, images or containers.
package cow

// Union is a merged tree.
type Union struct{}

// Node is a file of the union that somebody holds: one for all hard links of a file, for as long as its reference count
// (Lookup, Create and their like add one, Forget takes away) is above zero. The root is always held.
type Node struct{}
