package layerstore

// Bounds that keep an image from using memory or time without end. Those of Linux are what a real directory could hold;
// the others are far above every image that is used.
const (
	maxName       = 255     // bytes in one component of a path: NAME_MAX
	maxPath       = 4095    // bytes in a path or the target of a symbolic link: PATH_MAX less its NUL
	maxXattrName  = 255     // bytes: XATTR_NAME_MAX
	maxXattrValue = 1 << 16 // bytes: XATTR_SIZE_MAX
	maxXattrList  = 1 << 16 // bytes of all names of one file: XATTR_LIST_MAX

	maxHeaders  = 8 << 20   // tar headers in a layer
	maxNodes    = 4 << 20   // names in a layer, directories that only the paths imply included
	maxMetadata = 1 << 30   // bytes of names, targets and xattrs in a layer
	maxSpecial  = 16 << 20  // bytes of PAX and GNU headers before one entry
	maxMerged   = 64 << 20  // names in an image
	maxLayers   = 4096      // layers in an image
	maxManifest = 4 << 20   // bytes; what registries accept
	maxConfig   = 8 << 20   // bytes
	maxRecord   = 64 << 20  // bytes of an image's file in the store
	maxLinks    = 255       // hard links to hard links to … across layers
	maxLayer    = 1 << 40   // bytes of an uncompressed layer
	maxWindow   = 512 << 20 // bytes of memory for a zstd frame's window
)
