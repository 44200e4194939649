package cow

import (
	"strings"

	"golang.org/x/sys/unix"
)

// The marks by which a directory on disk says what it hides. All forms are read; which are written depends on what the
// host lets us do. Kernel: Documentation/filesystems/overlayfs.rst, fs/overlayfs/super.c. fuse-overlayfs and the OCI
// layer format: the .wh. names (image-spec layer.md).
const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"

	trustedPrefix = "trusted.overlay."
	userPrefix    = "user.overlay."
	fusePrefix    = "user.fuseoverlayfs."

	// What only this program needs: the origin of a copied-up file. Symbolic links, devices and the like can't have
	// user xattrs, so theirs are trusted ones, where this process may set those.
	ownPrefix        = "user.unionfs."
	ownTrustedPrefix = "trusted.unionfs."
	originXattr      = "origin"
)

// opaquePrefixes is the order in which a directory's opaque mark is looked for.
var opaquePrefixes = [...]string{trustedPrefix, userPrefix, fusePrefix}

// isWhiteoutDevice reports whether a stat result is the kernel's whiteout: character device 0/0.
func isWhiteoutDevice(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// markedOpaque reads a directory's opaque xattrs: 'y' is opaque, 'x' (kernel 6.7) says that it may hold xattr whiteouts.
func markedOpaque(dir int, name string) (opaque, xattrWhiteouts bool, err error) {
	attrs, err := listxattrAt(dir, name)
	if err != nil {
		if noXattr(err) {
			return false, false, nil
		}
		return false, false, err
	}
	for _, p := range opaquePrefixes {
		for _, a := range attrs {
			if a != p+"opaque" {
				continue
			}
			v, err := getxattrAt(dir, name, a)
			if err != nil && !noXattr(err) {
				return false, false, err
			}
			switch string(v) {
			case "y":
				opaque = true
			case "x":
				xattrWhiteouts = true
			}
		}
	}
	return opaque, xattrWhiteouts, nil
}

// overlayXattr reads overlay.NAME of a file in either namespace; nil if it has none.
func overlayXattr(dir int, file, name string) ([]byte, error) {
	for _, p := range [...]string{trustedPrefix, userPrefix} {
		v, err := getxattrAt(dir, file, p+name)
		if err == nil {
			return v, nil
		}
		if !noXattr(err) {
			return nil, err
		}
	}
	return nil, nil
}

// metadataOnly reports whether a file has overlay.metacopy, and if so where overlay.redirect says that its data is.
func metadataOnly(dir int, file string) (is bool, redirect string, err error) {
	v, err := overlayXattr(dir, file, metacopyXattr)
	if err != nil || v == nil {
		return false, "", err
	}
	v, err = overlayXattr(dir, file, "redirect")
	return true, string(v), err
}

// ownXattr reads one of the attributes that are only this program's; ENODATA if the file has none.
func ownXattr(dir int, file, name string) ([]byte, error) {
	v, err := getxattrAt(dir, file, ownPrefix+name)
	if noXattr(err) {
		v, err = getxattrAt(dir, file, ownTrustedPrefix+name)
	}
	return v, err
}

// setOwnXattr sets one. The error is EPERM or EOPNOTSUPP if the file can't have it.
func setOwnXattr(dir int, file, name string, value []byte) error {
	err := setxattrAt(dir, file, ownPrefix+name, value, 0)
	if err == unix.EPERM {
		err = setxattrAt(dir, file, ownTrustedPrefix+name, value, 0)
	}
	return err
}

// privateXattr reports whether an attribute on disk belongs to the format and is not shown in the union.
func privateXattr(name string) bool {
	return strings.HasPrefix(name, trustedPrefix) || strings.HasPrefix(name, userPrefix) ||
		strings.HasPrefix(name, fusePrefix) || strings.HasPrefix(name, ownPrefix) || strings.HasPrefix(name, ownTrustedPrefix)
}

// escapeXattr is the name on disk of a user's own attribute: overlay.X is kept as overlay.overlay.X, so that a union can
// stand in a union (fs/overlayfs/xattrs.c, ovl_xattr_escape_name).
func escapeXattr(name string) string {
	for _, p := range [...]string{trustedPrefix, userPrefix} {
		if rest, ok := strings.CutPrefix(name, p); ok {
			return p + "overlay." + rest
		}
	}
	return name
}

// unescapeXattr is the name in the union of an attribute on disk; false if it is not shown.
func unescapeXattr(name string) (string, bool) {
	for _, p := range [...]string{trustedPrefix, userPrefix} {
		if rest, ok := strings.CutPrefix(name, p+"overlay."); ok {
			return p + rest, true
		}
	}
	return name, !privateXattr(name)
}
