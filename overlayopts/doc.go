// Package overlayopts reads the command lines and option strings by which podman, buildah, containerd and mount(8) ask for
// an overlay mount: those of fuse-overlayfs(1), of the kernel's overlayfs as far as they mean something to a union, and
// the generic ones of mount(8). It opens nothing and knows nothing of unions.
package overlayopts
