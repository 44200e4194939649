// Package rootfs makes what is served as somebody's root: unions of images, of containers, and of this machine's own root, with the
// owners that there can be, by a server that another one may have been before (see package holder).
package rootfs
